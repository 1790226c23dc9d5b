"""Inputs and results of a scorer: groups of responses, their scores, and the work of a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rm.conversations import Conversation

if TYPE_CHECKING:  # these import torch, which takes seconds; a worker without a model needs none of it
    from rm.engine.packed_forward import PackedInputs
    from rm.text.templates import Encoded
    from rm.text.windows import CallPosition

ResponseGroup = tuple[Conversation, Sequence[str]]
"""A prompt and K responses to it."""
Batch = list[list[int]]
"""Runs of rows, by their numbers in a window; the common first tokens of a run's rows are computed once."""


class ReadyBatch(Batch):
    """A batch with the inputs of its forward, built in advance."""

    def __init__(self, batch: Batch, inputs: PackedInputs) -> None:
        super().__init__(batch)
        self.inputs = inputs


class Outputs(NamedTuple):
    """The outputs of a head that are used: the reward, and all named outputs."""

    reward: int = 0
    names: Mapping[str, int] = MappingProxyType({})

    @classmethod
    def of(cls, used: Mapping[str, Any] | None) -> Outputs:
        """Return the outputs in a plan, `{"names": {name: number}, "reward": name}`; None for a head with one output."""
        return cls() if used is None else cls(used["names"][used["reward"]], used["names"])


ONE_OUTPUT = Outputs()


class GroupScores(NamedTuple):
    """The rewards of one group's K responses, their lengths in tokens, and the reasons for those without a reward."""

    rewards: np.ndarray  # float32 [K]; NaN exactly where `reasons` holds a reason
    reasons: list[str | None]  # [K] too_long, template_error, out_of_memory, model_error, nan_reward
    prompt_tokens: np.ndarray  # int32 [K], as the model read them
    response_tokens: np.ndarray  # int32 [K]
    truncated: np.ndarray  # bool [K]
    left_out: dict[int, frozenset[str]]  # response → keys that the template leaves out
    outputs: Mapping[str, np.ndarray] = MappingProxyType({})  # float32 [K] by name, for a head with several outputs

    @classmethod
    def empty(cls, count: int, outputs: Iterable[str] = ()) -> GroupScores:
        """Return the scores of `count` responses before any is scored."""
        named = {name: np.full(count, np.nan, dtype=np.float32) for name in outputs}
        prompt_tokens, response_tokens = (np.zeros(count, dtype=np.int32) for _ in range(2))
        rewards, truncated = np.full(count, np.nan, dtype=np.float32), np.zeros(count, dtype=bool)
        return cls(rewards, [None] * count, prompt_tokens, response_tokens, truncated, {}, named)


class Work(NamedTuple):
    """The size of one forward, and the time it took."""

    rows: int
    read_tokens: int  # sum of the rows' lengths
    computed_tokens: int  # tokens that the model computed: shared ones once, padding included
    padding_tokens: int
    flops: float  # 2 x parameters x computed tokens; attention not counted
    peak_flops: float  # FLOPs that the device could have done in `secs`; 0 if its peak is not known
    secs: float


class Window(NamedTuple):
    """Encoded rows, those of one prompt next to each other, and their positions in the call."""

    rows: list[Encoded]
    groups: list[list[int]]  # rows of each prompt; truncated rows are a separate group
    places: list[list[CallPosition]]  # positions in the call of each row
    unusable: list[tuple[str, list[CallPosition]]]  # reasons, and the positions that they apply to


class Launched(NamedTuple):
    """A forward that has started; on a GPU, it is returned before it is done."""

    read: Callable[[], np.ndarray]  # waits for [rows, 1 + named outputs], float32, the reward first
    work: Work  # without its time, and with the FLOPs that the device can do in a second
    started: float  # monotonic seconds
