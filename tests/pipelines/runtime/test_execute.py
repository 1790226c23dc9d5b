"""Errors of portable engines in words of our own, with what the engine said."""

from __future__ import annotations

import grpc
import pytest

from pipelines.errors import InputError
from pipelines.runtime.execute import engine_error

LOST = "bundle inst003 stage-004 failed:SDK worker disconnected: worker[job-001], 2 active instructions"
UNSTARTED = "prism worker[job-001] didn't get control connection to localhost:50129 after 1m0s"


class Broken(grpc.RpcError, grpc.Call):
    def details(self):
        return "Stream removed (Socket closed)"

    def __str__(self):
        return "<_MultiThreadedRendezvous of RPC that terminated with:\n\tstatus = StatusCode.UNAVAILABLE\n>"

    add_callback = cancel = code = initial_metadata = is_active = time_remaining = trailing_metadata = None


def failed(message: str, state: str = "FAILED") -> RuntimeError:
    return RuntimeError(f"Pipeline job-001 failed in state {state}: {message}")


@pytest.mark.parametrize(
    ("error", "cause", "said", "todo"),
    [
        (failed(LOST), "job job-001 lost a worker; ", LOST, "more memory"),
        (failed(UNSTARTED), "job job-001 got no worker; ", UNSTARTED, "log of the worker pool"),
        (failed("no such thing\nmore"), "job job-001 failed; ", "no such thing; ", "to resume"),
        (failed("java.lang.IllegalStateException: too bad"), "job job-001 failed; ", "says: too bad; ", "to resume"),
        (failed("rpc error: code = Unavailable desc = x"), "job job-001 failed; ", "says: x; ", "to resume"),
        (failed("", "CANCELLED"), "job job-001 was cancelled; ", "", "to resume"),
        (failed(""), "job job-001 failed; ", "says: nothing; ", "to resume"),
        (failed("z" * 999), "job job-001 failed; ", f"{'z' * 300} [...]; ", "to resume"),
        (
            Broken(),
            "the engine at here:1 no longer answers (Stream removed (Socket closed)); ",
            "",
            "start it again",
        ),
        (grpc.FutureTimeoutError(), "the engine at here:1 does not answer; ", "", "correct job_endpoint"),
    ],
)
def test_an_engine_that_fails_is_named_with_its_own_words(error, cause, said, todo):
    reported = engine_error(error, "here:1")
    assert reported is not None
    assert reported.message.startswith(cause)
    assert said in reported.message
    assert todo in reported.message
    for dump in ("Rendezvous", "StatusCode", "RuntimeError", "report it", "Exception"):
        assert dump not in reported.message


@pytest.mark.parametrize(
    "error",
    [
        KeyError("row text"),
        RuntimeError("row text"),
        failed('bundle failed:Traceback (most recent call last):\n  File "x.py", line 1\nKeyError: row text'),
        failed(InputError("a file").pack()),
    ],
)
def test_errors_of_our_own_are_none_of_the_engine(error):
    assert engine_error(error, "here:1") is None
