"""A rater at a real browser."""

from __future__ import annotations

import time
from contextlib import contextmanager

READY = """() => document.querySelectorAll('.frame').length > 1
    && ![...document.querySelectorAll('.frame .loading')].some(node => !node.hidden)"""
PHONE = {"viewport": {"width": 375, "height": 667}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}
WAIT = 20_000  # milliseconds; other tests may want the machine, too


@contextmanager
def browsing(browser, base: str, token: str = "", routed: bool = False, **options):
    """A page that has joined; errors in its console are errors of the test. `routed` is for tests that come between
    the page and its server: a page that is open already learns of its first route a moment after `route` returns."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
    context.set_default_timeout(WAIT)
    if routed:
        context.route("**/nowhere", lambda route: route.continue_())
    page = context.new_page()
    listen(page)
    if token:
        page.goto(f"{base}/join#{token}")
        page.wait_for_url(lambda url: "/join" not in url)
        if not page.url.endswith("/"):
            page.goto(f"{base}/")
    try:
        yield page
        assert not page.faults, page.faults
    finally:
        context.close()


def listen(page) -> None:
    page.faults = []
    network = ("Failed to load resource", "net::ERR")  # what a broken connection leaves in the console
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("dialog", lambda dialog: (page.faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on(
        "console",
        lambda line: (
            line.type == "error" and not any(word in line.text for word in network) and page.faults.append(line.text)
        ),
    )


def until(page, expression: str, argument=None) -> None:
    """Waits from outside: the page's policy forbids what `wait_for_function` does in it."""
    end = time.monotonic() + WAIT / 1000
    while not page.evaluate(expression, argument):
        assert time.monotonic() < end, f"never came: {expression} {argument or ''}"
        page.wait_for_timeout(20)


def ready(page) -> None:
    until(page, READY)


def prompt(page) -> str:
    return page.text_content("#prompt")


def state(page, words: str) -> None:
    until(page, "words => document.getElementById('state').textContent.includes(words)", words)


def press(page, key: str) -> None:
    """A key on a task that is ready, then the next one."""
    ready(page)
    page.keyboard.press(key)


def shades(page) -> list[int]:
    """How bright the shown pictures are, from left to right, as their own pixels say."""
    ready(page)
    return page.evaluate(
        """() => [...document.querySelectorAll('.frame > img')].map(image => {
            const canvas = document.createElement('canvas');
            canvas.width = canvas.height = 1;
            const brush = canvas.getContext('2d');
            brush.drawImage(image, 0, 0, 1, 1);
            return brush.getImageData(0, 0, 1, 1).data[0];
        })"""
    )
