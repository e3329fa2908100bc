"""docs/scorers.md says what the code does."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from palate import plugins
from palate.doors import golden, judges
from palate.scorers import aesthetic, hpsv2, imagereward

PAGE = (Path(__file__).parents[2] / "docs" / "scorers.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \|(.+)$", PAGE, re.MULTILINE))


@pytest.mark.parametrize("judge", [aesthetic, hpsv2, imagereward])
def test_the_lines_that_convert_pickles_are_the_same(judge):
    assert f"\n    {judge.CONVERT}\n" in PAGE


@pytest.mark.parametrize("name", plugins.available("scorers"))
def test_every_scorer_is_on_the_page(name):
    assert f"`{name}`" in PAGE
    module = plugins.find("scorers", name)
    assert getattr(module, "MODEL", "") in PAGE


@pytest.mark.parametrize("name", re.findall(r"^\| `(\w+:[^`]+)` \|", PAGE, re.MULTILINE))
def test_names_on_the_page_are_read(name):
    plugin, _ = judges.split(name)
    read = judges.parse(plugin)
    if read.plugin in plugins.available("scorers"):
        takes = inspect.signature(plugins.find("scorers", read.plugin).load).parameters
        assert set(read.options) <= set(takes) and read.where


def test_the_options_said_to_be_of_all_six_are():
    for name in ("clip_score", "pickscore", "hpsv2", "aesthetic", "imagereward", "clap"):
        takes = inspect.signature(plugins.find("scorers", name).load).parameters
        assert {"model", "device", "dtype", "batch_size"} <= set(takes) and name in ROWS
        assert ("frames" in takes) == (name != "clap") and takes["batch_size"].default == 32
    assert (golden.NEAR, golden.ROUNDING, golden.COARSE) == (0.02, 1e-4, 1e-2)
