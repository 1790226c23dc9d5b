"""`bestkept train`: every field, its meaning and its default."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pipelines.config.base import PathText, Strict
from pipelines.config.corpus import RowLimits
from pipelines.config.signals import RelevanceConfig

_MINUTES = re.compile(r"\d{1,6}(\.\d{1,6})?m")


class PreferenceColumns(Strict):
    """The columns of the preferences by role; needed only if detection fails."""

    prompt: str | None = None
    """Text, or a list of messages."""
    system: str | None = None
    """A system prompt, put before the prompt unless the prompt has its own."""
    history: str | None = None
    """Earlier turns, put before the prompt: messages, a transcript, or pairs of a question and its answer."""
    context: str | None = None
    """Text that belongs to the prompt, appended after an empty line; a conversation is put before the prompt."""
    tools: str | None = None
    """The tools that a conversation may call: a list, or that list as JSON. A column `tools` with such content is read by
    default."""
    response: str | None = None
    """One response per row."""
    chosen: str | None = None
    """The preferred response of a pair: text, messages, or a whole conversation."""
    rejected: str | None = None
    """The other response of the pair."""
    responses: str | Annotated[list[str], Field(min_length=2, max_length=2)] | None = None
    """A list of responses per row; or the names of two columns, for the first and the second response of a verdict."""
    winner: str | None = None
    """The verdict on two responses: which one is better, or a tie; a list of verdicts is several votes."""
    label: str | None = None
    """Whether the response is acceptable: true or false, 1 or 0, or a probability."""
    score: str | None = None
    """The response's grade, higher is better: a rating, votes, a win rate. In UltraFeedback, a field of completions."""
    scores: str | None = None
    """A list of grades, one per response."""
    score_chosen: str | None = None
    """The grade of the chosen response of a pair."""
    score_rejected: str | None = None
    """The grade of the rejected response."""
    ranking: str | None = None
    """A list of ranks, one per response: 1 is best, equal ranks are ties."""
    best: str | None = None
    """The index, from 0, of the best response."""
    margin: str | None = None
    """Minimum difference between the rewards of chosen and rejected."""
    source: str | None = None
    """The origin of a row; accuracy is reported for each."""
    subset: str | None = None
    """The part of a benchmark that a row belongs to; accuracy is reported for each."""
    item: str | None = None
    """A row's id, if rows with the same prompt must stay separate (RewardBench 2)."""


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


VerdictValues = Annotated[list[str | bool | int | float], BeforeValidator(_as_list), Field(min_length=1)]


class WinnerValues(Strict):
    """The meaning of the values of a verdict on two responses; needed only if detection fails."""

    first: VerdictValues
    """The value, or values, for a better first response."""
    second: VerdictValues
    """The value, or values, for a better second response."""
    tie: VerdictValues | None = None
    """The value, or values, for a tie."""


class PreferencesConfig(Strict):
    path: PathText = Field(examples=["preferences.jsonl"])
    """Preference files, in all formats of `input.path`: a path, a directory, a glob or a URL."""
    split: str | None = None
    """The split to read, if names of files or folders contain one, as in `train-00000-of-00002.parquet` or
    `test/data-00000-of-00001.arrow`. Required if there are several splits, which are never mixed."""
    format: Literal[
        "auto",
        "rewardbench2",
        "rewardbench",
        "ultrafeedback_binarized",
        "shp",
        "helpsteer2",
        "helpsteer3",
        "pandalm",
        "ultrafeedback",
        "nectar",
        "qa_feedback",
        "scored_pairs",
        "prompt_chosen_rejected",
        "hh",
        "chosen_rejected_messages",
        "chosen_rejected_text",
        "ranking",
        "choice",
        "scored_list",
        "verdicts",
        "labels",
        "scores",
    ] = "auto"
    """The layout of the rows; `auto` detects it from their columns."""
    columns: PreferenceColumns = PreferenceColumns()
    """The columns by role; needed only if detection fails."""
    winner: WinnerValues | None = None
    """The values of a verdict on two responses: `{first: 0, second: 1, tie: 2}`; needed only if they are ambiguous."""
    origin: Literal["human", "implicit", "model"] | None = None
    """The judge of the preferences; default: the one that the format implies
    (SHP implicit, UltraFeedback and Nectar model, else human)."""
    vote_smoothing: float = Field(default=0.5, ge=0.0)
    """Votes added to each side if several annotators judged, so that three votes out of three do not count as certainty."""
    min_gap: float = Field(default=0.0, ge=0.0)
    """Minimum difference of two scores that counts as a comparison."""
    gap_use: Literal["none", "weight", "margin"] = "none"
    """Additional use of a difference of scores: as the weight of the comparison, or as the margin between its rewards."""
    gap_scale: float = Field(default=1.0, gt=0.0)
    """Weight or margin per unit of difference."""
    repeated_prompt: Literal["cut", "keep"] | None = None
    """Whether prompts that responses repeat at the front are removed (`cut`) or kept. If unset, they are removed if nearly
    all of the first rows have one, with a note."""

    def reading_options(self) -> dict[str, Any]:
        """The fields of `rm.preferences.ReadSettings`."""
        names = {"split", "format", "origin", "vote_smoothing", "min_gap", "gap_use", "gap_scale", "repeated_prompt"}
        columns = self.columns.model_dump(exclude_none=True)
        sides = tuple(columns.pop("responses")) if isinstance(self.columns.responses, list) else None
        winner = None if self.winner is None else self.winner.model_dump(exclude_none=True)
        return {**self.model_dump(include=names), "columns": columns, "sides": sides, "winner": winner}


class BackboneConfig(Strict):
    path: PathText = Field(examples=["Qwen/Qwen3-0.6B"])
    """A pretrained encoder or causal model: a directory, also on an object store, or a hub id."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    max_length: int = Field(default=2048, ge=8)
    """Longest input in tokens; longer conversations lose their oldest turns."""
    device: Literal["auto", "cuda", "cpu", "mps"] = "auto"
    """`auto`: a GPU if PyTorch can use one, otherwise the CPU; `cuda`: a GPU, or the run ends with exit code 7 and names what
    is missing."""


class HeldOutConfig(Strict):
    fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the prompts kept out of training, to measure accuracy and to fit the temperature."""
    path: PathText | None = None
    """Held-out preferences from a separate file instead, read as the first entry of data is."""
    split: str | None = None
    """The split of these files to hold out; without a path, a split of the first entry of data, which trains on another one."""


class StressConfig(Strict):
    prompts: int = Field(default=100, ge=0)
    """Number of prompts for the stress tests, in which the model scores responses that are clearly worse, or no better: to
    other prompts, cut, repeated, padded, reformatted; about a dozen forward passes each. 0 skips the tests."""


class LoraConfig(Strict):
    rank: int = Field(default=16, ge=1)
    """Inner size of the adapters: a larger one can learn more, and takes more memory."""
    alpha: int = Field(default=32, ge=1)
    """Adapters are scaled by alpha / rank."""
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Layers of the backbone that receive adapters, by name; the head is always trained in full."""


class ForeignConfig(Strict):
    per_group: int = Field(default=2, ge=1)
    """Number of responses to other prompts added to each group, drawn again every epoch; each loses to each response of the
    group."""
    similar: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of them that is drawn from responses to similar prompts, which share rare words, if there are any."""
    weight: float = Field(default=0.5, gt=0.0, allow_inf_nan=False)
    """Total weight of these comparisons, relative to 1 for the group's own."""
    ties: bool = False
    """Whether two responses to other prompts count as a tie, since neither answers."""


class LengthHeadConfig(Strict):
    correlation: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """Weight of |corr(reward, length)| - corr(length head, length), over all responses of an optimiser step."""
    orthogonality: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """Weight of |cos| between the weights of the two heads."""


class LanguageLossConfig(Strict):
    weight: float = Field(default=0.1, gt=0.0, allow_inf_nan=False)
    """Weight of the mean token loss on preferred responses."""


class TrainOptions(Strict):
    loss: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    """The treatment of rankings and choices: as all their comparisons, or as repeated choices of the best remaining response.
    Pairs, votes, scores and ties are comparisons in both."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Probability that a comparison was recorded the wrong way round."""
    centring: float = Field(default=0.0, ge=0.0)
    """Coefficient of (r_i + r_j)^2, which pulls the free offset of each prompt towards zero; 0.01 is usual."""
    length_balance: bool = False
    """Whether comparisons are weighted so that the longer response wins as often as the shorter one at each ratio of lengths."""
    foreign: ForeignConfig | None = None
    """Responses to other prompts, which lose to each response of a group: teaches a model to read the prompt."""
    length_head: LengthHeadConfig | None = None
    """A second head for training, which absorbs what length explains; only the other head, kept independent of length, is
    saved."""
    language_loss: LanguageLossConfig | None = None
    """A language model's loss on preferred responses, in addition to the loss on judgements; for causal language models only."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the preferences."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Default: 9e-6 from a billion parameters, 1e-4 below 100 million and with LoRA, otherwise 3e-5."""
    groups_per_batch: int = Field(default=8, ge=1)
    """Prompts per optimiser step, each with all its responses; several devices share them."""
    responses_per_group: int | None = Field(default=None, ge=2)
    """Maximum size of a group; larger groups are divided at random into groups of at most this size, differently every epoch."""
    tokens_per_batch: int | None = Field(default=None, ge=1)
    """Tokens per forward pass. Bounds memory, and does not change the gradient; halved if memory runs out. Groups stay whole:
    a larger one is a batch of its own. Default: 16384 on a GPU, 4096 on a CPU."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the forward pass; `auto`: bfloat16 if the device supports it natively. Trained weights are float32;
    weights that LoRA freezes have this type."""
    gradient_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass: less memory, about a third more time."""
    lora: LoraConfig | None = None
    """Train low-rank adapters and the head; the checkpoint is merged. Needs the extra `lora`."""
    evaluations_per_epoch: int = Field(default=1, ge=1)
    """Measurements of held-out accuracy per epoch."""
    early_stopping: int | None = Field(default=None, ge=1)
    """Number of evaluations without better held-out accuracy after which training stops; the best checkpoint is kept."""
    checkpoint_every: int | str | None = "10m"
    """Minutes between checkpoints, such as `10m`, or a number of steps; null: none. After an interruption, the same command
    resumes from the last one. A timed checkpoint that the disk has no room for is skipped with a warning."""
    warmup_fraction: float = Field(default=0.03, ge=0.0, le=1.0)
    """Share of the steps in which the learning rate rises, from above zero at the first; it then falls along a cosine."""
    weight_decay: float = Field(default=0.0, ge=0.0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Maximum norm of the gradient; larger gradients are scaled down to it."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the head's initial weights and of the order of the prompts; each model of an ensemble needs a different one."""
    report_to: list[str] = []
    """Trackers of the transformers Trainer, such as tensorboard or wandb."""

    @field_validator("checkpoint_every")
    @classmethod
    def _is_a_pace(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, str) and not (_MINUTES.fullmatch(value) and float(value[:-1]) > 0):
            raise ValueError(
                f"{value!r} is not an interval; give minutes, such as 10m, or a number of steps, such as 50"
            )
        if isinstance(value, int) and value < 1:
            raise ValueError("expected at least 1 step")
        return value

    @property
    def checkpoint_secs(self) -> float | None:
        """Seconds between checkpoints, unless they are counted in steps."""
        return 60 * float(self.checkpoint_every[:-1]) if isinstance(self.checkpoint_every, str) else None

    @model_validator(mode="after")
    def _options_fit(self) -> TrainOptions:
        if self.loss == "plackett_luce" and self.label_smoothing:
            raise ValueError("label_smoothing is for comparisons and plackett_luce has picks; use bradley_terry or 0")
        if self.early_stopping is not None and isinstance(self.checkpoint_every, int):
            raise ValueError(
                "early_stopping makes a checkpoint at every evaluation; leave checkpoint_every out, or give minutes, such as 10m"
            )
        return self


class TrainOutput(Strict):
    path: PathText = Field(examples=["reward-model"])
    """Directory of the checkpoint."""


class TrainConfig(Strict):
    """`bestkept train`."""

    data: Annotated[
        list[PreferencesConfig],
        BeforeValidator(_as_list, json_schema_input_type=PreferencesConfig | list[PreferencesConfig]),
        Field(min_length=1),
    ]
    """Preferences; a list of them, in any formats, is trained on together."""
    heldout: HeldOutConfig = HeldOutConfig()
    """The preferences on which accuracy is measured."""
    stress: StressConfig = StressConfig()
    """The stress tests of the trained model, on held-out prompts."""
    relevance: RelevanceConfig | None = None
    """An embedding model for a relevance gate. The verdict then compares the model alone with the best of the longer, the
    shorter, and the nearer or longer response: the one nearer to the prompt if the cosines of the two differ by more than `gap`.
    The model is also measured behind the gate: a response that the step `on_topic` would drop loses to one that it would keep,
    and the reward decides between all others. `gap: auto` is settled on the evaluated responses."""
    model: BackboneConfig
    """The pretrained model that the reward model starts from."""
    train: TrainOptions = TrainOptions()
    """The options of training."""
    output: TrainOutput
    """The trained checkpoint."""
    limits: RowLimits = RowLimits()
    """The size above which rows are not read."""
