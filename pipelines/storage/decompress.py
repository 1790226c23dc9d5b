"""Streaming decompression of .gz and .zst that never takes a cut file for a short one."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import zstandard

_FEED_BYTES = 16 * 1024  # small, so that a bomb expands in steps


def decompressed(stream: BinaryIO, compression: str) -> Iterator[bytes]:
    """Chunks of the decompressed stream (`gz` or `zst`), several members or frames in a row included.

    Raises `EOFError` where the stream ends inside a member, and `OSError` where it is not of this kind at all.
    """
    decoder: Any = None
    while data := stream.read(_FEED_BYTES):
        while data:
            if decoder is None and compression == "gz" and not (data := data.lstrip(b"\0")):
                break  # zero padding after the last member
            if decoder is None:
                decoder = (
                    zlib.decompressobj(wbits=31)
                    if compression == "gz"
                    else zstandard.ZstdDecompressor().decompressobj()
                )
            try:
                chunk = decoder.decompress(data)
            except (zlib.error, zstandard.ZstdError) as error:
                raise OSError(0, f"not valid {compression} data") from error
            if chunk:
                yield chunk
            data = b""
            if decoder.eof:
                data = decoder.unused_data
                decoder = None
    if decoder is not None:
        raise EOFError(f"{compression} stream ends early")
