"""The command `bestkept` as functions: train reward models, score corpora with them, keep the best responses.

    from bestkept import RewardModel, best_of_n, curate, train

    trained = train("preferences.jsonl", model="Qwen/Qwen3-0.6B", output="reward-model")
    curated = curate(input="corpus/*.parquet", model=trained, select=[best_of_n(1)], output="curated")
    curated.to_pandas()
    RewardModel("reward-model").score("Why is the sky blue?", ["Rayleigh scattering.", "No idea."])  # float32 [2]

Files and rows in memory (`datasets.Dataset`, pandas, lists) are processed as by the command, with the same settings and
results. Functions raise `BestkeptError`, with the text of the command's error; they never print and never end the process.
Importing this package loads neither torch nor Beam: the first call that needs them does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bestkept.curation import curate, score, select
    from bestkept.results import Curated, Scores
    from bestkept.rules import (
        best_of_n,
        decontaminate,
        diverse,
        drop_prompts,
        length_correction,
        longest,
        near_duplicates,
        on_topic,
        pairs,
        preferences,
        random,
        reward,
        threshold,
        top,
        where,
    )
    from bestkept.scoring import Ranked, RewardModel
    from bestkept.training import Evaluation, Trained, evaluate, train
    from pipelines.errors import (
        BestkeptError,
        ConfigError,
        ConflictError,
        Exit,
        InputError,
        ModelLoadError,
        RejectedError,
        StorageError,
    )

    __version__: str

__all__ = [
    "BestkeptError",
    "ConfigError",
    "ConflictError",
    "Curated",
    "Evaluation",
    "Exit",
    "InputError",
    "ModelLoadError",
    "Ranked",
    "RejectedError",
    "RewardModel",
    "Scores",
    "StorageError",
    "Trained",
    "__version__",
    "best_of_n",
    "curate",
    "decontaminate",
    "diverse",
    "drop_prompts",
    "evaluate",
    "length_correction",
    "longest",
    "near_duplicates",
    "on_topic",
    "pairs",
    "preferences",
    "random",
    "reward",
    "score",
    "select",
    "threshold",
    "top",
    "train",
    "where",
]

_PLACES = {
    "bestkept.curation": ("curate", "score", "select"),
    "bestkept.results": ("Curated", "Scores"),
    "bestkept.scoring": ("Ranked", "RewardModel"),
    "bestkept.training": ("Evaluation", "Trained", "evaluate", "train"),
    "pipelines.errors": (
        *("BestkeptError", "ConfigError", "ConflictError", "Exit", "InputError", "ModelLoadError", "RejectedError"),
        "StorageError",
    ),
}
"""The public names of each module; all other names are rules."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Load the module of a name at its first use. Raises `ImportError` if another package shadows one of ours."""
        from importlib import import_module

        from bestkept._packages import refuse_shadowed

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        refuse_shadowed()
        if name == "__version__":
            from pipelines.runtime.machine import tool_version

            return tool_version()
        module = next((module for module, names in _PLACES.items() if name in names), "bestkept.rules")
        value = globals()[name] = getattr(import_module(module), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
