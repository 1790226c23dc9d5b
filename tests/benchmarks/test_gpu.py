"""The benchmark for GPUs, dry: all of it runs on a CPU, without Beam and what else `pipelines` needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
WITHOUT = ("apache_beam", "pydantic", "pyarrow", "sentence_transformers", "datasets", "pipelines")


@pytest.mark.slow
def test_the_dry_benchmark_measures_everything_with_few_packages():
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({WITHOUT!r})); "
        f"sys.argv = ['gpu.py', '--dry']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    [line] = done.stdout.splitlines()
    results = json.loads(line)
    assert results["failed"] == {}
    assert results["skipped"] == []
    assert results["checks"].keys() == {"qwen3_0.6b", "gemma2_2b", "llama_8b"}
    for model in ("qwen3_0.6b", "llama_8b"):
        assert results["checks"][model]["float32"] < 1e-5
        for rates in results["rates"][model].values():
            assert all(rate["rows_per_sec"] > 0 for rate in rates.values())
            assert rates.keys() == {"shared", "unshared", "padded", "padded_32"}
    assert results["training"]["qwen3_0.6b"]["steps_per_sec"] > 0
    memory = results["memory"]["llama_8b"]
    assert 0.8 < memory["predicted_bytes"] / memory["true_bytes"] < 1.25
    assert memory["planted"]["tokens_after"] < memory["planted"]["tokens_before"]
    assert memory["planted"]["failures"] == 0
    assert memory["planted"]["error"] < 1e-5
