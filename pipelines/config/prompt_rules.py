"""The rules of `select` on whole prompts and on pairs of responses: every field, its meaning and its default."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, WrapValidator, field_validator, model_validator

from pipelines.config.base import Strict, refuse_unused
from pipelines.config.expression import parse

_REJECTED = ("worst", "random", "nearest")


def _is_rejected(value: Any) -> Any:
    """Check `pairs.rejected`, a word or a mapping with one entry."""
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
    """Check `pairs.chosen`, a mapping with one entry."""
    if value is None:
        return None
    if not isinstance(value, Mapping) or [*value] != ["where"] or not isinstance(value["where"], str):
        raise ValueError('expected {where: "EXPRESSION"}, such as {where: is_correct}')
    parse(value["where"])
    return value


class Pairs(Strict):
    """Pairs of a chosen and a rejected response to a prompt, for preference training. Requires `output.shape: preference`."""

    chosen: Annotated[dict[Literal["where"], str] | None, BeforeValidator(_is_chosen)] = None
    """`{where: EXPRESSION}`: the best response for which the expression is true, in the language of `where`; prompts without
    one yield no pair. Default: the best response."""
    rejected: Annotated[
        Literal["worst", "random", "nearest"] | dict[Literal["sigma", "rank"], float], BeforeValidator(_is_rejected)
    ] = "worst"
    """The rejected response among those with a lower reward than the chosen one (and a gap within bounds). `worst`; `random`,
    by a hash; `nearest`, the best of them. `{sigma: -2}`: the response nearest to the mean of the prompt's rewards minus 2 of
    their standard deviations (arXiv 2502.16825), the worse of two that are equally near. `{rank: 3}`: the prompt's third best
    response; rank 1 is the best."""
    pairs_per_prompt: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of pairs per prompt. They share the chosen response and have rejected ones with different texts: the
    worst, those nearest to the target, or, with `rank`, those of as many ranks. Default: 1."""
    min_gap: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Minimum reward gap between the two responses."""
    max_gap: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Maximum reward gap between the two responses; no limit by default."""
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
    """Drop whole prompts that violate any of these limits. A limit is a number, or `{quantile: 0.5}`: the smallest value that
    half of the prompts do not exceed, among all prompts that reach the step and have `min_candidates`."""

    min_best: Annotated[_Limit, _limit()] = None
    """Minimum reward of the prompt's best response."""
    min_spread: Annotated[_Limit, _limit(0.0)] = None
    """Minimum gap between its best and its worst response; below it, the responses are alike."""
    max_spread: Annotated[_Limit, _limit(0.0)] = None
    """Maximum gap between its best and its worst response."""
    min_worst_reward: Annotated[_Limit, _limit()] = None
    """Minimum reward of its worst response: a prompt that draws a bad answer may be a bad prompt (RIP, arXiv 2501.18578)."""
    min_worst_tokens: Annotated[_Limit, _limit(0.0)] = None
    """Minimum number of tokens in its worst response."""
    min_candidates: int = Field(default=1, ge=1)
    """Minimum number of scored responses to the prompt."""

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


class RelevanceGate(Strict):
    gap: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | Literal["auto"] = "auto"
    """Responses whose relevance is lower by more than this are dropped. `auto`: the smallest gap, in steps of 1/1024, at
    which at most `max_touched` of the responses that answer their prompts are dropped. How many do not answer, and how many
    of these the gap catches, is estimated from the cosines of prompts with responses to other prompts, which an embedding
    model provides."""
    max_touched: float = Field(default=0.01, gt=0.0, lt=1.0)
    """With `gap: auto`: maximum share of the responses that answer their prompts and are nevertheless dropped."""

    @field_validator("gap", mode="before")
    @classmethod
    def _is_number_or_auto(cls, gap: Any) -> Any:
        if isinstance(gap, str) and gap != "auto":
            raise ValueError("expected a number of at least 0, or auto")
        return gap

    @model_validator(mode="after")
    def _touches_by_itself(self) -> RelevanceGate:
        refuse_unused(self, {"max_touched"}, used=self.gap == "auto", by="gap: auto")
        return self


class OnTopic(RelevanceGate):
    """Drop responses that are far less relevant to their prompt than its others, regardless of their reward. Each is compared
    with the second most relevant response to the prompt (of two, with the more relevant one), so that a response that repeats
    the prompt makes no other look off topic. If all responses are on topic, nothing is dropped. A response whose relevance is
    null is dropped."""

    signal: str = "relevance"
    """The name of the signal, one of `signals`: usually that of an embedding model."""

    def check(self, signals: Sequence[str]) -> None:
        """Raise `ValueError` if the signal is none of these."""
        if self.signal not in signals:
            close = difflib.get_close_matches(self.signal, signals, n=1)
            known = f"signals has {', '.join(signals)}" if signals else "there are no signals"
            hint = (
                f"did you mean {close[0]!r}?" if close else "name one: signals={relevance: {embedding: {path: MODEL}}}"
            )
            raise ValueError(f"on_topic.signal names {self.signal!r}, and {known}; {hint}")


class Preferences(Strict):
    """Pairs of a preference corpus (`input.format: preferences`), by the model's agreement with them. A row's margin is the
    reward of its chosen response minus that of its rejected one. Of more than two responses, these are the best and the
    worst, by the row's judgement, that are scored and kept by earlier steps. A row with fewer than two such responses, or
    without its best one, is dropped. Requires `output.shape: preference`."""

    keep: Literal["agree", "disagree", "all"] = "agree"
    """`agree`: pairs whose chosen response has the higher reward, within the bounds below; `disagree`: pairs whose rejected
    response has it, for inspection; `all`: all pairs except those of `drop`."""
    min_margin: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Minimum gap between the two rewards for the model to count as agreeing, or disagreeing."""
    min_probability: Annotated[float, Field(ge=0.5, lt=1.0)] | None = None
    """Minimum of sigma(gap / T) for the same: the probability that the response with the higher reward is preferred."""
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """The temperature T; default: the one in the model's `calibration.json`."""
    flip: bool = False
    """Swap the sides of the pairs with which the model disagrees, and keep them. `output.add: [flipped]` marks them."""
    drop: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """`[LOW, HIGH]`: pairs with a margin between these are dropped, regardless of the other settings."""

    @model_validator(mode="after")
    def _bounds(self) -> Preferences:
        if self.drop is not None and not self.drop[0] <= self.drop[1]:
            raise ValueError(f"drop is {self.drop}; expected [LOW, HIGH], the lower number first")
        refuse_unused(self, {"temperature"}, used=self.min_probability is not None, by="min_probability")
        return self
