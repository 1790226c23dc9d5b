"""The number and the duration of retries of requests to object stores, in one place."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pipelines.errors import BestkeptError, StorageError
from pipelines.storage.stores.failures import Failure, Kind, diagnose

log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """Limits on the time that a store may take."""

    connect_secs: float = 10.0
    silence_secs: float = 60.0  # without a byte, after which a request counts as stalled
    deadline_secs: float = 300.0  # for one request, with all its retries and pauses
    first_pause_secs: float = 0.5  # doubled after every attempt, then shortened at random by at most half
    longest_pause_secs: float = 30.0


PATIENCE = Patience()


def with_retries(request: Callable[[float], Result], *, doing: str, place: str) -> Result:
    """Return the result of `request(seconds left)`, which is repeated after transient failures of the store.

    Raises `FileNotFoundError` and `FileExistsError` (a precondition failed) at once, and `StorageError` with place, cause and
    remedy for a permanent failure, or for a transient one at the deadline. Programming errors are not caught.
    """
    started, attempts = time.monotonic(), 0
    causes: dict[str, None] = {}  # in order; the last may be only our own deadline
    while True:
        attempts += 1
        try:
            return request(max(0.001, started + PATIENCE.deadline_secs - time.monotonic()))
        except BestkeptError:
            raise
        except Exception as error:
            failure = diagnose(error)
            if failure is None:
                raise
        _raise_unless_transient(failure, doing, place)
        causes[failure.cause] = None
        spent, pause = time.monotonic() - started, pause_after(attempts)
        if spent + pause >= PATIENCE.deadline_secs:
            raise StorageError(
                f"cannot {doing} {place}: {' and '.join(causes)}, {attempts} attempts in {spent:.0f} s; check the store, and run "
                "the same command again"
            )
        if attempts == 1:
            log.info("trying to %s %s again: %s", doing, place, failure.cause)
        time.sleep(pause)


def pause_after(attempts: int) -> float:
    """Seconds to wait after this number of failed attempts: bounded, and different for each worker."""
    longest = min(PATIENCE.longest_pause_secs, PATIENCE.first_pause_secs * 2.0 ** min(attempts - 1, 30))
    return random.uniform(longest / 2, longest)


def _raise_unless_transient(failure: Failure, doing: str, place: str) -> None:
    """Raise the error for a failure that is not transient. Called outside of any `except`, so that no exception of a driver,
    with its own text, is chained to ours."""
    if failure.kind is Kind.MISSING:
        raise FileNotFoundError(place)
    if failure.kind is Kind.EXISTS:
        raise FileExistsError(place)
    if failure.kind is Kind.FATAL:
        raise StorageError(f"cannot {doing} {place}: {failure.cause}; {failure.remedy}")
