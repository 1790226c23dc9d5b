"""What takes long on a store is the way to it, so many score files are asked for at once."""

from __future__ import annotations

import threading

import pytest
from support.corpora import write_jsonl
from support.stubs import StubFactory

from pipelines.commands.run import run_curation, run_scoring

AT_ONCE = 16
SCORE_FILE = r"^GET .*scores.*parquet"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "phases"),
    [(40, (0, 40, 80)), (1, (15, 63, 118))],
    ids=["many files", "one file of many fragments, of which one is looked for, then two, four, eight and sixteen"],
)
def test_score_files_are_looked_for_and_read_at_once(make_store, make_config, tmp_path, files, phases):
    """To find what is scored, to select, and to report: in each of these so many requests wait for one another."""
    store = make_store("s3")
    rows = [{"prompt": f"p{n // 2}", "response": f"r{n}"} for n in range(80)]
    for number in range(files):
        path = write_jsonl(tmp_path / f"{number}.jsonl", rows[number * 80 // files : (number + 1) * 80 // files])
        store.put(f"in/{number:02d}.jsonl", path.read_bytes())

    def config(name):
        places = {"output": {"path": f"{store.url}/{name}"}, "scores": {"path": f"{store.url}/scores"}}
        return make_config(store.url + "/in/*.jsonl", input={"rows_per_fragment": 2}, **places)

    run_scoring(config("quiet"), scorer=StubFactory())
    assert len(store.contents("scores")) >= 40
    run_curation(config("quiet"), scorer=None)
    store.proxy.requests.clear()
    barriers = [threading.Barrier(AT_ONCE, timeout=10) for _ in phases]
    for number, (start, barrier) in enumerate(zip(phases, barriers, strict=True)):
        store.proxy.add("call", SCORE_FILE, hook=barrier.wait, times=AT_ONCE, skip=start - AT_ONCE * number)
    run_curation(config("out"), scorer=None)
    assert [barrier.broken for barrier in barriers] == [False] * 3
    assert all(fault.met == AT_ONCE for fault in store.proxy.plan)
    assert len(store.proxy.lines(SCORE_FILE)) == 120 + (0 if files > 1 else 23), "and those looked for in vain"
    assert store.contents("out/data") == store.contents("quiet/data")
