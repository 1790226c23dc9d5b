"""Prevents a run from reading its own output, or that of another run, as a corpus.

There are two checks: of the files that the run would write, when it is planned, and of the files that a pattern has matched.
Names are templates, see `storage.patterns`.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from typing import NamedTuple

from fsspec.implementations.local import LocalFileSystem

from pipelines.config import RunConfig
from pipelines.corpus.files import kind_of
from pipelines.errors import ConfigError, InputError, StorageError
from pipelines.storage.files import REQUESTS_AT_ONCE, absolute, filesystem, join, names_in, read_bytes
from pipelines.storage.listing import ListedFile, exists_on, is_hidden, search_for
from pipelines.storage.patterns import could_match, template_expression
from rm.conversations import load_json

_HASH, _MODEL = "%" * 32, "%" * 24
_OF_WORKERS = ("", *(f"-{'#' * i}-of-{'#' * n}" for i, n in itertools.combinations_with_replacement(range(1, 4), 2)))
_REPORT = ("report.json", "report.html", "samples.parquet")
_TRAIN, _TEST = (f"data/{split}-#####-of-#####.parquet" for split in ("train", "test"))
_OUTPUT = (
    *("claim.json", "owner.json", "shards.json", "manifest.json", "run.json", "README.md"),
    *("rejected/#####.parquet", _TRAIN),
)
_SCORES = (
    f"plans/{_HASH}.json",
    *(f"{_MODEL}/{_HASH}{variant}.parquet" for variant in ("", f"-{_HASH}")),
    f"{_MODEL}/colocated/##-%%%%/{_HASH}.parquet",
    *(f"rewritten/{_HASH}/{name}" for name in ("######.parquet", "index.json")),
    *(f"{name}{part}.{kind}" for name, kind in (("run", "json"), (f"rejected/{_HASH}", "txt")) for part in _OF_WORKERS),
    *(f"{_MODEL}/{name}-{_HASH}{part}.json" for name in ("totals", "skipped") for part in _OF_WORKERS),
)
_VERSION = "versions/" + "%" * 16
_ROOT = ("latest.json", "runs/######.json", f"removing/{'%' * 16}.json")


class Place(NamedTuple):
    """A folder that a command writes to."""

    setting: str
    folder: str
    names: tuple[str, ...]  # templates of the files that it writes there


def places_of(config: RunConfig) -> Iterator[Place]:
    """The places that a run writes to."""
    names = [*_OUTPUT, *(_REPORT if config.report.write else ())]
    names += [_TEST] if config.output.test_fraction is not None else []
    if config.output.versions:
        names = [*_ROOT, *(f"{_VERSION}/{name}" for name in names)]
    yield Place("output.path", config.path, tuple(names))
    yield Place("scores.path", config.scores_path, _SCORES)
    for option in ("temp_location", "staging_location"):
        if isinstance(folder := config.runner.options.get(option), str):
            yield Place(f"runner.options.{option}", folder, ("job/pipeline.pb",))


def refuse_places(setting: str, patterns: Sequence[str], places: Iterable[Place]) -> None:
    """Raise `ConfigError` if a pattern of an input setting could match a file of one of the places."""
    for place, pattern in itertools.product(places, patterns):
        if (name := _first_match(pattern, place)) is None:
            continue
        inside = "lies inside" if f"{_bare(place.folder)}/".startswith(f"{_bare(pattern)}/") else "is matched by"
        shown = re.sub("%{4,}", "HASH", name).replace("#", "0")
        file = f", as {join(place.folder, shown)}" if name else ""
        raise ConfigError(
            f"{place.setting} {place.folder!r} {inside} {setting} {pattern!r}{file}, and the next run would read its own output; "
            "choose a place outside, or a pattern that cannot match it"
        )


def _bare(path: str) -> str:
    return absolute(path).rstrip("/")


def _first_match(pattern: str, place: Place) -> str | None:
    """The first name of a place that a pattern could match, empty for the folder itself; None if there is no such name.

    As in a listing, a pattern without a wildcard stands for a file or for all files below a directory, an existing path has
    priority over the same text as a pattern, and hidden files are never matched.
    """
    for search, root, folder in _forms(pattern, place.folder):
        if folder.startswith(f"{root}/") and is_hidden(folder.removeprefix(root)):
            continue
        names = ("", *place.names) if kind_of(folder) is not None else place.names
        for name in names:
            if could_match(search, folder, name):
                return name
    return None


def _forms(pattern: str, folder: str) -> Iterator[tuple[str, str, str]]:
    """Yield (pattern, its part above the first wildcard, folder) if both are on one file system, as paths on it: as they are
    written, and with local links followed."""
    if _is_url(pattern) != _is_url(folder):
        return
    (fs, path), (other_fs, place) = filesystem(absolute(pattern)), filesystem(absolute(folder))
    if type(fs) is not type(other_fs):
        return
    if (local := isinstance(fs, LocalFileSystem)) and os.path.isfile(path):
        return  # no folder is below a file
    real = os.path.realpath(place) if local else place
    above = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0] if re.search(r"[*?\[]", path) else path
    if not (local or f"{place}/".startswith(f"{above}/") or f"{above}/".startswith(f"{place}/")):
        return  # this takes no request

    def will_exist(name: str) -> bool:
        return any(f"{it}/".startswith(f"{name}/") for it in (place, real)) or exists_on(fs, name, pattern)

    search = search_for(path, will_exist)
    below = search.path.removeprefix(escape(search.root)) if search.is_glob else "/**"
    yield escape(search.root) + below, search.root, place
    if local:
        root = os.path.realpath(search.root or "/").rstrip("/")
        yield escape(root) + below, root, real


def _is_url(path: str) -> bool:
    return "://" in path and not path.startswith(("file://", "local://"))


def refuse_own_files(pattern: str, listed: Sequence[ListedFile]) -> None:
    """Raise `InputError` if a directory or a wildcard has matched a file that a run wrote, as shown by another file beside it.

    Shards are normal inputs if the pattern names their folder `data`, and a file whose full name is given is always read.
    """
    wildcards = re.split(r"[*?\[]", pattern, maxsplit=1)[1:]
    names_data = any("data" in rest.split("/")[1:] for rest in wildcards)
    outright = filesystem(absolute(pattern))[1]
    candidates: dict[str, str] = {}  # folder → the first file
    for file in listed:
        match = _WRITTEN.search(file.path)
        if match is None or filesystem(file.path)[1] == outright:
            continue
        shard = match["name"].startswith(_SHARDS)
        if not (shard and (names_data or "/" not in file.key)):
            candidates.setdefault(file.path.removesuffix(match["name"]).rstrip("/"), file.path)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        evidence = list(pool.map(_find_evidence, candidates))
    for (folder, path), beside in zip(candidates.items(), evidence, strict=True):
        if beside is None:
            continue
        remedy = (
            ""
            if beside.startswith(join(folder, "plans"))
            else f"; to read the rows of that output, name its shards: {folder}/data/*.parquet"
        )
        raise InputError(
            f"input.path {pattern!r} matches {path}, which bestkept wrote, as {beside} tells; choose a pattern that does not "
            f"match it{remedy}"
        )


_SHARDS = ("data/train-", "data/test-")
_WRITTEN = re.compile(
    f"/(?P<name>{'|'.join(template_expression(name) for name in (*_OUTPUT, *_REPORT, _TEST, *_SCORES, *_ROOT))})$"
)


def _find_evidence(folder: str) -> str | None:
    """A file in the folder that only a run writes; None if there is no such file."""
    for name, keys in (
        ("manifest.json", {"fingerprint", "selection", "shards"}),
        ("owner.json", {"inputs", "selection"}),
        ("claim.json", {"inputs", "selection", "plan"}),
        ("latest.json", {"version", "manifest", "run"}),
    ):
        try:
            content = load_json(read_bytes(join(folder, name)) or b"null")
        except (ValueError, StorageError):
            continue
        if isinstance(content, dict) and keys <= content.keys():
            return join(folder, name)
    try:
        plans = [name for name in names_in(join(folder, "plans")) if re.fullmatch(r"[0-9a-f]{32}\.json", name)]
    except StorageError:
        return None
    return join(folder, "plans", plans[0]) if plans else None
