"""One thread a worker, so that two workers on two cores do not fight, and so that sums are the same each time."""

import itertools
import os
import secrets

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


def pytest_collection_modifyitems(items):
    """Slow tests may take longer, also on a machine that has other things to do."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(autouse=True)
def _one_thread():
    import sys

    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Tests leave nothing in the user's cache of latents."""
    os.environ["PALATE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raters' ids, on which sides, known pairs and repeats depend, are the same each time."""
    numbers = itertools.count()
    monkeypatch.setattr(secrets, "token_hex", lambda size: f"{next(numbers):0{2 * size}x}")
