"""Publishing and reading against emulated stores that misbehave, with the real clients."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from services.emulators import forget_clients

from pipelines.config import Columns, InputConfig
from pipelines.corpus import InputFile, UnreadableError, read_fragments, split_units
from pipelines.corpus.columns.detection import detect
from pipelines.corpus.listing import list_files
from pipelines.errors import ConfigError, ConflictError, InputError, StorageError
from pipelines.score import score_files
from pipelines.storage import files, listing, publish
from pipelines.storage.stores import gcs, retry, s3

PART = 5 * 2**20  # the least that S3 takes
INSERT = r"^(PUT /bucket|POST /upload)"  # of a small object
READ = r"^GET /(bucket-\d+|download/storage/v1/b/bucket-\d+/o)/\w"


@pytest.fixture
def parts(monkeypatch):
    """Bodies above 5 MiB go in parts; one of 11 MiB has three."""
    for module in (s3, gcs):
        monkeypatch.setattr(module, "PART_BYTES", PART)
    return random.Random(0).randbytes(2 * PART + 2**20)


def last_part(store):
    return r"^POST /bucket.*uploadId" if store.is_s3 else r"^POST /upload.*upload_id"


def test_the_first_to_create_stands(store):
    path = store.url + "/a/b.json"
    assert publish.create(path, b"first")
    assert not publish.create(path, b"other")
    assert not publish.create(path, b"longer than the first")
    assert publish.create(path, b"first"), "the same bytes are as good as ours"
    assert store.contents() == {"a/b.json": b"first"}
    statuses = [line.split()[0] for line in store.proxy.lines(INSERT)]
    assert statuses == ["200", "412", "412", "412"], "the store decides, not a look before"


def test_an_object_that_is_named_outright_is_told_by_its_content(store):
    lines = b'{"prompt": "p", "response": "r"}\n'
    store.put("in/data", gzip.compress(b"[" + lines + b"]"))
    store.put("in/rows.txt", lines)
    for name, kind in (("data", ("jsonl", "array.gz")), ("rows.txt", ("jsonl", None))):
        (file,) = list_files(InputConfig(path=f"{store.url}/in/{name}"))
        assert (file.kind, file.compression) == kind
    with pytest.raises(InputError, match="or name it outright"):
        list_files(InputConfig(path=f"{store.url}/in"))


def test_create_or_equal(store):
    path = store.url + "/data/0.parquet"
    digest = publish.create_or_equal(path, b"shard")
    assert publish.create_or_equal(path, lambda file: file.write(b"shard") and None) == digest
    with pytest.raises(ConflictError, match=r"data/0\.parquet exists with other content"):
        publish.create_or_equal(path, b"Shard")
    assert store.contents() == {"data/0.parquet": b"shard"}


def test_a_large_body_goes_in_parts_and_is_created_once(store, parts):
    path = store.url + "/large"
    assert publish.create(path, parts)
    assert store.contents() == {"large": parts}
    sizes = [request.length for request in store.proxy.requests if request.length > 2**19]
    assert sizes == [PART, PART, 2**20]
    store.proxy.requests.clear()
    assert not publish.create(path, parts[::-1])
    assert publish.create(path, parts)
    assert not [request for request in store.proxy.requests if request.length > 2**19], "nothing travels for nothing"
    assert store.contents() == {"large": parts}


def test_parts_are_read_one_at_a_time(store, parts):
    asked = []

    class Watched(io.BytesIO):
        def read(self, count=-1):
            asked.append(count)
            return super().read(count)

    assert files.object_at(store.url + "/large").create(Watched(parts), len(parts))
    assert set(asked) == {PART}


def test_bodies_at_the_bounds_of_parts(store, parts):
    sizes = {"one": PART, "two": 2 * PART, "more": PART + 1}
    sizes |= {"none": 0} if store.is_s3 else {}  # the emulator of GCS fails there
    for name, size in sizes.items():
        assert publish.create(f"{store.url}/{name}", parts[:size])
        assert not publish.create(f"{store.url}/{name}", parts[: size + 1])
    assert {name: len(data) for name, data in store.contents().items()} == sizes


def test_who_comes_first_while_the_parts_travel_stands(store, parts):
    store.proxy.add("call", last_part(store), hook=lambda: store.put("large", b"somebody else's"))
    assert not publish.create(store.url + "/large", parts)
    assert store.contents() == {"large": b"somebody else's"}
    assert not store.is_s3 or store.unfinished_uploads() == []


@pytest.mark.parametrize("size", [100, 2 * PART + 2**20])
def test_a_lost_acknowledgement_is_read_again_and_ours(store, parts, size):
    lost = store.proxy.add(
        "lose", INSERT if size <= PART else last_part(store), skip=0 if store.is_s3 or size <= PART else 2
    )
    assert publish.create(store.url + "/x", parts[:size])
    assert lost.met == 1
    assert store.contents() == {"x": parts[:size]}
    assert not store.proxy.lines("^DELETE"), "nothing that was written is taken back"
    assert not store.is_s3 or store.unfinished_uploads() == []


WRONG = {  # what a store may say of what it has
    "sum": lambda entry: {**entry, "crc32c": "AAAAAA=="},
    "size": lambda entry: {**entry, "size": "0"},
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("size", [100, 2 * PART + 2**20])
def test_what_gcs_calls_complete_is_what_was_sent(make_store, parts, size, wrong):
    store = make_store("gs")

    def change(headers, body):
        return headers, json.dumps(WRONG[wrong](json.loads(body))).encode()

    store.proxy.add(
        "distort", INSERT if size <= PART else last_part(store), skip=0 if size <= PART else 2, change=change
    )
    said = f"{size:,} bytes of CRC32C \\S+ were sent, and the store reports .*; remove the object there, and run"
    with pytest.raises(StorageError, match=f"^cannot write {store.url}/x: {said}"):
        publish.create(store.url + "/x", parts[:size])


def test_an_upload_that_gcs_completes_when_it_is_asked_how_much_it_has(make_store, parts):
    """As fake-gcs-server does, with an empty object."""
    store = make_store("gs")
    store.proxy.add("reset", last_part(store), skip=1)
    store.proxy.add("refuse", last_part(store), skip=1, status=200, body=b'{"size": "0", "crc32c": "AAAAAA=="}')
    with pytest.raises(StorageError, match="the store reports 0 bytes"):
        publish.create(store.url + "/x", parts)


def test_gcs_is_told_the_sum_of_what_is_sent_in_parts(make_store, parts):
    """The service refuses another content then; so does its emulator."""
    store, announced = make_store("gs"), []
    insert = gcs.GcsObject._insert
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            gcs.GcsObject, "_insert", lambda self, *a, **k: announced.append(k.get("json")) or insert(self, *a, **k)
        )
        assert publish.create(store.url + "/x", parts)
    assert announced == [{"name": "x", "crc32c": store.fs.info(f"{store.bucket}/x")["crc32c"]}]


@pytest.mark.parametrize("size", [100, 2 * PART + 2**20])
def test_the_checksum_that_s3_returns_is_that_of_what_was_sent(make_store, parts, size):
    store = make_store("s3")

    def change(headers, body):
        return {**headers, "x-amz-checksum-crc32": "AAAAAA=="}, body

    fault = store.proxy.add("distort", INSERT, change=change)
    what = "100 bytes" if size == 100 else "part 1"
    with pytest.raises(StorageError, match=f"/x: {what} of CRC32 .* the store reports CRC32 AAAAAA==; remove"):
        publish.create(store.url + "/x", parts[:size])
    assert fault.met == 1
    if size > PART:
        assert store.contents() == {}
        assert store.unfinished_uploads() == []


def test_the_checksum_of_all_parts_is_compared(make_store, parts):
    store = make_store("s3")

    def change(headers, body):
        body = re.sub(rb"<ChecksumCRC32>.*?</ChecksumCRC32>", b"", body)
        return headers, body.replace(b"<ETag>", b"<ChecksumCRC32>AAAAAA==-3</ChecksumCRC32><ETag>")

    store.proxy.add("distort", last_part(store), change=change)
    with pytest.raises(StorageError, match=r"all parts of CRC32 \S+-3 were sent, and the store reports .*-3"):
        publish.create(store.url + "/x", parts)


def test_a_lost_refusal_is_not_taken_for_success(store):
    store.put("x", b"theirs")
    store.proxy.add("lose", INSERT)
    assert not publish.create(store.url + "/x", b"ours..")
    assert store.contents() == {"x": b"theirs"}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_burst_of_refusals_passes(store, status):
    store.proxy.add("refuse", INSERT, times=3, status=status)
    assert publish.create(store.url + "/x", b"data")
    assert [line.split()[0] for line in store.proxy.lines(INSERT)] == [str(status)] * 3 + ["200"]
    store.proxy.add("refuse", READ, times=3, status=status)
    assert files.read_bytes(store.url + "/x") == b"data"
    store.proxy.add("refuse", "^(HEAD|GET)", times=3, status=status)
    assert files.size_of(store.url + "/x") == 4
    store.proxy.add("refuse", "^GET", times=3, status=status)
    assert [file.key for file in listing.expand(store.url + "/*")] == ["x"]


@pytest.mark.parametrize("kind", [pytest.param("stall", marks=pytest.mark.slow), "reset", "refuse", "lose"])
def test_only_the_part_that_was_lost_is_sent_again(store, parts, kind, monkeypatch):
    monkeypatch.setattr(retry, "PATIENCE", replace(retry.PATIENCE, silence_secs=1))
    pattern = "^PUT .*partNumber=2" if store.is_s3 else "^POST /upload.*upload_id"
    store.proxy.add(kind, pattern, skip=0 if store.is_s3 else 1)
    assert publish.create(store.url + "/large", parts)
    assert store.contents() == {"large": parts}
    sizes = [request.length for request in store.proxy.requests if request.length > 2**19]
    arrived = kind == "lose" and not store.is_s3  # GCS can say how much it has of an upload
    assert sizes == [PART, PART, *([] if arrived else [PART]), 2**20]


@pytest.mark.parametrize("kind", [pytest.param("stall", marks=pytest.mark.slow), "reset", "cut"])
def test_a_read_that_breaks_is_made_again(store, kind, monkeypatch):
    data = random.Random(1).randbytes(3 * 2**20)
    store.put("x", data)
    monkeypatch.setattr(retry, "PATIENCE", replace(retry.PATIENCE, silence_secs=1))
    fault = store.proxy.add(kind, READ, times=1)
    assert files.read_bytes(store.url + "/x") == data
    assert fault.met == 1
    fault = store.proxy.add(kind, READ, times=2)
    with files.open_for_reading(store.url + "/x") as file:
        assert file.read() == data
    assert fault.met == 2


def test_a_range_that_comes_short_is_noticed(store):
    data = random.Random(4).randbytes(2**20)
    store.put("x", data)
    fault = store.proxy.add("shorten", READ, times=2)
    there = files.object_at(store.url + "/x")
    assert there.read_range(5, 1000, there.stat()) == data[5:1000]
    assert fault.met == 2


@pytest.mark.parametrize("kind", ["cut", "refuse"])
def test_what_does_not_pass_ends_with_place_and_cause_at_the_deadline(store, kind, clock):
    store.put("x", b"0123456789")
    fault = store.proxy.add(kind, READ, times=-1)
    cause = "503" if kind == "refuse" else r"(the body was cut, 5 of 10 bytes came|the connection failed \(\w+\))"
    expected = rf"^cannot read {store.url}/x: {cause}, \d+ attempts in ([45]\d|60) s; .*again"
    with pytest.raises(StorageError, match=expected) as caught:
        files.read_bytes(store.url + "/x")
    assert 7 <= fault.met <= 15
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_replacing_replaces_what_was_read_and_nothing_else(store):
    path = store.url + "/claim.json"
    assert files.read_with_version(path) is None
    store.put("claim.json", b"first")
    data, seen = files.read_with_version(path)
    assert data == b"first"
    store.put("claim.json", b"other")
    assert not publish.replace(path, b"ours", version=seen)
    assert store.contents() == {"claim.json": b"other"}
    _, seen = files.read_with_version(path)
    store.proxy.add("lose", INSERT)
    assert publish.replace(path, b"ours", version=seen), "the acknowledgement was lost, and the object is ours"
    assert store.contents() == {"claim.json": b"ours"}
    store.fs.rm_file(f"{store.bucket}/claim.json")
    assert not publish.replace(path, b"again", version=seen)
    assert publish.replace(path, b"run.json, say")
    assert store.contents() == {"claim.json": b"run.json, say"}


XML = b"<Error><Code>%s</Code><Message>for canary0secret0of0nobody</Message></Error>"


@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (403, b"AccessDenied", "grant these credentials"),
        (403, b"SignatureDoesNotMatch", "check the credentials"),
        (400, b"ExpiredToken", "sign in again"),
        (404, b"NoSuchBucket", "create the bucket"),
        (301, b"PermanentRedirect", "set AWS_DEFAULT_REGION"),
        (501, b"NotImplemented", "the store cannot write create-only"),
    ],
)
def test_s3_refusals_that_do_not_pass_end_at_once(make_store, status, code, remedy):
    store = make_store("s3")
    store.proxy.add("refuse", INSERT, times=-1, status=status, body=XML % code)
    with pytest.raises(
        StorageError, match=rf"^cannot write {store.url}/x: {status} {code.decode()}; {remedy}"
    ) as caught:
        publish.create(store.url + "/x", b"data")
    assert "canary" not in str(caught.value)
    assert len(store.proxy.lines(INSERT)) == (2 if status == 301 else 1)  # botocore looks for the region itself, once


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (403, "canary does not have storage.objects.create access", "access denied; grant these credentials"),
        (401, "Anonymous caller: canary", "401; check the credentials"),
        (401, "Invalid Credentials", "401; check the credentials"),
        (404, "The specified bucket does not exist: canary", "there is no bucket bucket-"),
        (400, "invalid: canary", "400; check the place"),
    ],
)
def test_gcs_refusals_that_do_not_pass_end_at_once(make_store, status, message, expected):
    store = make_store("gs")
    body = json.dumps({"error": {"code": status, "message": message}}).encode()
    store.proxy.add("refuse", INSERT, times=-1, status=status, body=body)
    with pytest.raises(StorageError, match=f"^cannot write {store.url}/x: {expected}") as caught:
        publish.create(store.url + "/x", b"data")
    assert "canary" not in str(caught.value)
    assert len(store.proxy.lines(INSERT)) == 1


def test_an_upload_that_fails_leaves_no_parts(make_store, parts):
    store = make_store("s3")
    store.proxy.add("refuse", "partNumber=2", status=403, body=XML % b"AccessDenied")
    with pytest.raises(StorageError, match="403 AccessDenied; grant"):
        publish.create(store.url + "/large", parts)
    assert [line.split()[0] for line in store.proxy.lines("^DELETE")] == ["204"]
    assert store.unfinished_uploads() == []
    assert store.contents() == {}


def test_a_bucket_that_is_not_there(store):
    missing = f"{store.scheme}://no-{store.bucket}"
    with pytest.raises(StorageError, match=f"cannot write {missing}/x: .*bucket"):
        publish.create(missing + "/x", b"data")
    for pattern in ("", "/in/*.jsonl", "/in"):
        with pytest.raises(StorageError, match=f"cannot list {missing}.*bucket.* fix"):
            listing.expand(missing + pattern)


def test_no_credentials_at_all(make_store, monkeypatch, tmp_path):
    store = make_store("s3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    forget_clients()
    try:
        with pytest.raises(StorageError, match=r"no usable credentials \(NoCredentialsError\); check the credentials"):
            files.read_bytes(store.url + "/x")
    finally:
        forget_clients()
    assert store.proxy.requests == []


def test_listing_a_directory_a_file_and_a_pattern(store):
    for name in ("in/a.jsonl", "in/deep/b.jsonl", "in/_hidden.jsonl", "in/.c.jsonl", "inner/d.jsonl"):
        store.put(name, b"{}\n")
    store.put("in/empty/", b"" if store.is_s3 else b"{}\n")  # the emulator of GCS takes no empty object
    assert [file.key for file in listing.expand(store.url + "/in")] == ["a.jsonl", "deep/b.jsonl"]
    assert [file.key for file in listing.expand(store.url + "/in/*.jsonl")] == ["a.jsonl"]
    (one,) = listing.expand(store.url + "/in/a.jsonl")
    assert (one.path, one.key) == (store.url + "/in/a.jsonl", "a.jsonl")
    assert files.anything_below(store.url + "/in/deep")
    assert not files.anything_below(store.url + "/in/dee")
    another = type(store.fs)(skip_instance_cache=True)
    another.pipe_file(f"{store.bucket}/in/z.jsonl", b"{}\n")
    assert [file.key for file in listing.expand(store.url + "/in/*.jsonl")] == ["a.jsonl", "z.jsonl"], (
        "no cached listing"
    )


def test_an_object_that_exists_wins_over_the_same_text_as_a_pattern(store):
    for name in ("in/shard1.jsonl", "in/shard[1].jsonl", "run1/a.jsonl", "run[1]/b.jsonl"):
        store.put(name, b"{}\n")
    (one,) = listing.expand(store.url + "/in/shard[1].jsonl")
    assert (one.path, one.key) == (store.url + "/in/shard[1].jsonl", "shard[1].jsonl")
    assert [file.key for file in listing.expand(store.url + "/in/shard[0-9].jsonl")] == ["shard1.jsonl"]
    assert [file.key for file in listing.expand(store.url + "/run[1]")] == ["b.jsonl"]
    assert [file.key for file in listing.expand(store.url + "/run[1]/*.jsonl")] == ["b.jsonl"]


def test_reading_here_and_there_gives_the_same_bytes(store):
    rng = random.Random(2)
    data = rng.randbytes(9 * 2**20 + 17)
    store.put("x", data)
    store.proxy.requests.clear()
    with files.open_for_reading(store.url + "/x") as file:
        assert file.read(10) == data[:10]
        for _ in range(80):
            start, count = rng.randrange(len(data) + 10), rng.choice([0, 1, 1000, 70_000, 2**20])
            file.seek(start)
            assert file.read(count) == data[start : start + count]
            assert file.tell() == max(start, min(start + count, len(data)))
        file.seek(-5, io.SEEK_END)
        assert file.read() == data[-5:]
        assert file.read() == b""


def test_two_streams_through_one_file_take_few_requests(store):
    """As Parquet reads two columns in turns."""
    data = random.Random(3).randbytes(16 * 2**20)
    store.put("x", data)
    store.proxy.requests.clear()
    half, step = 8 * 2**20, 2**18
    with files.open_for_reading(store.url + "/x") as file:
        for at in range(0, half, step):
            for start in (at, half + at):
                file.seek(start)
                assert file.read(step) == data[start : start + step]
    assert len(store.proxy.lines(READ)) <= 14
    sent = sum(end - start + 1 for start, end in ranges(store))
    assert sent <= len(data) + 4 * 2**20 + 2**17, (
        "every byte once, and what the first stream has read ahead into the second"
    )


def ranges(store):
    asked = [request.headers["Range"] for request in store.proxy.requests if "Range" in request.headers]
    return [tuple(int(part) for part in text.removeprefix("bytes=").split("-")) for text in asked]


@pytest.mark.parametrize(("kind", "cause"), [("refuse", "403"), ("cut", "(the body was cut|the connection failed)")])
def test_parquet_that_cannot_be_read_to_its_end_is_a_matter_of_storage(make_store, kind, cause, tmp_path, clock):
    """Not of the input, and not of pyarrow, through which the error travels."""
    store, rng = make_store("s3"), random.Random(0)
    responses = [rng.randbytes(20).hex() for _ in range(20_000)]
    table = pa.table({"prompt": [f"prompt {n}" for n in range(20_000)], "response": responses})
    pq.write_table(table, tmp_path / "a.parquet", compression="none")
    store.put("a.parquet", (tmp_path / "a.parquet").read_bytes())
    (found,) = listing.expand(store.url + "/a.parquet")
    file = InputFile(found.path, found.key, "parquet", None, found.info["size"], files.version_of(found.info))
    (unit,) = split_units(file)
    mapping = detect(["prompt", "response"], format="auto", columns=Columns(), carry=[], group_by=[], where="").mapping
    bounds = {"rows_per_fragment": 500, "max_row_bytes": 1000}
    read = [row.parsed.responses for part in read_fragments(file, unit, mapping, **bounds) for row in part.rows]
    assert read == [[text] for text in responses]
    store.proxy.add(kind, READ, times=-1, skip=2, status=403)
    with pytest.raises(StorageError, match=f"^cannot read {store.url}/a.parquet: {cause}"):
        list(read_fragments(file, unit, mapping, **bounds))


def test_an_object_that_changes_while_it_is_read_is_noticed(make_store):
    """On GCS by its generation, which the emulator does not keep."""
    store = make_store("s3")
    store.put("x", bytes(2**20))
    with files.open_for_reading(store.url + "/x") as file:
        assert file.read(10) == bytes(10)
        store.put("x", b"\1" * 2**20)
        file.seek(2**19)
        with pytest.raises(StorageError, match="x changed while it was read; run the same command again"):
            file.read(10)


def test_a_damaged_score_file_is_replaced_once_and_by_one(store):
    columns = pa.Table.from_pylist([{"row": 0, "reward": 0.5, "truncated": False}], schema=score_files.COLUMNS)
    path = store.url + "/a.parquet"
    store.put("a.parquet", b"PAR1 not really")
    theirs = score_files.encode(columns, footer(tokens=2), "")
    store.proxy.add("call", INSERT, skip=1, hook=lambda: store.put("a.parquet", theirs))
    assert score_files.write(path, columns, footer(tokens=1), "") == footer(tokens=2), "mended by another while we read"
    assert store.contents() == {"a.parquet": theirs}
    store.put("a.parquet", theirs[:-1])
    assert score_files.write(path, columns, footer(tokens=1), "") == footer(tokens=1)
    assert score_files.read(path)[1] == footer(tokens=1)


def footer(*, tokens):
    texts = dict.fromkeys(("fingerprint", "file_key", "file_version", "content_hash"), "x")
    counts = dict.fromkeys(("file_size", "unit", "unit_start", "fragment", "truncated", "text_bytes"), 0)
    ones = dict.fromkeys(("rows", "responses", "scored"), 1)
    return score_files.Footer(**texts, **counts, **ones, last=True, rejected={}, first_rejected=[], tokens=tokens)


def test_stores_without_create_only_are_read_but_not_written(store):
    store.put("x", b"data")
    path = f"{store.proxy.url}/{store.bucket}/x"
    with pytest.raises(ConfigError, match=rf"cannot write {path}: .*create-only.* not on http://; give another"):
        publish.create(path, b"data")
    with pytest.raises(ConfigError, match="create-only"):
        publish.replace(path, b"data")
    assert store.contents() == {"x": b"data"}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_planned_object_is_read_or_none_and_that_takes_no_request(store, tmp_path, kind):
    """What opening asks for is compared with the listing, and what is open does not change."""
    rows = [{"prompt": f"prompt {n}", "response": f"response {n}"} for n in range(100)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    data = lines if kind == "jsonl" else (tmp_path / "a.parquet").read_bytes()
    store.put(f"a.{kind}", data)
    (found,) = listing.expand(f"{store.url}/a.{kind}")
    file = InputFile(found.path, found.key, kind, None, found.info["size"], files.version_of(found.info))
    mapping = detect(["prompt", "response"], format="auto", columns=Columns(), carry=[], group_by=[], where="").mapping
    bounds = {"rows_per_fragment": 40, "max_row_bytes": 1000}
    asked = []
    for as_planned in (False, True):
        store.proxy.requests.clear()
        (unit,) = split_units(file, as_planned=as_planned)
        fragments = read_fragments(file, unit, mapping, as_planned=as_planned, **bounds)
        assert sum(len(fragment.rows) for fragment in fragments) == 100
        asked.append(len(store.proxy.requests))
    assert asked[0] == asked[1] > 0
    store.put(f"a.{kind}", lines[: len(data) - 1] if kind == "jsonl" else data + b"PAR1")
    with pytest.raises(UnreadableError, match=rf"a\.{kind} has changed since the run was planned") as caught:
        list(read_fragments(file, unit, mapping, as_planned=True, **bounds))
    assert (caught.value.reason, caught.value.exit_code) == ("changed", 3)
