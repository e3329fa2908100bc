"""A browser for tests marked `browser`: Debian's Chromium. Missing, they are skipped; where CI is set, they fail."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from . import make
from .pages import browsing

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]


@pytest.fixture(scope="session")
def chromium():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if sync_playwright is None or not CHROMIUM.exists():
        message = f"{CHROMIUM} and playwright are needed: apt-get install chromium; pip install playwright"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def study(tmp_path, chromium):
    """A project of twelve comparisons behind a server, and what opens it in the browser as a rater."""
    with make.project(tmp_path / "study", 12, wanted=2) as store, make.served(store) as base:
        rater, token = store.add_rater("Ada")
        yield Study(store, base, rater, token, lambda **options: browsing(chromium, base, token, **options))


class Study:
    def __init__(self, store, base, rater, token, open) -> None:
        self.store, self.base, self.rater, self.token, self.open = store, base, rater, token, open

    def votes(self, n: int):
        """The rater's votes, once there are so many."""
        until = time.monotonic() + 8
        while len(found := list(self.store.votes())) < n and time.monotonic() < until:
            time.sleep(0.05)
        assert len(found) == n, f"{len(found)} votes"
        return found
