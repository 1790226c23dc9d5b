"""Lists the input files of a run, and reads the columns of the first file with rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pipelines.config import InputFiles
from pipelines.corpus import InputFile, UnreadableError, first_reason, kind_of, no_lines, read_first_rows
from pipelines.corpus.columns.value_kinds import RowValues
from pipelines.corpus.files import kind_inside, with_layout
from pipelines.corpus.own_files import refuse_own_files
from pipelines.errors import InputError
from pipelines.storage.files import absolute, version_of
from pipelines.storage.listing import ListedFile, expand

_IN_WORDS = {
    "duplicate_key": ": an object has a key twice, and readers differ in which value they use; write each key once",
    "nan_literal": ": NaN and Infinity are not JSON; write null",
    "row_too_large": "; raise limits.max_row_bytes",
}
_CONVERT = "convert a table once, as pandas does with read_excel(...).to_parquet(...), or "
_OPENED_AT_ONCE = 16


def first_columns(
    files: Sequence[InputFile], *, max_row_bytes: int, skip_bad_files: bool = False
) -> tuple[list[str], list[RowValues], str]:
    """Read (columns, first rows, path) of the first file that has columns; empty files are skipped."""
    unreadable = 0
    for file in files:
        try:
            names, rows = read_first_rows(file, max_row_bytes=max_row_bytes)
        except UnreadableError:
            if not skip_bad_files:
                raise
            unreadable += 1
            continue
        if names:
            return names, rows, file.path
    note = f" ({unreadable} cannot be read)" if unreadable else ""
    reason = None if unreadable else first_reason(files[0], max_row_bytes=max_row_bytes)
    if reason in ("bad_json", "not_an_object") and (broken := no_lines(files[0])):
        raise InputError(f"input file {files[0].path} cannot be read: {broken}")
    if reason is not None:
        note = f" (its first row is rejected as {reason}{_IN_WORDS.get(reason, '')})"
    raise InputError(
        f"input.path names {len(files)} files, and none has a usable row; the first is {files[0].path}{note}"
    )


def _take_split(pattern: str, listed: list[ListedFile], wanted: str | None) -> list[ListedFile]:
    """The files of one split. Raises `InputError` if no file has the wanted split, or if none is wanted and there are several."""
    from rm.splits import SplitError, take_split

    try:
        taken = set(take_split([file.key for file in listed], wanted))
    except SplitError as error:
        remedy = "name one of them: input.split=NAME" if wanted is None else "name one of these, or remove input.split"
        raise InputError(
            f"input.path {pattern!r}: {error}; {remedy}, or give patterns of the files that are meant"
        ) from error
    return [file for file in listed if file.key in taken]


def _kind_of_named(path: str, *, skip_bad_files: bool) -> tuple[str, str | None] | None:
    """The kind of a file that the pattern names exactly, by its content, since its name does not show it."""
    try:
        return kind_inside(path)
    except UnreadableError:
        if not skip_bad_files:
            raise
        return "jsonl", None  # skipped when it is opened


def _no_known_kind(path: str, *, named: bool) -> InputError:
    expected = (
        "expected .parquet, .arrow, or .jsonl, .json, .csv or .tsv, plain or with .gz, .zst, .bz2 or .xz; "
        f"{_CONVERT if path.lower().endswith('.xlsx') else ''}"
    )
    if named:
        return InputError(
            f"input file {path} is of no known kind: neither its name tells it nor its first bytes, which are not those of "
            f"Parquet, Arrow or JSON; {expected}give it the name of what it is, such as {path}.csv"
        )
    return InputError(
        f"input file {path} is of no known kind; {expected}leave it out with a pattern such as DIR/*.parquet, or name it outright"
    )


def list_files(config: InputFiles, *, skip_bad_files: bool = False) -> list[InputFile]:
    """List all input files, sorted by key.

    With one pattern, keys are relative to its fixed root, so that a copied corpus keeps its scores; with several, keys are whole
    paths, since a common root would change when a pattern is added. Raises `InputError` for an empty match, an unknown kind,
    a mix of kinds, a file that a run wrote (see `own_files`), and a file whose listing shows that it is unreadable; with
    `skip_bad_files`, an unreadable file stays in the list, and is skipped when it is opened.
    """
    files: dict[str, InputFile] = {}
    for pattern in config.paths:
        listed = _take_split(pattern, expand(pattern), config.split)
        refuse_own_files(pattern, listed)
        for path, relative, info, named in listed:
            kind, is_directory = kind_of(path), info["type"] == "directory"
            if is_directory and kind is None:
                continue
            if kind is None:
                kind = _kind_of_named(path, skip_bad_files=skip_bad_files) if named else None
            if kind is None:
                raise _no_known_kind(path, named=named)
            if is_directory and not skip_bad_files:
                raise InputError(
                    f"input.path {pattern!r} names {path}, which is a directory; to read the files in it write {path}/*"
                )
            key = absolute(path) if len(config.paths) > 1 else relative
            size = 0 if is_directory else int(info["size"])
            files[path] = InputFile(path, key, kind[0], kind[1], size, version_of(info))
    empty = [file for file in files.values() if file.size == 0 and file.kind == "parquet" and not skip_bad_files]
    if empty:
        raise InputError(f"input file {empty[0].path} is empty; expected a Parquet file, write it again")
    if Counter(file.kind for file in files.values()).keys() == {"parquet", "jsonl"}:
        raise InputError(
            "input.path mixes Parquet files and others; give those of one kind, with a pattern such as DIR/*.parquet, and the "
            "others apart"
        )
    with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
        return sorted(pool.map(with_layout, files.values()), key=lambda file: file.key)
