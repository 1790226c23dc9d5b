"""One model of a `bestkept plan`, looked at without its weights: what it has scored, what is left, what memory it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.commands.estimate.benchmark import Speed, benchmark
from pipelines.commands.estimate.colocation_estimate import ColocationGain, with_colocation
from pipelines.commands.estimate.hardware import hardware, why_too_large
from pipelines.commands.estimate.scored_so_far import count_scored
from pipelines.commands.estimate.survey import Survey
from pipelines.commands.estimate.token_forecast import Forecast, forecast, load_forecaster, unscored_blocks
from pipelines.errors import ConfigError
from pipelines.plan import Plan

_CONTEXT_BYTES = 2**30  # of the driver and its libraries


@dataclass(frozen=True)
class ModelEstimate:
    """One model of a plan, looked at without its weights."""

    plan: Plan
    name: str
    packed: bool
    causal: bool
    shape: dict[str, int]
    tokens_per_batch: int
    found: Forecast
    together: ColocationGain | None  # both ways of `score.colocate`, where they differ

    @classmethod
    def of(
        cls,
        plan: Plan,
        directories: tuple[str, ...],
        surveyed: Survey,
        *,
        seed: int,
        local: bool,
        colocated: bool = False,
    ) -> ModelEstimate:
        """The model of a plan, with what these directories hold of its scores. Raises `ModelLoadError`."""
        forecaster = load_forecaster(plan, device=None if local else "cuda")
        already = count_scored(plan, directories, seed=seed)
        found = forecast(plan, surveyed, forecaster, already, seed=seed)
        found, both = with_colocation(
            found,
            unscored_blocks(plan, surveyed, already),
            forecaster,
            whole=surveyed.whole and already.whole,
            responses=plan.rows_per_fragment,
            colocated=colocated,
        )
        name = plan.model["directory"].rsplit("/", 1)[-1]
        causal = forecaster.model.causal
        return cls(plan, name, forecaster.packed, causal, forecaster.shape, forecaster.tokens_per_batch, found, both)

    def benchmark(self, surveyed: Survey, seed: int) -> Speed | None:
        """None where nothing is left to score."""
        waiting = unscored_blocks(self.plan, surveyed, self.found.already)
        return benchmark(self.plan, waiting, seed=seed) if waiting and self.found.left_computed.high else None

    @property
    def memory(self) -> tuple[int, int]:
        longest = max(self.tokens_per_batch, int(self.plan.model["max_length"]))
        return memory_bytes(
            parameters=self.shape["parameters"],
            dtype=self.plan.model["dtype"],
            tokens=longest,
            hidden=self.shape["hidden"],
            intermediate=self.shape["intermediate"],
        )

    def to_json(self) -> dict[str, Any]:
        found, already = self.found, self.found.already
        return {
            "name": self.name,
            "fingerprint": self.plan.fingerprint,
            "dtype": self.plan.model["dtype"],
            "max_length": self.plan.model["max_length"],
            "parameters": self.shape["parameters"],
            "packed": self.packed,
            "shares_prompts": self.packed and self.causal,
            "scored": {"fragments": already.fragments, "responses": already.responses, "tokens": already.tokens},
            "tokens": found.tokens,
            "left": {
                "responses": found.left_responses,
                "tokens": found.left_tokens,
                "computed_tokens": found.left_computed,
            },
            "computed_share": found.computed_share,
            "colocate": None if self.together is None else self.together.to_json(),
            "sampled_responses": found.sampled_responses,
        }


def check_memory(models: Sequence[ModelEstimate], gpu: str) -> None:
    for each in models:
        why = why_too_large(gpu, hardware().gpus[gpu], each.memory)
        if why is not None:
            raise ConfigError(
                f"model.path {each.name!r}, {each.shape['parameters']:,} parameters in {each.plan.model['dtype']}: {why}; "
                "choose a larger GPU, a 16-bit model.dtype, or a smaller model.tokens_per_batch"
            )


def memory_bytes(*, parameters: int, dtype: str, tokens: int, hidden: int, intermediate: int) -> tuple[int, int]:
    """(weights, room beside them) of a forward without gradients: parameters x bytes of the type; and one layer's hidden states
    (10 x hidden) and feed-forward (3 x intermediate) of every token at once, with 1 GiB for the driver."""
    from rm.identity import DTYPE_BYTES

    width = DTYPE_BYTES[dtype]
    return parameters * width, tokens * (10 * hidden + 3 * intermediate) * width + _CONTEXT_BYTES
