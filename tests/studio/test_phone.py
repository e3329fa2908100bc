"""What is much to look at, on a small screen by touch: eight to be ranked, and long texts."""

from __future__ import annotations

import pytest

from . import make
from .pages import PHONE, browsing, ready, shades, state, until
from .test_moving import study, tone

pytestmark = pytest.mark.browser
WIDTH, HEIGHT = PHONE["viewport"].values()
STORIES = ["The keeper counted the waves. " * 200, "Nobody ever read the book of numbers. " * 200]


def inside(page, selector: str) -> bool:
    """Whether all that it selects is on the screen as a whole."""
    boxes = [one.bounding_box() for one in page.locator(selector).all()]
    return bool(boxes) and all(
        box["x"] >= 0 and box["y"] >= 0 and box["x"] + box["width"] <= WIDTH and box["y"] + box["height"] <= HEIGHT
        for box in boxes
    )


def swipe(page, place, *, up: int) -> None:
    """A finger on the middle of a place, moved up at a hand's speed."""
    box, hand = place.bounding_box(), page.context.new_cdp_session(page)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    for step in range(11):
        touch = {"type": "touchMove" if step else "touchStart", "touchPoints": [{"x": x, "y": y - up * step / 10}]}
        hand.send("Input.dispatchTouchEvent", touch)
        page.wait_for_timeout(16)
    hand.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def scrolled(page, selector: str) -> float:
    return page.locator(selector).first.evaluate("node => node.scrollTop")


def test_eight_are_ranked_by_touch_and_by_keys(tmp_path, chromium):
    with make.project(tmp_path / "p", 2, kind="ranking", show=8) as store, make.served(store) as base:
        with browsing(chromium, base, store.add_rater("Ada")[1], **PHONE) as page:
            first = shades(page)
            assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [
                WIDTH,
                HEIGHT,
            ]
            tiles, done = page.locator(".tile"), page.locator("[data-act=done]")
            pictures = [one.bounding_box() for one in page.locator(".tile img").all()]
            assert all(min(box["width"], box["height"]) > 90 for box in pictures)
            for i in (6, 2, 0, 7):
                tiles.nth(i).tap()
            page.locator("[data-act=level]").tap()
            for i in (1, 5, 3):
                assert done.get_attribute("aria-disabled") == "true"
                tiles.nth(i).tap()
            assert [
                one.bounding_box() for one in page.locator(".tile img").all()
            ] == pictures  # nothing moved meanwhile
            assert inside(page, ".tile, .step, .order, .choices button, .tools button >> visible=true")
            done.tap()
            state(page, "1 saved")
            second = shades(page)
            for key in "85274163":
                page.keyboard.press(key)
            page.keyboard.press("Enter")
            state(page, "2 saved")
        shade = {sample.id: make.shade_of(store.read_media(sample.medium)) for sample in store.samples()}
        found = [[sorted(shade[one] for one in group) for group in ranking.groups] for ranking in store.rankings()]
    assert found[0] == [sorted(first[i] for i in group) for group in ((6,), (2,), (0,), (1, 7), (5,), (3,), (4,))]
    assert found[1] == [[second[int(key) - 1]] for key in "85274163"]


@pytest.mark.slow
def test_what_is_zoomed_in_a_ranking_is_looked_around_in(tmp_path, chromium):
    with (
        make.project(tmp_path / "p", 1, kind="ranking", show=8) as store,
        make.served(store) as base,
        browsing(chromium, base, store.add_rater("Ada")[1], **PHONE) as page,
    ):
        ready(page)
        page.locator("[data-act=zoom]").tap()
        moved = "document.querySelector('.tile img').style.transform"
        before = page.evaluate(moved)
        swipe(page, page.locator(".tile").first, up=30)
        assert page.evaluate(moved) != before
        assert not page.locator(".step").count()
        page.locator(".tile").first.tap()
        assert page.locator(".step").count() == 1


def test_a_long_text_is_read_to_its_end_and_not_judged_by_that(tmp_path, chromium):
    texts = [story.encode() for story in STORIES]
    with (
        study(tmp_path / "p", "text/plain", texts, 1) as store,
        make.served(store) as base,
        browsing(chromium, base, store.add_rater("Ada")[1], **PHONE) as page,
    ):
        ready(page)
        assert inside(page, ".frame, .choices button")
        for text in page.locator(".text").all():
            swipe(page, text, up=120)
            text.tap()
            assert text.evaluate("node => node.scrollTop") > 60
            text.evaluate("node => node.scrollTo(0, node.scrollHeight)")
            edge, end = (
                text.evaluate(f"node => {node}.getBoundingClientRect().bottom") for node in ("node", "node.firstChild")
            )
            assert end < edge
        badge = page.locator(".badge").first.bounding_box()
        line = page.locator(".text > span").first.bounding_box()
        assert badge["x"] + badge["width"] < line["x"]  # never on the text
        assert not list(store.votes())
        page.locator("[data-choice=right]").tap()
        state(page, "1 saved")
        assert len(list(store.votes())) == 1


@pytest.mark.slow
def test_sounds_to_be_ranked_are_listened_to(tmp_path, chromium):
    tones = [tone(0.2 + 0.1 * i, 5) for i in range(8)]
    with (
        study(tmp_path / "p", "audio/wav", tones, 1, kind="ranking", show=8) as store,
        make.served(store) as base,
        browsing(chromium, base, store.add_rater("Ada")[1], **PHONE) as page,
    ):
        ready(page)
        assert inside(page, ".tile, .sound .button, .choices button")
        page.locator(".sound .button").nth(2).tap()
        until(page, "() => document.querySelectorAll('.sound .button')[2].textContent.includes('Pause')")
        assert not page.locator(".step").count()
        page.locator(".tile").nth(1).tap(position={"x": 60, "y": 20})
        assert page.locator(".step").count() == 1


@pytest.mark.slow
def test_long_texts_are_ranked(tmp_path, chromium):
    texts = [f"{place} {STORIES[0]}".encode() for place in range(8)]
    with study(tmp_path / "p", "text/plain", texts, 1, kind="ranking", show=8) as store, make.served(store) as base:
        token = store.add_rater("Ada")[1]
        with browsing(chromium, base, token) as page:  # a wheel over one reads it
            ready(page)
            page.locator(".text").first.hover()
            page.mouse.wheel(0, 200)
            until(page, "() => document.querySelector('.text').scrollTop > 100")
            assert not page.locator(".step").count()
        with browsing(chromium, base, token, **PHONE) as page:
            ready(page)
            assert inside(page, ".tile:first-child, .order, .choices button")
            assert page.locator(".tile").first.bounding_box()["height"] > 180
            swipe(page, page.locator(".text").first, up=120)
            assert scrolled(page, ".text") > 60 and not page.locator(".step").count()
            for key in "2345678":
                page.locator(".tile").nth(int(key) - 1).tap()
            page.locator("[data-act=done]").tap()
            state(page, "1 saved")
        (ranking,) = store.rankings()
        assert [len(group) for group in ranking.groups] == [1] * 8
