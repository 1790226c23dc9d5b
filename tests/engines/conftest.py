"""An S3 server with corpora, behind a proxy, and an engine beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from services.emulators import Store, environment, forget_clients
from services.fault_proxy import FaultProxy
from services.prism import Prism, serving_prism
from services.versitygw import S3Server, serving_s3

_numbers = itertools.count()


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, FaultProxy]]:
    """The server and the proxy before it, which whoever is started afterwards finds in its environment."""
    with (
        serving_s3(tmp_path_factory.mktemp("s3")) as server,
        FaultProxy(server.address) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in environment("s3", proxy).items():
            patch.setenv(name, value)
        forget_clients()
        yield server, proxy
    forget_clients()


@pytest.fixture
def bucket(s3_server: tuple[S3Server, FaultProxy]) -> Iterator[Store]:
    """A new bucket."""
    _, proxy = s3_server
    store = Store("s3", f"bucket-{next(_numbers)}", proxy)
    store.fs.mkdir(store.bucket)
    yield store
    proxy.plan.clear()
    proxy.requests.clear()


@pytest.fixture(scope="module")
def prism(s3_server: tuple[S3Server, FaultProxy], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prism]:
    """An engine for jobs that do it no harm; workers reach the S3 server."""
    with serving_prism(tmp_path_factory.mktemp("prism"), log_level="debug") as prism:
        yield prism


@pytest.fixture
def start_prism(
    s3_server: tuple[S3Server, FaultProxy], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], object]:
    """Start an engine of one's own."""
    return lambda: serving_prism(tmp_path_factory.mktemp("prism"))
