"""Whatever a prompt, a name or a text says, it is text: in pages from the server, in the browser, in file names."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from starlette.testclient import TestClient

from palate.media import MediaError
from palate.project import ProjectSettings, create
from palate.records import Comparison, Medium, Sample, now
from palate.store import Store
from palate.studio.app import create as create_app
from palate.studio.context import HERE
from palate.studio.entrance import blocks

from . import make
from .pages import browsing, prompt, ready, state

RUN = "window.hacked=1"
STRINGS = [
    f"<script>{RUN}</script>",
    f"<SCRIPT SRC=//evil.example/x.js></SCRIPT>{RUN}",
    f"<img src=x onerror={RUN}>",
    f"<svg onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<body onload={RUN}>",
    f"<iframe srcdoc='<script>{RUN}'>",
    f"<iframe src=javascript:{RUN}>",
    f"<a href=javascript:{RUN}>x</a>",
    f"<input autofocus onfocus={RUN}>",
    f"<details open ontoggle={RUN}>",
    f"<video src=x onerror={RUN}>",
    f"<audio src=x onerror={RUN}>",
    f"<object data=javascript:{RUN}>",
    f"<embed src=javascript:{RUN}>",
    f"<form action=javascript:{RUN}><button>x",
    f"<math><mi xlink:href=javascript:{RUN}>",
    f"<marquee onstart={RUN}>",
    f"<style>@import'x';</style>{RUN}",
    f"<link rel=stylesheet href=x onload={RUN}>",
    f"<meta http-equiv=refresh content='0;url=javascript:{RUN}'>",
    f"<base href=//evil.example/>{RUN}",
    f"<template><script>{RUN}</script></template>",
    f"<noscript><p title='</noscript><img src=x onerror={RUN}>'>",
    f"'\"><script>{RUN}</script>",
    f'"><img src=x onerror={RUN}>',
    f"' onmouseover={RUN} '",
    f'" autofocus onfocus={RUN} x="',
    f"`onload={RUN}`",
    f"</title><script>{RUN}</script>",
    f"</style><script>{RUN}</script>",
    f"</textarea><script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"--><script>{RUN}</script>",
    f"]]><script>{RUN}</script>",
    f"<!--<script>{RUN}</script>",
    f"<![CDATA[<script>{RUN}</script>]]>",
    f"{{{{{RUN}}}}}",
    "{{7*7}}{{config}}{% include '/etc/passwd' %}",
    "${window.hacked=1}",
    "#{7*7}",
    "<%= 7*7 %>",
    f"javascript:{RUN}",
    f"java\tscript:{RUN}",
    f"data:text/html,<script>{RUN}</script>",
    f"vbscript:{RUN}",
    f"\\u003cscript\\u003e{RUN}\\u003c/script\\u003e",
    f"%3Cscript%3E{RUN}%3C/script%3E",
    f"&lt;script&gt;{RUN}&lt;/script&gt;",
    f"&#60;script&#62;{RUN}&#60;/script&#62;",
    f"＜script＞{RUN}＜/script＞",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"<script\x0b>{RUN}</script>",
    f"<script/x>{RUN}</script>",
    f"<ScRiPt >{RUN}</ScRiPt>",
    f"<img/src/onerror={RUN}>",
    f"<img src=x onerror\n=\n{RUN}>",
    f"<x onclick={RUN} tabindex=0 autofocus onfocus={RUN}>",
    f"\u202e<script>{RUN}</script>",
    f'{{"x": "</script><script>{RUN}</script>"}}',
    f"[a](javascript:{RUN})",
    f'![a](x" onerror="{RUN})',
    f"# <img src=x onerror={RUN}>",
    f"- <img src=x onerror={RUN}>",
    "a" * 20000,
    "\u0000".join("ab").replace("\u0000", "\ufffd"),
]


OURS = {
    "html",
    "head",
    "meta",
    "title",
    "link",
    "script",
    "body",
    "a",
    "header",
    "svg",
    "rect",
    "circle",
    "path",
    "line",
    "span",
    "div",
    "nav",
    "b",
    "p",
    "label",
    "input",
    "button",
    "details",
    "summary",
    "main",
    "kbd",
    "section",
    "h1",
    "h2",
    "dialog",
    "dl",
    "dt",
    "dd",
    "ul",
    "ol",
    "li",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "small",
    "select",
    "option",
    "pre",
    "i",
}


class Markup(HTMLParser):
    """Every tag and attribute that a browser would see in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.scripts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "script":
            self.scripts.append(dict(attrs).get("src", "inline"))


@pytest.fixture
def hostile(tmp_path):
    """A project in which everything that can hold words holds markup, prompts and texts each another string."""
    create(
        tmp_path / "p",
        ProjectSettings(
            title=STRINGS[0],
            questions={"overall": STRINGS[2], STRINGS[3]: STRINGS[24]},
            known_share=0,
            repeat_share=0,
        ),
    )
    (tmp_path / "p" / "instructions.md").write_text("\n\n".join(STRINGS), encoding="utf-8")
    with Store.open(tmp_path / "p") as store:
        samples, comparisons = [], []
        for i, text in enumerate(STRINGS):
            media = [Medium("text/plain", f"{text}{side}".encode()) for side in "ab"]
            samples += [Sample(f"s{i}{j}", text, m, STRINGS[4 + j], now()) for j, m in enumerate(media)]
            comparisons.append(Comparison(f"c{i}", text, (f"s{i}0", f"s{i}1"), 1))
        store.add_samples(samples)
        store.add_comparisons(comparisons)
        yield store


def test_there_are_sixty_strings():
    assert len(set(STRINGS)) >= 60


def test_pages_hold_no_markup_but_ours(hostile):
    with TestClient(create_app(hostile), base_url=make.BASE) as client:
        admin = make.person(client, hostile, STRINGS[2][:200], role="admin")
        for lease in admin.lease(4):
            assert admin.post(
                "/api/answer",
                {"lease": lease["id"], "key": "k" + lease["id"], "answers": {"overall": "left", STRINGS[3]: "tie"}},
            ).json()["status"] == "saved"  # fmt: skip
        for path in ("/", "/instructions", "/admin", "/join"):
            page = admin.get(path).text
            found = Markup()
            found.feed(page)
            assert found.tags <= OURS, f"{path}: {found.tags - OURS}"
            assert not [name for name in found.attributes if name.startswith("on") or name in ("style", "srcdoc")]
            assert all(re.fullmatch(r"/static/[a-z]+\.js", source) for source in found.scripts)
            assert RUN in page  # it was there to be shown
        for reply in (admin.post("/api/lease", {"n": 16}), admin.get(f"/media/{'0' * 64}")):
            assert reply.headers["content-type"] == "application/json"


def test_texts_are_sent_as_texts(hostile):
    with TestClient(create_app(hostile), base_url=make.BASE) as client:
        rater = make.person(client, hostile)
        reply = rater.get(f"/media/{rater.lease()[0]['media'][0]['id']}")
        assert reply.headers["content-type"] == "text/plain; charset=utf-8"
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_svg_and_html_do_not_even_come_in(tmp_path):
    with make.project(tmp_path / "p", 0) as store:
        for kind in ("image/svg+xml", "text/html", "image/png", "application/xhtml+xml", "text/xml"):
            with pytest.raises(MediaError):
                store.add_media(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", kind)


def test_scripts_never_write_markup_from_data():
    for path in (HERE / "static").glob("*.js"):
        text = path.read_text("utf-8")
        for risky in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "setHTML",
        ):
            assert risky not in text, f"{path.name}: {risky}"
    for path in (HERE / "templates").glob("*.html"):
        text = path.read_text("utf-8")
        assert "|safe" not in text.replace(" ", "") and " style=" not in text and not re.search(r"\son[a-z]+=", text)


def test_instructions_are_read_as_text():
    found = list(blocks("# Title\nmore\n\n- a <b>\n- c\n  goes on\n\n1. one\n2. two\n\nplain\ntext"))
    assert found == [
        ("heading", "Title"),
        ("paragraph", "more"),
        ("list", ["a <b>", "c goes on"]),
        ("numbers", ["one", "two"]),
        ("paragraph", "plain text"),
    ]
    assert list(blocks("")) in ([], [("paragraph", "")])


@pytest.mark.browser
@pytest.mark.slow
def test_sixty_strings_in_the_browser(hostile, chromium):
    _, token = hostile.add_rater(STRINGS[26], "admin")
    with make.served(hostile) as base, browsing(chromium, base, token) as page:
        seen = set()
        for turn in range(len(STRINGS)):
            ready(page)
            seen.add(prompt(page))
            texts = page.eval_on_selector_all(".text", "nodes => nodes.map(node => node.textContent)")
            assert sorted(texts) == [prompt(page) + side for side in "ab"]
            page.keyboard.press("1")
            page.keyboard.press("2")
            state(page, f"{turn + 1} saved")
        assert seen == set(STRINGS)
        for path in ("/", "/instructions", "/admin"):
            page.goto(base + path)
            page.wait_for_timeout(200)
            assert page.evaluate("window.hacked") is None
            assert page.evaluate("document.querySelectorAll('iframe, object, embed, body script').length") == 0
