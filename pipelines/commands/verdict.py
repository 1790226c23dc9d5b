"""The verdicts stored with the models of a run: reported before scoring, and required if that is set."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from pipelines.config import RunConfig
from pipelines.corpus.reward_source import name_of
from pipelines.errors import ModelLoadError
from pipelines.plan import Plan
from pipelines.report.verdict import BETTER, NO_VERDICT, label, sentence, warnings
from pipelines.storage.canonical_json import Json

log = logging.getLogger(__name__)


def verdicts_of(config: RunConfig, plan: Plan) -> Iterator[tuple[str, Json | None]]:
    """Yield (name, stored evaluation or None) of each model that scores; nothing if the corpus contains the rewards."""
    if not config.models:
        return
    alone = [{"name": name_of(config.models[0]), "fingerprint": plan.fingerprint}]
    for model in plan.model.get("members", alone):
        yield model["name"], plan.evaluations.get(model["fingerprint"])


def warnings_before(config: RunConfig, plan: Plan) -> list[str]:
    """Return sentences on models that are not shown to be better than length, or only on pairs that differ in length.

    Raises `ModelLoadError` if `limits.require_verdict` requires a better one.
    """
    lines = []
    for name, evaluation in verdicts_of(config, plan):
        if config.limits.require_verdict is not None and (evaluation is None or evaluation["verdict"] != BETTER):
            words = NO_VERDICT if evaluation is None else label(evaluation)
            raise ModelLoadError(
                f"model.path {name}: {words}, and limits.require_verdict is {config.limits.require_verdict}; train or evaluate "
                "on more judgements (`bestkept evaluate` stores its verdict with the model), or leave the limit out"
            )
        if evaluation is not None:
            told = [sentence(evaluation)] if evaluation["verdict"] != BETTER else []
            lines += [f"model.path {name}: {words}" for words in (*told, *warnings(evaluation))]
    return lines


def log_verdicts(config: RunConfig, plan: Plan) -> None:
    """Log the `warnings_before` scoring, and the models without a verdict. Raises `ModelLoadError` as that does."""
    for line in warnings_before(config, plan):
        log.warning("%s", line)
    for name, evaluation in verdicts_of(config, plan):
        if evaluation is None:
            log.info("model.path %s: %s", name, NO_VERDICT)
