"""Models on emulated object stores: the identity that they have on disk, one fetch a machine, no other weights than planned."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from services.emulators import environment
from support.weights_on_stores import GET_WEIGHTS, WEIGHTS, flip, model, root, sent, upload, url_of

from pipelines.errors import ConflictError, ModelLoadError, StorageError
from pipelines.storage.models import (
    cache,
    loadable_directory,
    locate,
    reading_directory,
    small_directory,
    whole_directory,
)
from pipelines.storage.models.checksums import CHECKSUMS_FILE, list_model
from pipelines.storage.models.fetch import fetch_model
from rm.calibration_record import load_temperature
from rm.identity import identify

__all__ = ["model", "root"]  # fixtures

ROOT = Path(__file__).parents[4]
SETTINGS = {"max_length": 64, "too_long": "truncate", "dtype": "float32"}


def identity(directory: Path, hashes=None) -> dict:
    return identify(directory, **SETTINGS, hashes=hashes).to_json()


def planned(url: str) -> tuple[dict, dict]:
    """What a plan says of a model: how to load it, and its identity."""
    located = locate(url, None)
    return {**located.planned, **SETTINGS}, identity(located.directory, located.hashes)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def unfinished(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name.endswith(".tmp"))


def of_the_model(directory: Path) -> dict[str, bytes]:
    return {
        name: data for name, data in contents(directory).items() if name not in ("calibration.json", "training.log")
    }


def test_a_launcher_knows_a_fetched_model_without_its_weights(store, model, root):
    url = sent(store, model)
    located = locate(url, None)
    assert identity(located.directory, located.hashes) == identity(model)
    assert load_temperature(located.directory) == 1.75
    assert not store.proxy.lines(GET_WEIGHTS)
    assert WEIGHTS not in contents(located.directory)
    assert located.planned["directory"] == url
    store.put("models/reward/calibration.json", b'{"temperature": 2.5}')
    assert load_temperature(locate(url, None).directory) == 2.5, "no part of the weights, and not remembered"
    assert small_directory(located.planned) != located.directory
    assert contents(small_directory(located.planned)).keys() == contents(located.directory).keys() - {
        "calibration.json"
    }


def test_what_other_tools_have_copied_is_hashed_once(store, model, root):
    url = upload(store, model)
    located = locate(url, None)
    assert identity(located.directory, located.hashes) == identity(model)
    assert load_temperature(located.directory) == 1.75
    assert len(store.proxy.lines(GET_WEIGHTS)) == 1
    assert loadable_directory({**located.planned, **SETTINGS}, {}) == whole_directory(url, None)
    assert locate(url, None) == located
    assert len(store.proxy.lines(GET_WEIGHTS)) == 1, "remembered, and found"
    store.put(f"models/reward/{WEIGHTS}", flip((model / WEIGHTS).read_bytes()))
    changed = locate(url, None)
    assert changed.hashes[WEIGHTS] != located.hashes[WEIGHTS]
    assert {**changed.hashes, WEIGHTS: ""} == {**located.hashes, WEIGHTS: ""}


def test_a_copied_checksums_file_is_checked_before_it_is_believed(store, model, root):
    sent(store, model)
    there = store.contents("models/reward")
    for name, data in there.items():
        store.put(f"copy/{name}", data)
    store.proxy.requests.clear()
    located = locate(f"{store.url}/copy", None)
    assert identity(located.directory, located.hashes) == identity(model)
    noted = {name: entry["version"] for name, entry in json.loads(there[CHECKSUMS_FILE])["files"].items()}
    listed = {name: each.version for name, each in list_model(f"{store.url}/copy").model.items()}
    assert len(store.proxy.lines(GET_WEIGHTS)) == (0 if noted == listed else 1), "an ETag may be that of the content"
    if noted != listed:
        store.put(f"copy/{WEIGHTS}", flip(there[WEIGHTS]))
        with pytest.raises(StorageError, match=f"not what {CHECKSUMS_FILE} says.*{WEIGHTS} has another sha256"):
            locate(f"{store.url}/copy", None)


def test_a_worker_has_all_of_it_and_fetches_it_once(store, model, root):
    plan = planned(sent(store, model))
    directory = loadable_directory(*plan)
    assert contents(directory) == of_the_model(model)
    assert len(store.proxy.lines(GET_WEIGHTS)) == 1
    store.proxy.requests.clear()
    assert loadable_directory(*plan) == directory
    assert not store.proxy.requests
    assert unfinished(root) == []


def test_neighbours_are_no_part_of_a_model(store, model, root):
    url = sent(store, model)
    for name in ("models/reward2/config.json", "models/reward/old/model-2.safetensors", "models/other.safetensors"):
        store.put(name, b"{}")
    assert list_model(url).model.keys() == of_the_model(model).keys()
    assert list_model(url + "/").url == url
    assert identity(*locate(url + "/", None)[:2]) == identity(model)


WORKER = """
import json, sys
from pipelines.storage.models.locate import loadable_directory
print(loadable_directory(*json.loads(sys.stdin.read())))
"""


def worker(store, plan, root: Path) -> subprocess.Popen[str]:
    """A process of its own that asks for a model, on the machine whose models lie at `root`."""
    settings = {cache.MODELS: str(root), "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(root / "xdg")}
    started = subprocess.Popen(
        [sys.executable, "-c", WORKER],
        env={**os.environ, **environment(store.scheme, store.proxy), **settings},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert started.stdin is not None
    started.stdin.write(json.dumps(plan))
    started.stdin.close()
    started.stdin = None
    return started


def wait_until(true, what: str) -> None:
    """Until something holds that does without us; a minute is a failure."""
    for _ in range(600):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError(what)


@pytest.mark.slow
def test_processes_of_one_machine_fetch_once(store, model, root):
    plan = planned(sent(store, model))
    both = []

    def until_both_wait() -> None:
        wait_until(lambda: len(both) == 2, "the second worker was not started")
        time.sleep(
            1.0
        )  # so that the second comes to the lock; if it is later, it finds the model, and fetches it no more either

    store.proxy.add("call", GET_WEIGHTS, hook=until_both_wait)
    both += [worker(store, plan, root), worker(store, plan, root)]
    places = {process.communicate(timeout=120)[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    (place,) = places
    assert contents(Path(place)) == of_the_model(model)
    assert len(store.proxy.lines(GET_WEIGHTS)) == 1


def test_a_killed_fetch_leaves_nothing_that_is_believed(store, model, root):
    plan = planned(sent(store, model))
    store.proxy.add("stall", GET_WEIGHTS)
    killed = worker(store, plan, root)
    wait_until(lambda: store.proxy.plan[0].met, "the worker did not ask for the weights")
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    (left,) = unfinished(root)
    assert contents(root / left)[WEIGHTS] == b""
    whole = [path for path in root.iterdir() if (path / WEIGHTS).exists() and not path.name.startswith(".")]
    assert not whole
    assert contents(loadable_directory(*plan)) == of_the_model(model)
    assert unfinished(root) == [], "swept up"


def test_what_a_fetch_of_another_model_has_left_goes_unless_it_goes_on(make_store, model, root):
    plan = planned(sent(make_store("s3"), model))
    for name in ("dead", "live", "strange"):
        (root / f".{name}.0123456789ab.tmp").mkdir()
        (root / f".{name}.0123456789ab.tmp" / WEIGHTS).write_bytes(b"half of it")
    (root / ".dead.lock").touch()
    with (root / ".live.lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        loadable_directory(*plan)
    assert unfinished(root) == [".live.0123456789ab.tmp", ".strange.0123456789ab.tmp"], (
        "the last may be on a disk without locks"
    )


def test_a_full_disk_is_said_before_anything_is_fetched(store, model, root, monkeypatch):
    plan = planned(sent(store, model))
    needed = sum(len(data) for data in of_the_model(model).values())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, needed - 1))
    there = sorted(root.iterdir())
    with pytest.raises(
        StorageError, match=rf"needs {needed:,} bytes, and .*machine has {needed - 1:,} free; .*{cache.MODELS}"
    ):
        loadable_directory(*plan)
    assert not store.proxy.lines(GET_WEIGHTS)
    assert [path for path in sorted(root.iterdir()) if path.suffix != ".lock"] == [
        p for p in there if p.suffix != ".lock"
    ]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, needed))
    assert contents(loadable_directory(*plan)) == of_the_model(model)


def test_a_disk_that_fills_up_meanwhile_ends_the_fetch_and_keeps_nothing(make_store, model, root, monkeypatch):
    plan = planned(sent(make_store("s3"), model))

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StorageError, match=rf"cannot write a model to .*: No space left on device; free some .*{cache.MODELS}"
    ):
        loadable_directory(*plan)
    assert unfinished(root) == []
    assert not [path for path in root.iterdir() if (path / WEIGHTS).exists()]


def test_a_launcher_that_must_fetch_all_looks_at_the_disk_too(store, model, root, monkeypatch):
    url = upload(store, model)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, 100))
    with pytest.raises(StorageError, match="has 100 free"):
        locate(url, None)
    assert not store.proxy.lines(GET_WEIGHTS)


@pytest.mark.parametrize("how", ["same size", "another size", "gone"])
def test_a_worker_never_loads_other_weights_than_planned(store, model, root, how):
    plan = planned(sent(store, model))
    data = (model / WEIGHTS).read_bytes()
    if how == "gone":
        store.fs.rm(f"{store.bucket}/models/reward/{WEIGHTS}")
        with pytest.raises(StorageError, match=f"{WEIGHTS} is gone"):
            loadable_directory(*plan)
    else:
        store.put(f"models/reward/{WEIGHTS}", flip(data) if how == "same size" else data + b"x")
        with pytest.raises(
            ModelLoadError, match=f"{WEIGHTS} is not the file that the run was planned with: .*; it was repl"
        ):
            loadable_directory(*plan)
    assert unfinished(root) == []
    assert not [path for path in root.iterdir() if (path / WEIGHTS).exists()]


def test_weights_replaced_after_a_fetch_do_not_reach_who_has_the_planned_ones(store, model, root):
    plan = planned(sent(store, model))
    directory = loadable_directory(*plan)
    store.put(f"models/reward/{WEIGHTS}", flip((model / WEIGHTS).read_bytes()))
    assert loadable_directory(*plan) == directory
    assert contents(directory) == of_the_model(model)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], flip, lambda data: None])
def test_a_damaged_copy_is_fetched_again_and_its_neighbours_stay(store, model, root, damage):
    plan = planned(sent(store, model))
    directory = loadable_directory(*plan)
    config = (directory / "config.json").stat()
    with (directory / WEIGHTS).open("rb") as held:
        damaged = damage((directory / WEIGHTS).read_bytes())
        (directory / WEIGHTS).unlink()
        if damaged is not None:
            (directory / WEIGHTS).write_bytes(damaged)
        store.proxy.requests.clear()
        assert loadable_directory(*plan) == directory
        assert held.read() == (model / WEIGHTS).read_bytes(), "who has it open keeps it"
    assert contents(directory) == of_the_model(model)
    assert len(store.proxy.lines(GET_WEIGHTS)) == 1
    assert (directory / "config.json").stat().st_ino == config.st_ino


def test_what_comes_damaged_is_fetched_once_more_and_no_further(store, model, root, monkeypatch):
    plan = planned(sent(store, model))
    real, told, wrong = cache.parts_of, [], []

    def damaged(there, seen):
        data = b"".join(real(there, seen))
        if there.place.endswith(WEIGHTS):
            told.append(there.place)
            if wrong:
                data = wrong.pop(0) + data[1:]
        yield data

    monkeypatch.setattr(cache, "parts_of", damaged)
    wrong[:] = [b"\x01", b"\x02"]
    with pytest.raises(StorageError, match=f"{WEIGHTS} arrives damaged, differently each time"):
        loadable_directory(*plan)
    assert len(told) == 2
    told.clear()
    wrong[:] = [b"\x01"]
    assert contents(loadable_directory(*plan)) == of_the_model(model)
    assert len(told) == 2


def test_a_cut_object_is_noticed_by_the_launcher(store, model, root):
    url = sent(store, model)
    store.put(f"models/reward/{WEIGHTS}", (model / WEIGHTS).read_bytes()[:-8])
    with pytest.raises(
        StorageError, match=rf"{WEIGHTS} has [\d,]+ bytes, and {CHECKSUMS_FILE} says [\d,]+; run `bestkept model"
    ):
        locate(url, None)


def test_what_was_changed_after_its_checksums_is_noticed_by_the_launcher(store, model, root):
    url = sent(store, model)
    store.put(f"models/reward/{WEIGHTS}", flip((model / WEIGHTS).read_bytes()))
    with pytest.raises(
        StorageError, match=f"{WEIGHTS} has another sha256 than that; run `bestkept model fetch` again, or remove"
    ):
        locate(url, None)
    store.put("models/reward/added.safetensors", b"")
    with pytest.raises(StorageError, match=f"added.safetensors has 0 bytes, and {CHECKSUMS_FILE} names no such file"):
        locate(url, None)
    store.put(f"models/reward/{CHECKSUMS_FILE}", b"[]")
    with pytest.raises(StorageError, match=f"{CHECKSUMS_FILE} is not a checksums file of this version"):
        locate(url, None)
    store.fs.rm(f"{store.bucket}/models/reward/{CHECKSUMS_FILE}")
    store.fs.rm(f"{store.bucket}/models/reward/added.safetensors")
    assert locate(url, None).hashes[WEIGHTS] != identity(model)["weights"][WEIGHTS], "taken as it is"


def test_objects_that_change_while_all_is_fetched_are_noticed(store, model, root):
    url = upload(store, model)
    new = flip((model / WEIGHTS).read_bytes())
    store.proxy.add(
        "call", r"^GET .*vocab|^GET .*tokenizer\.json", hook=lambda: store.put(f"models/reward/{WEIGHTS}", new)
    )
    with pytest.raises(StorageError, match="changed while it was fetched"):
        locate(url, None)
    assert not [path for path in root.iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "is empty; expected a model's files there: `bestkept model fetch ID_OR_DIR"),
        ([WEIGHTS], r"has no config.json \(1 files\)"),
        (["config.json"], r"has no weights: expected \*.safetensors"),
        (["adapter_config.json", "adapter_model.safetensors"], r"is an adapter \(adapter_config\.json"),
        (["config.json", WEIGHTS, "adapter_config.json"], "beside whole weights.*remove the adapter's files"),
        (["config.json", "pytorch_model.bin"], "holds pickled weights .*convert them once"),
    ],
)
def test_what_is_no_model_is_refused(store, root, names, message):
    for name in names:
        store.put(f"models/reward/{name}", b"{}")
    with pytest.raises(ModelLoadError, match=message):
        locate(url_of(store), None)


def test_revisions_and_other_places_are_refused(store, model, root):
    url = sent(store, model)
    for find in (locate, reading_directory, whole_directory):
        with pytest.raises(ModelLoadError, match=r"model.revision 'main' is only for hub ids"):
            find(url, "main")
    with pytest.raises(ModelLoadError, match="is empty"):
        locate(f"{store.scheme}://no-such-bucket-0/models", None)


def test_only_what_is_read_is_fetched_for_reading(store, model, root):
    url = upload(store, model)
    directory = reading_directory(url, None)
    assert contents(directory) == {n: d for n, d in contents(model).items() if n not in (WEIGHTS, "training.log")}
    assert not store.proxy.lines(GET_WEIGHTS)


def puts(store) -> list[str]:
    """Names of the objects that were written, in order."""
    return [line.partition("?")[0].rsplit("/", 1)[-1] for line in store.proxy.lines("^PUT /bucket")]


CONTENT = ["config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"]


def test_a_fetch_goes_on_where_it_broke_off_and_the_checksums_come_last(make_store, model, root):
    store = make_store("s3")
    assert sorted(of_the_model(model)) == CONTENT
    fault = store.proxy.add("refuse", r"^PUT .*tokenizer\.json", times=-1, status=403)
    with pytest.raises(StorageError, match=r"cannot write .*tokenizer\.json: 403"):
        fetch_model(str(model), url_of(store))
    assert puts(store) == ["config.json", WEIGHTS, "tokenizer.json"]
    assert CHECKSUMS_FILE not in store.contents("models/reward")
    fault.times = 0
    store.proxy.requests.clear()
    done = fetch_model(str(model), url_of(store) + "/")
    assert (done.destination, done.source, done.sent, len(done.files)) == (url_of(store), "reward", 2, 4)
    assert puts(store) == ["tokenizer.json", "tokenizer_config.json", "calibration.json", CHECKSUMS_FILE]
    there = store.contents("models/reward")
    assert there.keys() == {*CONTENT, "calibration.json", CHECKSUMS_FILE}
    assert {n: d for n, d in there.items() if n in CONTENT} == of_the_model(model)
    store.proxy.requests.clear()
    assert fetch_model(str(model), url_of(store)).sent == 0
    assert not set(puts(store)) & set(CONTENT)
    assert not store.proxy.lines(GET_WEIGHTS), "known to be there"


def test_a_fetch_never_overwrites_another_model(store, model, root):
    sent(store, model)
    before = store.contents("models")
    data = (model / WEIGHTS).read_bytes()
    for other, why in ((flip(data), "other content"), (data + b"x", r"of [\d,]+ bytes, not")):
        (model / WEIGHTS).write_bytes(other)
        with pytest.raises(ConflictError, match=f"holds {WEIGHTS}, .*{why}.*another model lies there"):
            fetch_model(str(model), url_of(store))
    (model / WEIGHTS).rename(model / "model-00001-of-00001.safetensors")
    with pytest.raises(ConflictError, match=f"holds {WEIGHTS}, which this model does not have"):
        fetch_model(str(model), url_of(store))
    assert store.contents("models") == before


def test_large_weights_come_in_order_and_whole(store, root, monkeypatch):
    """Parts of a few bytes, more of them than requests at once."""
    data = bytes(range(256)) * 8
    store.put("large", data)
    monkeypatch.setattr(cache, "PART_BYTES", 100)
    root.mkdir()
    found = cache._fetch(f"{store.url}/large", root / "large")
    assert (root / "large").read_bytes() == data
    assert found.bytes == len(data)
    assert len(store.proxy.lines("^GET /(bucket-.*large|download)")) >= 21
