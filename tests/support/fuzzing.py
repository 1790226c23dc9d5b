"""Helpers for fuzzed inputs: changed bytes, and the exit codes that the command may return."""

from __future__ import annotations

import contextlib
import io
import random
import sys
from unittest import mock

from pipelines import cli

ENDS = (0, 2, 3, 4, 6, 7)  # 5 means: try again


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Bytes flipped, cut out, put in, doubled, or the end cut off."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(changed)) if changed else 0
        match dice.randrange(6):
            case 0 if changed:
                changed[at] ^= 1 << dice.randrange(8)
            case 1 if changed:
                changed[at] = dice.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 2:
                del changed[at : at + dice.randint(1, 16)]
            case 3:
                changed[at:at] = dice.randbytes(dice.randint(1, 8))
            case 4:
                changed[at:at] = changed[at : at + dice.randint(1, 64)]
            case _ if dice.random() < 0.2:
                del changed[at:]
    return bytes(changed)


def command(words: list[str]) -> int:
    """The exit code of `bestkept` in this process. Raises `AssertionError` for an end that no command should come to."""
    out, err = io.StringIO(), io.StringIO()
    code = -1
    argv = mock.patch.object(sys, "argv", ["bestkept", *words])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    lines = err.getvalue().split("\n")
    told = [line for line in lines if line.startswith("bestkept: ")]
    assert code in ENDS, (code, lines[-3:])
    assert "Traceback" not in err.getvalue()
    assert len(told) == (code != 0), lines[-5:]
    assert code == 0 or (lines[-2] == told[0] and lines[-1] == ""), lines[-5:]
    assert all(len(line) < 5000 for line in told), told[0][:500]
    return code
