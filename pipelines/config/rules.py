"""The rules of `select`: every field, its meaning and its default."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pipelines.config.base import Strict, refuse_unused
from pipelines.config.duplicates import Decontaminate, Diverse, NearDuplicates
from pipelines.config.expression import parse
from pipelines.config.prompt_rules import DropPrompts, OnTopic, Pairs, Preferences


def _bare(value: Any) -> Any:
    """Read a rule without settings (`- length_correction:` in YAML) as the rule with its defaults."""
    return {} if value is None else value


def _is_a_condition(text: str) -> str:
    parse(text)
    return text


def _is_a_number(text: str) -> str:
    parse(text, "number")
    return text


Temperature = Annotated[float | None, Field(gt=0.0, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0.0, lt=1.0)]


class BestOfN(Strict):
    keep: int = Field(default=1, ge=1)
    """Responses kept per prompt."""
    min_candidates: int = Field(default=2, ge=1)
    """Prompts with fewer scored responses are dropped, since a lone candidate offers no choice."""
    min_margin: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Minimum reward gap between the last kept response and the best dropped one."""
    min_probability: Annotated[float | None, Field(ge=0.5, lt=1.0)] = None
    """Minimum of sigma(gap / T) for that gap: the probability that the last kept response is preferred to the best dropped
    one."""
    temperature: Temperature = None
    """The temperature T; default: the one in the model's `calibration.json`, which `bestkept evaluate` writes."""
    distinct: bool | None = None
    """Whether responses of equal text to one prompt count as one candidate, of which at most one is kept."""


class Threshold(Strict):
    """Exactly one of `min_reward`, `reference` (with `min_probability`) and `min_z`."""

    min_reward: float | None = Field(default=None, allow_inf_nan=False)
    """Responses with a lower reward are dropped."""
    reference: str | None = None
    """`COLUMN=VALUE`, or `COLUMN` for `COLUMN=true`: marks the reference response of each prompt; if several are marked, the
    best of them. Prompts without one are dropped."""
    min_probability: Probability = 0.5
    """With `reference`: minimum of sigma((r - r_reference) / T) for a response to be kept. The reference itself has 0.5."""
    temperature: Temperature = None
    """The temperature T; default: the one in the model's `calibration.json`."""
    min_z: float | None = Field(default=None, allow_inf_nan=False)
    """Minimum of (r - mean) / standard deviation over the prompt's responses; 0 if all rewards are equal."""

    @model_validator(mode="after")
    def _one_kind(self) -> Threshold:
        kinds = [name for name in ("min_reward", "reference", "min_z") if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError(f"expected exactly one of min_reward, reference and min_z, got {kinds or 'none'}")
        refuse_unused(self, {"min_probability", "temperature"}, used=self.reference is not None, by="reference")
        return self


class Top(Strict):
    """Exactly one of `fraction`, `rows` and `tokens`; overall, or in each stratum of `per`."""

    fraction: float | None = Field(default=None, ge=0.0, le=1.0)
    """Share of responses kept, rounded down to whole responses."""
    rows: int | None = Field(default=None, ge=0)
    """Number of responses kept."""
    tokens: int | None = Field(default=None, ge=0)
    """Token budget for prompts and responses, counted by the reward model's tokenizer. Responses are kept from the best
    downwards, until one would exceed the budget."""
    per: str | None = None
    """The column that defines the strata: `source`, or one of `input.carry`."""
    quotas: dict[str, int] = {}
    """Rows kept in the named strata, instead of the amount for the others."""
    min_rows: int = Field(default=0, ge=0)
    """Minimum number of rows kept in each stratum, if it has that many."""

    @model_validator(mode="after")
    def _one_amount(self) -> Top:
        amounts = [name for name in ("fraction", "rows", "tokens") if getattr(self, name) is not None]
        if len(amounts) != 1:
            raise ValueError(f"expected exactly one of fraction, rows and tokens, got {amounts or 'none'}")
        refuse_unused(self, {"quotas", "min_rows"}, used=self.per is not None, by="per")
        if self.tokens is not None and (self.quotas or self.min_rows):
            raise ValueError("quotas and min_rows count rows; use them with fraction or rows, not with tokens")
        if any(rows < 0 for rows in self.quotas.values()):
            raise ValueError(f"quotas are {self.quotas}; expected numbers of rows, 0 or more")
        return self

    def target_rows(self, stratum: str | None, available: int) -> int:
        """Return the number of a stratum's `available` responses to keep; `fraction` counts as the decimal in which it is
        written."""
        if stratum is not None and stratum in self.quotas:
            return min(available, self.quotas[stratum])
        if self.fraction is not None:
            wanted = int(Fraction(str(self.fraction)) * available)
        else:
            wanted = available if self.rows is None else self.rows
        return min(available, max(wanted, self.min_rows))


class LengthCorrection(Strict):
    """Subtract a LOWESS fit of reward on length (characters of the response), before anything else (Huang et al. 2024)."""

    span: float = Field(default=2 / 3, gt=0.0, le=1.0)
    """Share of the sample in each local fit."""


class Random(Strict):
    """A control: responses chosen by a hash, regardless of their reward."""

    keep: int = Field(default=1, ge=1)
    """Responses kept per prompt."""
    seed: int = Field(default=0, ge=0)
    """Seed of the hash."""


class Longest(Strict):
    """A control: the longest responses, in characters, regardless of their reward."""

    keep: int = Field(default=1, ge=1)
    """Responses kept per prompt."""


class Step(Strict):
    """One step of `select`: exactly one rule."""

    best_of_n: BestOfN | None = None
    """The best responses of each prompt."""
    threshold: Threshold | None = None
    """Responses above a threshold: a reward, the prompt's reference response, or the prompt's mean. Exactly one of
    `min_reward`, `reference` and `min_z`."""
    top: Top | None = None
    """The best of the whole corpus, or of each stratum. Exactly one of `fraction`, `rows` and `tokens`."""
    pairs: Annotated[Pairs | None, BeforeValidator(_bare)] = None
    """Pairs of a chosen and a rejected response to a prompt, for preference training. Comes last."""
    preferences: Annotated[Preferences | None, BeforeValidator(_bare)] = None
    """Pairs of a preference corpus with which the model agrees, and optionally the others with swapped sides. Comes last."""
    drop_prompts: DropPrompts | None = None
    """Drop whole prompts that violate any of these limits."""
    on_topic: Annotated[OnTopic | None, BeforeValidator(_bare)] = None
    """Drop off-topic responses: those far less relevant to their prompt than its other responses. Comes before the steps that
    compare rewards."""
    where: Annotated[str, AfterValidator(_is_a_condition)] | None = Field(default=None, examples=["reward > 0.5"])
    """Keep responses for which an expression is true: `is_correct and reward > 0.2 and 20 <= tokens <= 2000`. Names are
    `reward`, `tokens`, `prompt_tokens`, `response_tokens`, `characters` (of the response), `truncated`, `source`, and columns
    under `input.carry`, irregular ones as `column("my column")`. There are comparisons, `in ["a", "b"]`, `and`, `or`, `not`,
    + - * /, `abs`, `log`, `exp`, `sqrt`, `min`, `max`, `is null` and `coalesce(x, 0)`. A value computed from or compared with
    null is null, and null is not true. `rank(x)` is 1 for the lowest of the prompt's remaining responses, and equal ones
    share the lowest of their ranks: `rank(-reward) <= 3` keeps the best three. `prompt_z(x)` is (x - mean) / standard
    deviation over these responses. `corpus_z(x)` is the same over all scored responses, in `where` without those for which a
    row-wise step `reward` is null. Both are 0 if all values are equal."""
    reward: Annotated[str, AfterValidator(_is_a_number)] | None = Field(
        default=None, examples=["reward - 0.001 * response_tokens"]
    )
    """Combine numbers into the reward that all other steps compare: `0.7 * reward + 0.3 * coalesce(mark, 0)`, in the language
    of `where`; true counts as 1, false as 0. `rank(a) + rank(b)` is the sum of two ranks within the prompt. Responses for
    which the result is null are dropped. Comes first, or after `length_correction`. The reward in export and report remains
    the model's."""
    near_duplicates: Annotated[NearDuplicates | None, BeforeValidator(_bare)] = None
    """Keep only the text with the best reward among nearly identical texts, over the whole corpus."""
    decontaminate: Decontaminate | None = None
    """Drop responses that share a run of words with test prompts, in the prompt or in the response; hits are counted by test
    file."""
    diverse: Diverse | None = None
    """The best dissimilar responses: from the best downwards, each response that is not similar to one already kept."""
    length_correction: Annotated[LengthCorrection | None, BeforeValidator(_bare)] = None
    """Subtract a fit of reward on length from the rewards. Comes first."""
    random: Annotated[Random | None, BeforeValidator(_bare)] = None
    """A control: responses chosen by a hash, regardless of their reward."""
    longest: Annotated[Longest | None, BeforeValidator(_bare)] = None
    """A control: the longest responses, regardless of their reward."""

    @model_validator(mode="after")
    def _one_rule(self) -> Step:
        named = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"expected exactly one of {', '.join(type(self).model_fields)}, got {named or 'none'}")
        return self

    @property
    def name(self) -> str:
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def condition(self) -> str | None:
        """The condition that the step evaluates: `where`, that of `pairs.chosen`, or that a row shares no words with tests."""
        if self.pairs is not None and self.pairs.chosen is not None:
            return self.pairs.chosen["where"]
        return self.where if self.decontaminate is None else f"{self.decontaminate.number} == 0"

    def columns(self) -> Iterator[tuple[str, str]]:
        """Yield (setting, score-file column) for each column that this step reads besides rewards."""
        if self.top is not None and self.top.per is not None:
            yield "top.per", self.top.per
        if self.threshold is not None and self.threshold.reference is not None:
            yield "threshold.reference", self.threshold.reference.partition("=")[0]

    @property
    def measure(self) -> dict[str, Any] | None:
        """The settings of the measurement on the text that the step requires."""
        rule = self.near_duplicates or self.diverse or self.decontaminate
        return None if rule is None else rule.measure

    def settings(self) -> dict[str, Any]:
        """Return the fields that are set, with files reduced to their names."""
        settings = self.model_dump(exclude_none=True)
        if self.decontaminate is not None:
            names = [path.rstrip("/").rsplit("/", 1)[-1] for path in self.decontaminate.against]
            settings["decontaminate"]["against"] = names
        return settings

    @property
    def compares_texts(self) -> bool:
        """True if the step drops texts that are similar to others, anywhere in the corpus."""
        return self.near_duplicates is not None or self.diverse is not None

    @property
    def needs_temperature(self) -> bool:
        """True if the step turns gaps into probabilities with the model's own temperature."""
        best, threshold, judged = self.best_of_n, self.threshold, self.preferences
        if judged is not None:
            return judged.min_probability is not None and judged.temperature is None
        if best is not None:
            return best.min_probability is not None and best.temperature is None
        return threshold is not None and threshold.reference is not None and threshold.temperature is None

    @property
    def makes_pairs(self) -> bool:
        """True if the step keeps pairs of responses."""
        return self.pairs is not None or self.preferences is not None

    @property
    def needs_cut(self) -> bool:
        """True if the step needs a number that depends on all prompts."""
        quantiles = self.drop_prompts is not None and bool(self.drop_prompts.quantiles)
        gap = self.on_topic is not None and self.on_topic.gap == "auto"
        return self.top is not None or self.diverse is not None or quantiles or gap

    @property
    def crosses_prompts(self) -> bool:
        """True if the step compares rewards of different prompts."""
        if self.threshold is not None:
            return self.threshold.min_reward is not None
        if self.drop_prompts is not None:
            return self.drop_prompts.min_best is not None or self.drop_prompts.min_worst_reward is not None
        if self.condition is not None:
            return parse(self.condition).reads_across(["reward"])
        return self.top is not None or self.diverse is not None


def crossing_steps(steps: Iterable[Step], free: Sequence[str]) -> list[str]:
    """Return the names of the steps that compare numbers of different prompts; `free` names the numbers with an arbitrary
    offset per prompt, possibly including `reward`."""
    crossing, offsets = [], "reward" in free
    for step in steps:
        names = [*(name for name in free if name != "reward"), *["reward"] * offsets]
        if step.reward is not None:
            offsets = parse(step.reward, "number").reads_across(names)
        elif (
            parse(step.condition).reads_across(names)
            if step.condition is not None
            else step.crosses_prompts and offsets
        ):
            crossing.append(step.name)
    return crossing


def check_order(steps: list[Step]) -> list[Step]:
    """Return `steps`. Raises `ValueError` if their order makes no sense."""
    names = [step.name for step in steps]
    if "length_correction" in names[1:]:
        raise ValueError("length_correction must be the first step: it changes the rewards that all others compare")
    before = (
        [name for name in names[: names.index("reward")] if name != "length_correction"] if "reward" in names else []
    )
    if before or names.count("reward") > 1:
        raise ValueError("reward must come once, before all steps except length_correction: all others compare it")
    for name in ("pairs", "preferences"):
        if name in names[:-1]:
            raise ValueError(f"{name} must be the last step: a later step would break up its pairs")
    return steps
