"""Videos and sounds as models' are written, in a real browser: on a page from disk, and in the studio."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from palate import kinds
from palate.evaluation import report
from palate.evaluation.report import Pair, ReportData

from . import make
from .pages import browsing, ready, until
from .test_moving import study

pytestmark = pytest.mark.browser

PLAYED = """async () => {
    const found = [];
    for (const node of document.querySelectorAll('video, audio')) {
        if (node.readyState < 1) await new Promise(end => { node.onloadedmetadata = node.onerror = end; });
        found.push([node.videoWidth ?? 0, node.videoHeight ?? 0, node.duration, node.error ? node.error.message : '']);
    }
    return found;
}"""
SHADE = """async at => {
    const node = document.querySelector('video');
    node.currentTime = at;
    await new Promise(end => { node.onseeked = end; });
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [node.videoWidth, node.videoHeight];
    const brush = canvas.getContext('2d');
    try {
        brush.drawImage(node, 0, 0);
        return [...brush.getImageData(20, 20, 1, 1).data];
    } catch (error) {
        return String(error);
    }
}"""
COLOURS = [(200, 40, 40), (40, 160, 60), (30, 60, 200)]


def video(size: tuple[int, int] = (161, 90)) -> kinds.Video:
    """Half a second of each of three colours, with a mark that moves; sides that are odd as well as even."""
    frames = []
    for place in range(24):
        frame = Image.new("RGB", size, COLOURS[place // 8])
        ImageDraw.Draw(frame).rectangle((100, 3 * place, 110, 3 * place + 9), fill="white")
        frames.append(frame)
    return kinds.Video(frames, 16)


def sound() -> np.ndarray:
    return kinds.rated(0.2 * np.sin(np.arange(24_000) / 9)[None].astype(np.float32), 0, 16_000)


def test_a_page_from_disk_plays_them(tmp_path, chromium):
    (tmp_path / "samples").mkdir()
    files = [kinds.keep(tmp_path / "samples", name, made) for name, made in (("a b#1", video()), ("tone", sound()))]
    report.write(ReportData("moving", pairs=[Pair("a prompt", *files)]), tmp_path / "page.html")
    with browsing(chromium, "") as page:
        page.goto((tmp_path / "page.html").as_uri())
        assert page.evaluate(PLAYED) == [[161, 90, 1.5, ""], [0, 0, 1.5, ""]]


def test_the_studio_plays_them_in_their_colours(tmp_path, chromium):
    clips = [kinds.written(video()).bytes for _ in range(2)]
    clips[1] = kinds.written(kinds.Video(video()[:16], 16)).bytes
    with study(tmp_path / "p", "video/webm", clips) as store, make.served(store) as base:
        _, token = store.add_rater("Ada")
        with browsing(chromium, base, token) as page:
            ready(page)
            until(page, "() => [...document.querySelectorAll('video')].every(node => node.currentTime > 0)")
            page.keyboard.press(" ")
            for number, colour in enumerate(COLOURS[:2]):  # after a jump into either second
                shade = page.evaluate(SHADE, 0.25 + 0.5 * number)
                assert np.abs(np.array(shade[:3]) - colour).max() <= 6, shade
