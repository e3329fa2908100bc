"""A handful of builds through the whole contract; the sweep of all of them is `python -m benchmarks.pipelines`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import pipelines as sweep
from tests import pipelines as builds
from tests.contracts import pipelines

# What each stands for: lists of rows of any length, a reversed clock; experts, two passes, video; one text at a time,
# guidance never off; frames as rows, adapters in the denoiser; sound; guidance that keeps the length.
FEW = (
    "ZImagePipeline",
    "WanPipeline (two experts)",
    "DreamLitePipeline",
    "TextToVideoSDPipeline",
    "LongCatAudioDiTPipeline",
    "Lumina2Pipeline",
)


def table() -> dict[str, Any]:
    held: dict[str, Any] = json.loads(sweep.TABLE.read_text())["pipelines"]
    return held


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FEW)
def test_a_pipeline_does_what_the_table_says(name: str) -> None:
    made, said = pipelines.examine(name), table()[name]["stages"]
    reasons = {stage: held.note for stage, held in made.found.items() if not held.holds}
    assert {s: h.holds for s, h in made.found.items()} == {s: h["holds"] for s, h in said.items()}, reasons


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "why"),
    [("HeliosPipeline (two chunks)", "samples in several parts"), ("LatentConsistencyModelPipeline", "consistency")],
)
def test_what_cannot_be_served_is_refused_with_the_reason(name: str, why: str) -> None:
    found = pipelines.examine(name).found
    assert found.keys() == {"load"}
    assert not found["load"].holds
    assert why in found["load"].note


def test_no_stage_is_served_and_broken() -> None:
    stages = ((f"{name}: {stage}", held["note"]) for name, e in table().items() for stage, held in e["stages"].items())
    broken = [where for where, note in stages if "BROKEN" in note]
    assert not broken


def test_every_build_is_in_the_table_and_the_page_is_its_own() -> None:
    held = json.loads(sweep.TABLE.read_text())
    assert sorted(held["pipelines"]) == sorted(builds.places())
    assert sweep.PAGE.read_text() == sweep.page(held["pipelines"], held["versions"])


def test_breadth() -> None:
    """At least 40 classes replay, roll out and train online; at least 24 meet the whole contract."""
    served = {name.partition(" ")[0] for name, entry in table().items() if sweep.served(entry)}
    whole = {name.partition(" ")[0] for name, entry in table().items() if sweep.whole(entry)}
    assert len(served) >= 40
    assert len(whole) >= 24


def test_what_was_lost_is_named() -> None:
    held, gone = {"stages": {"load": {"holds": True, "note": ""}}}, {"stages": {"load": {"holds": False, "note": "x"}}}
    assert sweep.losses({"A": held}, {"A": gone, "B": gone}) == ["A: load held, and no longer does (x)"]
    assert sweep.losses({"A": gone}, {"A": held}) == []
    assert sweep.losses({"A": held}, {}) == []
    broken = {"stages": {"load": {"holds": False, "note": "BROKEN: y"}}}
    assert sweep.losses({"A": gone}, {"A": broken}) == ["A: load: BROKEN: y"]
    assert len(sweep.losses({"A": held}, {"A": broken})) == 1
