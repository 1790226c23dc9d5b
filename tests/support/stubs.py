"""A scorer without a model: rewards from a hash of the text. Picklable, so that Beam can send it to workers."""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from safetensors.numpy import save_file

from pipelines import plan as plans
from pipelines.corpus import decoded_units
from pipelines.runtime.counters import count_forward
from rm.conversations import Conversation, canonical_json
from rm.scores import GroupScores, Work


def stub_reward(prompt: Conversation, response: str) -> np.float32:
    """A reward in [-1, 1) that depends on prompt and response."""
    value = xxhash.xxh3_64_intdigest(canonical_json(prompt) + b"\0" + response.encode())
    return np.float32(value / 2**63 - 1)


def save_named_model(directory: Path) -> Path:
    """Save, where there is none, a directory that identifies as a model of its own by its name; only stub scorers use it."""
    if not directory.exists():
        directory.mkdir(parents=True)
        weights = np.frombuffer(directory.name.encode().ljust(16), dtype=np.float32)[None]
        save_file({"score.weight": weights}, directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return directory


@dataclass
class StubScorer:
    log: Path | None = None
    die_after: int | None = None  # send the process this signal after so many fragments
    signal: int = 9
    once: Path | None = None  # a file that says that it has happened, and is not to happen again
    secs: float = 0.0  # that each fragment takes; its work is counted then
    calls: int = 0

    def _first(self) -> bool:
        try:
            if self.once is not None:
                self.once.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def score(self, groups: Sequence[tuple[Conversation, Sequence[str]]]) -> list[GroupScores]:
        self.calls += 1
        if self.die_after is not None and self.calls > self.die_after and self._first():
            os.kill(os.getpid(), self.signal)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{sum(len(responses) for _, responses in groups)}\n")
        scored = []
        for prompt, responses in groups:
            rewards = np.array([stub_reward(prompt, response) for response in responses], dtype=np.float32)
            reasons: list[Any] = [None] * len(responses)
            for position, response in enumerate(responses):
                if "UNSCORABLE" in response:
                    rewards[position], reasons[position] = np.nan, "nan_reward"
            words = np.array([len(response.split()) for response in responses], dtype=np.int32)
            flags = np.zeros(len(responses), dtype=bool)
            scored.append(GroupScores(rewards, reasons, np.ones_like(words), words, flags, {}))
        if self.secs:
            time.sleep(self.secs)
            rows, tokens = sum(len(one.rewards) for one in scored), sum(int(one[3].sum()) for one in scored)
            count_forward(Work(rows, tokens, tokens, 0, 0.0, 0.0, self.secs))
        return scored


@dataclass
class StubFactory:
    """Makes a `StubScorer` and notes every load and every call in `log`, and the process of every load as a file in `pids`."""

    log: str | None = None
    die_after: int | None = None
    pids: str | None = None
    signal: int = 9
    once: str | None = None
    meet: int = 0  # wait until so many processes have loaded
    secs: float = 0.0

    def __call__(self, plan: Any) -> StubScorer:
        if self.pids is not None:
            Path(self.pids, str(os.getpid())).touch()
            deadline = time.monotonic() + 120
            while len(os.listdir(self.pids)) < self.meet:
                assert time.monotonic() < deadline, "the others have not come"
                time.sleep(0.01)
        path = None if self.log is None else Path(self.log)
        if path is not None:
            with path.open("a") as file:
                file.write("load\n")
        return StubScorer(path, self.die_after, self.signal, None if self.once is None else Path(self.once), self.secs)


@dataclass
class DecodingFactory(StubFactory):
    """A `StubFactory` that, in the workers that it is sent to, notes each unit that one begins to decode, as `PROCESS UNIT`."""

    decoded: str = ""  # the file for that
    launcher: int = field(default_factory=os.getpid)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        read = plans.read_raw_fragments
        if os.getpid() == self.launcher or hasattr(read, "noting"):
            return

        def noting(file: Any, unit: Any, *arguments: Any, **named: Any) -> Any:
            with Path(self.decoded).open("a") as notes:
                notes.write(f"{os.getpid()} {unit.number}\n")
            return read(file, unit, *arguments, **named)

        noting.noting = True  # type: ignore[attr-defined]
        plans.read_raw_fragments = noting


def forget_units() -> None:
    """Delete the units that this process has decoded and kept."""
    decoded_units.hold()
    decoded_units.release()


def scored_rows(log: Path) -> int:
    """Responses that scorers with this log have scored."""
    return sum(int(line) for line in log.read_text().split() if line != "load") if log.exists() else 0


def loads(log: Path) -> int:
    return log.read_text().split().count("load") if log.exists() else 0


def named_reward(name: str, prompt: Conversation, response: str) -> np.float32:
    """The reward of one of several models: other ranks, another place and another spread for each name; `flat` has no spread."""
    if name == "flat":
        return np.float32(0.25)
    return np.float32(stub_reward(prompt, name + response) * len(name) + 10 * len(name))


LIVE: weakref.WeakSet[NamedScorer] = weakref.WeakSet()
loaded: list[tuple[str, int]] = []  # name, and how many others were in memory at the time


class NamedScorer:
    """The model in the directory of that name. `NAME-REJECTS` in a response is rejected by it, `NAME-CUTS` is truncated."""

    def __init__(self, name: str, log: Path) -> None:
        loaded.append((name, len(LIVE)))
        LIVE.add(self)
        self._me = self  # a cycle, as modules have them
        self._name, self._log = name, log

    def score(self, groups: Sequence[tuple[Conversation, Sequence[str]]]) -> list[GroupScores]:
        with self._log.open("a") as file:
            file.write(f"{self._name} {sum(len(responses) for _, responses in groups)}\n")
        scored = []
        for prompt, responses in groups:
            rewards = np.array([named_reward(self._name, prompt, text) for text in responses], dtype=np.float32)
            reasons = [f"by_{self._name}" if f"{self._name}-REJECTS" in text else None for text in responses]
            rewards[[reason is not None for reason in reasons]] = np.nan
            words = np.array([len(text.split()) * len(self._name) for text in responses], dtype=np.int32)
            cut = np.array([f"{self._name}-CUTS" in text for text in responses])
            scored.append(GroupScores(rewards, reasons, np.ones_like(words), words, cut, {}))
        return scored


@dataclass
class NamedFactory:
    """Makes the `NamedScorer` of a plan's model directory; `log` gets a line of name and responses for every call."""

    log: str

    def __call__(self, plan: Any) -> NamedScorer:
        return NamedScorer(Path(plan.model["directory"]).name, Path(self.log))


def scored_by(log: Path) -> dict[str, int]:
    """Responses by the name of the model, from the log of a `NamedFactory`."""
    counts: dict[str, int] = {}
    for line in log.read_text().splitlines():
        name, count = line.split()
        counts[name] = counts.get(name, 0) + int(count)
    return counts
