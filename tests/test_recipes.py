"""Every recipe that is shipped parses, names an algorithm that exists, and gives it options it knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from palate import config, lookup, plugins
from palate.config import Recipe
from palate.worlds.shapes import language

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_whole(path):
    recipe = config.load(path, (), Recipe)
    algorithm = plugins.find("algorithms", recipe.algorithm.name)
    config.section(recipe.algorithm.options, algorithm.Config, "algorithm", path)
    assert algorithm.NEEDS.source == ("offline" if recipe.data else "online")


def test_the_prompts_that_are_shipped_are_of_the_world_and_unseen():
    prompts = lookup.read_prompts(RECIPES[0].parent / "prompts.txt")
    assert len(prompts) == 12
    assert {language.split(prompt) for prompt in prompts} == {"eval"}


def test_there_are_recipes():
    assert RECIPES
