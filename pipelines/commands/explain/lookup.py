"""Rows of the corpus for `bestkept select --explain`: by place or by the beginning of their text, and their texts. No Beam.

name_place("a.jsonl:17", files)     # the file and the row; None if the key names no place
find_rows("How do I", plan, ...)    # rows whose text begins with these words
read_texts(plan, places, ...)       # the prompt and the responses at places
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipelines.config import Step
from pipelines.corpus import InputFile, Row, Unit, UnreadableError, kind_of, place_of, read_rows, split_units, unit_of
from pipelines.corpus.ngram_index import NgramIndex
from pipelines.errors import InputError
from pipelines.export.kept_rows import input_changed
from pipelines.plan import Plan, Plans
from pipelines.score.ngram_hits import first_hit
from pipelines.storage.files import absolute
from rm.conversations import describe_response, response_hash, to_messages

MOST_SHOWN = 10
"""The number of prompts that are listed if several match; a search ends after one more."""

_PLACE = re.compile(
    r"(?P<file>.+):(?:row |line )?(?P<row>\d{1,18})(?: (?:after byte|of the unit at) (?P<start>\d{1,18}))?",
    re.DOTALL,
)


class Place(NamedTuple):
    """The place of a row, as named by a user."""

    file: int  # number in the plan
    row: int  # counted from 1, in the file or from the start of a unit
    start: int | None  # of the unit: `line 5 after byte 67108864`


class FoundRow(NamedTuple):
    """A row of the corpus and its place."""

    file: int  # number in the plan
    unit: Unit
    row: Row

    @property
    def key(self) -> str | None:
        """The id of its prompt; None if the row has no usable prompt."""
        return None if self.row.group_key is None else self.row.group_key.hex()


def name_place(key: str, files: Sequence[InputFile]) -> Place | None:
    """Return the place that `FILE:ROW` names; None for a key that names no place.

    FILE is the whole path, the path below the input's folder, or the end of a path. Raises `InputError` if FILE fits several
    files of the corpus, if it fits none although it has the name of one, and for row 0.
    """
    match = _PLACE.fullmatch(key)
    if match is None:
        return None
    name, row, start = match["file"], int(match["row"]), match["start"]
    exact = [at for at, file in enumerate(files) if name in (file.key, file.path) or absolute(name) == file.path]
    fitting = exact or [at for at, file in enumerate(files) if f"/{file.path}".endswith(f"/{name}")]
    if not fitting:
        if kind_of(name) is None:
            return None
        raise InputError(f"no input file is named {name!r}; the {_listed(files)}")
    if len(fitting) > 1:
        raise InputError(f"{name!r} names several input files; the {_listed([files[at] for at in fitting])}")
    if row < 1:
        raise InputError(f"rows are counted from 1, and {key!r} names row 0; the first is {name}:1")
    return Place(fitting[0], row, None if start is None else int(start))


def _listed(files: Sequence[InputFile]) -> str:
    names = ", ".join(file.key for file in files[:MOST_SHOWN]) + (", ..." if len(files) > MOST_SHOWN else "")
    return f"{len(files):,} are {names}" if len(files) > 1 else f"only one is {names}"


def row_at(place: Place, plan: Plan) -> FoundRow:
    """Return the row at a place. Raises `InputError` if the file has no such row, and the errors of reading it."""
    file = plan.files[place.file]
    before = 0
    for unit in split_units(file):
        if place.start is not None and place.start != unit.start:
            continue
        if file.kind == "parquet" and place.start is None and place.row > unit.end:
            before = unit.end
            continue
        count = 0
        for row in _rows(plan, file, unit):
            count += 1
            if before + count == place.row:
                return FoundRow(place.file, unit, row)
        before += count
    raise InputError(
        f"input file {file.path} has no row {place.row:,}: "
        + (
            f"{before:,} rows, counted from 1 without blank lines"
            if place.start is None or before
            else "no part begins there"
        )
    )


def find_rows(text: str, plan: Plan, *, skip_bad_files: bool) -> list[FoundRow]:
    """Return the first row of each prompt with a message that begins with the text, and rows without a usable prompt if a column
    begins with it; at most one more than `MOST_SHOWN`.

    Any run of whitespace counts as one space. The function reads the corpus and raises the errors of reading; with
    `skip_bad_files`, it skips files that cannot be read.
    """
    beginning, matches = _even(text), dict[Any, FoundRow]()
    for number, file in enumerate(plan.files):
        try:
            for unit in split_units(file):
                for row in _rows(plan, file, unit):
                    if any(_even(it).startswith(beginning) for it in _texts(row)):
                        name = row.group_key or (number, unit.number, row.number)
                        matches.setdefault(name, FoundRow(number, unit, row))
                        if len(matches) > MOST_SHOWN:
                            return list(matches.values())
        except UnreadableError:
            if not skip_bad_files:
                raise
    return list(matches.values())


def _rows(plan: Plan, file: InputFile, unit: Unit) -> Iterator[Row]:
    for fragment in plan.fragments(file, unit):
        yield from fragment.rows


def _texts(row: Row) -> Iterator[str]:
    if row.parsed.prompt is None:
        yield from _strings(row.original)
        return
    for message in to_messages(row.parsed.prompt):
        yield from _strings(message.get("content"))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _even(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def place_name(plan: Plan, found: FoundRow) -> str:
    """Return the place of a row as `--explain` accepts it, such as `a.jsonl:line 17`."""
    key = plan.files[found.file].key
    return f"{key}:{place_of(key, found.unit.start, found.row.number)}"


def with_names(verdict: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Return a verdict that names the row that is kept instead as `--explain` accepts it."""
    if verdict.get("like") is None:
        return verdict
    number, unit_number, row, _ = verdict["like"]
    file = plan.files[number]
    unit = unit_of(file, unit_number)
    return {**verdict, "like": f"{file.key}:{place_of(file.key, 0 if unit is None else unit.start, row)}"}


def with_ngrams(content: dict[str, Any], plans: Plans, places: Sequence[ScoredPlace], *, steps: Sequence[Step]) -> None:
    """Add the first shared words, and the files that contain them, to the verdicts of `decontaminate` on an explained prompt."""
    leaking = [row for row in content["rows"] for verdict in row["steps"] if verdict.get("files_hit")]
    if not leaking:
        return
    texts = read_texts(plans.whole, places, prompt_id=content["prompt_id"])
    prompt = "\n".join(text for message in texts.prompt for text in _strings(message.get("content")))
    measures = [settings for settings in plans.whole.measures if settings["kind"] == "ngrams"]
    asked = [step.measure for step in steps if step.decontaminate is not None]
    several = [measure for at, measure in enumerate(asked) if measure not in asked[:at]]  # equal ones are measured once
    of_steps = [measures[several.index(measure)] for measure in asked]
    for row, response in zip(content["rows"], texts.responses, strict=True):
        verdicts = [verdict for verdict in row["steps"] if verdict["rule"] == "decontaminate"]
        for verdict, settings in zip(verdicts, of_steps, strict=True):
            index = NgramIndex.from_bytes(plans.indexes[settings["index"]])
            names = [file["name"] for file in settings["files"]]
            hits = (first_hit(text, index, settings["ngram"]) for text in (prompt, response or ""))
            if verdict.get("files_hit") and (hit := next(filter(None, hits), None)) is not None:
                verdict |= {"words": hit.words, "of": ", ".join(names[number] for number in hit.files)}


class ScoredPlace(NamedTuple):
    """The place from which the text of a response is read."""

    file: int
    unit: int
    row: int
    response: int
    response_hash: int | None  # None for a rejected response


class Texts(NamedTuple):
    """The messages of a prompt, and its responses; None for a response that cannot be read."""

    prompt: list[dict[str, Any]]
    responses: list[str | None]


def read_texts(plan: Plan, places: Sequence[ScoredPlace], *, prompt_id: str) -> Texts:
    """Read the responses at these places, in order, and their prompt. Raises `InputError` if an input has changed."""
    rows: dict[tuple[int, int, int], Row] = {}
    for file_number, unit_number in sorted({(place.file, place.unit) for place in places}):
        file, unit = plan.files[file_number], unit_of(plan.files[file_number], unit_number)
        wanted = sorted({place.row for place in places if (place.file, place.unit) == (file_number, unit_number)})
        if unit is None:
            raise input_changed(file)
        numbers, limit = np.array(wanted), plan.max_row_bytes
        for row in read_rows(file, unit, plan.mapping, numbers, more_columns=(), max_row_bytes=limit):
            rows[file_number, unit_number, row.number] = row
    prompt, responses = None, []
    for place in places:
        stands = rows.get(place[:3])
        if stands is None or stands.group_key is None or stands.group_key.hex() != prompt_id:
            raise input_changed(plan.files[place.file])
        text = stands.parsed.responses[place.response] if place.response < len(stands.parsed.responses) else None
        if place.response_hash is not None and (text is None or response_hash(text) != place.response_hash):
            raise input_changed(plan.files[place.file])
        prompt = prompt or stands.parsed.prompt
        responses.append(None if text is None else describe_response(text))
    return Texts(to_messages(prompt or ()), responses)
