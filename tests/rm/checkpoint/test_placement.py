"""Models spread over devices: which part goes where, and the rewards of one device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.classifiers import build
from support.tiny_models import save_sized
from transformers import AutoModelForSequenceClassification

from rm.checkpoint import placement
from rm.checkpoint.load import load_for_scoring
from rm.checkpoint.placement import choose_devices, plan_placement
from rm.identity import ModelError
from rm.scorer import Scorer

GROUPS = [
    ((("user", "what is the answer"),), ["it is the answer", "no", "the answer of the answer is it"]),
    ((("user", "why"),), ["the", "it is"]),
]


def stub_gpus(monkeypatch, *free):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free[int(str(number).rpartition(":")[2])], 10**12))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)


def test_as_many_gpus_as_are_asked_for_or_as_the_weights_need(causal, monkeypatch):
    needed = placement.weights_bytes(causal, "float32")
    stub_gpus(monkeypatch, needed, needed, needed)

    def choose(requested, device="cuda"):
        return choose_devices(causal, device, requested, dtype="float32")

    assert choose(1) == ("cuda",)
    assert choose(3) == ("cuda:0", "cuda:1", "cuda:2")
    assert choose("auto") == ("cuda:0", "cuda:1"), "the weights alone would fill one"
    stub_gpus(monkeypatch, 2 * needed, needed)
    assert choose("auto") == ("cuda",)
    stub_gpus(monkeypatch, needed // 4, needed // 4)
    assert choose("auto") == ("cuda:0", "cuda:1"), "all that there are; the check of memory says that it is not enough"
    assert choose("auto", "cpu") == choose(1, "cpu") == ("cpu",)
    with pytest.raises(
        ModelError, match=r"is 3, and this process sees 2 GPUs \(0: NVIDIA L4, 1: NVIDIA L4\); expected 2 or"
    ):
        choose(3)
    with pytest.raises(ModelError, match="is 2, and the model runs on cpu, which is one device; expected 1 or auto"):
        choose(2, "cpu")


def test_weights_that_several_gpus_do_not_hold_are_refused_before_they_are_loaded(causal, monkeypatch):
    needed = placement.weights_bytes(causal, "float32")
    stub_gpus(monkeypatch, needed // 2, needed // 2 - 1)
    with pytest.raises(
        ModelError, match=rf"and NVIDIA L4 and NVIDIA L4 have {needed - 1 - needed % 2:,} bytes free; .*model.devices"
    ):
        Scorer.load(
            causal, dtype="float32", max_length=64, too_long="truncate", tokens_per_batch=None, device="cuda", devices=2
        )


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Bert", "Electra", "DebertaV2"])
def test_layers_stay_whole_and_in_order_and_every_weight_has_a_place(name, monkeypatch):
    stub_gpus(monkeypatch, 10**9, 10**9)
    model = build(name)
    parts = plan_placement(model, ["cuda:0", "cuda:1"], itemsize=4)
    for weight, _ in model.named_parameters():
        assert sum(weight == part or weight.startswith(f"{part}.") for part in parts) == 1, weight
    layers = [device for part, device in parts.items() if part.rpartition(".")[2].isdigit()]
    assert layers == sorted(layers)
    assert set(parts.values()) == {"cuda:0", "cuda:1"}
    assert not any(part.count(".") > 3 for part in parts)


def test_a_device_gets_weights_in_proportion_to_its_memory(tmp_path, monkeypatch):
    directory = save_sized(tmp_path / "model", "causal", hidden=32, layers=8)
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    total = 4 * sum(weight.numel() for weight in model.parameters())

    def layers_on(*free):
        stub_gpus(monkeypatch, *free)
        devices = [f"cuda:{number}" for number in range(len(free))]
        parts = plan_placement(model, devices, itemsize=4)
        return [sum(device == name and "layers" in part for part, device in parts.items()) for name in devices]

    assert layers_on(total, total) == [4, 4]
    assert layers_on(3 * total, total) == [6, 2]
    assert layers_on(total, total, total, total) == [2, 2, 2, 2]
    with pytest.raises(
        ModelError, match=r"cuda:0 would hold .* of the weights' .* bytes, and has .* free; set a larger"
    ):
        layers_on(total // 4, total // 4)


@pytest.mark.parametrize("kind", ["causal", "encoder"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_spread_model_has_the_rewards_of_one_device(kind, packed, request, monkeypatch):
    """The hooks that move a batch from part to part run, though both devices are the CPU."""
    directory = request.getfixturevalue(kind)
    if not packed:
        monkeypatch.setattr("rm.scorer.enable_packing", lambda *_, **__: False)

    def rewards(dtype):
        scorer = Scorer.load(
            directory, dtype=dtype, max_length=64, too_long="truncate", tokens_per_batch=None, device="cpu"
        )
        hooks = sum(hasattr(module, "_hf_hook") for module in scorer.model.model.modules())
        assert scorer.packed == packed
        return hooks, np.concatenate([scores.rewards for scores in scorer.score(GROUPS)])

    for dtype in ("float32", "bfloat16", "int8"):
        _, alone = rewards(dtype)
        with monkeypatch.context() as patch:
            patch.setattr("rm.scorer.choose_devices", lambda *_, **__: ("cpu", "cpu"))
            hooks, spread = rewards(dtype)
        assert hooks > 3
        assert spread == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("devices", [("cuda",), ("cuda:0", "cuda:1")])
def test_weights_are_loaded_straight_to_their_devices(causal, monkeypatch, devices):
    maps = []

    def remember(*_, device_map=None, **__):
        maps.append(device_map)
        raise RuntimeError("no GPU here")

    stub_gpus(monkeypatch, *[10**9] * 2)
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", remember)
    with pytest.raises(ModelError, match="no GPU here"):
        load_for_scoring(causal, dtype="bfloat16", device="cuda", devices=devices)
    with pytest.raises(ModelError, match="no GPU here"):  # 8-bit weights are made in the machine's memory
        load_for_scoring(causal, dtype="int8", device="cuda", devices=devices)
    assert set(maps[0].values()) == set(devices)
    assert maps[1] is None


PROGRAM = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from support.classifiers import build
from rm.checkpoint import placement
from rm.checkpoint.reward_model import Float32Head, RewardModel
from rm.engine import attention_plan, packed_attention, packed_forward
from rm.engine.layout import lay_out

class Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

class OneDevice(TorchDispatchMode):
    # also those that fake tensors let pass, such as indexing
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.ndim]
        assert len({tensor.device for tensor in tensors}) < 2, func
        return func(*args, **(kwargs or {}))

backend_registration._setup_privateuseone_for_python_backend("gpu", Backend())

def host_tensor(values, device, *, dtype=torch.long):
    return torch.zeros(len(values), dtype=dtype)

packed_forward.host_tensor = host_tensor
attention_plan.to_device = lambda values, device, *, dtype=torch.long: host_tensor(values, device, dtype=dtype).to(device)
placement.free_bytes = lambda device: 10**9
ROWS = [[([1, 2, 3, 4], None), ([1, 2, 5, 6, 7], None)], [([9, 8], None)]]
for name, causal in (("Llama", True), ("Bert", False)):
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = Float32Head.wrap(build(name).eval())
        parts = placement.plan_placement(model, ["gpu:0", "gpu:1"], itemsize=4)
        for part, device in parts.items():
            for module in model.get_submodule(part).modules():
                for key, value in module._parameters.items():
                    if value is not None:
                        module._parameters[key] = torch.nn.Parameter(torch.empty(value.shape, device=device))
                for key, value in module._buffers.items():
                    module._buffers[key] = torch.empty(value.shape, device=device, dtype=value.dtype)
        placement.spread(model, parts)
        assert placement.devices_of(model) == ["gpu:0", "gpu:1"]
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients), OneDevice():
                ids = torch.zeros(3, 7, dtype=torch.long, device="gpu:0")
                assert RewardModel(model)(ids, ids[:, 0]).shape == (3,)
                implementation = model.config._attn_implementation
                model.set_attn_implementation(packed_attention.ATTENTION_NAME)
                layout = lay_out(ROWS, share=causal, pad=0, first_position=0)
                rewards = packed_forward.packed_rewards(model, layout, causal=causal)
                assert (rewards.shape, rewards.device) == ((3,), torch.device("gpu:1"))
                model.set_attn_implementation(implementation)
print("PLACED")
"""


@pytest.mark.slow
def test_indices_follow_the_layers_from_device_to_device():
    """Shapes and devices without values, on two devices of a kind made for this: an operation on both is an error."""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert result.stdout == "PLACED\n", result.stderr[-3000:]
