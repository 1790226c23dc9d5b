"""`bestkept select --explain`: for one prompt, why each of its responses was kept or dropped, step by step.

The graph is that of the selection, up to the rows that it keeps. The prompt's rows are also read from the score files, and the
steps are repeated on them with the cuts that the selection settled. The command runs on this machine and writes only to a
temporary directory, and no text. It costs as much as a selection without export; a prompt that is named by its text is first
searched for in the corpus.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import AsIter, AsSingleton
from apache_beam.typehints.decorators import no_annotations

from pipelines.commands.explain.lookup import (
    MOST_SHOWN,
    FoundRow,
    ScoredPlace,
    find_rows,
    name_place,
    place_name,
    read_texts,
    row_at,
    with_names,
    with_ngrams,
)
from pipelines.commands.explain.verdicts import DROPPED_BEFORE, ResponsePlace, Verdict, response_places, verdicts
from pipelines.config import RunConfig, RunnerConfig
from pipelines.corpus import place_of
from pipelines.curate import score_files
from pipelines.errors import ConfigError, InputError, carrying_errors
from pipelines.plan import Plan, PlanPaths, make_plans, plan_at, with_absolute_paths
from pipelines.runtime.beam_options import pipeline_options
from pipelines.runtime.execute import execute
from pipelines.runtime.transforms import Gather
from pipelines.score import score_files as objects
from pipelines.score.score_files import ScoreFile
from pipelines.select.candidates import Candidates, Mask
from pipelines.select.columns import KeptUnit, Needs, key_halves, pack, unpack
from pipelines.select.duplicates import DROPPED
from pipelines.select.duplicates_transform import merge_dropped
from pipelines.select.selection import Selection, read_candidates
from pipelines.select.transform import Select

log = logging.getLogger(__name__)

_ID = re.compile("[0-9a-f]{8,32}")
_ID_LENGTH = 32
_KEYS = "a prompt_id of the output or at least its first 8 characters, FILE:ROW, or the beginning of the prompt's text"


def explain(config: RunConfig, key: str, flags: Sequence[str] = (), *, with_text: bool = False) -> dict[str, Any]:
    """Return the verdicts of the selection on a prompt as plain JSON values, and, `with_text`, its messages and responses.

    `key` is the prompt's `prompt_id` or a prefix of it, a row as `FILE:ROW`, or the beginning of the prompt's text. Raises
    `ConfigError` for an empty key and for flags of Beam, `InputError` for a key that fits no prompt or several, and the errors of
    a selection. See `explanation` for the result.
    """
    if not key.strip():
        raise ConfigError(f"--explain {key!r} is empty; give {_KEYS}")
    if flags:
        raise ConfigError(f"flag {flags[0]} is for a runner of Beam, and --explain runs on this machine; leave it out")
    if config.runner.name != "local":
        log.info("explaining on this machine, not on %s", config.runner.name)
    config = with_absolute_paths(config)
    plans = make_plans(config)
    selection = Selection.of(config, plans.whole)
    if not _ID.fullmatch(key):
        found = find_row(key, plans.whole, skip_bad_files=config.limits.skip_bad_files)
        if found.key is None:
            return _unusable(found, plans.whole, selection, with_text=with_text)
        key = found.key
    with tempfile.TemporaryDirectory(prefix="bestkept-explain-") as scratch:
        paths, answer = plans.save(scratch), Path(scratch) / "explained.json"
        build = Explain(config, selection, paths, key, scratch=scratch, answer=str(answer))
        execute(RunnerConfig(), pipeline_options(RunnerConfig(), ()), lambda pipeline: pipeline | "Explain" >> build)
        content: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    if "matches" in content:
        raise _not_one(key, content["matches"], content["prompts"])
    places = [ScoredPlace(*place) for place in content.pop("places")]
    with_ngrams(content, plans, places, steps=config.select)
    if with_text:
        texts = read_texts(plans.whole, places, prompt_id=content["prompt_id"])
        content["prompt"] = texts.prompt
        content["rows"] = [{**row, "text": text} for row, text in zip(content["rows"], texts.responses, strict=True)]
    return content


def find_row(key: str, plan: Plan, *, skip_bad_files: bool) -> FoundRow:
    """Return the first row of the prompt that a place or the beginning of its text names."""
    place = name_place(key, plan.files)
    if place is not None:
        return row_at(place, plan)
    log.info("looking for a prompt that begins with this text")
    rows = find_rows(key, plan, skip_bad_files=skip_bad_files)
    if len(rows) == 1:
        return rows[0]
    names = [f"{row.key or 'no prompt'} ({place_name(plan, row)})" for row in rows]
    if names:
        several = f"{len(rows)}" if len(rows) <= MOST_SHOWN else f"more than {MOST_SHOWN}"
        raise InputError(
            f"{key!r} begins {several} prompts: {_listed(names)}; give one of these ids, a place, or more text"
        )
    raise InputError(
        f"no prompt begins with {key!r}, nor does a later message of one, in the {len(plan.files):,} "
        f"file{'s' * (len(plan.files) > 1)} of input.path; give {_KEYS}"
    )


def _not_one(key: str, matches: Sequence[str], prompts: int) -> InputError:
    if matches:
        return InputError(
            f"{key!r} fits {len(matches)} of {prompts:,} prompts: {_listed(matches)}; give more of the id"
        )
    return InputError(
        f"none of the {prompts:,} scored prompts has the id {key!r}; take one from the output's column prompt_id, "
        "or compare input.path and input.group_by with those of the selection"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_SHOWN]) + (", ..." if len(names) > MOST_SHOWN else "")


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class Explain(beam.PTransform):  # type: ignore[misc]
    """Root → the answer, written to `answer`: an explanation, or `matches` if not exactly one prompt fits."""

    config: RunConfig
    selection: Selection
    paths: PlanPaths
    key: str
    scratch: str
    answer: str

    def expand(self, begin: Any) -> Any:
        scored, _ = score_files(begin.pipeline, self.config, self.paths, None, scratch=self.scratch)
        selected = scored | "Select" >> Select(self.selection, self.config.limits, with_schemas=False, with_cuts=True)
        rows, prompts = self._find_prompt(scored)
        kept = selected["kept"] | "FindKept" >> beam.FlatMap(kept_places, self.key, self.selection.needs.kept)
        sides = [AsIter(rows), AsSingleton(prompts), AsIter(kept)]
        sides += [AsSingleton(selected["curve"])] if self.selection.correction else []
        sides += map(AsSingleton, selected["means"])
        cut_steps = sorted(selected["cuts"])
        for number in cut_steps:
            sides += map(AsSingleton, selected["cuts"][number])
        for number, dropped in sorted(selected["dropped"].items()):
            sides.append(AsSingleton(dropped | f"GatherDropped{number}" >> Gather(merge_dropped)))
        write = WriteAnswer(self.paths.whole, self.selection, self.answer, cut_steps, sorted(selected["dropped"]))
        barrier = begin.pipeline | "Answer" >> beam.Impulse()
        return barrier | "WriteAnswer" >> beam.ParDo(write, *sides)

    def _find_prompt(self, scored: Any) -> tuple[Any, Any]:
        """Return (rows of the prompts that fit the key, the number of all prompts as one element)."""
        find = beam.ParDo(FindPrompt(self.key, _needs(self.selection))).with_outputs("keys", main="rows")
        found = scored | "FindPrompt" >> find
        counts = found.keys | "GroupKeys" >> beam.GroupByKey() | "CountKeys" >> beam.Map(count_keys)
        return found.rows, counts | "SumPrompts" >> Gather(sum)


def _needs(selection: Selection) -> Needs:
    reading = selection.reading
    return Needs(tokens=True, length=True, raw=reading.raw, labels=reading.labels, values=reading.values)


def matching(high: Any, low: Any, prefix: str) -> Mask:
    """Return a mask of the keys, given as halves, that begin with these hexadecimal digits."""
    least, most = (int(prefix.ljust(_ID_LENGTH, digit), 16) for digit in "0f")
    half = (1 << 64) - 1
    above = (high > least >> 64) | ((high == least >> 64) & (low >= least & half))
    below = (high < most >> 64) | ((high == most >> 64) & (low <= most & half))
    inside: Mask = above & below
    return inside


@dataclass(eq=False)
class FindPrompt(beam.DoFn):  # type: ignore[misc]
    """Descriptor → (key, file, unit, start of the unit, scored rows, rejected rows) of each key that fits; also all distinct keys
    by first byte, for counting."""

    prefix: str
    needs: Needs

    def process(self, data: bytes) -> Iterator[Any]:
        with carrying_errors():
            descriptor = ScoreFile.from_bytes(data)
            footer = descriptor.footer
            names = ["prompt_key", "row", "response_index", "reason"]
            rows = objects.read_columns(descriptor.path, names, footer)
            rows = rows.filter(rows["prompt_key"].is_valid())
            high, low = key_halves(rows["prompt_key"])
            yield from self._keys(high, low)
            mask = matching(high, low, self.prefix)
            if not mask.any():
                return
            scored, matches = read_candidates(descriptor, self.needs), rows.filter(pa.array(mask))
            for key in matches["prompt_key"].unique().to_pylist():
                candidates = scored.take(_of_key(scored, int.from_bytes(key, "big")))
                rejected = matches.filter(pa.array([k == key for k in matches["prompt_key"].to_pylist()]))
                rejected = rejected.filter(rejected["reason"].is_valid()).select(names[1:]).to_pylist()
                unit = (descriptor.file, footer.unit, footer.unit_start)
                yield (key.hex(), *unit, pack(candidates, self.needs), [tuple(row.values()) for row in rejected])

    def _keys(self, high: Any, low: Any) -> Iterator[Any]:
        distinct = np.unique(np.stack([high, low], axis=1), axis=0)
        first = (distinct[:, 0] >> np.uint64(56)).astype(int)
        for number in np.unique(first).tolist():
            yield beam.pvalue.TaggedOutput("keys", (number, distinct[first == number].tobytes()))


def _of_key(rows: Candidates, key: int) -> Mask:
    mask: Mask = (rows.key_high == key >> 64) & (rows.key_low == key & ((1 << 64) - 1))
    return mask


def count_keys(element: tuple[int, Iterable[bytes]]) -> int:
    """Return the number of distinct keys in (first byte, keys of several score files)."""
    keys = np.frombuffer(b"".join(element[1]), dtype=np.uint64).reshape(-1, 2)
    return len(np.unique(keys, axis=0))


def kept_places(unit: KeptUnit, prefix: str, needs: Needs) -> list[ResponsePlace]:
    """Return the places of the kept responses whose prompt has this prefix."""
    rows = unpack([unit.kept], needs)
    return response_places(rows.take(matching(rows.key_high, rows.key_low, prefix)))


@dataclass(eq=False)
class WriteAnswer(beam.DoFn):  # type: ignore[misc]
    """Impulse, with all other inputs as side inputs → the answer, written to a file."""

    plan_path: str
    selection: Selection
    answer: str
    cut_steps: Sequence[int]
    dropping_steps: Sequence[int]

    @no_annotations  # type: ignore[untyped-decorator]  # Beam cannot read those of *args
    def process(
        self, _impulse: bytes, rows_found: Iterable[Any], prompts: int, kept: Iterable[ResponsePlace], *sides: Any
    ) -> Iterator[None]:
        parts, waiting = sorted(rows_found, key=lambda part: part[:4]), list(sides)
        matches = sorted({part[0] for part in parts})
        if len(matches) == 1:
            curve = waiting.pop(0) if self.selection.correction else None
            standards = {name: one for _ in self.selection.standardised for name, one in waiting.pop(0).items()}
            cuts = {number: (waiting.pop(0), waiting.pop(0)) for number in self.cut_steps}
            rows = unpack([part[4] for part in parts], _needs(self.selection))
            dropped = {number: np.frombuffer(waiting.pop(0), dtype=DROPPED) for number in self.dropping_steps}
            settled: dict[str, Any] = {"curve": curve, "cuts": cuts, "standards": standards, "dropped": dropped}
            decided = verdicts(rows, self.selection, **settled)
            with carrying_errors():
                plan = plan_at(self.plan_path)
                decided = {place: [with_names(verdict, plan) for verdict in steps] for place, steps in decided.items()}
            content = explanation(plan, self.selection, parts, rows, decided=decided, kept=set(kept))
        else:
            with carrying_errors():
                plan = plan_at(self.plan_path)
            content = {"matches": _with_places(parts, plan, _needs(self.selection))}
        text = json.dumps({**content, "prompts": prompts}, allow_nan=False)
        Path(self.answer).write_text(text, encoding="utf-8")
        yield None


def _with_places(parts: Sequence[Any], plan: Plan, needs: Needs) -> list[str]:
    """Return each prompt's id with the place of its first row."""
    first: dict[str, str] = {}
    for key, file, _, start, scored, rejected in parts:
        rows = [*unpack([scored], needs).row.tolist(), *(row for row, _, _ in rejected)]
        place = place_of(plan.files[file].key, start, min(rows))
        first.setdefault(key, f"{key} ({plan.files[file].key}:{place})")
    return [first[key] for key in sorted(first)]


def explanation(
    plan: Plan,
    selection: Selection,
    parts: Sequence[Any],
    rows: Candidates,
    *,
    decided: dict[ResponsePlace, list[Verdict]],
    kept: set[ResponsePlace],
) -> dict[str, Any]:
    """Return the prompt's id, the steps with their settings, and its rows in the order of the input.

    Each row has file, place, response index, reward, tokens (None if there is no tokenizer), reason of rejection, whether the
    selection keeps it, and its verdict by step. `places` are the places from which the texts are read.
    """
    starts = {(file, unit): start for _, file, unit, start, _, _ in parts}
    tokens = rows.tokens.tolist() if plan.mapping.reward is None else [None] * len(rows)
    columns = (response_places(rows), rows.raw.tolist(), tokens, rows.response_hash.tolist())
    scored: dict[ResponsePlace, Any] = {
        place: (reward, count, None, content) for place, reward, count, content in zip(*columns, strict=True)
    }
    unusable = {
        (file, unit, row, response): (None, None, reason, None)
        for _, file, unit, _, _, rejected in parts
        for row, response, reason in rejected
    }
    before = _dropped_before(selection)
    entries, places = [], []
    for place, (reward, count, reason, content) in sorted({**scored, **unusable}.items()):
        file, unit, row, response = place
        entry = _entry(plan.files[file].key, starts[file, unit], row, response)
        entry |= {"reward": reward, "tokens": count, "rejected": reason, "kept": place in kept}
        entries.append({**entry, "steps": decided.get(place, before)})
        places.append(ScoredPlace(*place, content))
    return {"prompt_id": parts[0][0], "steps": _settings(selection), "rows": entries, "places": places}


def _unusable(found: FoundRow, plan: Plan, selection: Selection, *, with_text: bool) -> dict[str, Any]:
    """Return the explanation of a row without a usable prompt, which is rejected before scoring; its text is that of the columns
    as read."""
    key, start, row = plan.files[found.file].key, found.unit.start, found.row
    entries = [
        _entry(key, start, row.number, response)
        | {"reward": None, "tokens": None, "rejected": reason, "kept": False, "steps": _dropped_before(selection)}
        for response, reason in enumerate(row.parsed.reasons)
    ]
    if with_text:
        text = json.dumps(row.original, ensure_ascii=False, default=str) if row.original else None
        entries = [{**entry, "text": text} for entry in entries]
    return {"prompt_id": None, "steps": _settings(selection), "rows": entries, "prompts": None}


def _entry(key: str, start: int, row: int, response: int) -> dict[str, Any]:
    return {"file": key, "place": place_of(key, start, row), "response_index": response}


def _settings(selection: Selection) -> list[dict[str, Any]]:
    return [step.settings() for step in selection.steps]


def _dropped_before(selection: Selection) -> list[Verdict]:
    return [{"rule": step.name, "verdict": DROPPED_BEFORE} for step in selection.steps]
