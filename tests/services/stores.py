"""Emulated stores with real clients: moto for S3, gcp-storage-emulator for GCS, each behind a proxy that can misbehave."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import fsspec.config
import pytest
from services.emulators import Store, environment
from services.fault_proxy import FaultProxy

from pipelines.storage.stores import retry

_numbers = itertools.count()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[tuple[str, int]]:
    from gcp_storage_emulator.server import create_server

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    server = create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    yield server._api._httpd.server_address
    server.stop()


@pytest.fixture(scope="session")
def proxies(request: pytest.FixtureRequest) -> Iterator[Callable[[str], FaultProxy]]:
    """One proxy a scheme for all tests, so that drivers keep their clients."""
    with ExitStack() as stack:

        @cache
        def proxy(scheme: str) -> FaultProxy:
            server = request.getfixturevalue("s3_server" if scheme == "s3" else "gcs_server")
            return stack.enter_context(FaultProxy(server))

        yield proxy


@pytest.fixture
def make_store(
    proxies: Callable[[str], FaultProxy], monkeypatch: pytest.MonkeyPatch, little_patience: None
) -> Iterator[Callable[[str], Store]]:
    made: list[FaultProxy] = []

    def make(scheme: str) -> Store:
        proxy = proxies(scheme)
        made.append(proxy)
        for name, value in environment(scheme, proxy).items():
            monkeypatch.setenv(name, value)
        if scheme == "gs":
            monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        store = Store(scheme, f"bucket-{next(_numbers)}", proxy)
        store.fs.mkdir(store.bucket)
        proxy.requests.clear()
        return store

    yield make
    for proxy in made:
        proxy.plan.clear()


@pytest.fixture(params=["s3", "gs"])
def store(request: pytest.FixtureRequest, make_store: Callable[[str], Store]) -> Store:
    return make_store(request.param)


@pytest.fixture
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    hurried = retry.Patience(
        connect_secs=5, silence_secs=20, deadline_secs=60, first_pause_secs=0.01, longest_pause_secs=0.05
    )
    monkeypatch.setattr(retry, "PATIENCE", hurried)


class Clock:
    """Time that passes only in pauses between attempts."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, secs: float) -> None:
        self.now += secs


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, little_patience: None) -> Clock:
    """For `retry`: a deadline of 60 seconds that lets about nine attempts be made, however slow the machine is."""
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    patience = replace(retry.PATIENCE, deadline_secs=60, first_pause_secs=1, longest_pause_secs=10)
    monkeypatch.setattr(retry, "PATIENCE", patience)
    return clock
