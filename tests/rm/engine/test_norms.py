"""RMS norms that run as one operation: the same results up to rounding, fewer operations, and nothing else replaced."""

from __future__ import annotations

import pytest
import torch
from support.classifiers import build
from torch import nn

from rm.engine.norms import fuse_norms
from rm.scorer import Scorer


class Operations(torch.overrides.TorchFunctionMode):
    """Counts the operations that Python calls; on a GPU each is a kernel or more."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", str(func))
        if name not in ("__get__", "size", "dim") and not name.startswith("is_"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def operations(module, states) -> int:
    with Operations() as counted:
        module(states)
    return len(counted.names)


def norms_of(model) -> list:
    return [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]


def shaken(name: str, dtype: torch.dtype) -> nn.Module:
    model = build(name).eval()
    torch.manual_seed(1)
    for norm in norms_of(model):
        norm.weight.data += 0.3 * torch.randn_like(norm.weight)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma2", "Mistral"])
@torch.inference_mode()
def test_norms_give_the_same_by_fewer_operations(name, dtype):
    plain, fused = shaken(name, dtype), shaken(name, dtype)
    norms = norms_of(plain)
    assert fuse_norms(fused) == len(norms) > 4
    for one, other in zip(norms, norms_of(fused), strict=True):
        states = torch.randn(1, 5, len(one.weight)).to(dtype)
        expected, got = one(states), other(states)
        assert got.dtype == expected.dtype
        within = 4 * torch.finfo(dtype).eps * expected.float().abs().clamp_min(1e-3)
        assert ((got.float() - expected.float()).abs() <= within).all()
        before, after = operations(one, states), operations(other, states)
        assert after <= before - 2
        assert name == "Gemma2" or after <= 2
    ids = torch.arange(5, 17)[None]
    limit = 1e-4 if dtype == torch.float32 else 0.1
    assert plain(ids).logits[0, 0].item() == pytest.approx(fused(ids).logits[0, 0].item(), abs=limit)


def test_a_norm_that_computes_something_else_stays():
    class OtherRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, states):
            return self.weight * states / (states.pow(2).mean(-1, keepdim=True).sqrt() + 0.1)

    model = nn.Sequential(OtherRMSNorm(), nn.LayerNorm(8))
    assert fuse_norms(model) == 0
    assert not any("forward" in vars(module) for module in model.modules())


def test_on_a_cpu_norms_are_as_transformers_has_them(causal):
    """There one operation is no faster, and would change rewards in their last bits."""
    scorer = Scorer.load(
        causal, dtype="float32", max_length=64, too_long="truncate", tokens_per_batch=None, device="cpu"
    )
    assert norms_of(scorer.model)
    assert not any("forward" in vars(norm) for norm in norms_of(scorer.model))


def test_a_norm_that_takes_more_than_states_is_left_alone():
    class GatedRMSNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, states, gate):
            return states * gate

    assert fuse_norms(torch.nn.Sequential(GatedRMSNorm())) == 0
