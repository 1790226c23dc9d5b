"""Listing and reading local files, and what errors of reading become."""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.corpus.unreadable import UnreadableError, probe, reading_input
from pipelines.errors import ConfigError, ConflictError, InputError, StorageError
from pipelines.storage import files, listing


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "b.jsonl",
        "a.jsonl",
        "deep/c.jsonl",
        "deep/_hidden.jsonl",
        "deep/.hidden/d.jsonl",
        "_x/e.jsonl",
        ".f",
    ):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "in"


def keys(pattern: object) -> list[str]:
    return [entry.key for entry in listing.expand(str(pattern))]


def test_what_a_directory_a_pattern_and_a_file_name(tree):
    assert keys(tree) == keys(f"{tree}/") == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert keys(f"{tree}/**/*.jsonl") == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert keys(f"{tree}/*.jsonl") == keys(f"{tree}/[ab].jsonl") == ["a.jsonl", "b.jsonl"]
    assert keys(f"{tree}/?.jsonl") == ["a.jsonl", "b.jsonl"]
    assert keys(f"{tree}/d*/c.jsonl") == ["deep/c.jsonl"]
    (one,) = listing.expand(str(tree / "a.jsonl"))
    assert (one.path, one.key, one.info["size"]) == (str(tree / "a.jsonl"), "a.jsonl", 7)


@pytest.mark.parametrize("pattern", ["a**b/*.jsonl", "**.jsonl", "*/***", "deep/c**"])
def test_two_stars_stand_alone(tree, pattern):
    with pytest.raises(
        InputError, match=r"has \*\* beside other characters; \*\* must be alone between slashes: DIR/\*\*/\*$"
    ):
        keys(tree / pattern)
    (tree / "a**b").mkdir()
    (tree / "a**b" / "x.jsonl").write_text("")
    assert keys(tree / "a**b" / "*.jsonl") == keys(tree / "a**b") == ["x.jsonl"]


def test_directories_that_a_pattern_names_are_told_where_their_files_are_not(tree):
    assert keys(f"{tree}/*") == ["a.jsonl", "b.jsonl", "deep"]
    assert keys(f"{tree}/**") == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    with pytest.raises(InputError) as raised:
        listing.expand(f"{tree}/d*")
    assert str(raised.value) == (
        f"input.path {f'{tree}/d*'!r} matches no file; check the path and the pattern; to read the files in the directory "
        f"{tree}/deep write {tree}/deep/*"
    )
    with pytest.raises(InputError, match=r"matches no file; check the path and the pattern$"):
        listing.expand(f"{tree}/none")


def test_a_path_that_exists_wins_over_the_same_text_as_a_pattern(tree):
    (tree / "shard1.jsonl").write_text("wrong")
    (tree / "shard[1].jsonl").write_text("right")
    (one,) = listing.expand(f"{tree}/shard[1].jsonl")
    assert (one.path, one.key, one.info["size"]) == (f"{tree}/shard[1].jsonl", "shard[1].jsonl", 5)
    assert keys(f"{tree}/shard[0-9].jsonl") == ["shard1.jsonl"]
    (tree / "shard1.jsonl").unlink()
    assert keys(f"{tree}/shard[1].jsonl") == ["shard[1].jsonl"]
    for name in ("run1/wrong.jsonl", "run[1]/a.jsonl", "run[1]/b?.jsonl", "run[1]/bc.jsonl", "run[1]/deep/d.jsonl"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    assert keys(f"{tree}/run[1]") == keys(f"{tree}/run[1]/") == ["a.jsonl", "b?.jsonl", "bc.jsonl", "deep/d.jsonl"]
    assert keys(f"{tree}/run[1]/*.jsonl") == ["a.jsonl", "b?.jsonl", "bc.jsonl"]
    assert keys(f"{tree}/run[1]/b?.jsonl") == ["b?.jsonl"]
    assert keys(f"{tree}/run[1]/**/*.jsonl") == ["a.jsonl", "b?.jsonl", "bc.jsonl", "deep/d.jsonl"]


def test_links(tree, tmp_path):
    (tree / "l.jsonl").symlink_to(tree / "b.jsonl")
    (tree / "n.jsonl").symlink_to(tree / "nowhere")
    listed = {entry.key: entry.info for entry in listing.expand(f"{tree}/[ln].jsonl")}
    assert (listed["l.jsonl"]["type"], listed["l.jsonl"]["size"]) == ("file", 7)
    assert listed["l.jsonl"]["mtime"] == (tree / "b.jsonl").stat().st_mtime
    assert (listed["n.jsonl"]["type"], listed["n.jsonl"]["size"], listed["n.jsonl"]["mtime"]) == ("file", 0, 0.0)


@pytest.mark.parametrize(
    "pattern", ["", "/**", "/*/*.jsonl", "/lin*/*.jsonl", "/**/*.jsonl", "/*/deep/*.jsonl", "/**/c.jsonl"]
)
def test_files_below_a_link_to_a_directory_are_not_left_out_silently(tree, tmp_path, pattern):
    (tmp_path / "other" / "deep").mkdir(parents=True)
    for name in ("d.jsonl", "deep/c.jsonl"):
        (tmp_path / "other" / name).write_text("d")
    (tree / "link[1]").symlink_to(tmp_path / "other")
    with pytest.raises(
        InputError, match=r"/link\[1\] is a link to a directory, and these are not followed below .*; list the dir"
    ):
        listing.expand(f"{tree}{pattern}")


@pytest.mark.parametrize(
    ("pattern", "found"), [("/*.jsonl", 2), ("/*/c.jsonl", 1), ("/link/*.jsonl", 1), ("/link", 1), ("/d*/*", 1)]
)
def test_a_link_to_a_directory_that_no_file_is_looked_for_below_is_no_matter(tree, tmp_path, pattern, found):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "d.jsonl").write_text("d")
    (tree / "link").symlink_to(tmp_path / "other")
    (tree / "_link").symlink_to(tree / "deep")
    assert len(listing.expand(f"{tree}{pattern}")) == found


@pytest.mark.parametrize(
    ("info", "version"),
    [
        ({"ETag": '"e"', "LastModified": 5}, "e"),
        ({"etag": "f", "mtime": 5}, "f"),
        ({"md5Hash": "m", "generation": "g"}, "m"),
        ({"generation": 7, "updated": 5}, "7"),
        ({"ETag": None, "mtime": 0.0, "created": 5}, "0.0"),
        ({"LastModified": "l", "created": 5}, "l"),
        ({"updated": "u", "created": 5}, "u"),
        ({"created": 5}, "5"),
        ({"size": 5}, ""),
    ],
)
def test_versions(info, version):
    assert files.version_of(info) == version


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert files.absolute("x/../y") == str(tmp_path / "y")
    assert files.absolute("~/x") == "/home/me/x"
    assert files.absolute("s3://b/x/../y") == "s3://b/x/../y"
    assert files.join("s3://b/", "x", "y") == "s3://b/x/y"
    assert (files.is_local("x"), files.is_local("memory://x")) == (True, False)


def test_drivers_that_are_not_there():
    with pytest.raises(
        ConfigError, match=r"^'nonsense://b/x' names no known file system; use a local path, s3:// or gs://$"
    ):
        files.filesystem("nonsense://b/x")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("s3://b/x", "pip install 'bestkept[s3]'"),
        ("gs://b/x", "pip install 'bestkept[gcp]'"),
        ("https://h/y", "pip install aiohttp"),
        ("x://y", "the fsspec driver for x://"),
    ],
)
def test_drivers_that_are_not_installed(monkeypatch, path, words):
    def missing(*_):
        raise ImportError("secret")

    monkeypatch.setattr(files, "_driver", missing)
    with pytest.raises(ConfigError) as raised:
        files.filesystem(path)
    assert str(raised.value).startswith(f"{path.split(':')[0]}:// needs a driver that is not installed; ")
    assert str(raised.value).endswith(words)


def test_what_is_there_and_what_is_not(tmp_path):
    path = tmp_path / "a"
    assert (files.read_bytes(str(path)), files.size_of(str(path)), files.anything_below(str(path))) == (
        None,
        None,
        False,
    )
    path.write_bytes(b"abc")
    assert (files.read_bytes(str(path)), files.size_of(str(path)), files.anything_below(str(path))) == (b"abc", 3, True)
    assert files.size_of(str(tmp_path)) is None
    assert files.anything_below(str(tmp_path))
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / ".b.parquet.0123456789ab.tmp").touch()  # of a writer that was killed, or is at it
    assert not files.anything_below(str(tmp_path / "data"))
    (tmp_path / "data" / "deep" / "b.parquet").touch()
    assert files.anything_below(str(tmp_path / "data"))
    with pytest.raises(StorageError, match=r"^cannot read .*: Is a directory$"):
        files.read_bytes(str(tmp_path))


GONE = "input file x is gone since the run was planned; restore it or plan again"
CUT = "input file x is cut or damaged ({}); write it again, or leave it out of input.path"
DAMAGED = "input file x is damaged ({}); write it again, or leave it out of input.path"
UNREAD = "input file x cannot be read: {}"


@pytest.mark.parametrize(
    ("error", "reason", "message"),
    [
        (FileNotFoundError(errno.ENOENT, "secret"), "missing", GONE),
        (PermissionError(errno.EACCES, "Permission denied"), "no_permission", UNREAD.format("Permission denied")),
        (IsADirectoryError(errno.EISDIR, "Is a directory"), "directory", UNREAD.format("Is a directory")),
        (EOFError("secret"), "truncated", CUT.format("EOFError")),
        (pa.ArrowInvalid("secret"), "damaged", CUT.format("ArrowInvalid")),
        (pa.ArrowNotImplementedError("secret"), "damaged", CUT.format("ArrowNotImplementedError")),
        (OSError(0, "not valid gz data"), "damaged", UNREAD.format("not valid gz data")),
        (OSError("secret"), "damaged", UNREAD.format("OSError")),
        (OSError(errno.ELOOP, "A circle"), "damaged", UNREAD.format("A circle")),
        (NotADirectoryError(errno.ENOTDIR, "No directory"), "damaged", UNREAD.format("No directory")),
        (OSError(errno.EINVAL, "Invalid"), "damaged", UNREAD.format("Invalid")),
        (OSError(errno.EIO, "Input/output error"), None, UNREAD.format("Input/output error")),
        (ConnectionError("secret"), None, UNREAD.format("ConnectionError")),
        (TimeoutError("secret"), None, UNREAD.format("TimeoutError")),
        (OSError(errno.EMFILE, "Too many open files"), None, UNREAD.format("Too many open files")),
        (IndexError("secret"), "damaged", DAMAGED.format("IndexError")),
        (MemoryError("secret"), "damaged", DAMAGED.format("MemoryError")),
        (OverflowError("x"), "damaged", DAMAGED.format("OverflowError")),
        (pa.ArrowKeyError("x"), "damaged", DAMAGED.format("ArrowKeyError")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)  # fmt: skip
def test_trouble_with_a_file_has_a_reason_where_it_is_the_files(error, reason, message):
    with pytest.raises(InputError) as raised, reading_input("x"):
        raise error
    assert str(raised.value) == raised.value.message == message
    assert raised.value.__cause__ is error
    assert (type(raised.value), getattr(raised.value, "reason", None)) == (
        UnreadableError if reason else InputError,
        reason,
    )


@pytest.mark.parametrize("error", [ConflictError("own"), InputError("own"), zlib.error("program"), KeyError("program")])
def test_other_errors_go_through(error):
    with pytest.raises(type(error)) as raised, reading_input("x"):
        raise error
    assert raised.value is error


def test_a_probe_reads(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    probe(str(tmp_path / "a"))
    with pytest.raises(UnreadableError) as raised:
        probe(str(tmp_path))
    assert raised.value.reason == "directory"
    os.symlink(tmp_path / "none", tmp_path / "b")
    with pytest.raises(UnreadableError) as raised:
        probe(str(tmp_path / "b"))
    assert raised.value.reason == "missing"
