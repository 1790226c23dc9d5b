"""Emulated stores with real clients: moto for S3, gcp-storage-emulator for GCS, each behind a proxy that can misbehave.

With S3_SERVER=versitygw or S3_SERVER=versitygw-versioned, only the tests on S3 are run, against that server in place of moto.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import fsspec.config
import pytest
from services.emulators import Store, environment
from services.engines import why_missing
from services.fault_proxy import FaultProxy
from services.versitygw import serving_s3

from pipelines.storage.stores import retry

_numbers = itertools.count()
SERVER = os.environ.get("S3_SERVER")  # None: moto


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if SERVER is None:
        return
    on_s3 = [item for item in items if "make_store" in getattr(item, "fixturenames", ()) and not _is_on_gcs(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in on_s3])
    items[:] = on_s3


def _is_on_gcs(item: pytest.Item) -> bool:
    return "gs" in getattr(getattr(item, "callspec", None), "params", {}).values() or "gcs" in item.name


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    if SERVER is not None:
        if reason := why_missing("versitygw"):
            pytest.skip(reason)
        with serving_s3(tmp_path_factory.mktemp("versitygw")) as real:
            yield real.address
        return
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
        if scheme == "s3" and SERVER == "versitygw-versioned":
            versions = {"Status": "Enabled"}
            store.fs.call_s3("put_bucket_versioning", Bucket=store.bucket, VersioningConfiguration=versions)
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
