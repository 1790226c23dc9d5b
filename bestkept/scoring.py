"""`RewardModel`: a reward model in this process, for conversations in memory; it uses the scorer of the command."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np

from bestkept.inputs import Rows, checked, model_block, rows_of
from pipelines.config import Columns, ModelConfig
from pipelines.errors import ConfigError, reporting_broken_devices
from rm.conversations import (
    Conversation,
    UnusableError,
    from_messages,
    from_prompt,
    from_response,
    is_message,
    split_last,
)

if TYPE_CHECKING:
    import os

    import numpy.typing as npt

    from rm.scorer import Scorer

    Rewards = npt.NDArray[np.float32]

log = logging.getLogger(__name__)

_Sample = tuple[Conversation, str]
_FIRST_ROWS = 100  # columns are detected by these


class Ranked(TypedDict):
    """One response of a ranking, as `CrossEncoder.rank` of sentence-transformers returns it."""

    corpus_id: int
    """The index of the response in the list that was ranked, from 0."""
    score: float
    """Its raw reward, without a unit; NaN if it could not be scored."""
    text: NotRequired[str]
    """The response, with `return_documents`."""


class RewardModel:
    """A reward model: any `AutoModelForSequenceClassification` checkpoint with one output, or with named outputs.

    The rewards are those of `bestkept run` with the same settings. The first call that needs the weights loads them, and they
    stay in memory; calls from several threads run one at a time.
    """

    def __init__(self, path: str | os.PathLike[str], **settings: Any) -> None:
        """Locate the model: a directory, also on an object store, or a hub id, which is downloaded.

        `settings` are those of the block `model` of a configuration: `device`, `dtype`, `max_length` (tokens), `too_long`,
        `tokens_per_batch`, `revision`, `devices`, `outputs` and `reward_output`. Raises `ConfigError` and `ModelLoadError`.
        """
        from pipelines.storage.models import whole_directory

        self._config = checked(ModelConfig, {**settings, **model_block(path)}, "RewardModel")
        self._directory = whole_directory(self._config.path, self._config.revision)
        self._forward = threading.Lock()
        self.path: str = self._config.path
        """The path or id, as given."""
        self.settings: dict[str, Any] = self._config.model_dump(exclude_unset=True, exclude={"path"})
        """The settings, as given."""

    def __repr__(self) -> str:
        """Return the constructor call, without its settings."""
        return f"RewardModel({self.path!r})"

    @property
    def temperature(self) -> float | None:
        """The temperature T that turns gaps between rewards into probabilities, from `calibration.json`; None if none is stored.

        Raises `ModelLoadError` if the file is damaged.
        """
        from pipelines.corpus.reward_source import is_of_another_output
        from pipelines.storage.models import carrying_model_errors
        from rm.calibration_record import load_output, load_temperature

        with carrying_model_errors():
            temperature, measured = load_temperature(self._directory), load_output(self._directory)
        return None if measured is not None and is_of_another_output(self._config, measured) else temperature

    def score(self, conversations: Any, responses: Any = None, *, progress: bool = False) -> Rewards:
        """Return the raw reward of each response: float32 [responses], in the order of the input; higher is better, no unit.

        Forms of the input:

        - `score(prompts, responses)`: two lists of equal length [n] → [n]. A prompt is text or a list of messages; a response is
          text, messages, or a list of several texts, whose rewards follow one another.
        - `score(prompt, responses)`: one prompt for all responses.
        - `score(conversations)`: lists of messages, `{"role": ..., "content": ...}`; the last turn, the assistant's, is the
          response.
        - `score(rows)`: a `datasets.Dataset`, a pandas DataFrame, an Arrow table or a list of mappings in any layout of a corpus;
          columns are detected as `bestkept inspect` does.

        A response that cannot be scored (empty, of another type, ...) gets NaN, and a warning in the log counts the reasons. With
        a model trained only on pairs, compare only responses to the same prompt: the absolute level has no meaning. Raises
        `ConfigError`, `InputError`, `ModelLoadError` and `StorageError`.
        """
        samples = _samples(conversations, responses)
        rewards, reasons = np.full(len(samples), np.nan, np.float32), Counter[str]()
        groups: dict[Conversation, list[int]] = {}
        for number, sample in enumerate(samples):
            if isinstance(sample, str):
                reasons[sample] += 1
            else:
                groups.setdefault(sample[0], []).append(number)
        texts = [(prompt, [samples[at][1] for at in places]) for prompt, places in groups.items()]
        for places, result in zip(groups.values(), self._score(texts, progress=progress), strict=True):
            rewards[places] = result.rewards
            reasons.update(reason for reason in result.reasons if reason is not None)
        if reasons:
            words = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
            log.warning("%s of %s responses have no reward: %s", f"{reasons.total():,}", f"{len(samples):,}", words)
        return rewards

    def _score(self, groups: Sequence[tuple[Conversation, Sequence[str]]], *, progress: bool) -> Sequence[Any]:
        from pipelines.commands.progress_bar import showing_batches, showing_nothing
        from pipelines.storage.models import carrying_model_errors

        showing: Callable[..., Any] = showing_batches if progress else showing_nothing
        with self._forward, carrying_model_errors(), reporting_broken_devices():
            scorer = self._scorer
            with showing(sum(len(responses) for _, responses in groups)) as report:
                scorer.on_batch = report
                return scorer.score(groups)

    @cached_property
    def _scorer(self) -> Scorer:
        from pipelines.commands.evaluate import load_scorer

        return load_scorer(self._config, self._directory)

    def rank(
        self, prompt: Any, responses: Iterable[Any], top_k: int | None = None, *, return_documents: bool = False
    ) -> list[Ranked]:
        """Return the responses to one prompt from best to worst, at most `top_k`, each with its index, its raw reward and, with
        `return_documents`, its text. Equal rewards keep the order of the input; responses without a reward come last.

        Raises as `score` does.
        """
        texts = list(responses)
        rewards = self.score([prompt] * len(texts), texts)
        if len(rewards) != len(texts):
            raise ConfigError(
                "responses contains lists of texts; expected one text, or one list of messages, for each response"
            )
        order = sorted(range(len(texts)), key=lambda at: (np.isnan(rewards[at]), -rewards[at]))[:top_k]
        ranked = [Ranked(corpus_id=at, score=float(rewards[at])) for at in order]
        if return_documents:
            for one in ranked:
                one["text"] = texts[one["corpus_id"]]
        return ranked

    def predict(self, pairs: Any, *, progress: bool = False) -> Any:
        """Return the raw rewards of (prompt, response) pairs: float32 [pairs], or one float32 for a single pair of texts.

        Equivalent to `CrossEncoder.predict` of sentence-transformers with `activation_fn=torch.nn.Identity()`. Raises as `score`
        does.
        """
        single = len(pairs) == 2 and all(isinstance(text, str) for text in pairs)
        listed = [pairs] if single else list(pairs)
        if any(isinstance(pair, str) or len(pair) != 2 for pair in listed):
            raise ConfigError("predict takes pairs of a prompt and a response; use score for other inputs")
        rewards = self.score([prompt for prompt, _ in listed], [response for _, response in listed], progress=progress)
        return rewards[0] if single else rewards

    def probability(self, prompts: Any, a: Any, b: Any, *, temperature: float | None = None) -> Any:
        """Return the probability, from 0 to 1, that response `a` to a prompt is preferred to `b`: sigma((r_a - r_b) / T).

        Lists of n prompts and responses give float32 [n], a single prompt a float; NaN if a or b has no reward. T is
        `temperature`, or the model's. Raises `ConfigError` if neither is set, and as `score` does.
        """
        temperature = self.temperature if temperature is None else temperature
        if temperature is None:
            raise ConfigError(
                f"model.path {self.path} has no calibration.json with a temperature; run `bestkept evaluate` on held-out "
                "preferences to write one, or pass temperature"
            )
        if not temperature > 0:
            raise ConfigError(f"temperature is {temperature!r}; expected a number above 0")
        single = isinstance(a, str)
        sides = [[a], [b]] if single else [list(a), list(b)]
        asked = [prompts] if single else prompts
        one, other = (self.score(asked, side).astype(np.float64) for side in sides)
        with np.errstate(over="ignore"):
            probabilities = 1.0 / (1.0 + np.exp(-(one - other) / temperature))
        return float(probabilities[0]) if single else probabilities.astype(np.float32)


def _samples(conversations: Any, responses: Any) -> list[Any]:
    """Return for each response its (prompt, response), or the reason why it cannot be scored."""
    if responses is not None:
        return _prompted(conversations, responses)
    listed = isinstance(conversations, list | tuple) and len(conversations) > 0
    if listed and is_message(conversations[0]):
        return [_whole(conversations)]
    if listed and isinstance(conversations[0], list | tuple):
        return [_whole(one) for one in conversations]
    if isinstance(conversations, str) or (listed and isinstance(conversations[0], str)):
        raise ConfigError("the input is prompts without responses; call score(prompts, responses)")
    return _from_rows(conversations)


def _prompted(prompts: Any, responses: Any) -> list[Any]:
    texts = [responses] if isinstance(responses, str) else list(responses)
    if isinstance(prompts, str) or (isinstance(prompts, list | tuple) and prompts and is_message(prompts[0])):
        listed = [prompts] * len(texts)
    else:
        listed = list(prompts)
    if len(listed) != len(texts):
        raise ConfigError(
            f"there are {len(listed):,} prompts and {len(texts):,} responses; pass one response, or a list of them, for each "
            "prompt"
        )
    samples: list[Any] = []
    for prompt, response in zip(listed, texts, strict=True):
        several = isinstance(response, list | tuple) and not (response and is_message(response[0]))
        for one in response if several else [response]:
            samples.append(_pair(prompt, one))
    return samples


def _pair(prompt: Any, response: Any) -> _Sample | str:
    try:
        turns = from_prompt(prompt)
        return turns, from_response([response] if is_message(response) else response, after=turns)
    except UnusableError as error:
        return error.reason


def _whole(messages: Any) -> _Sample | str:
    try:
        return split_last(from_messages(messages))
    except UnusableError as error:
        return error.reason


def _from_rows(data: Rows) -> list[Any]:
    from pipelines.corpus.columns.detection import detect
    from pipelines.corpus.columns.row_mapping import parse_row

    rows = rows_of(data, name="the data")
    first = rows[:_FIRST_ROWS]
    names = list(dict.fromkeys(str(name) for row in first for name in row))
    detected = detect(names, format="auto", columns=Columns(), rows=first, where="the data")
    for note in detected.notes:
        log.warning("%s", note)
    samples: list[Any] = []
    for row in rows:
        parsed = parse_row({**dict.fromkeys(names), **row}, detected.mapping)
        for text, reason in zip(parsed.responses, parsed.reasons, strict=True):
            samples.append(reason if text is None else (parsed.prompt, text))
    return samples
