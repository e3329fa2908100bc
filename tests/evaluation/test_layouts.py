"""Benchmarks' folder layouts, as their scorers' code walks them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from palate.evaluation import layouts
from palate.prompts import Prompt


@pytest.fixture
def pictures(tmp_path):
    """Pictures of 8 x 8, each of one colour by its prompt and number."""

    def picture(prompt, j):
        path = tmp_path / f"{prompt.text} {j}.png"
        Image.new("RGB", (8, 8), (10 * len(prompt.text), 50 * j, 0)).save(path)
        return path

    return picture


def opened(path):
    with Image.open(path) as image:
        return image.convert("RGB")


def test_geneval(tmp_path, pictures):
    facts = [{"tag": "colors", "include": [{"class": "cat", "count": 1}], "prompt": text} for text in ("a", "bb", "a")]
    prompts = [Prompt(fact["prompt"], "colors", facts=fact) for fact in facts]
    out = layouts.write("geneval", prompts, pictures, 2, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["00000", "00001", "00002"]
    for number, fact in enumerate(facts):
        with (out / f"{number:05d}" / "metadata.jsonl").open() as file:
            assert json.load(file) == fact
        names = sorted(path.name for path in (out / f"{number:05d}" / "samples").iterdir())
        assert names == ["00000.png", "00001.png"] and all(re.match(r"\d+\.png", name) for name in names)


def test_dpg_is_cut_into_quarters(tmp_path, pictures):
    prompts = [Prompt("a", id="partiprompts12"), Prompt("bb", id="9")]
    out = layouts.write("dpg", prompts, pictures, 4, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["9.png", "partiprompts12.png"]
    sheet = opened(out / "9.png")
    for j, corner in enumerate([(0, 0, 8, 8), (8, 0, 16, 8), (0, 8, 8, 16), (8, 8, 16, 16)]):
        assert np.asarray(sheet.crop(corner))[4, 4].tolist() == [20, 50 * j, 0]
    assert opened(layouts.write("dpg", prompts, pictures, 1, tmp_path / "one") / "9.png").size == (8, 8)


def test_hpsv2_numbers_within_a_style(tmp_path, pictures):
    prompts = [Prompt("a", "anime"), Prompt("bb", "photo"), Prompt("ccc", "anime")]
    out = layouts.write("hpsv2", prompts, pictures, 2, tmp_path / "out")
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*.jpg"))
    assert found == ["anime/00000.jpg", "anime/00001.jpg", "photo/00000.jpg"]
    assert abs(np.asarray(opened(out / "anime/00001.jpg"), int)[4, 4] - [30, 0, 0]).max() <= 3
    assert (out / "photo/00000.jpg").read_bytes()[:3] == b"\xff\xd8\xff"  # what a JPEG begins with
    for name in ("../up", "..", "a/b"):
        with pytest.raises(layouts.LayoutError, match="cannot be"):
            layouts.check("hpsv2", [Prompt("a", name)], 1)


def test_partiprompts_has_a_list(tmp_path, pictures):
    prompts = [Prompt("a", "Abstract", facts={"Challenge": "Basic"})]
    out = layouts.write("partiprompts", prompts, pictures, 2, tmp_path / "out")
    line = json.loads((out / "metadata.jsonl").read_text().splitlines()[1])
    assert (line["file"], line["Challenge"]) == ("00000-1.png", "Basic") and (out / line["file"]).is_file()


@pytest.mark.parametrize(
    ("layout", "k", "says"),
    [("geneval", 1, "evaluation_metadata"), ("dpg", 1, "txt"), ("hpsv2", 1, "anime"), ("vbench", 1, "no layout")],
)
def test_other_prompts_are_refused_with_the_file_to_give(tmp_path, pictures, layout, k, says):
    with pytest.raises(layouts.LayoutError, match=says):
        layouts.write(layout, [Prompt("a")], pictures, k, tmp_path / "out")
    with pytest.raises(layouts.LayoutError, match="four pictures"):
        layouts.check("dpg", [Prompt("a", id="1")], 5)
