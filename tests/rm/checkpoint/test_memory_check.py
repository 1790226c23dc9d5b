"""Weights against memory: the kernel's numbers, control groups of both versions, GPUs; and the error with the numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from rm.checkpoint import memory_check
from rm.checkpoint.memory_check import available_bytes, refuse_too_large, weights_bytes
from rm.identity import ModelError
from rm.scorer import Scorer

MIB = 2**20


@pytest.fixture
def machine(tmp_path):
    """(files by path below /proc or /sys/fs/cgroup) → what is available."""

    def available(**files: str) -> int | None:
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return available_bytes(tmp_path / "proc", tmp_path / "cgroup")

    (tmp_path / "proc" / "self").mkdir(parents=True)
    return available


MEMINFO = "MemTotal:       100000 kB\nMemFree:         3000 kB\nMemAvailable:   20000 kB\nCached: 1 kB\n"


def test_the_kernel_says_what_is_available(machine):
    assert machine(proc__meminfo=MEMINFO) == 20000 * 1024


def test_other_systems_are_not_asked(machine):
    assert machine() is None


def test_a_containers_limit_counts_without_its_page_cache(machine):
    files = {
        "proc__meminfo": MEMINFO,
        "proc__self__cgroup": "0::/\n",
        "cgroup__memory.max": f"{8 * MIB}\n",
        "cgroup__memory.current": f"{5 * MIB}\n",
        "cgroup__memory.stat": f"anon 7\ninactive_file {MIB}\nactive_file {MIB // 2}\nunevictable 0\n",
    }
    assert machine(**files) == 3 * MIB + MIB + MIB // 2
    assert machine(**{**files, "cgroup__memory.max": "max\n"}) == 20000 * 1024
    assert machine(**{**files, "cgroup__memory.max": f"{900 * MIB}\n"}) == 20000 * 1024, "the machine has less"
    assert machine(**{**files, "cgroup__memory.max": f"{MIB}\n"}) == 0, "over its limit"


def test_groups_above_count_too(machine):
    own = {"proc__meminfo": MEMINFO, "proc__self__cgroup": "0::/user.slice/job\n"}
    own |= {"cgroup__user.slice__job__memory.max": "max\n", "cgroup__user.slice__job__memory.current": "5\n"}
    above = {"cgroup__user.slice__memory.max": f"{2 * MIB}\n", "cgroup__user.slice__memory.current": f"{MIB}\n"}
    assert machine(**own, **above) == MIB


def test_the_first_version_of_control_groups(machine):
    files = {
        "proc__meminfo": MEMINFO,
        "proc__self__cgroup": "4:memory:/job\n3:cpu,cpuacct:/x\n0::/\n",
        "cgroup__memory__job__memory.limit_in_bytes": f"{4 * MIB}\n",
        "cgroup__memory__job__memory.usage_in_bytes": f"{3 * MIB}\n",
        "cgroup__memory__job__memory.stat": f"inactive_file 9\ntotal_inactive_file {MIB // 4}\n",
        "cgroup__memory__memory.limit_in_bytes": "9223372036854771712\n",
        "cgroup__memory__memory.usage_in_bytes": "1\n",
    }
    assert machine(**files) == MIB + MIB // 4


def stored_parameters(directory: Path) -> int:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 — it is no mapping


@pytest.mark.parametrize(("dtype", "each"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_weights_take_what_their_type_takes(causal, dtype, each):
    assert weights_bytes(causal, dtype) == each * stored_parameters(causal)


def load(directory: Path, dtype: str = "float32") -> Scorer:
    return Scorer.load(directory, dtype=dtype, max_length=64, too_long="truncate", tokens_per_batch=None, device="cpu")


def test_a_model_that_does_not_fit_is_not_loaded(causal, monkeypatch):
    needed = weights_bytes(causal, "float32")
    monkeypatch.setattr(memory_check, "available_bytes", lambda: needed - 1)
    with pytest.raises(
        ModelError, match=rf"take {needed:,} bytes in float32, and this machine has {needed - 1:,} bytes of mem"
    ):
        load(causal)
    load(causal, dtype="float16")
    monkeypatch.setattr(memory_check, "available_bytes", lambda: needed)
    load(causal)
    monkeypatch.setattr(memory_check, "available_bytes", lambda: None)
    load(causal)


def test_a_gpu_is_asked_what_it_has_free(causal, monkeypatch):
    needed = weights_bytes(causal, "bfloat16")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (needed - 1, 10 * needed))
    with pytest.raises(
        ModelError, match=rf"take {needed:,} bytes in bfloat16, and NVIDIA L4 has {needed - 1:,} bytes free"
    ):
        refuse_too_large(causal, dtype="bfloat16", devices=["cuda"])
    refuse_too_large(causal, dtype="bfloat16", devices=["cpu"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (needed, 10 * needed))
    refuse_too_large(causal, dtype="bfloat16", devices=["cuda:0"])
