"""Estimates for one model, made without its weights: rows scored, rows to score, and memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.commands.estimate.benchmark import Speed, benchmark
from pipelines.commands.estimate.colocation_estimate import ColocationGain, with_colocation
from pipelines.commands.estimate.hardware import hardware, why_too_large
from pipelines.commands.estimate.scored_so_far import count_scored
from pipelines.commands.estimate.survey import Survey
from pipelines.commands.estimate.token_forecast import Forecast, forecast_tokens, load_dry_run, unscored_blocks
from pipelines.commands.progress_bar import ShowPart
from pipelines.errors import ConfigError
from pipelines.plan import Plan
from pipelines.storage.models import carrying_model_errors

_CONTEXT_BYTES = 2**30  # of the driver and its libraries
_MOST_DEVICES = 8  # GPUs of a machine


@dataclass(frozen=True)
class ModelEstimate:
    """The properties of a plan's model that are known without its weights."""

    plan: Plan
    name: str
    packed: bool
    causal: bool
    shape: dict[str, int]
    tokens_per_batch: int
    forecast: Forecast
    colocation: ColocationGain | None  # with and without `score.colocate`, if they differ

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
        """Return the model of a plan, with its scores in these directories. Raises `ModelLoadError`."""
        device = None if plan.model["device"] == "auto" else plan.model["device"]
        dry_run = load_dry_run(plan, device=device if local else "cuda")
        scored = count_scored(plan, directories, seed=seed)
        with carrying_model_errors():
            expected = forecast_tokens(plan, surveyed, dry_run, scored, seed=seed)
            expected, gain = with_colocation(
                expected,
                unscored_blocks(plan, surveyed, scored),
                dry_run,
                whole=surveyed.whole and scored.whole,
                responses=plan.rows_per_fragment,
                colocated=colocated,
            )
        name = plan.model["directory"].rsplit("/", 1)[-1]
        causal = dry_run.model.causal
        return cls(plan, name, dry_run.packed, causal, dry_run.shape, dry_run.tokens_per_batch, expected, gain)

    def benchmark(self, surveyed: Survey, seed: int, show: ShowPart | None = None) -> Speed | None:
        """Measure the model's speed on this machine; None if everything is scored."""
        waiting = unscored_blocks(self.plan, surveyed, self.forecast.scored)
        if not waiting or not self.forecast.left_computed.high:
            return None
        return benchmark(self.plan, waiting, seed=seed, show=show)

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

    def devices_on(self, gpu: str, *, gpus: int) -> int:
        """Return over how many GPUs of that name the model is spread in each worker, which has `gpus` (0 if that is not set)."""
        wanted = self.plan.model["devices"]
        if isinstance(wanted, int):
            return wanted
        most = gpus or _MOST_DEVICES
        table = hardware().gpus[gpu]
        numbers = range(1, most + 1)
        return next((n for n in numbers if why_too_large(gpu, table, self.memory, devices=n) is None), most)

    def why_too_large(self, gpu: str, *, gpus: int) -> str | None:
        """Return why the model does not fit into the GPUs over which it is spread; None if it does."""
        return why_too_large(gpu, hardware().gpus[gpu], self.memory, devices=self.devices_on(gpu, gpus=gpus))

    def to_json(self) -> dict[str, Any]:
        expected, scored = self.forecast, self.forecast.scored
        return {
            "name": self.name,
            "fingerprint": self.plan.fingerprint,
            "dtype": self.plan.model["dtype"],
            "max_length": self.plan.model["max_length"],
            "parameters": self.shape["parameters"],
            "packed": self.packed,
            "shares_prompts": self.packed and self.causal,
            "scored": {"fragments": scored.fragments, "responses": scored.responses, "tokens": scored.tokens},
            "tokens": expected.tokens,
            "left": {
                "responses": expected.left_responses,
                "tokens": expected.left_tokens,
                "computed_tokens": expected.left_computed,
            },
            "computed_share": expected.computed_share,
            "colocate": None if self.colocation is None else self.colocation.to_json(),
            "sampled_responses": expected.sampled_responses,
        }


def check_memory(models: Sequence[ModelEstimate], gpu: str, *, gpus: int) -> None:
    """Raise `ConfigError` for the first model that does not fit into this GPU, or into those over which it is spread."""
    for model in models:
        why = model.why_too_large(gpu, gpus=gpus)
        if why is not None:
            raise ConfigError(
                f"model.path {model.name!r}, {model.shape['parameters']:,} parameters in {model.plan.model['dtype']}: {why}; "
                "choose a larger GPU, a larger model.devices, a 16-bit model.dtype, or a smaller model.tokens_per_batch"
            )


def memory_bytes(*, parameters: int, dtype: str, tokens: int, hidden: int, intermediate: int) -> tuple[int, int]:
    """Return (weights, other memory) in bytes of a forward pass without gradients.

    The weights are parameters x bytes of the type; the other memory is one layer's hidden states (10 x hidden) and feed-forward
    (3 x intermediate) for all tokens at once, and 1 GiB for the driver.
    """
    from rm.identity import DTYPE_BYTES

    width = DTYPE_BYTES[dtype]
    return parameters * width, tokens * (10 * hidden + 3 * intermediate) * max(2, width) + _CONTEXT_BYTES
