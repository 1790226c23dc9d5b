"""Errors that travel through other texts, and what is said of those of the system."""

from __future__ import annotations

import errno
import json
import re

import pytest

from pipelines import errors
from pipelines.errors import BestkeptError, Exit, from_text, remedy, whereabouts

KINDS = [
    (errors.ConfigError, 2),
    (errors.InputError, 3),
    (errors.RejectedError, 4),
    (errors.StorageError, 5),
    (errors.ConflictError, 6),
    (errors.ModelLoadError, 7),
]


@pytest.mark.parametrize(("kind", "code"), KINDS)
def test_an_error_survives_inside_any_text(kind, code):
    error = kind("cannot read 'ä\n[x]': ↯")
    assert (int(error.exit_code), str(error)) == (code, error.message)
    first = f"Traceback:\n  RuntimeError: {error.pack()} [while running 'Score']\n{errors.ConfigError('later').pack()}"
    found = from_text(first)
    assert (type(found), found.message, str(found)) == (kind, error.message, error.message)


def test_without_a_token_there_is_none():
    assert from_text("RuntimeError: [bestkept-error:] [while running 'Score']") is None


def test_exit_codes():
    assert {code.name: int(code) for code in Exit if code.value in (0, 130, 143)} == {
        "DONE": 0,
        "INTERRUPTED": 130,
        "TERMINATED": 143,
    }
    assert BestkeptError("x").exit_code is Exit.STORAGE


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free some space there"),
        (errno.EDQUOT, "raise the quota"),
        (errno.EFBIG, "raise the limit on the size of files (ulimit -f)"),
        (errno.EMFILE, "raise the limit on open files (ulimit -n)"),
        (errno.ENFILE, "raise the machine's limit on open files (sysctl fs.file-max)"),
        (errno.ENOMEM, "give the run more memory"),
    ],
)
def test_what_to_do_where_something_has_run_out(number, words):
    assert remedy(OSError(number, "x")) == f"{words} and run the same command again"
    text = RuntimeError(f"OSError: [Errno 2] first\n  OSError: [Errno {number}] last")
    assert remedy(text) == f"{words} and run the same command again"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), OSError("no number"), RuntimeError("Errno 28")])
def test_other_errors_have_no_remedy_of_their_own(error):
    assert remedy(error) is None


WORKER = """KeyError: 'secret' [while running 'Score']
Traceback (most recent call last):
  File "/venv/pipelines/score.py", line 120, in process
    x
  File "/venv/rm/scorer.py", line 7, in score
    x
  File "/venv/torch/nn.py", line 9, in forward
torch.OutOfMemoryError: secret [while running 'Score']
"""


def test_where_an_error_comes_from_is_the_innermost_own_line_without_its_text():
    assert whereabouts(RuntimeError(WORKER)) == "OutOfMemoryError at rm/scorer.py:7"
    assert whereabouts(RuntimeError("secret")) == "RuntimeError"
    assert whereabouts(OSError("secret")) == "OSError"


def test_where_an_error_of_this_process_comes_from():
    with pytest.raises(json.JSONDecodeError) as raised:
        from_text("[bestkept-error:AAAA]")
    assert re.fullmatch(r"JSONDecodeError at pipelines/errors\.py:\d+", whereabouts(raised.value))


def test_a_long_message_loses_its_middle():
    error = BestkeptError(f"column {'x' * 100_000} is missing; name another")
    assert len(error.message) <= 4000
    assert error.message.startswith("column xxx")
    assert error.message.endswith("xxx is missing; name another")
    assert BestkeptError(error.message).message == error.message
