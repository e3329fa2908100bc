"""The pages on algorithms: every option is there, and every recipe in them is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from palate import config, plugins

FOLDER = Path(__file__).parents[2] / "docs" / "algorithms"
PAGES = sorted(FOLDER.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_is_explained(page):
    text = page.read_text(encoding="utf-8")
    missing = [name for name in plugins.find("algorithms", page.stem).Config.model_fields if f"`{name}`" not in text]
    assert not missing, f"{page.name} does not say what {', '.join(missing)} mean"


BLOCK = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
RECIPES = [(page.stem, block) for page in PAGES for block in BLOCK.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("name", "text"), RECIPES, ids=lambda value: value[:12])
def test_a_recipe_on_a_page_is_one(name, text):
    recipe = config.Recipe.model_validate(yaml.safe_load(text))
    assert recipe.algorithm.name == name
    config.section(recipe.algorithm.options, plugins.find("algorithms", name).Config, "algorithm")
