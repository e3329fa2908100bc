"""Every recipe that is shipped parses, names an algorithm that exists, gives it options it knows, and runs: for two
steps on a tiny twin of its model, with all that is not a matter of size as the recipe says."""

from __future__ import annotations

import io
import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from palate import config, plugins
from palate.config import Recipe, RoundsRecipe
from palate.datasets import parquet
from palate.doors import lookup, run
from palate.records import Medium, Preference
from palate.worlds.shapes import language
from tests import pipelines

FOLDER = Path(__file__).parent.parent / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
TWINS = {  # by how a recipe's name begins, the longest first
    "sdxl_turbo": "StableDiffusionXLPipeline (turbo)",
    "sd15": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd35": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
    "wan": "WanPipeline",
}
QUICK = {"sd15_diffusion_dpo", "sdxl_mapo", "sd35_flow_dpo", "wan_flow_dpo"}  # one of a kind; the others with the slow
PAPERS = [path for path in RECIPES if path.stem.startswith(tuple(TWINS))]
SIZES = {  # what a twin may have otherwise: how large, how long, where
    "training.max_steps": 2,
    "training.batch_size": 2,
    "training.micro_batch_size": 1,
    "training.checkpoint_every": 2,
    "rollout.prompts_per_round": 2,
    "rollout.num_inference_steps": 3,
    "rollout.rounds": 1,
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_whole(path):
    recipe = config.load(path, (), Recipe)
    algorithm = plugins.find("algorithms", recipe.algorithm.name)
    config.section(recipe.algorithm.options, algorithm.Config, "algorithm", path)
    assert algorithm.NEEDS.source == ("offline" if recipe.data else "online")
    assert recipe.output == f"runs/{path.stem}"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("rounds/*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_of_rounds_is_whole(path):
    recipe = config.load(path, (), RoundsRecipe)
    algorithm = plugins.find("algorithms", recipe.algorithm.name)
    config.section(recipe.algorithm.options, algorithm.Config, "algorithm", path)
    assert recipe.output == f"runs/rounds_{path.stem}"


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_each_value_of_a_papers_recipe_says_where_it_is_from_and_the_file_what_to_reach(path):
    lines = path.read_text().splitlines()
    values = [
        line for line in lines if re.match(r" +\w+: \S", line) and not line.strip().startswith("checkpoint_every")
    ]
    own = {"name: " + plugin for plugin in ("diffusion_dpo", "mapo", "rankdpo", "flow_dpo", "flow_rwr", "d3po")}
    bare = [line for line in values if "#" not in line and line.strip() not in own]
    loose = [line for line in bare if not _part_of_a_commented_list(lines, line)]
    assert not loose, loose
    assert re.search(r"^# To reach|^# The port reports", path.read_text(), re.MULTILINE)
    assert "arXiv:" in lines[0] + lines[1] + lines[2] or "arxiv" in lines[0]
    assert path.stem in (FOLDER.parent / "docs" / "recipes.md").read_text()


def _part_of_a_commented_list(lines, line):
    """Whether the value is one of several whose comment stands at the first, 'and the three below'."""
    before = lines[: lines.index(line)]
    said = next((number for number, text in enumerate(reversed(before), 1) if "the three below" in text), 99)
    return said <= 3


# --- on tiny twins ----------------------------------------------------------------------------------------------------


def twin_of(name):
    return next(twin for start, twin in TWINS.items() if name.startswith(start))


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """The folder of a twin and the arguments that keep its call tiny."""

    @cache
    def made(name):
        pipeline, call = pipelines.build(name)
        folder = tmp_path_factory.mktemp("twins") / "model"
        pipeline.save_pretrained(folder)
        net = getattr(pipeline, "unet", None) or pipeline.transformer
        side = 16 if "height" in call else net.config.sample_size * pipeline.vae_scale_factor
        return (
            folder,
            {**call, "height": side, "width": side} | ({"num_frames": 1} if "num_frames" in call else {}),
            side,
        )

    return made


def preferences(folder, side, k):
    """Four prompts with k pictures each, ranked and scored."""
    nan = float("nan")
    order = np.arange(k)
    prefer = np.where(np.eye(k, dtype=bool), nan, (order[:, None] < order[None]).astype(float))
    rows = [
        Preference(
            prompt=f"a hat {row}",
            media=tuple(Medium("image/png", picture(k * row + i, side)) for i in range(k)),
            prefer=tuple(map(tuple, prefer.tolist())),
            scores=tuple((float(k - i), float(row + i % 2)) for i in range(k)),
            dimensions=("one", "two"),
        )
        for row in range(4)
    ]
    parquet.write(folder, rows)
    return folder


def picture(seed, side):
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3)).repeat(side // 4, 0).repeat(side // 4, 1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # a scheduler of Turbo
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow, id=path.stem) for path in PAPERS],
)
def test_a_recipe_runs_for_two_steps_on_its_tiny_twin(path, twins, tmp_path):
    model, call, side = twins(twin_of(path.stem))
    recipe = config.load(path, (), Recipe)
    changed = {key: value for key, value in SIZES.items() if getattr(recipe, key.partition(".")[0]) is not None}
    changed |= {"model.name": model, "model.device": "cpu", "model.check_kind": False, "output": tmp_path / "run"}
    changed |= {"model.call": json.dumps(call)}
    if recipe.training.mixed_precision == "fp16":  # on a CPU it rounds by where in memory a tensor lies
        changed |= {"training.mixed_precision": "bf16"}
    if recipe.data:
        k = 4 if recipe.algorithm.name == "rankdpo" else 2
        changed |= {"data.path": preferences(tmp_path / "data", side, k), "data.cache": tmp_path / "cache"}
    folder = run.train(path, [f"{key}={_said(value)}" for key, value in changed.items()])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row or "step/rescaled" in row] == [1, 2]
    assert all(np.isfinite(row.get("loss", 0.0)) for row in rows)
    start = plugins.find("algorithms", recipe.algorithm.name).NEEDS.start_loss
    assert start is None or rows[0].get("loss", start) == pytest.approx(start, rel=2e-3)
    card = (folder / ("adapter" if recipe.model.lora else "model") / "README.md").read_text()
    assert recipe.algorithm.name in card and str(tmp_path) not in card


def _said(value):
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_the_prompts_that_are_shipped_are_of_the_world_and_unseen():
    prompts = lookup.read_prompts(FOLDER / "prompts.txt")
    assert len(prompts) == 12
    assert {language.split(prompt) for prompt in prompts} == {"eval"}


def test_d3pos_animals_are_as_many_as_the_paper_has():
    assert len(lookup.read_prompts(FOLDER / "animals.txt")) == 45


def test_there_are_recipes():
    assert len(PAPERS) >= 10
