"""Streaming decompression of .gz, .zst, .bz2 and .xz in little memory; a truncated file is an error."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import zstandard

_READ_BYTES = 16 * 1024
_FEED_BYTES = {"gz": 16 * 1024, "zst": 1024, "bz2": 16 * 1024, "xz": 16 * 1024}
"""The input of a decoder at one step, in bytes, so that a decompression bomb expands in steps: gzip expands one byte to at most
1,032 bytes, zstd four bytes to 128 KiB, so a step yields at most 16 MiB or 32 MiB. The other decoders limit their output to
`_STEP_BYTES`."""
_STEP_BYTES = 2**20
_XZ_MEMORY = 2**28
MAGIC = {b"\x1f\x8b\x08": "gz", b"\x28\xb5\x2f\xfd": "zst", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
"""The first bytes of a compressed file, and its compression."""
_WINDOW_LOG = 27  # the maximum that zstd needs without --long: 128 MiB


def decompress(stream: BinaryIO, compression: str) -> Iterator[bytes]:
    """Yield chunks of the decompressed stream (`gz`, `zst`, `bz2` or `xz`), which may have several members or frames.

    Raises `EOFError` if the stream ends inside a member or has none, and `OSError` if it does not have this format.
    A file that is cut exactly between two members cannot be distinguished from a whole file with fewer members.
    """
    decoder: Any = None
    feed = _FEED_BYTES[compression]
    members = 0
    while block := stream.read(_READ_BYTES):
        for start in range(0, len(block), feed):
            data = block[start : start + feed]
            while data:
                if decoder is None and compression in ("gz", "xz") and not (data := data.lstrip(b"\0")):
                    break  # zero padding after the last member
                if decoder is None:
                    decoder, members = _decoder(compression), members + 1
                chunk = _decode(decoder, data, compression)
                if chunk:
                    yield chunk
                while compression in ("bz2", "xz") and not decoder.eof and not decoder.needs_input:
                    yield _decode(decoder, b"", compression)
                data = b""
                if decoder.eof:
                    data = decoder.unused_data
                    decoder = None
    if decoder is not None or not members:
        raise EOFError(f"{compression} stream ends early")


def _decoder(compression: str) -> Any:
    if compression == "gz":
        return zlib.decompressobj(wbits=31)
    if compression == "bz2":
        return bz2.BZ2Decompressor()
    if compression == "xz":
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    return zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW_LOG).decompressobj()


def _decode(decoder: Any, data: bytes, compression: str) -> bytes:
    try:
        stepwise = compression in ("bz2", "xz")
        chunk: bytes = decoder.decompress(data, _STEP_BYTES) if stepwise else decoder.decompress(data)
    except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError) as error:
        if "too much memory" in str(error):
            raise OSError(
                0, f"its zstd window is over {1 << _WINDOW_LOG >> 20} MiB; compress it again without --long and --ultra"
            ) from error
        raise OSError(0, f"not valid {compression} data") from error
    return chunk
