"""Servers, subjects and undisturbed runs, once for all tests of crashes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chaos.campaign import Campaign
from chaos.gate import missing
from chaos.harness import Place, Servers, Subject, save_stub_model

WORKERS = 2


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    if reason := missing():
        pytest.skip(f"crash points cannot be found here: {reason}")
    with Servers(WORKERS, cache=tmp_path_factory.mktemp("cache")) as servers:
        yield servers


@pytest.fixture(scope="session")
def subject(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("chaos")
    return Subject(servers, folder, save_stub_model(folder / "model"))


@pytest.fixture
def campaign(subject: Subject) -> Campaign:
    return Campaign(subject, WORKERS)


@pytest.fixture
def place(subject: Subject) -> Place:
    return subject.place()


@pytest.fixture(scope="session")
def golden(subject: Subject) -> dict[str, bytes]:
    place: Place = subject.place()
    assert place.run().code == 0
    return place.tree()
