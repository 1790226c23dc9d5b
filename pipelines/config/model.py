"""The reward model, or several of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, field_validator, model_validator

from pipelines.config.base import PathText, Strict, refuse_unused
from pipelines.config.expression_terms import check_name


class ReadingModel(Strict):
    """The reading side of a model: tokenizer and length limit."""

    path: PathText = Field(examples=["reward-model"])
    """A model directory, a hub id, or a directory on an object store (s3://, gs://, ...), of which each machine makes a copy."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    max_length: int = Field(default=4096, ge=8)
    """Longest input in tokens; the least of this, the model's positions and the tokenizer's limit applies."""


class ModelConfig(ReadingModel):
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """`auto`: bfloat16 on GPUs that have it natively, else float32. `int8`: bfloat16 with the weights of linear layers in 8
    bits, for a model that does not fit otherwise; it computes no faster."""
    too_long: Literal["truncate", "truncate_group", "reject"] = "truncate"
    """Treatment of a response that does not fit into `max_length` with its prompt: the prompt loses its oldest turns, then its
    beginning, and the response its end (`truncate`); all responses to the prompt in a fragment are judged on the same rest of
    it (`truncate_group`); or the response is rejected. All are counted."""
    device: Literal["auto", "cuda", "cpu", "mps"] = "auto"
    """`auto`: a GPU where PyTorch can use one, else the CPU; `cuda`: a GPU, or the run ends with 7 and says what is missing. No
    scores are made again for it, though `dtype: auto` follows it."""
    devices: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = 1
    """GPUs of the machine that the model is spread over, layer by layer, where it does not fit on one; a batch passes through
    them one after the other. `auto`: the fewest that hold its weights with some room. Each of `runner.workers` has as many."""
    outputs: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Names of your own for outputs of a model that has several (`num_labels` in its config.json), with their numbers from 0:
    `{helpfulness: 0, verbosity: 4}`. `select` knows each by its name; one forward computes all."""
    reward_output: str | None = None
    """The one of `outputs` that is the reward. A single one is; of several, the step `reward` may combine them instead."""
    tokens_per_batch: int | None = Field(default=None, ge=1)
    """Tokens per forward pass, shared prompts counted once, padding included; bounds memory, does not change rewards beyond
    rounding. Default: 32768 on a GPU; 4096 on a CPU, where a batch is full earlier unless that would repeat long prompts; less
    where memory is short."""

    @model_validator(mode="after")
    def _outputs_have_names(self) -> Self:
        for name in self.outputs:
            check_name(name, "model's output")
        if self.reward_output is not None and self.reward_output not in self.outputs:
            known = ", ".join(self.outputs) or "names none"
            raise ValueError(f"reward_output is {self.reward_output!r}, and outputs {known}; name one of outputs")
        return self

    @property
    def reward_of(self) -> tuple[str, int] | None:
        """The name and the number of the output that is the reward; None where it is the only one, or combined from several."""
        name = self.reward_output or (next(iter(self.outputs)) if len(self.outputs) == 1 else None)
        return None if name is None else (name, self.outputs[name])

    @property
    def used_outputs(self) -> dict[str, Any] | None:
        """The outputs as a plan has them: their numbers by name, and the one that is the reward; None for plain models."""
        if not self.outputs:
            return None
        return {"names": dict(sorted(self.outputs.items())), "reward": self.reward_output or next(iter(self.outputs))}


_Several = TypeAdapter(Annotated[list[ModelConfig], Field(min_length=1)])


def _one_or_several(value: Any, _union: Any) -> ModelConfig | list[ModelConfig]:
    """Validated one way or the other, not as a union: an error then names `model.dtype`, and nothing of the union's members."""
    if not isinstance(value, list):
        return ModelConfig.model_validate(value)
    models = _Several.validate_python(value)
    described = [model.model_dump(exclude={"tokens_per_batch", "device", "devices"}) for model in models]
    for number, model in enumerate(described):
        if model in described[:number]:
            raise ValueError(
                f"model.{described.index(model)} and model.{number} are the same, {model['path']!r}, and would count twice; "
                "name each model once"
            )
    return models[0] if len(models) == 1 else models


class EnsembleConfig(Strict):
    """The combination of the rewards of several models. Each model's rewards are standardised first: less their mean, divided by
    their standard deviation, over all responses that every model has scored. So `min_reward` and gaps count in standard
    deviations, and a grown corpus shifts them."""

    combine: Literal["mean", "min", "lower_bound"] = "mean"
    """`mean`; `min`, what the most sceptical model gives; `lower_bound`, the mean less `penalty` times the (population) standard
    deviation over the models: less where they disagree. After Coste et al. 2024, who take the variance."""
    penalty: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """Standard deviations that `lower_bound` subtracts."""

    names: list[str] = []
    """Names of the models, in the order of the list `model`. `select` then knows the reward of each by its name, and the
    standardised one as `z(NAME)`: `select=[{reward: "0.7 * z(helpful) - 0.2 * z(verbose)"}, ...]`."""

    @field_validator("names")
    @classmethod
    def _can_be_told_apart(cls, names: list[str]) -> list[str]:
        for name in names:
            check_name(name, "model")
            if names.count(name) > 1:
                raise ValueError(f"two models have the name {name!r}; give each its own")
        return names

    @model_validator(mode="after")
    def _penalty_is_used(self) -> EnsembleConfig:
        refuse_unused(self, {"penalty"}, used=self.combine == "lower_bound", by="combine: lower_bound")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that a combined reward depends on."""
        return self.model_dump(exclude={"names"} if self.combine == "lower_bound" else {"names", "penalty"})
