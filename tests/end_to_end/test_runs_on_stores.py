"""Whole runs with a stub model and both corpus and output on a store: the same bytes as on local disk, whatever goes wrong."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from services.fault_proxy import Fault
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory, loads, scored_rows

from pipelines.commands.run import Outcome, run_curation
from pipelines.errors import ConflictError, StorageError
from pipelines.score import score_files
from pipelines.storage import files

OURS = ("manifest.json", "README.md", "data/", "rejected/")  # claim.json names the plan, and that where the corpus is


def run(config, log):
    return run_curation(config, scorer=StubFactory(log=str(log)))


def hashes(contents: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items() if name.startswith(OURS)}


@pytest.fixture
def corpus(tmp_path):
    rows = [*corpus_rows(), {"prompt": "p", "response": ""}]
    for number in range(3):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows[number::3])
    return tmp_path / "in"


def upload(store, corpus: Path) -> None:
    for path in sorted(corpus.iterdir()):
        store.put(f"in/{path.name}", path.read_bytes())
    store.proxy.requests.clear()


SETTINGS = {"limits": {"max_rejected_fraction": 0.5}, "input": {"rows_per_fragment": 4}}


@pytest.fixture
def on_disk(corpus, make_config, tmp_path):
    """What a run on local disk gives."""
    run(make_config(corpus / "*.jsonl", **SETTINGS), tmp_path / "local.log")
    root = tmp_path / "out"
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert {"rejected/00000.parquet", "data/train-00000-of-00001.parquet", "manifest.json"} <= found.keys()
    return hashes(found)


def config_on(store, make_config, **changes):
    output = {"path": store.url + "/out", **changes.pop("output", {})}
    return make_config(store.url + "/in/*.jsonl", **{**SETTINGS, **changes}, output=output)


def test_a_run_on_a_store_gives_the_bytes_of_one_on_disk(store, corpus, on_disk, make_config, tmp_path):
    upload(store, corpus)
    log, config = tmp_path / "log", config_on(store, make_config)
    outcome = run(config, log)
    assert hashes(store.contents("out")) == on_disk
    assert outcome.manifest["counts"]["scored"] == scored_rows(log) == 48
    assert run(config, log).already_complete
    assert (loads(log), scored_rows(log)) == (1, 48)
    other = config_on(store, make_config, select=[{"best_of_n": {"keep": 2}}])
    with pytest.raises(ConflictError, match=f"output.path {store.url}/out belongs to a run with other select"):
        run(other, log)
    assert hashes(store.contents("out")) == on_disk


WRITE = r"^(PUT /bucket|POST /upload).*out"
BODY = r"^GET /(bucket-\d+/(in|out)/|download.*(in|out))"


@pytest.mark.slow
def test_a_run_through_faults_gives_the_same_bytes_and_scores_nothing_twice(
    store, corpus, on_disk, make_config, tmp_path
):
    upload(store, corpus)
    faults = [
        store.proxy.add("refuse", WRITE, times=4, skip=2),
        store.proxy.add("lose", WRITE + ".*claim"),
        store.proxy.add("lose", WRITE + r".*scores.*[0-9a-f]{32}\.parquet", times=3),
        store.proxy.add("lose", WRITE + ".*train-00000"),
        store.proxy.add("lose", WRITE + ".*manifest"),
        store.proxy.add("cut", BODY, times=6, skip=1),
        store.proxy.add("reset", BODY, times=3),
        store.proxy.add("refuse", "^(GET|HEAD)", times=5, skip=4, status=500),
    ]
    log = tmp_path / "log"
    run(config_on(store, make_config), log)
    assert all(fault.times == 0 for fault in faults), faults
    assert hashes(store.contents("out")) == on_disk
    assert scored_rows(log) == 48
    assert not store.proxy.lines("^DELETE")


@pytest.mark.slow
def test_a_run_that_breaks_off_goes_on_where_it_was(store, corpus, on_disk, make_config, tmp_path):
    upload(store, corpus)
    log, config = tmp_path / "log", config_on(store, make_config)
    scores = WRITE + r".*scores.*[0-9a-f]{32}\.parquet"
    expired = store.proxy.add("refuse", scores, times=-1, skip=5, status=401)
    with pytest.raises(StorageError, match=rf"^cannot write {store.url}/out/scores/.*: 401; check the credentials"):
        run(config, log)
    expired.times = 0
    before = scored_rows(log)
    published = len(
        [name for name in store.contents("out") if name.startswith("scores/") and name.endswith(".parquet")]
    )
    assert published == 5
    assert "manifest.json" not in store.contents("out")
    run(config, log)
    assert hashes(store.contents("out")) == on_disk
    assert scored_rows(log) - before == 48 - sum(fragment_rows(store)[:5])


def fragment_rows(store) -> list[int]:
    """Scored responses per fragment, in the order in which they were published first."""
    order = []
    for line in store.proxy.lines(r"(PUT /bucket|POST /upload).*scores.*[0-9a-f]{32}\.parquet"):
        name = line.split("?")[0].rsplit("/", 1)[-1] if store.is_s3 else line.split("name=")[1].split("&")[0]
        name = name.rsplit("%2F", 1)[-1].rsplit("/", 1)[-1]
        if line.startswith("200") and name not in order:
            order.append(name)
    at = {name.rsplit("/", 1)[-1]: data for name, data in store.contents("out").items()}
    return [score_files.decode(at[name])[1].scored for name in order]


@pytest.mark.slow
def test_a_grown_corpus_scores_what_is_new(store, corpus, make_config, tmp_path):
    upload(store, corpus)
    log, scores = tmp_path / "log", {"path": store.url + "/scores"}
    run(config_on(store, make_config, scores=scores), log)
    more = [{"prompt": "another", "response": f"answer {n}"} for n in range(5)]
    write_jsonl(corpus / "3.jsonl", more)
    store.put("in/3.jsonl", (corpus / "3.jsonl").read_bytes())
    run(config_on(store, make_config, scores=scores, output={"path": store.url + "/grown"}), log)
    assert scored_rows(log) == 48 + 5
    run(make_config(corpus / "*.jsonl", output={"path": str(tmp_path / "grown")}, **SETTINGS), tmp_path / "local.log")
    root = tmp_path / "grown"
    local = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert hashes(store.contents("grown")) == hashes(local)


def test_a_claim_is_taken_over_only_as_it_was_read(store, corpus, make_config, tmp_path):
    upload(store, corpus)
    store.put("out/claim.json", b'{"inputs": "of a run that came to nothing"}')
    theirs = b'{"inputs": "of a run that has just begun"}'
    store.proxy.add("call", WRITE + ".*claim", skip=1, hook=lambda: store.put("out/claim.json", theirs))
    with pytest.raises(ConflictError, match=f"output.path {store.url}/out has just been claimed by another run"):
        run(config_on(store, make_config), tmp_path / "log")
    assert store.contents("out") == {"claim.json": theirs}
    assert loads(tmp_path / "log") == 0


@pytest.mark.slow
def test_a_damaged_score_file_is_scored_again_and_replaced(store, corpus, on_disk, make_config, tmp_path):
    upload(store, corpus)
    log = tmp_path / "log"
    run(config_on(store, make_config), log)
    whole = store.contents("out")
    victim = next(name for name in whole if name.startswith("scores/") and name.endswith(".parquet"))
    store.put(f"out/{victim}", whole[victim][: len(whole[victim]) // 2])
    store.fs.rm_file(f"{store.bucket}/out/manifest.json")
    run(config_on(store, make_config), log)
    assert hashes(store.contents("out")) == on_disk
    assert files.read_bytes(f"{store.url}/out/{victim}") == whole[victim]
    assert 48 < scored_rows(log) <= 52


OTHER = {"select": [{"best_of_n": {"keep": 2}}]}


class Outputs:
    """Outputs of one corpus on a store, with scores that all share, so that runs write what they publish and little else."""

    def __init__(self, store, make_config, log: Path) -> None:
        self.store, self.log, self._make_config = store, log, make_config

    def run(self, name: str, **changes):
        """A run on this output; the error where it ends with one of a store or of a conflict."""
        scores = {"path": f"{self.store.url}/scores"}
        settings = {"input": {"rows_per_fragment": 100}, "scores": scores, **changes}
        try:
            return run(
                config_on(self.store, self._make_config, **settings, output={"path": f"{self.store.url}/{name}"}),
                self.log,
            )
        except (ConflictError, StorageError) as error:
            return error

    def alone(self, name: str, **changes) -> dict[str, str]:
        assert isinstance(self.run(name, **changes), Outcome)
        return hashes(self.store.contents(name))

    def faults(self, kind_of: Callable[[int, str], dict[str, Any]]) -> Iterator[tuple[str, Fault]]:
        """An output for each of the first writes and some of the others, at which there is a fault."""
        for number in itertools.chain(range(4), itertools.count(4, 3)):
            name = f"out-{number}"
            writes = rf"^(PUT /bucket|POST /upload).*{name}(/|%2F)"
            fault = self.store.proxy.add(pattern=writes, skip=number, **kind_of(number, name))
            yield name, fault
            self.store.proxy.plan.remove(fault)
            if not fault.met:
                return


@pytest.fixture
def outputs(store, corpus, make_config, tmp_path) -> Outputs:
    upload(store, corpus)
    return Outputs(store, make_config, tmp_path / "log")


@pytest.mark.slow
def test_a_different_run_at_each_write(outputs):
    """It begins and ends before the first one's write is done; one of the two has the output, whole and alone."""
    alone = [outputs.alone("a"), outputs.alone("b", **OTHER)]
    ends: list[Any] = []

    def meet(_number: int, name: str) -> dict[str, Any]:
        return {"kind": "call", "hook": lambda: ends.append(outputs.run(name, **OTHER))}

    first_wins = []
    for name, fault in outputs.faults(meet):
        ends.clear()
        ended = [outputs.run(name), *ends]
        winners = [number for number, end in enumerate(ended) if isinstance(end, Outcome)]
        assert len(winners) == 1
        assert all(isinstance(end, Outcome | ConflictError) for end in ended)
        assert hashes(outputs.store.contents(name)) == alone[winners[0]]
        first_wins += [winners == [0]] if fault.met else []
    assert first_wins[:2] == [False, False], "before it owns the output"
    assert len(first_wins) > 5
    assert all(first_wins[2:])


@pytest.mark.slow
def test_a_fault_at_each_write(outputs, clock):
    """A store that is full, breaks, is read-only or slow from there on: the run ends with 5 or well, and the same command again
    goes on."""
    alone, statuses, failed = outputs.alone("a"), [507, 500, 403], 0

    def kind_of(number: int, _name: str) -> dict[str, Any]:
        if number % 4 == 3:
            return {"kind": "call", "hook": lambda: time.sleep(0.2), "times": -1}
        return {"kind": "refuse", "status": statuses[number % 4], "times": -1}

    for name, fault in outputs.faults(kind_of):
        ended = outputs.run(name)
        failed += isinstance(ended, StorageError)
        assert isinstance(ended, StorageError) == (fault.kind == "refuse" and fault.met > 0)
        if isinstance(ended, StorageError):
            assert f"{outputs.store.url}/{name}" in str(ended)
        fault.times = 0
        assert outputs.alone(name) == alone
    assert failed > 3
