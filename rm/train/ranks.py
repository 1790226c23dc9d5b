"""The processes that train one model together, one per device, as `torchrun` or `accelerate launch` starts them.

Every rank reads the same groups of a step and computes a part of them. Gradients are added up once per step, after the last
backward, so that every rank may divide its part into its own micro-batches, and repeat it if memory runs out. So the gradient is
that of one device with the same `train.groups_per_batch`, and any number of ranks may resume from a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn

from rm.train.data import EncodedGroup
from rm.train.settings import RankError, SettingsError

Value = TypeVar("Value")

_PATIENCE = timedelta(hours=1)  # for the slowest rank: while one saves, the others wait
_BUCKET_BYTES = 64 * 2**20  # gradients that are exchanged together
_OTHER_LAUNCHES = {  # variables by which `accelerate launch` asks for more than a whole model on each device
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


@dataclass(frozen=True)
class Ranks:
    """This process's number among all that train the model."""

    rank: int = 0
    count: int = 1

    @classmethod
    @contextlib.contextmanager
    def join(cls, device: str) -> Iterator[Ranks]:
        """Join the other ranks, if there are any, for the duration of a run on devices of this kind.

        Raises `SettingsError` for an unsupported kind of launch.
        """
        for variable, name in _OTHER_LAUNCHES.items():
            if os.environ.get(variable, "").lower() in ("1", "true", "yes"):
                raise SettingsError(
                    f"the launcher requests {name} ({variable}), which `bestkept train` does not support: each device holds "
                    "the whole model; launch with torchrun, and set train.lora or train.gradient_checkpointing if it "
                    "does not fit"
                )
        if not _has_others():
            yield cls()
            return
        mine = not dist.is_initialized()
        state = PartialState(cpu=device == "cpu", timeout=_PATIENCE)
        try:
            yield cls(state.process_index, state.num_processes)
        finally:
            if mine and dist.is_initialized():
                dist.destroy_process_group()

    def share(self, groups: Sequence[EncodedGroup]) -> list[EncodedGroup]:
        """Return this rank's groups of a step, in order; all ranks have about equally many tokens."""
        if self.count == 1:
            return list(groups)
        sizes = [sum(len(row.ids) for row in group.responses) for group in groups]
        loads, mine = [0] * self.count, []
        for index in sorted(range(len(groups)), key=lambda i: -sizes[i]):
            rank = loads.index(min(loads))
            loads[rank] += sizes[index]
            if rank == self.rank:
                mine.append(index)
        return [groups[index] for index in sorted(mine)]

    def first(self, act: Callable[[], Value]) -> Value:
        """Return the result of `act`, which only the first rank calls; an error is raised on all ranks."""
        if self.count == 1:
            return act()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = act()
            except Exception as error:  # whatever the error, the other ranks must not wait forever
                outcome[1] = error
        with _naming_lost_ranks():
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]  # type: ignore[no-any-return]

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """Add up `values` over all ranks, in place; return them."""
        if self.count > 1:
            with _naming_lost_ranks():
                dist.all_reduce(values)
        return values

    def most(self, values: torch.Tensor) -> torch.Tensor:
        """Replace `values` by the largest over all ranks, in place; return them."""
        if self.count > 1:
            with _naming_lost_ranks():
                dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def any(self, flag: bool, device: torch.device | str) -> bool:
        """Return whether `flag` is set on any of the ranks."""
        return flag if self.count == 1 else bool(self.most(torch.tensor(float(flag), device=device)).item())

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all ranks; a gradient that this rank lacks counts as zero."""
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        device = trained[0].device
        held = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=device)
        used = [parameter for parameter, ranks in zip(trained, self.add_up(held).tolist(), strict=True) if ranks]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in used if parameter.grad is not None]):
            whole = self.add_up(torch.cat([gradient.flatten() for gradient in bucket]))
            parts = torch.split(whole, [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def align(self, network: nn.Module) -> None:
        """Copy the first rank's trained weights to all ranks: each has drawn its initial weights, from one seed."""
        if self.count == 1:
            return
        with _naming_lost_ranks(), torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    dist.broadcast(parameter.data, src=0)


def is_first_rank() -> bool:
    """Return whether this process reports for all ranks, before it has joined them."""
    return not _has_others() or int(os.environ.get("RANK", "0")) == 0


def _has_others() -> bool:
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Divide gradients, in their order, into runs of one type and about `_BUCKET_BYTES` each."""
    bucket: list[torch.Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > _BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


@contextlib.contextmanager
def _naming_lost_ranks() -> Iterator[None]:
    """Raise `RankError` if another rank does not answer: the cause is in that rank's output."""
    try:
        yield
    except RuntimeError as error:  # of gloo and NCCL; DistError is one
        raise RankError(
            f"another rank of this training ended ({type(error).__name__}); its output has the reason; the same command resumes "
            "from the last checkpoint, if train.checkpoint_every or train.early_stopping made one"
        ) from error
