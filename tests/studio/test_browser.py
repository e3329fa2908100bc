"""The labelling page in a real browser: by keyboard, offline, in two tabs, on a phone."""

from __future__ import annotations

import contextlib
import io
import random
import time
from statistics import median

import pytest
from PIL import Image, ImageFilter

from palate.records import Comparison, Medium, Sample, now

from . import make
from .pages import PHONE, browsing, listen, press, prompt, ready, shades, state, until

pytestmark = pytest.mark.browser


def test_ten_by_keyboard_as_they_were_meant(study):
    with study.open() as page:
        meant = {}
        for turn, key in enumerate(["1", "2", "ArrowLeft", "ArrowRight", "t", "b", "1", "2", "2", "1"]):
            left, right = shades(page)
            meant[prompt(page)] = {"1": left, "ArrowLeft": left, "2": right, "ArrowRight": right}.get(key, key)
            press(page, key)
            state(page, f"{turn + 1} saved")
        for vote in study.votes(10):
            samples = {sample.id: sample for sample in study.store.samples()}
            won = {"a": vote.a, "b": vote.b}.get(vote.choice)
            said = meant[samples[vote.a].prompt]
            if won is None:
                assert said == {"tie": "t", "both_bad": "b"}[vote.choice]
            else:
                assert make.shade_of(study.store.read_media(samples[won].medium)) == said
            assert vote.source == study.rater and 0 < vote.seconds < 60
        times = key_to_next(page)
        assert len(times) >= 8 and median(times) < 400  # shares the machine with other tests; the promise is held below


def key_to_next(page) -> list[float]:
    """Milliseconds from each key to the next pair on screen, where that had been loaded."""
    times = page.evaluate("performance.getEntriesByName('palate next').map(entry => entry.duration)")
    print(f"key to next pair on screen, ms: median {median(times):.0f}, most {max(times):.0f} of {len(times)}")
    return times


def detailed(name: str, size: int = 768) -> bytes:
    """A picture that is as much to load as what models draw: no two alike, a megabyte."""
    grain = Image.frombytes("RGB", (size, size), random.Random(name).randbytes(3 * size * size))
    out = io.BytesIO()
    grain.filter(ImageFilter.GaussianBlur(1)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.slow
def test_from_the_key_to_the_next_pair_of_large_pictures(tmp_path, chromium):
    n = 21
    with make.project(tmp_path / "p", 0) as store, make.served(store) as base:
        for i in range(n):
            both = [
                Sample(f"s{i}-{j}", f"prompt {i}", Medium("image/png", detailed(f"{i} {j}")), f"m{j}", now())
                for j in (0, 1)
            ]
            store.add_samples(both)
            store.add_comparisons([Comparison(f"c{i}", f"prompt {i}", tuple(one.id for one in both), 1)])
        with browsing(chromium, base, store.add_rater("Ada")[1]) as page:
            for turn in range(n - 1):
                press(page, "12"[turn % 2])
                state(page, f"{turn + 1} saved")
                page.wait_for_timeout(400)  # nobody judges faster
            times = key_to_next(page)
        assert len(times) >= n - 4 and median(times) < 100


def test_undo_skip_and_questions_in_order(tmp_path, chromium):
    questions = {"overall": "Which is better?", "look": "Which looks better?"}
    with make.project(tmp_path / "study", 5, questions=questions) as store, make.served(store) as base:
        _, token = store.add_rater("Ada")
        with browsing(chromium, base, token) as page:
            ready(page)
            first = prompt(page)
            page.keyboard.press("1")
            assert page.text_content("#question") == "Which looks better?" and prompt(page) == first
            page.keyboard.press("u")  # back to the first question
            assert page.text_content("#question") == "Which is better?"
            page.keyboard.press("2")
            page.keyboard.press("t")
            state(page, "1 saved")
            assert prompt(page) != first
            page.keyboard.press("u")
            until(page, "first => document.getElementById('prompt').textContent === first", first)
            assert not list(store.votes())
            page.keyboard.press("1")
            page.keyboard.press("1")
            state(page, "1 saved")
            press(page, "s")
            page.wait_for_selector("dialog[open]")
            page.keyboard.press("3")
            state(page, "2 saved")
            votes = list(store.votes())
            assert [(vote.dimension, vote.choice == "skip") for vote in votes] == [
                ("overall", False), ("look", False), ("overall", True), ("look", True),
            ]  # fmt: skip
            assert {vote.reason for vote in votes if vote.choice == "skip"} == {"cannot judge"}
            assert len(list(store.retractions())) == 2
            page.reload()  # what was answered can be taken back after a reload, too
            ready(page)
            page.keyboard.press("u")
            state(page, "1 saved")
            assert len(list(store.votes())) == 2


@pytest.mark.slow
def test_a_key_that_is_held_down_answers_once(study):
    with study.open() as page:
        ready(page)
        page.keyboard.down("1")
        for _ in range(5):
            page.keyboard.down("1")  # repeats
        page.keyboard.up("1")
        state(page, "1 saved")
        assert len(study.votes(1)) == 1


def test_offline_nothing_is_lost_and_the_page_says_so(study):
    with study.open() as page:
        for _ in range(2):
            press(page, "1")
        state(page, "2 saved")
        page.wait_for_timeout(300)  # the next ones are at hand
        page.context.set_offline(True)
        for _ in range(3):
            press(page, "2")
        state(page, "Offline, 3 kept here")
        assert len(list(study.store.votes())) == 2
        page.wait_for_timeout(1500)
        state(page, "3 kept here")
        page.context.set_offline(False)
        state(page, "5 saved")
        ready(page)
        study.votes(5)


@pytest.mark.slow
def test_two_minutes_offline_with_all_at_hand_answered(study):
    with study.open() as page:
        shown = []

        def judge(key):
            ready(page)
            shown.append(prompt(page))
            page.keyboard.press(key)

        judge("1")
        state(page, "1 saved")
        page.wait_for_timeout(1000)  # the next ones are at hand
        page.context.set_offline(True)
        until(page, "() => !navigator.onLine")
        while page.locator("#desk").is_visible():
            judge("2")
        kept = len(shown) - 1
        assert kept == 4  # as many as AHEAD in tasks.js
        begun = time.monotonic()
        while time.monotonic() < begun + 120:
            assert page.text_content("#state") == f"Offline, {kept} kept here"
            assert page.text_content("#rest-title") == "No connection"
            assert f"{kept} of your answers are kept in this browser" in page.text_content("#rest-text")
            page.wait_for_timeout(5000)
        assert len(list(study.store.votes())) == 1
        page.context.set_offline(False)
        state(page, f"{1 + kept} saved")
        judge("1")  # it goes on by itself
        state(page, f"{2 + kept} saved")
        prompts = {sample.id: sample.prompt for sample in study.store.samples()}
        votes = study.votes(2 + kept)
        assert [prompts[vote.a] for vote in votes] == shown
        assert [vote.time for vote in votes] == sorted(vote.time for vote in votes)
        assert not list(study.store.retractions())


def test_answers_survive_a_reload(study):
    with study.open(routed=True) as page:
        page.route("**/api/answer", lambda route: route.abort())
        press(page, "1")
        state(page, "1 kept here")
        second = prompt(page)
        page.reload()
        state(page, "1 kept here")
        ready(page)
        assert prompt(page) == second  # what waits to be sent is not asked again
        page.unroute("**/api/answer")
        state(page, "1 saved")
        study.votes(1)


@pytest.mark.slow
def test_a_lost_reply_counts_once(study):
    with study.open(routed=True) as page:
        lost = []

        def swallow(route):
            route.fetch()  # it arrives, and the answer to it does not
            lost.append(1)
            route.abort()

        page.route("**/api/answer", swallow, times=2)
        press(page, "1")
        state(page, "1 saved")
        assert len(lost) == 2 and len(study.votes(1)) == 1


@pytest.mark.slow
def test_a_server_that_fails_is_asked_again(study):
    with study.open(routed=True) as page:
        page.route("**/api/answer", lambda route: route.fulfill(status=503, json={"error": "busy"}), times=2)
        press(page, "1")
        state(page, "Waiting, 1 kept here")
        state(page, "1 saved")
        assert len(study.votes(1)) == 1


@pytest.mark.slow
def test_what_is_refused_for_good_is_told(study):
    with study.open(routed=True) as page:
        page.route("**/api/answer", lambda route: route.fulfill(status=422, json={"error": "no such lease"}), times=1)
        press(page, "1")
        state(page, "1 not saved")
        assert "no such lease" in page.text_content("#toasts")
        page.reload()  # what was refused is sent again, in case the studio was wrong
        state(page, "1 saved")
        study.votes(1)


@pytest.mark.slow
def test_an_answer_that_comes_too_late_is_told(study):
    with study.open(routed=True) as page:
        page.route("**/api/answer", lambda route: route.fulfill(json={"status": "late"}), times=1)
        press(page, "1")
        page.wait_for_selector(".toast.grave")
        assert "not counted" in page.text_content(".toast.grave")


def test_two_tabs_share_the_work(study):
    with study.open() as page:
        ready(page)
        other = page.context.new_page()
        listen(other)
        other.goto(study.base)
        ready(other)
        assert prompt(page) != prompt(other)
        for _ in range(3):
            press(page, "1")
            press(other, "2")
            page.wait_for_timeout(100)
        study.votes(6)
        assert not other.faults
        assert len({vote.comparison for vote in study.votes(6)}) == 6


@pytest.mark.slow
def test_voting_waits_for_both_pictures(study):
    with study.open(routed=True) as page:
        held = []
        page.route("**/media/*", lambda route: held.append(route))
        page.reload()
        page.wait_for_selector(".frame .loading")
        page.keyboard.press("1")
        page.wait_for_selector(".toast")
        assert page.get_attribute("[data-choice=left]", "aria-disabled") == "true"
        page.unroute("**/media/*")
        for route in held:
            with contextlib.suppress(Exception):
                route.continue_()
        ready(page)
        assert not list(study.store.votes())
        page.keyboard.press("1")
        state(page, "1 saved")


@pytest.mark.slow
def test_what_is_blurred_is_looked_at_before_it_is_judged(study):
    study.store.set_preference(study.rater, blur=True)
    with study.open() as page:
        ready(page)
        left = page.locator("[data-choice=left]")
        page.keyboard.press("1")
        page.wait_for_selector(".toast")
        assert "Look at them first" in page.text_content(".toast") and left.get_attribute("aria-disabled") == "true"
        page.wait_for_timeout(1500)
        page.keyboard.press("v")
        assert left.get_attribute("aria-disabled") == "false"
        page.keyboard.press("1")
        state(page, "1 saved")
        assert 0 <= study.votes(1)[0].seconds < 1.4  # the time begins with the look


@pytest.mark.slow
def test_what_is_broken_is_skipped_even_where_nothing_else_may_be(tmp_path, chromium):
    with make.project(tmp_path / "study", 3, choices={"skip": False}) as store:
        for path in (tmp_path / "study" / "media").rglob("*.png"):
            if make.shade_of(path.read_bytes()) == make.brighter_first(0)[0]:
                path.write_bytes(b"no picture")
        with make.served(store) as base, browsing(chromium, base, store.add_rater("Ada")[1]) as page:
            skip = page.locator(".tools [data-act=skip]")
            skip.wait_for(timeout=60_000)  # once the picture was asked for in vain
            page.keyboard.press("1")
            page.wait_for_selector(".toast:has-text('skip it')")
            page.keyboard.press("s")
            assert page.locator("#skip [data-reason]").count() == 1
            page.keyboard.press("1")
            state(page, "1 saved")
            ready(page)
            page.keyboard.press("s")
            assert skip.is_hidden() and not page.locator("#skip[open]").count()
        assert [(vote.choice, vote.reason) for vote in store.votes()] == [("skip", "broken")]


@pytest.mark.slow
def test_zoom_shows_the_same_region_in_both(study):
    with study.open() as page:
        press(page, "z")
        box = page.locator(".frame").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.75)
        moved = page.eval_on_selector_all(".frame > img", "nodes => nodes.map(node => node.style.transform)")
        assert moved[0] == moved[1] and "scale(3)" in moved[0] and "-50%" in moved[0]
        page.locator(".frame").first.click()  # looks, and chooses nothing
        assert page.get_attribute("[data-act=zoom]", "aria-pressed") == "true"
        page.keyboard.press("z")
        assert not list(study.store.votes())
        sizes = page.eval_on_selector_all(".frame", "nodes => nodes.map(n => [n.clientWidth, n.clientHeight].join())")
        assert sizes[0] == sizes[1]


def test_each_pair_is_first_seen_whole(study):
    with study.open() as page:
        press(page, "z")
        plain, pressed = (
            page.eval_on_selector(f"[data-act={act}]", "node => getComputedStyle(node).backgroundColor")
            for act in ("undo", "zoom")
        )
        assert pressed != plain
        press(page, "1")
        state(page, "1 saved")
        ready(page)
        assert page.get_attribute("[data-act=zoom]", "aria-pressed") == "false"
        assert not page.locator(".frame.zoomed").count()


def test_nothing_is_judged_under_the_menu(study):
    with study.open() as page:
        ready(page)
        first, menu = prompt(page), page.locator("#menu")
        for act in (lambda: page.keyboard.press("Escape"), lambda: page.locator(".frame").first.click()):
            page.click("#menu summary")
            for key in ("1", "2", "t", "s", "z", "u", "?"):
                page.keyboard.press(key)
            assert menu.get_attribute("open") is not None and not page.locator("dialog[open]").count()
            act()
            assert menu.get_attribute("open") is None
        assert prompt(page) == first
        page.keyboard.press("1")
        state(page, "1 saved")
        study.votes(1)


def test_on_a_phone_all_is_in_reach(study):
    with study.open(**PHONE) as page:
        ready(page)
        width, height = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        assert width <= 375 and height <= 667
        boxes = [page.locator(f"[data-choice={name}]").bounding_box() for name in ("left", "right", "tie", "both_bad")]
        assert all(box["height"] >= 44 and box["width"] >= 44 for box in boxes)
        assert all(box["y"] + box["height"] <= 667 and box["x"] + box["width"] <= 375 for box in boxes)
        first, second = (page.locator(".frame").nth(i).bounding_box() for i in (0, 1))
        assert second["y"] > first["y"] + first["height"] - 1 and first["height"] == second["height"] > 150
        page.locator("[data-choice=right]").tap()
        state(page, "1 saved")
        ready(page)
        page.locator(".frame").first.tap()
        state(page, "2 saved")


def test_where_there_is_no_keyboard_nothing_speaks_of_keys(study):
    for how in (PHONE, {}):
        with study.open(**how) as page:
            ready(page)
            assert page.locator("kbd >> visible=true").count() == (0 if how else 10)
            assert page.locator("[data-act=help] >> visible=true").count() == 0
            page.goto(f"{study.base}/instructions")
            words = page.inner_text("main")
            assert ("Touch the better one." in words) == bool(how) and ("Press" in words) == (not how)


@pytest.mark.slow
def test_by_button_and_focus_alone(study):
    with study.open() as page:
        ready(page)
        names = []
        for _ in range(14):
            page.keyboard.press("Tab")
            names.append(
                page.evaluate("document.activeElement.dataset.choice ?? document.activeElement.dataset.act ?? ''")
            )
        order = [name for name in names if name]
        assert order[:7] == ["left", "tie", "both_bad", "right", "undo", "skip", "zoom"]
        page.locator("[data-choice=tie]").focus()
        page.keyboard.press("Enter")
        state(page, "1 saved")
        unnamed = page.eval_on_selector_all(
            "button, a, input, img, [role=region]",
            """nodes => nodes.filter(
                n => !(n.textContent.trim() || n.ariaLabel || n.alt || n.labels?.length || n.placeholder)
            ).length""",
        )
        assert unnamed == 0
        assert study.votes(1)[0].choice == "tie"


def test_ranking_by_keys_by_clicks_and_by_dragging(tmp_path, chromium):
    with make.project(tmp_path / "study", 3, kind="ranking", show=4) as store, make.served(store) as base:
        _, token = store.add_rater("Ada")
        with browsing(chromium, base, token) as page:
            shown = shades(page)
            for key in ("3", "1", "t", "4", "Enter"):
                page.keyboard.press(key)
            state(page, "1 saved")
            ready(page)
            second = shades(page)
            tiles = page.locator(".tile")
            for i in (1, 0):
                tiles.nth(i).click()
            drag(page, tiles.nth(3), page.locator(".step").first)  # shares the first place
            drag(page, tiles.nth(2), page.locator(".gap").first)  # goes before it
            page.wait_for_timeout(100)
            page.locator("[data-act=done]").click()
            state(page, "2 saved")
            ready(page)
            page.keyboard.press("b")
            state(page, "3 saved")
        assert [vote.choice for vote in store.votes()] == ["both_bad"] * 6  # one for each pair of the four
        shade = {s.id: make.shade_of(store.read_media(s.medium)) for s in store.samples()}
        found = [[sorted(shade[one] for one in group) for group in ranking.groups] for ranking in store.rankings()]
        assert found[0] == [[shown[2]], sorted([shown[0], shown[3]]), [shown[1]]]
        assert found[1] == [[second[2]], sorted([second[1], second[3]]), [second[0]]]


def drag(page, start, end) -> None:
    for place, act in ((start, page.mouse.down), (end, page.mouse.up)):
        box = place.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=6)
        act()


@pytest.mark.slow
def test_a_link_that_is_no_good_says_so(study, chromium):
    with browsing(chromium, study.base) as page:
        page.goto(f"{study.base}/join#nonsense")
        until(page, "() => document.getElementById('more').textContent.includes('not valid')")
        assert "#" not in page.url
        assert page.goto(study.base).status == 401
        assert "join link" in page.text_content("h1")


def test_a_link_that_is_opened_where_a_wrong_one_was_lets_in(study, chromium):
    with browsing(chromium, study.base) as page:
        page.goto(f"{study.base}/join#nonsense")
        until(page, "() => document.getElementById('more').textContent.includes('not valid')")
        page.goto(f"{study.base}/join#{study.token}")  # nothing is loaded: only what stands behind # is another
        page.wait_for_url("**/instructions")
        assert page.goto(study.base).status == 200


@pytest.mark.slow
def test_signed_out_in_the_middle_keeps_the_answer(study):
    with study.open() as page:
        ready(page)
        study.store.revoke(study.rater)
        page.keyboard.press("1")
        state(page, "Signed out, 1 kept here")
        assert list(study.store.votes()) == []


def test_the_dashboard(study, chromium):
    for i in range(4):
        lease = study.store.lease(study.rater, 1)[0]
        study.store.answer(study.rater, lease.id, f"key-{i}", {"overall": "left"}, 3.0)
    _, admin = study.store.add_rater("Boss", "admin")
    with browsing(chromium, study.base, admin) as page:
        page.click("#menu summary")
        page.click("#menu >> text=Dashboard")
        assert "Ada" in page.text_content("table >> nth=0") and "4" in page.text_content(".figures")
        page.fill("#name", "Grace")
        page.click("#invite")
        page.wait_for_selector("#link:not([hidden])")
        link = page.input_value("#link-text")
        assert link.startswith(f"{study.base}/join#")
        with browsing(chromium, study.base, link.partition("#")[2]) as grace:
            ready(grace)
        page.reload()
        revoke, erase = (page.locator(f"tr:has-text('Ada') [data-{act}]").bounding_box() for act in ("revoke", "erase"))
        assert revoke["y"] == erase["y"]
        row = page.locator("tr", has_text="Grace").locator("[data-revoke]")
        row.click()
        row.click()
        page.wait_for_selector("tr:has-text('Grace') .gone")
        assert study.store.rater_of(link.partition("#")[2]) is None
