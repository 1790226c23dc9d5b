"""The rules of `select` on whole prompts and on pairs of responses: every field, its meaning and its default."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, WrapValidator, model_validator

from pipelines.config.base import Strict, refuse_unused
from pipelines.config.expression import parse

_REJECTED = ("worst", "random", "nearest")


def _is_rejected(value: Any) -> Any:
    """Check `pairs.rejected`, a word or a mapping of one entry."""
    if not isinstance(value, Mapping):
        if value in _REJECTED:
            return value
        close = difflib.get_close_matches(value, _REJECTED, n=1) if isinstance(value, str) else []
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"expected one of {', '.join(_REJECTED)}, or {{sigma: -2}}, or {{rank: 2}}{hint}")
    if len(value) != 1 or not {"sigma", "rank"} & {*value}:
        raise ValueError("expected one entry, sigma or rank: {sigma: -2} or {rank: 2}")
    name, number = next(iter(value.items()))
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(f"{name} is {number!r}; expected a number: {{sigma: -2}} or {{rank: 2}}")
    if name == "rank" and (number < 2 or number != int(number)):
        raise ValueError(f"rank is {number!r}; expected an integer of at least 2: rank 1 is the best response")
    return value


def _is_chosen(value: Any) -> Any:
    """Check `pairs.chosen`, a mapping of one entry."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or [*value] != ["where"] or not isinstance(value["where"], str):
        raise ValueError('expected {where: "EXPRESSION"}, such as {where: is_correct}')
    parse(value["where"])
    return value


class Pairs(Strict):
    """Pairs of a chosen and a rejected response to a prompt, for preference training. Needs `output.shape: preference`."""

    chosen: Annotated[dict[Literal["where"], str] | None, BeforeValidator(_is_chosen)] = None
    """`{where: EXPRESSION}`: the best response for which the expression is true, in the language of `where`; prompts without one
    make no pair. Default: the best response."""
    rejected: Annotated[
        Literal["worst", "random", "nearest"] | dict[Literal["sigma", "rank"], float], BeforeValidator(_is_rejected)
    ] = "worst"
    """The rejected response among those with a lower reward than the chosen one (and a gap within bounds): the worst, a
    pseudo-random one (by a hash), the best, or one of a place. `{sigma: -2}`: the one nearest to the mean of the prompt's rewards
    less 2 of their standard deviations (arXiv 2502.16825); of two that are as near, the worse. `{rank: 3}`: the third best of the
    prompt; 1 is the best."""
    pairs_per_prompt: Annotated[int, Field(ge=1)] | None = None
    """Most pairs of a prompt, which share the chosen response and have rejected ones of different texts: the worst ones, those
    nearest to the place, or with `rank` as many ranks. Default: 1."""
    min_gap: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Least reward gap between the two."""
    max_gap: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Largest reward gap between the two; no bound by default."""
    seed: int = Field(default=0, ge=0)
    """Seed of the hash of `random`."""

    @model_validator(mode="after")
    def _bounds(self) -> Pairs:
        if self.max_gap is not None and self.max_gap < self.min_gap:
            raise ValueError(f"max_gap {self.max_gap} is less than min_gap {self.min_gap}; no pair would fit")
        refuse_unused(self, {"seed"}, used=self.rejected == "random", by="rejected: random")
        return self


def _limit(least: float | None = None) -> WrapValidator:
    """Check a limit, a number of at least `least` or `{quantile: 0.5}`."""
    number: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(ge=least, allow_inf_nan=False)])

    def check(value: Any, _handler: Any) -> Any:
        if not isinstance(value, Mapping):
            return None if value is None else number.validate_python(value)
        share = value.get("quantile")
        if [*value] != ["quantile"] or isinstance(share, bool) or not isinstance(share, int | float):
            raise ValueError("expected a number, or a share of the prompts: {quantile: 0.5}")
        if not 0 < share < 1:
            raise ValueError(f"quantile is {share!r}; expected a number between 0 and 1")
        return {**value}

    return WrapValidator(check)


_Limit = float | dict[Literal["quantile"], float] | None


class DropPrompts(Strict):
    """Drop whole prompts to which any of these limits applies. A limit is a number, or `{quantile: 0.5}`: the smallest value that
    half of the prompts do not exceed, over all prompts that reach the step and have `min_candidates`."""

    min_best: Annotated[_Limit, _limit()] = None
    """Least reward of the prompt's best response."""
    min_spread: Annotated[_Limit, _limit(0.0)] = None
    """Least gap between its best and its worst response: below, the responses are alike."""
    max_spread: Annotated[_Limit, _limit(0.0)] = None
    """Largest gap between its best and its worst response."""
    min_worst_reward: Annotated[_Limit, _limit()] = None
    """Least reward of its worst response: a prompt that draws a bad answer may be a bad prompt (RIP, arXiv 2501.18578)."""
    min_worst_tokens: Annotated[_Limit, _limit(0.0)] = None
    """Least tokens of its worst response."""
    min_candidates: int = Field(default=1, ge=1)
    """Least scored responses of the prompt."""

    @model_validator(mode="after")
    def _any(self) -> DropPrompts:
        if not self.model_fields_set:
            *others, last = type(self).model_fields
            raise ValueError(f"expected at least one of {', '.join(others)} and {last}")
        return self

    @property
    def quantiles(self) -> dict[str, float]:
        """The limits that are quantiles, by name."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value["quantile"] for name, value in values.items() if isinstance(value, dict)}


class OnTopic(Strict):
    """Drop responses that lie far behind the others to their prompt in relevance, whatever their reward. They are compared with
    the second most relevant response of the prompt (of two, with the more relevant one), so that one that repeats the prompt
    makes no other one look off topic. Where all responses are on topic, nothing is dropped. A response whose relevance is null
    is."""

    signal: str = "relevance"
    """The name of the signal, one of `signals`: as a rule that of an embedding model."""
    gap: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | Literal["auto"] = "auto"
    """Responses whose relevance is less by more than this are dropped. `auto`: the least gap, in steps of 1/1024, at which at
    most `max_touched` of the corpus's responses that answer their prompts are dropped. The cosines of prompts with responses to
    other prompts, which the signal of an embedding model has, tell how many do not, and how many such ones the gap catches."""
    max_touched: float = Field(default=0.01, gt=0.0, lt=1.0)
    """With `gap: auto`: the largest share of responses that answer their prompts and are dropped all the same."""

    @model_validator(mode="after")
    def _touches_by_itself(self) -> OnTopic:
        refuse_unused(self, {"max_touched"}, used=self.gap == "auto", by="gap: auto")
        return self

    def check(self, signals: Sequence[str]) -> None:
        """Raise `ValueError` where the signal is none of these."""
        if self.signal not in signals:
            close = difflib.get_close_matches(self.signal, signals, n=1)
            known = f"signals has {', '.join(signals)}" if signals else "there are no signals"
            hint = (
                f"did you mean {close[0]!r}?" if close else "name one: signals={relevance: {embedding: {path: MODEL}}}"
            )
            raise ValueError(f"on_topic.signal names {self.signal!r}, and {known}; {hint}")


class Preferences(Strict):
    """Pairs of a corpus of preferences (`input.format: preferences`), by what the model says of them. A row's margin is the
    reward of its chosen response less that of its rejected one; of more than two responses, the best and the worst by the row's
    judgement of those that are scored and that earlier steps leave. A row of which fewer than two are left, or whose best one is
    not among them, is dropped. Needs `output.shape: preference`."""

    keep: Literal["agree", "disagree", "all"] = "agree"
    """`agree`: pairs whose chosen response has the higher reward, by the bounds below; `disagree`: those whose rejected one has,
    to look at; `all`: all but those of `drop`."""
    min_margin: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Least gap between the two rewards at which the model counts as agreeing, or disagreeing."""
    min_probability: Annotated[float, Field(ge=0.5, lt=1.0)] | None = None
    """Least sigma(gap / T) at which it does: the probability that the one of higher reward is preferred."""
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """The temperature T; default: that of the model's `calibration.json`."""
    flip: bool = False
    """Swap the sides of the pairs with which the model disagrees, and keep them. `output.add: [flipped]` marks them."""
    drop: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """`[LOW, HIGH]`: pairs whose margin lies between these are dropped, whatever the rest says."""

    @model_validator(mode="after")
    def _bounds(self) -> Preferences:
        if self.drop is not None and not self.drop[0] <= self.drop[1]:
            raise ValueError(f"drop is {self.drop}; expected [LOW, HIGH], the lower number first")
        refuse_unused(self, {"temperature"}, used=self.min_probability is not None, by="min_probability")
        return self
