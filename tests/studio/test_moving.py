"""Videos run together and sounds one at a time, in a real browser."""

from __future__ import annotations

import base64
import io
import math
import struct
import wave

import pytest

from palate.project import ProjectSettings, create
from palate.records import Comparison, Medium, Sample, now
from palate.store import Store

from . import make
from .pages import browsing, ready, state, until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RECORD = """async ([seconds, colour]) => {
    const canvas = document.createElement('canvas');
    canvas.width = canvas.height = 64;
    const brush = canvas.getContext('2d'), pieces = [];
    const recorder = new MediaRecorder(canvas.captureStream(25), {mimeType: 'video/webm'});
    recorder.ondataavailable = event => pieces.push(event.data);
    const done = new Promise(end => { recorder.onstop = end; });
    recorder.start();
    const start = performance.now();
    while (performance.now() - start < seconds * 1000) {
        brush.fillStyle = colour;
        brush.fillRect(0, 0, 64, 64);
        brush.fillStyle = 'white';
        brush.fillRect((performance.now() - start) / 20 % 64, 20, 10, 10);
        await new Promise(requestAnimationFrame);
    }
    recorder.stop();
    await done;
    const bytes = new Uint8Array(await new Blob(pieces).arrayBuffer());
    return btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(''));
}"""


def tone(loudness: float, seconds: float = 1.2, rate: int = 8000) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as made:
        made.setnchannels(1)
        made.setsampwidth(2)
        made.setframerate(rate)
        values = (
            int(32767 * loudness * math.sin(i * 0.35) * (0.3 + 0.7 * abs(math.sin(i / 900))))
            for i in range(int(seconds * rate))
        )
        made.writeframes(b"".join(struct.pack("<h", value) for value in values))
    return out.getvalue()


def study(folder, type: str, media: list[bytes], n: int = 2, **settings) -> Store:
    create(folder, ProjectSettings(known_share=0, repeat_share=0, **settings))
    store = Store.open(folder)
    for i in range(n):
        samples = [Sample(f"s{i}-{j}", f"prompt {i}", Medium(type, data), "m", now()) for j, data in enumerate(media)]
        store.add_samples(samples)
        store.add_comparisons([Comparison(f"c{i}", f"prompt {i}", tuple(s.id for s in samples), 1)])
    return store


def test_videos_run_together_and_start_again_together(tmp_path, chromium):
    context = chromium.new_context()
    page = context.new_page()
    clips = [base64.b64decode(page.evaluate(RECORD, [seconds, c])) for seconds, c in ((0.8, "navy"), (1.3, "teal"))]
    context.close()
    with study(tmp_path / "p", "video/webm", clips) as store, make.served(store) as base:
        _, token = store.add_rater("Ada")
        with browsing(chromium, base, token) as page:
            ready(page)
            videos = "[...document.querySelectorAll('video')]"
            assert page.evaluate(f"{videos}.every(node => node.muted && !node.controls)")
            until(page, f"() => {videos}.every(node => node.currentTime > 0.2)")
            page.keyboard.press(" ")
            until(page, f"() => {videos}.every(node => node.paused)")
            apart = page.evaluate(f"Math.abs({videos}[0].currentTime - {videos}[1].currentTime)")
            assert apart < 0.15
            assert page.text_content("#play-word") == "Play"
            page.keyboard.press("r")
            until(page, f"() => {videos}.filter(node => node.ended).length === 1")  # the shorter waits
            until(page, f"() => {videos}.every(node => !node.ended && node.currentTime < 0.5)")
            page.keyboard.press("z")
            assert page.evaluate(f"{videos}.every(node => node.style.transform.includes('scale'))")
            page.keyboard.press("1")
            state(page, "1 saved")
            ready(page)
            until(page, f"() => {videos}.every(node => node.currentTime > 0)")


STINGY = """
    const add = EventTarget.prototype.addEventListener;
    Object.defineProperty(HTMLMediaElement.prototype, 'oncanplaythrough', {set() {}});
    EventTarget.prototype.addEventListener = function (name, ...rest) {
        if (name !== 'canplaythrough') add.call(this, name, ...rest);
    };
    const load = HTMLMediaElement.prototype.load;
    HTMLMediaElement.prototype.load = function () { this.preload = 'none'; load.call(this); };
"""


def test_a_browser_that_loads_no_video_ahead_can_be_voted_in(tmp_path, chromium):
    """As Safari on a phone: it heeds no `preload`, and never says that a video could play to its end."""
    context = chromium.new_context()
    page = context.new_page()
    clips = [base64.b64decode(page.evaluate(RECORD, [seconds, c])) for seconds, c in ((0.5, "navy"), (0.6, "teal"))]
    context.close()
    with study(tmp_path / "p", "video/webm", clips) as store, make.served(store) as base:
        _, token = store.add_rater("Ada")
        with browsing(chromium, base) as page:
            page.add_init_script(STINGY)
            page.goto(f"{base}/join#{token}")
            page.wait_for_url(lambda url: "/join" not in url)
            page.goto(f"{base}/")
            page.wait_for_selector(".frame .loading")
            ready(page)  # in bounded time
            videos = "[...document.querySelectorAll('video')]"
            assert page.evaluate(f"{videos}.every(node => node.preload === 'none' && node.muted && node.playsInline)")
            until(page, f"() => {videos}.every(node => !node.paused && node.currentTime > 0)")
            page.keyboard.press("1")
            state(page, "1 saved")


def test_sounds_one_at_a_time_and_equally_loud(tmp_path, chromium):
    with study(tmp_path / "p", "audio/wav", [tone(0.9), tone(0.2)]) as store, make.served(store) as base:
        _, token = store.add_rater("Ada")
        with browsing(chromium, base, token) as page:
            ready(page)
            words = "[...document.querySelectorAll('.sound .button')].map(node => node.lastChild.textContent).join()"
            assert page.evaluate(words) == "Listen,Listen"
            page.keyboard.press("q")
            until(page, f"() => {words} === 'Pause,Listen'")
            page.keyboard.press("w")
            until(page, f"() => {words} === 'Go on,Pause'")
            page.keyboard.press(" ")
            until(page, f"() => {words} === 'Go on,Go on'")
            page.keyboard.press("r")
            until(page, f"() => {words} === 'Go on,Pause'")
            heights = page.evaluate(
                """() => [...document.querySelectorAll('canvas')].map(canvas => {
                    const {width, height} = canvas, brush = canvas.getContext('2d');
                    const {data} = brush.getImageData(0, 0, width, height);
                    const filled = data.findIndex((value, i) => i % 4 === 3 && value > 90);
                    return 1 - 2 * Math.floor(filled / 4 / width) / height;
                })"""
            )
            assert heights[0] == pytest.approx(heights[1], abs=0.1) and heights[0] > 0.6  # levelled
            page.keyboard.press("2")
            state(page, "1 saved")
