"""A simulated GPU: tensors that appear to be on it but are computed on the CPU, and a record of every wait for it.

The tensors report the meta device, which a torch without CUDA accepts from any operation.
"""

from __future__ import annotations

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

GPU = torch.device("meta")
_WAITING = ("item", "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero")


class _OnGpu(torch.Tensor):
    """A tensor on the GPU; `value` holds its numbers."""

    @staticmethod
    def __new__(cls, value):
        options = {"strides": value.stride(), "dtype": value.dtype, "device": GPU}
        self = torch.Tensor._make_wrapper_subclass(cls, value.shape, **options)
        self.value = value
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of the mode")


class StubGpu(TorchDispatchMode):
    """While it is on, tensors can be moved to a GPU; `waits` names the operations that wait for it, in their order."""

    def __init__(self):
        super().__init__()
        self.waits = []
        self._counting = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # a composite operation may come whole in inference mode, with its device among the others
        names = [argument.name for argument in func._schema.arguments]
        place = names.index("device") if "device" in names else len(args)
        kwargs = {**dict(zip(names[place:], args[place:], strict=False)), **(kwargs or {})}
        args = args[:place]
        name = func._schema.name.removeprefix("aten::")
        inputs = [*args, *kwargs.values()]
        on_gpu = any(isinstance(leaf, _OnGpu) for leaf in torch.utils._pytree.tree_leaves(inputs))
        target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        self._count(name, func, args, kwargs, on_gpu=on_gpu, target=target)
        result = func(*tree_map(_off, args), **tree_map(_off, kwargs))
        if name == "copy_":
            return args[0]
        if target == GPU or (on_gpu and target is None):
            result = tree_map(lambda leaf: _OnGpu(leaf) if type(leaf) is torch.Tensor else leaf, result)
        return result

    def _count(self, name, func, args, kwargs, *, on_gpu, target):
        if not on_gpu or not self._counting:
            return
        to_host = target is not None and target.type == "cpu"
        to_host |= name == "copy_" and not isinstance(args[0], _OnGpu)
        boolean = name in ("index", "index_put_") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1]
        )
        blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        if name in _WAITING or boolean or (to_host and blocking):
            self.waits.append(name)

    @contextlib.contextmanager
    def uncounted(self):
        self._counting = False
        try:
            yield
        finally:
            self._counting = True

    def take(self, module):
        """Move all parameters and buffers of a module to the GPU."""
        with torch.inference_mode():
            for part in module.modules():
                for store in (part._parameters, part._buffers):
                    store.update({name: _OnGpu(value.clone()) for name, value in store.items() if value is not None})

    def patch(self, monkeypatch):
        """Replace what torch refuses without a GPU; the event on which a copy is over counts as a wait."""
        stub = self

        class Event:
            def record(self, stream):
                pass

            def synchronize(self):
                stub.waits.append("event")

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **kwargs: empty(*args, **kwargs))
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no such device
        monkeypatch.setattr("rm.engine.device.works_apart", is_gpu)
        monkeypatch.setattr("rm.forwards.works_apart", is_gpu)


def _off(leaf):
    return leaf.value if isinstance(leaf, _OnGpu) else leaf


def is_gpu(device):
    return torch.device(device) == GPU
