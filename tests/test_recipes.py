"""Every recipe that is shipped parses, names an algorithm that exists, and gives it options it knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from palate import config, plugins
from palate.config import Recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_whole(path):
    recipe = config.load(path, (), Recipe)
    algorithm = plugins.find("algorithms", recipe.algorithm.name)
    config.section(recipe.algorithm.options, algorithm.Config, "algorithm", path)
    assert algorithm.NEEDS.source == ("offline" if recipe.data else "online")


def test_there_are_recipes():
    assert RECIPES
