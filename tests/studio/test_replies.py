"""What the page makes of the studio's replies in a real browser: one request an answer, replies that are lost, tabs."""

from __future__ import annotations

import json
import time

import pytest

from palate.records import Comparison, now

from .pages import listen, press, prompt, ready, state, until

pytestmark = pytest.mark.browser


class Lost(list[str]):
    """Requests that arrived and whose replies got lost, as long as `losing`. Not by `unroute`: a reply that is on its
    way just then would be answered twice."""

    def __init__(self, page, path: str, times: int | None = None) -> None:
        super().__init__()
        self.losing, self.busy, self._left = True, False, times
        page.route(path, self._swallow)

    def _swallow(self, route) -> None:
        if not self.losing or self._left == len(self):
            route.continue_()
            return
        self.append(route.request.post_data)
        self.busy = True
        route.fetch()
        route.abort()
        self.busy = False


def found(page, lost: Lost) -> None:
    """The undo is sent again, at once, and its reply arrives. It was sent under one key, at least twice in vain."""
    end = time.monotonic() + 20
    while len(lost) < 2 or lost.busy:
        assert time.monotonic() < end
        page.wait_for_timeout(50)
    lost.losing = False
    page.evaluate("dispatchEvent(new Event('online'))")
    assert len(set(lost)) == 1


def test_an_answer_brings_the_next_along(study):
    with study.open() as page:
        ready(page)
        asked = []
        page.on("request", lambda request: request.method == "POST" and asked.append(request.url.rpartition("/")[2]))
        for turn in range(8):
            press(page, "1")
            state(page, f"{turn + 1} saved")
        assert asked == ["answer"] * 8
        until(page, "() => document.getElementById('done').textContent.startsWith('all together')")
        page.evaluate("dispatchEvent(new Event('online'))")  # nothing is asked for while enough is at hand
        for turn in range(4):
            press(page, "1")
            state(page, f"{turn + 9} saved")
        page.wait_for_selector("#rest:not([hidden])")
        until(page, "() => document.getElementById('rest-title').textContent.startsWith('That is all')")
        again = next(iter(study.store.comparisons()))
        study.store.add_comparisons([Comparison("late", again.prompt, again.samples, 1, time=now())])
        page.click("#look-again")
        press(page, "1")
        state(page, "13 saved")
        study.votes(13)


@pytest.mark.slow
def test_an_answer_whose_reply_is_lost_still_brings_the_next(study):
    with study.open(routed=True) as page:
        ready(page)
        lost = Lost(page, "**/api/answer", times=2)
        for _ in range(4):
            press(page, "1")  # all that was at hand
        ready(page)
        press(page, "1")
        state(page, "5 saved")
        assert len(lost) == 2 and len({json.loads(one)["key"] for one in lost}) == 1
        assert len({vote.comparison for vote in study.votes(5)}) == 5


def test_an_undo_whose_replies_are_lost_takes_one_answer_back(study):
    with study.open(routed=True) as page:
        prompts = []
        for turn in range(3):
            ready(page)
            prompts.append(prompt(page))
            if turn < 2:
                press(page, "1")
                state(page, f"{turn + 1} saved")
        lost = Lost(page, "**/api/undo")
        page.keyboard.press("u")
        page.wait_for_selector(".toast:has-text('You can go on')")
        page.keyboard.press("u")
        page.wait_for_selector(".toast:has-text('still on its way')")
        press(page, "1")  # the third; it waits behind the undo, which must not take it back
        state(page, "1 kept here")
        found(page, lost)
        state(page, "2 saved")
        of = {sample.id: sample.prompt for sample in study.store.samples()}
        assert [of[vote.a] for vote in study.votes(2)] == [prompts[0], prompts[2]]
        assert len(list(study.store.retractions())) == 1
        press(page, "1")
        until(page, "words => document.getElementById('prompt').textContent === words", prompts[1])
        press(page, "1")
        state(page, "4 saved")
        assert prompts[1] in [of[vote.a] for vote in study.votes(4)]


@pytest.mark.slow
def test_an_undo_is_known_after_a_reload(study):
    with study.open(routed=True) as page:
        ready(page)
        first = prompt(page)
        press(page, "1")
        state(page, "1 saved")
        lost = Lost(page, "**/api/undo")
        page.keyboard.press("u")
        state(page, "undo kept here")
        page.reload()
        state(page, "undo kept here")
        found(page, lost)
        until(page, "() => !document.getElementById('state').textContent.includes('kept')")
        assert not list(study.store.votes()) and len(list(study.store.retractions())) == 1
        ready(page)
        if prompt(page) != first:  # then it comes next
            press(page, "1")
        until(page, "words => document.getElementById('prompt').textContent === words", first)


@pytest.mark.slow
def test_two_tabs_that_were_given_the_same_do_not_both_keep_it(study):
    mine = """() => {
        const name = Object.keys(localStorage).find(one => one.includes(':tab:') && !one.endsWith(':tab:!'));
        return JSON.parse(localStorage.getItem(name)).leases;
    }"""
    with study.open() as page:
        ready(page)
        leases = page.evaluate(mine)
        assert len(leases) == 4
        other = page.context.new_page()
        listen(other)
        other.goto(f"{study.base}/instructions")
        # A tab whose name comes first says that it has all of them waiting behind something else.
        other.evaluate(
            """leases => {
                const name = Object.keys(localStorage).find(one => one.includes(':tab:'));
                const record = {at: Date.now(), leases: ['another', ...leases]};
                localStorage.setItem(name.replace(/:tab:.*/, ':tab:!'), JSON.stringify(record));
            }""",
            leases,
        )
        until(page, f"wanted => JSON.stringify(({mine})()) === wanted", f'["{leases[0]}"]')  # what is shown stays
        press(page, "1")
        state(page, "1 saved")
        ready(page)
        assert not set(page.evaluate(mine)) & set(leases)
