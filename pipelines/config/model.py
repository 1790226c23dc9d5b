"""The reward model, or several of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, field_validator, model_validator

from pipelines.config.base import PathText, Strict, refuse_unused
from pipelines.config.expression_terms import check_name


class ReadingModel(Strict):
    """The reading side of a model: tokenizer and length limit."""

    path: PathText = Field(examples=["reward-model"])
    """A model directory, a hub id, or a directory on an object store (s3://, gs://, ...), which each machine copies."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    max_length: int = Field(default=4096, ge=8)
    """Longest input in tokens; the smallest of this, the model's positions and the tokenizer's limit applies."""


class ModelConfig(ReadingModel):
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """`auto`: bfloat16 on GPUs with native support, otherwise float32. `int8`: bfloat16 with the weights of linear layers in
    8 bits, for a model that would not fit otherwise; it is not faster."""
    too_long: Literal["truncate", "truncate_group", "reject"] = "truncate"
    """Treatment of a response that does not fit into `max_length` with its prompt. `truncate`: the prompt loses its oldest
    turns, then its beginning, and the response its end. `truncate_group`: the prompt is cut to the same rest for all its
    responses in a fragment. `reject`: the response is rejected. All cases are counted."""
    device: Literal["auto", "cuda", "cpu", "mps"] = "auto"
    """`auto`: a GPU if PyTorch can use one, otherwise the CPU; `cuda`: a GPU, or the run ends with exit code 7 and names what
    is missing. A change causes no rescoring, unless `dtype: auto` changes with it."""
    devices: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = 1
    """Number of the machine's GPUs over which a model that does not fit on one is spread, layer by layer; a batch passes
    through them in turn. `auto`: the fewest that hold the weights with some room to spare. Each of `runner.workers` uses this
    many."""
    outputs: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Names of your choice for the outputs of a model with several (`num_labels` in its config.json), with their numbers from
    0: `{helpfulness: 0, verbosity: 4}`. `select` refers to each by its name; one forward pass computes all."""
    reward_output: str | None = None
    """The output that is the reward, one of `outputs`; not needed if there is only one, or if the step `reward` combines
    several."""
    tokens_per_batch: int | None = Field(default=None, ge=1)
    """Tokens per forward pass, with shared prompts counted once and padding included. Bounds memory, and changes rewards only
    by rounding. Default: 32768 on a GPU; 4096 on a CPU, where a batch ends earlier unless that would repeat long prompts;
    less if memory is short."""

    @model_validator(mode="after")
    def _outputs_have_names(self) -> Self:
        for name in self.outputs:
            check_name(name, "model's output")
        if self.reward_output is not None and self.reward_output not in self.outputs:
            known = ", ".join(self.outputs) or "none"
            raise ValueError(f"reward_output is {self.reward_output!r}, and outputs names {known}; name one of outputs")
        return self

    @property
    def reward_of(self) -> tuple[str, int] | None:
        """The name and the number of the output that is the reward; None if there is only one output, or if several are
        combined."""
        name = self.reward_output or (next(iter(self.outputs)) if len(self.outputs) == 1 else None)
        return None if name is None else (name, self.outputs[name])

    @property
    def used_outputs(self) -> dict[str, Any] | None:
        """The outputs as a plan records them: their numbers by name, and the one that is the reward; None for plain models."""
        if not self.outputs:
            return None
        return {"names": dict(sorted(self.outputs.items())), "reward": self.reward_output or next(iter(self.outputs))}


_Several = TypeAdapter(Annotated[list[ModelConfig], Field(min_length=1)])


def _one_or_several(value: Any, _union: Any) -> ModelConfig | list[ModelConfig]:
    """Validate one form or the other, not a union: an error then names `model.dtype`, and not the members of the union."""
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
    """The combination of several models' rewards. Each model's rewards are standardised first: their mean is subtracted, and
    the result divided by their standard deviation, both over all responses that every model has scored. `min_reward` and gaps
    are therefore in standard deviations, and their meaning shifts as the corpus grows."""

    combine: Literal["mean", "min", "lower_bound"] = "mean"
    """`mean`; `min`, the lowest of the models' rewards; `lower_bound`, the mean minus `penalty` times the (population)
    standard deviation over the models, which is lower where they disagree. After Coste et al. 2024, who use the variance."""
    penalty: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """Number of standard deviations that `lower_bound` subtracts."""

    names: list[str] = []
    """Names of the models, in the order of the list `model`. `select` then refers to the reward of each by its name, and to
    the standardised one as `z(NAME)`: `select=[{reward: "0.7 * z(helpful) - 0.2 * z(verbose)"}, ...]`."""

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
        """The settings that affect a combined reward."""
        return self.model_dump(exclude={"names"} if self.combine == "lower_bound" else {"names", "penalty"})
