"""Who may write to an output, and when it is complete; on a local disk, without a pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.errors import ConflictError, StorageError
from pipelines.finish import claim
from pipelines.storage import canonical_json, publish
from pipelines.storage.owner import Owner

OURS = {"inputs": "i", "selection": "s", "plan": "p"}


@pytest.fixture
def output(tmp_path) -> str:
    return str(tmp_path / "out")


def put(output: str, name: str, data: bytes = b"x") -> None:
    path = Path(output) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def held(output: str) -> dict[str, str]:
    return json.loads((Path(output) / "claim.json").read_bytes())


def test_a_first_claim_is_written_and_an_equal_one_joins(output):
    assert claim.claim(output, **OURS) is True
    assert held(output) == OURS
    assert claim.claim(output, **OURS) is True
    assert claim.claim(output, **{**OURS, "plan": "touched"}) is False
    assert held(output) == OURS


@pytest.mark.parametrize("published", [None, "shards", "data.parquet"])
def test_another_claim_takes_over_where_nothing_is_published(output, published):
    claim.claim(output, **OURS)
    if published:
        put(output, f"{published}/x")
    other = {**OURS, "inputs": "others"}
    assert claim.claim(output, **other) is True
    assert held(output) == other


@pytest.mark.parametrize("published", ["manifest.json", "README.md", "data/a.parquet", "rejected/a.parquet"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": "j"}, "input files or model"),
        ({"selection": "t"}, "select or output settings"),
        ({"inputs": "j", "selection": "t"}, "input files or model and select or output settings"),
    ],
)
def test_another_claim_on_what_is_published_is_a_conflict(output, published, changes, words):
    claim.claim(output, **OURS)
    put(output, published)
    with pytest.raises(ConflictError) as raised:
        claim.claim(output, **{**OURS, **changes})
    assert str(raised.value) == (
        f"output.path {output} belongs to a run with other {words}; choose another output.path "
        f"(scores.path={output}/scores re-uses what is scored there)"
    )
    assert held(output) == OURS
    assert claim.claim(output, **OURS) is True


@pytest.mark.parametrize("damage", [b"", b'{"inputs": "i', b"\xff"])
def test_a_damaged_claim_is_taken_over(output, damage):
    put(output, "claim.json", damage)
    assert claim.claim(output, **OURS) is True
    assert held(output) == OURS


def test_a_claim_that_is_gone_when_it_is_read_is_none(output, monkeypatch):
    claim.claim(output, **{**OURS, "plan": "old"})
    real = publish.read_with_version

    def gone(path):
        monkeypatch.setattr(publish, "read_with_version", real)
        Path(path).unlink()
        return real(path)

    monkeypatch.setattr(publish, "read_with_version", gone)
    assert claim.claim(output, **OURS) is True
    assert held(output) == OURS


def test_a_claim_that_another_run_takes_first_is_a_conflict(output, monkeypatch):
    claim.claim(output, **OURS)
    monkeypatch.setattr(publish, "replace", lambda path, data, *, version: False)
    with pytest.raises(ConflictError, match=r"out has just been claimed by another run; choose another output"):
        claim.claim(output, **{**OURS, "inputs": "others"})


def test_complete_is_every_shard_in_full_size(output):
    assert claim.read_complete_manifest(Owner(output, "i", "s")) is None
    shards = [{"name": "data/a.parquet", "bytes": 3}, {"name": "data/b.parquet", "bytes": 5}]
    put(output, "data/a.parquet", b"abc")
    put(output, "data/b.parquet", b"abcde")
    put(output, "manifest.json", canonical_json.to_json({"shards": shards}))
    assert claim.read_complete_manifest(Owner(output, "i", "s")) == {"shards": shards} == claim.read_manifest(output)
    for data in (b"abcd", b"abcdef"):
        put(output, "data/b.parquet", data)
        assert claim.read_complete_manifest(Owner(output, "i", "s")) is None
    (Path(output) / "data/b.parquet").unlink()
    assert claim.read_complete_manifest(Owner(output, "i", "s")) is None
    assert claim.read_manifest(output) == {"shards": shards}


def test_a_damaged_manifest_is_an_error(output):
    put(output, "manifest.json", b'{"shards": [')
    with pytest.raises(StorageError, match=r"out/manifest\.json is damaged; remove it and run the same command again"):
        claim.read_complete_manifest(Owner(output, "i", "s"))


def test_json_is_canonical_and_readable():
    assert canonical_json.to_json({"b": "ä", "a": [1]}) == '{\n  "a": [\n    1\n  ],\n  "b": "ä"\n}\n'.encode()
    assert (
        canonical_json.digest({"a": 1, "b": 2})
        == canonical_json.digest({"b": 2, "a": 1})
        != canonical_json.digest({"a": 2, "b": 1})
    )
    # printf '{"a": 1}' | sha256sum
    assert canonical_json.digest({"a": 1}) == "f9d86028c6e0d64e225186f96acb69338b2c59764df79162107f5c4bb34d1310"
