"""What the page says where there is nothing to judge, and how much is done."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from palate.records import Comparison, now
from palate.studio import context
from palate.studio.app import create

from . import make
from .pages import browsing, press, ready, state, until

browser = pytest.mark.browser
COMING = "Round 1 of 3 is being learnt. Keep this page open."


@pytest.fixture
def counted_once(monkeypatch):
    """All are counted at the start; what comes after it is known from answers alone."""
    monkeypatch.setattr(context, "PROGRESS_SECONDS", 1e6)


def rests(page, title: str) -> None:
    until(page, "words => document.getElementById('rest-title').textContent === words", title)
    assert page.locator("#rest").is_visible() and not page.locator("#desk").is_visible()


@browser
def test_nothing_can_be_answered_where_nothing_is_asked(tmp_path, chromium):
    with (
        make.project(tmp_path / "p", 0) as store,
        make.served(store) as base,
        browsing(chromium, base, store.add_rater("Ada")[1]) as page,
    ):
        rests(page, "Nothing to judge yet")
        page.keyboard.press("1")
        assert not page.locator("[data-choice=left]").is_visible()
        make.fill(store, 1)
        page.click("#look-again")
        press(page, "1")
        state(page, "1 saved")
        rests(page, "That is all for now. Thank you!")
        page.reload()
        rests(page, "That is all for now. Thank you!")


def test_what_is_to_come_is_told_along_with_every_reply(tmp_path):
    notes = [COMING]
    with make.project(tmp_path / "p", 1) as store:
        app = create(store, note=lambda: notes[0])
        with TestClient(app, base_url=make.BASE) as client:
            rater = make.person(client, store)
            reply = rater.post("/api/lease", {"n": 1}).json()
            assert reply["progress"]["note"] == COMING
            notes[0] = ""
            assert rater.answer(reply["leases"][0]["id"], "key-0000", overall="left").json()["note"] == ""
            assert rater.post("/api/undo", {"key": "key-0001"}).json()["progress"]["note"] == ""


@browser
@pytest.mark.slow
def test_between_rounds_the_page_says_so_and_goes_on_by_itself(tmp_path, chromium):
    notes = [COMING]
    with (
        make.project(tmp_path / "p", 1, wanted=1) as store,
        make.served(store, note=lambda: notes[0]) as base,
        browsing(chromium, base, store.add_rater("Ada", "admin")[1]) as page,
    ):
        press(page, "1")
        state(page, "1 saved")
        rests(page, "More is to come")
        assert page.text_content("#rest-text") == COMING
        assert page.text_content("#done") == ""  # of all that there will be it would be too much
        again = next(iter(store.comparisons()))
        store.add_comparisons([Comparison("next", again.prompt, again.samples, 1, time=now())])
        notes[0] = ""
        press(page, "1")
        state(page, "2 saved")
        rests(page, "That is all for now. Thank you!")
        assert page.text_content("#done") == "all together 100%"
        assert not page.locator("#rest-next").count()  # the rounds go on without any command


@browser
def test_the_share_counts_an_answer_at_once(tmp_path, chromium, counted_once):
    with (
        make.project(tmp_path / "p", 4, wanted=30) as store,
        make.served(store) as base,
        browsing(chromium, base, store.add_rater("Ada")[1]) as page,
    ):
        ready(page)
        assert page.text_content("#done") == "all together 0%"
        for turn, share in enumerate(["under 1", "1", "2"]):
            press(page, "1")
            state(page, f"{turn + 1} saved")
            assert page.text_content("#done") == f"all together {share}%"
        page.keyboard.press("u")
        state(page, "2 saved")
        assert page.text_content("#done") == "all together 1%"


@browser
@pytest.mark.parametrize("role", ["admin", "rater"])
def test_in_the_end_an_admin_is_told_what_to_do_with_it(role, tmp_path, chromium):
    with (
        make.project(tmp_path / "my people", 1) as store,
        make.served(store) as base,
        browsing(chromium, base, store.add_rater("Ada", role)[1]) as page,
    ):
        ready(page)
        assert not page.locator("#rest-next").is_visible()
        press(page, "1")
        rests(page, "That is all for now. Thank you!")
        until(page, "() => document.getElementById('state').textContent === '1 saved'")
        assert page.locator("#rest-next").is_visible() == (role == "admin")
        if role == "admin":
            assert page.text_content("#rest-next pre") == "palate dataset export 'my people' OUT"
        assert str(tmp_path) not in page.content()
