"""Launcher and workers have the versions that rewards depend on in common, or nothing is scored."""

from __future__ import annotations

from importlib import metadata

import pytest

from pipelines.errors import Exit, ModelLoadError
from pipelines.storage.models import library_versions
from pipelines.storage.models.library_versions import installed_versions, refuse_other_versions

OWN = {"torch": "2.9.1+cu128", "transformers": "5.1.0", "tokenizers": "0.23.0"}


@pytest.fixture
def installed(monkeypatch):
    """What this worker has, to be changed."""
    there = dict(OWN)

    def version(name: str) -> str:
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(library_versions.metadata, "version", version)
    return there


def test_the_versions_of_this_machine_are_its_own():
    found = installed_versions()
    assert set(found) == {"SCORING_VERSION", "torch", "transformers", "tokenizers"}
    assert metadata.version("torch").startswith(found["torch"])
    assert "+" not in found["torch"]
    refuse_other_versions(found)


@pytest.mark.parametrize("name", sorted(OWN))
def test_another_version_of_a_library_is_refused_with_both(installed, name):
    planned = installed_versions()
    installed[name] = "9.8.7"
    with pytest.raises(
        ModelLoadError, match=rf"on them: {name} 9\.8\.7 \(launcher: {planned[name]}\); build the .*lock"
    ) as raised:
        refuse_other_versions(planned)
    assert raised.value.exit_code is Exit.MODEL


def test_another_scoring_version_is_refused(installed):
    planned = {**installed_versions(), "SCORING_VERSION": "1"}
    with pytest.raises(ModelLoadError, match=r"SCORING_VERSION \d+ \(launcher: 1\)"):
        refuse_other_versions(planned)


def test_builds_of_one_torch_are_the_same(installed):
    planned = installed_versions()
    for build in ("2.9.1", "2.9.1+cpu", "2.9.1+rocm6.4"):
        installed["torch"] = build
        refuse_other_versions(planned)
    installed["torch"] = "2.9.10+cu128"
    with pytest.raises(ModelLoadError, match="torch"):
        refuse_other_versions(planned)


def test_a_launcher_without_a_library_plans_all_the_same(installed):
    del installed["torch"]
    planned = installed_versions()
    assert set(planned) == {"SCORING_VERSION", "transformers", "tokenizers"}
    installed["torch"] = "1.0"
    refuse_other_versions(planned)


def test_pyarrow_does_not_matter(installed):
    assert "pyarrow" not in installed_versions()


def test_what_a_worker_cannot_tell_is_not_held_against_it(installed):
    planned = installed_versions()
    del installed["tokenizers"]
    refuse_other_versions(planned)
    installed["transformers"] = "5.1.1"
    with pytest.raises(ModelLoadError, match=r"on them: transformers 5\.1\.1"):
        refuse_other_versions(planned)
