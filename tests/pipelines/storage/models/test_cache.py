"""Where a machine keeps copies of models, and what names them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import StorageError
from pipelines.storage.models.cache import MODELS, models_root
from pipelines.storage.models.checksums import FileSum, digest_of


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch, tmp_path):
    monkeypatch.delenv(MODELS, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()


def blocked(path: Path) -> Path:
    """A place where no directory can be made, whoever asks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a file")
    return path / "below"


def test_the_users_cache_is_the_place(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert models_root() == tmp_path / "cache" / "bestkept" / "models"
    assert models_root().is_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert models_root() == tmp_path / "home" / ".cache" / "bestkept" / "models"


def test_a_named_place_comes_first_and_has_no_substitute(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(MODELS, str(tmp_path / "large-disk"))
    assert models_root() == tmp_path / "large-disk"
    monkeypatch.setenv(MODELS, str(blocked(tmp_path / "blocked")))
    with pytest.raises(
        StorageError, match=rf"models cannot be kept in .*below: Not a directory; set {MODELS} to a dir"
    ):
        models_root()


def test_a_container_without_a_home_uses_the_temporary_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked(tmp_path / "cache")))
    place = models_root()
    assert place == tmp_path / "temporary" / f"bestkept-models-{os.getuid()}"
    assert place.stat().st_mode & 0o077 == 0, "nobody else puts models there"
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    place.rename(place.with_name(f"bestkept-models-{other}"))
    with pytest.raises(StorageError, match="it belongs to another user"):
        models_root()


FILES = st.dictionaries(
    st.text("abc.", min_size=1, max_size=4),
    st.builds(FileSum, st.integers(0, 9), st.text("01", max_size=2)),
    max_size=4,
)


@given(FILES, FILES)
def test_a_copy_is_named_by_all_that_its_files_hold(first, second):
    assert (digest_of(first) == digest_of(second)) == (first == second)
    assert digest_of(dict(reversed(first.items()))) == digest_of(first)
