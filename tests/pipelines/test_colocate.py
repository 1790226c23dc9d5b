"""`score.colocate`: the same score files and the same output as without, whatever file a response lies in."""

from __future__ import annotations

from stubs import StubFactory
from corpora import corpus_rows, write_jsonl
from pipelines import curate


def test_smoke(tmp_path, configure):
    rows = corpus_rows(12)
    for n in range(4):
        write_jsonl(tmp_path / "in" / f"{n}.jsonl", rows[n * 12 : n * 12 + 12])
    for name, colocate in (("a", None), ("b", "prompt")):
        (tmp_path / name).mkdir()
        config = configure(tmp_path / name, tmp_path / "in", score={"colocate": colocate}, input={"rows_per_fragment": 5})
        curate.curate(config, scorer=StubFactory(log=str(tmp_path / name / "log")))
        print((tmp_path / name / "log").read_text().split())
    a = sorted((tmp_path / "a" / "out" / "scores").glob("*/*.parquet"))
    b = sorted((tmp_path / "b" / "out" / "scores").glob("*/*.parquet"))
    assert [x.name for x in a] == [x.name for x in b]
    assert [x.read_bytes() for x in a] == [x.read_bytes() for x in b]
