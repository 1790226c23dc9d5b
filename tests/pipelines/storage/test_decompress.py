"""Decompression in steps: several members, bounded chunks, and what a refusal says."""

from __future__ import annotations

import gzip
import io
import random

import pytest
import zstandard

from pipelines.storage.decompress import decompress

COMPRESS = {"gz": gzip.compress, "zst": zstandard.compress}
WINDOW = "its zstd window is over 128 MiB; compress it again without --long and --ultra"


def framed(window_log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(
        window_log=window_log, write_content_size=False, write_checksum=True
    )
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return writer.compress(b"text") + writer.flush()


@pytest.mark.parametrize("kind", COMPRESS)
def test_members_of_any_size_one_after_another(kind):
    chance = random.Random(1)
    parts = [chance.randbytes(size) for size in (0, 1, 1024, 16 * 1024, 1, 70_000, 0, 5)]  # incompressible: many blocks
    data = b"".join(map(COMPRESS[kind], parts))
    assert b"".join(decompress(io.BytesIO(data), kind)) == b"".join(parts)
    assert all(decompress(io.BytesIO(data), kind))  # no empty chunk


@pytest.mark.parametrize(("kind", "most"), [("gz", 16 * 1024 * 1032), ("zst", 1024 // 4 * 128 * 1024)])
def test_a_bomb_comes_in_steps(kind, most):
    size = 96 * 2**20
    sizes = [len(chunk) for chunk in decompress(io.BytesIO(COMPRESS[kind](bytes(size))), kind)]
    assert sum(sizes) == size
    assert most / 2 < max(sizes) <= most


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("left", [b"", b"text"])
def test_a_cut_after_a_whole_member_is_noticed(kind, left):
    data = COMPRESS[kind](b"whole") + COMPRESS[kind](left)[:-1]
    chunks = decompress(io.BytesIO(data), kind)
    assert next(chunks) == b"whole"
    with pytest.raises(EOFError, match=rf"^{kind} stream ends early$"):
        list(chunks)


@pytest.mark.parametrize("kind", COMPRESS)
def test_what_is_of_another_kind_is_refused(kind):
    for data in (b"text" * 10, COMPRESS[kind](b"whole") + b"text" * 10):
        with pytest.raises(OSError, match=f"not valid {kind} data") as raised:
            list(decompress(io.BytesIO(data), kind))
        assert raised.value.errno == 0  # of the file, not of the system (see `unreadable`)


def test_zeros_are_padding_between_members_of_gzip_alone():
    data = gzip.compress(b"a") + bytes(20_000) + gzip.compress(b"b") + bytes(3)
    assert b"".join(decompress(io.BytesIO(data), "gz")) == b"ab"
    with pytest.raises(OSError, match="not valid zst data"):
        list(decompress(io.BytesIO(zstandard.compress(b"a") + bytes(20)), "zst"))


def test_a_window_that_takes_too_much_memory_is_refused():
    assert b"".join(decompress(io.BytesIO(framed(27)), "zst")) == b"text"
    with pytest.raises(OSError, match=WINDOW) as raised:
        list(decompress(io.BytesIO(framed(28)), "zst"))
    assert raised.value.errno == 0
