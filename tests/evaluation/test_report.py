"""The page: says what the numbers say, in words; loads nothing; trusts no text."""

import json
import math
import re
from dataclasses import asdict
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from palate import kinds
from palate.evaluation import charts, grids, win_rate
from palate.evaluation.charts import Chart
from palate.evaluation.exhibits import data_uri
from palate.evaluation.report import Pair, ReportData, ReportError, from_run, render, verdict, versions, write
from palate.evaluation.win_rate import WinRate

NASTY = "</script><img src=x onerror=alert(1)> & \"quoted\" 'too' \N{GREEK SMALL LETTER ALPHA}"


def picture(shade=200, side=64):
    return Image.new("RGB", (side, side), (shade, 40, 90))


class Page(HTMLParser):
    """Checks that tags nest, and collects them."""

    VOID = frozenset({"meta", "img", "line", "circle", "polyline"})

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def comparison():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 1, 80)
    prompts = [f"p{i // 4}" for i in range(80)]
    return win_rate.compare({"follows": base + 1}, {"follows": base}, prompts)["follows"]


@pytest.fixture
def report(comparison):
    return ReportData(
        title=NASTY,
        wins={"people": WinRate(0.71, (0.66, 0.75), 0.1, 400, 50)},
        pairs=[Pair(NASTY, picture(), picture(90)), Pair("large", picture(side=300), picture(side=300))],
        dimensions={NASTY: comparison},
        charts=[Chart(NASTY, {NASTY: [(0, 1.0), (1, 0.5)], "b": [(0, math.nan), (1, 2.0)]}, level=(0.7, NASTY))],
        grids=[(NASTY, picture())],
        summary=NASTY,
        data={NASTY: NASTY},
        seeds={"training": "0"},
        versions={"palate": "0"},
        config=f"prompts: [{NASTY}]",
    )


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_verdict_in_words(report):
    text = Page(render(report)).text
    assert "People prefer the tuned model in 71% of pairs (95% interval 66% to 75%). It is better" in text
    assert "400 pairs over 50 prompts" in text
    assert "10% were ties" in text


@pytest.mark.parametrize(
    ("ci95", "tone", "words"),
    [
        ((0.51, 0.6), "better", "It is better"),
        ((0.2, 0.4), "worse", "It is worse"),
        ((0.45, 0.6), "open", "does not show a difference"),
        ((-math.inf, math.inf), "open", "no interval from one prompt"),
    ],
)
def test_the_interval_decides(ci95, tone, words):
    sentence, found = verdict("the known truth", WinRate(0.55, ci95, 0, 10, 5))
    assert found == tone
    assert words in sentence
    assert sentence.startswith("By the known truth")


def test_the_page_is_whole_and_loads_nothing(report):
    html = render(report)
    page = Page(html)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "base", "form")]
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href"):
                assert value.startswith("data:image/")
    assert "http" not in html
    assert "url(" not in html


def test_text_from_outside_stays_text(report):
    html = render(report)
    page = Page(html)
    assert "<img src=x" not in html
    assert page.text.count("onerror=alert(1)") >= 6
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")


def test_small_pictures_stay_crisp_and_exact(report):
    images = [attributes for tag, attributes in Page(render(report)).tags if tag == "img"]
    assert [image.get("class") for image in images] == ["crisp", "crisp", None, None, "crisp"]
    assert images[0]["src"].startswith("data:image/png")
    assert images[2]["src"].startswith("data:image/webp")


def test_a_huge_picture_is_shrunk_in_the_page():
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    whole = Image.fromarray(noise)
    assert len(data_uri(whole)) < 1500 * 1500
    assert whole.size == (1500, 1500)


def test_an_empty_report_says_what_is_missing():
    text = Page(render(ReportData(title="new"))).text
    assert "has not been compared with the base yet" in text
    assert "Before and after" not in text
    assert "Scores" not in text


def test_write_replaces_the_page_whole(report, tmp_path):
    write(report, tmp_path / "deep" / "report.html")
    write(ReportData(title="second"), tmp_path / "deep" / "report.html")
    assert "second" in (tmp_path / "deep" / "report.html").read_text()
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["report.html"]


# --- a run folder -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, comparison):
    rows = [{"step": i, "loss": 0.7 - i / 100, "reward/chosen": i, "reward/rejected": -i} for i in range(1, 4)]
    rows[1] |= {"validation/loss": 0.69, "reward/accuracy": 0.6, "round/failed": 0, "samples/sharp": None}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    (tmp_path / "config.yaml").write_text(
        "model: {name: world:shapes}\nalgorithm: {name: d3po}\nrollout: {prompts: [a, b], scorers: {x: 1, y: -0.5}}\n"
        "training: {seed: 7}\nevaluation: null\n"
    )
    pairs = grids.write_pairs(tmp_path / "samples", ["a prompt"], [picture()], [picture(10)])
    for step in range(0, 1000, 100):
        picture().save(tmp_path / "samples" / f"step_{step:06d}.png")
    facts = {
        "weights": "ema, step 3",
        "start_loss": 0.693,
        "pairs": pairs,
        "wins": {"people": asdict(comparison.wins)},
        "dimensions": {"follows": asdict(comparison)},
        "versions": versions(),
    }
    (tmp_path / "result.json").write_text(json.dumps(facts))
    return tmp_path


def test_a_run_folder_is_read(run, comparison):
    found = from_run(run)
    assert found.title == run.name
    assert found.summary == "3 optimiser steps; exported weights: ema, step 3"
    assert found.wins == {"people": comparison.wins}
    assert found.dimensions == {"follows": comparison}
    assert [pair.prompt for pair in found.pairs] == ["a prompt"]
    assert found.pairs[0].tuned.getpixel((0, 0)) == (10, 40, 90)
    assert [name for name, _ in found.grids] == ["step 0", "step 200", "step 400", "step 500", "step 700", "step 900"]
    assert found.seeds == {"training": "7"}
    assert found.data["prompts"] == "2 prompts in the recipe"
    assert found.data["rewards"] == "1 x x, -0.5 x y"
    assert "palate" in found.versions
    assert "It is better" in Page(render(found)).text


def test_prompts_trained_on_are_held_against_the_verdict(run):
    assert from_run(run).caution == "" and "Trained on" not in Page(render(from_run(run))).text
    facts = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**facts, "prompts_trained_on": 3}))
    assert "Trained on 3 of the prompts that it is judged on" in Page(render(from_run(run))).text
    (run / "result.json").write_text(json.dumps({**facts, "prompts_trained_on": 3, "warnings": ["it did not help"]}))
    assert "evaluation.prompts. It did not help." in Page(render(from_run(run))).text


def test_the_charts_of_a_run(run):
    found = {chart.title: chart for chart in from_run(run).charts}
    assert list(found) == ["loss", "reward/accuracy", "reward"]
    assert found["loss"].lines == {"training": [(i, 0.7 - i / 100) for i in (1, 2, 3)], "held out": [(2, 0.69)]}
    assert found["loss"].level == (0.693, "0.693: nothing learnt yet")
    assert list(found["reward"].lines) == ["chosen", "rejected"]


def test_an_unfinished_run_has_a_report(run):
    for name in ("result.json", "config.yaml"):
        (run / name).unlink()
    assert "not been compared" in Page(render(from_run(run))).text


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("result.json", "{", "result.json is not JSON"),
        ("result.json", "[]", "should hold an object"),
        ("result.json", '{"wins": {"people": {"rate": 1}}}', "not of this version"),
        ("result.json", '{"pairs": [{"prompt": "a", "base": "none.png", "tuned": "none.png"}]}', "none.png"),
        ("metrics.jsonl", 'nonsense\n{"step": 1}\n', "metrics.jsonl line 1 is not JSON"),
        ("config.yaml", "a: [", "config.yaml is not valid YAML"),
    ],
)
def test_a_broken_file_is_named(run, file, text, message):
    (run / file).write_text(text)
    with pytest.raises(ReportError, match=message):
        from_run(run)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(ReportError, match=r"has no config.yaml, metrics.jsonl or result.json"):
        from_run(tmp_path)
    with pytest.raises(ReportError, match="is not a folder"):
        from_run(tmp_path / "none")


def test_a_result_cannot_reach_outside_of_its_folder(run):
    picture(1).save(run.parent / "secret.png")
    (run / "result.json").write_text(json.dumps({"pairs": [{"prompt": "", "base": "../../secret.png", "tuned": "x"}]}))
    with pytest.raises(ReportError, match=re.escape(str(run / "samples" / "secret.png"))):
        from_run(run)


# --- charts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [-3.7, 0.0, 0.69310, 1e-5, 12345.0])
@pytest.mark.parametrize("span", [0.0, 1e-7, 0.013, 1.0, 97.0, 1e6])
def test_ticks_are_round_and_cover(low, span):
    found = charts.ticks(low, low + span, 5)
    slack = 1e-9 * (abs(low) + span) + 1e-12
    assert found[0] <= low + slack
    assert found[-1] >= low + span - slack
    assert 2 <= len(found) <= 9
    if low + span < 1e5 and (span == 0 or span > 1e-3 * abs(low)):
        assert len(set(charts.labels(found))) == len(found)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1e-4, "1e-4"), (-2.5e-5, "\N{MINUS SIGN}2.5e-5"), (0.0012, "0.0012"), (0.69314718, "0.6931"),
        (1234.5, "1234"), (12000, "12k"), (-0.5, "\N{MINUS SIGN}0.5"), (3e7, "3e7"),
    ],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert charts.number(value) == text


def test_long_lines_are_thinned_and_keep_their_ends_and_mean():
    line = [(float(i), math.sin(i / 50)) for i in range(5000)]
    found = charts.thinned(line)
    assert len(found) <= charts.MAX_POINTS
    assert (found[0], found[-1]) == (line[0], line[-1])
    assert np.mean([y for _, y in found]) == pytest.approx(np.mean([y for _, y in line]), abs=0.01)


@pytest.mark.parametrize("points", [0, 1, 2, 30, 500])
@pytest.mark.parametrize("flat", [True, False])
def test_a_chart_of_any_length_is_drawn_inside_its_frame(points, flat):
    rng = np.random.default_rng(0)
    line = [(float(i), 3.0 if flat else float(rng.normal())) for i in range(points)]
    drawn = charts.svg(Chart("x", {"a": [*line, (1.0, math.inf)]}, level=(0.0, "zero")))
    Page(str(drawn))
    places = [
        tuple(map(float, pair.split(","))) for run in re.findall(r'points="([^"]+)"', drawn) for pair in run.split()
    ]
    assert all(0 <= x <= charts.WIDTH and 0 <= y <= charts.HEIGHT for x, y in places)
    assert "nan" not in drawn


# --- grids ------------------------------------------------------------------------------------------------------------


def test_a_grid_holds_every_picture():
    shades = [10, 60, 110, 160, 210]
    sheet = grids.grid([picture(shade, 8) for shade in shades], columns=3, scale=4, labels=["a long label " * 9] * 5)
    colours = {colour for _, colour in sheet.getcolors(1 << 20)}
    assert {(shade, 40, 90) for shade in shades} <= colours
    assert sheet.width == 3 * 32 + 4 * grids.MARGIN


def test_a_grid_asks_for_pictures_and_as_many_labels():
    with pytest.raises(ValueError, match="at least one image"):
        grids.grid([], 3)
    with pytest.raises(ValueError, match="as many labels"):
        grids.grid([picture()], 1, labels=["a", "b"])


def test_a_still_of_every_medium_that_can_be_seen():
    red, blue = (Image.new("RGB", (8, 6), colour) for colour in ("red", "blue"))
    assert grids.still(red) is red and grids.still([red, blue, red]) is blue
    array = np.zeros((3, 6, 8, 3), np.float32)
    array[1] = 1
    assert np.asarray(grids.still(array)).min() == 255
    rising = kinds.rated(np.sin(np.arange(20_000) ** 2 / 2e4)[None], 0, 8000)
    dark = 255 - np.asarray(grids.still(rising).convert("L"), float)
    heights = (dark * np.arange(64)[::-1, None]).sum(0) / dark.sum(0)  # of what sounds, from the bottom
    assert dark.shape == (64, 128) and heights[10] < heights[60] < heights[115]
    for sound in (np.zeros((1, 300)), np.ones(2), np.full((2, 40), np.nan)):
        assert grids.still(sound).size == (128, 64)  # silence, and what is hardly there
    with pytest.raises(ValueError, match="a str cannot be shown"):
        grids.still("words")
