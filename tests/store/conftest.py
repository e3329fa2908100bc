"""Each test of the store runs on both databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from palate import project
from palate.project import ProjectSettings
from palate.store import Store
from tests.store import servers


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Server]:
    with servers.server() as running:
        yield running


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def folder(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a project folder on the database of this run of the test; settings as keywords."""
    monkeypatch.delenv(project.DATABASE, raising=False)

    def made(**settings: Any) -> Path:
        if request.param == "postgresql":
            settings["database"] = request.getfixturevalue("postgres").url()
        place = tmp_path / "project"
        project.create(place, ProjectSettings(**settings))
        return place

    made.kind = request.param  # type: ignore[attr-defined]
    return made


@pytest.fixture
def opened(folder: Callable[..., Path]) -> Iterator[Callable[..., Store]]:
    """Opens the store of a new project."""
    stores: list[Store] = []

    def made(**settings: Any) -> Store:
        stores.append(Store.open(folder(**settings)))
        return stores[-1]

    yield made
    for store in stores:
        store.close()
