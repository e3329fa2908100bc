"""What README and docs tell people to type is understood, and what they link to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from palate import config, plugins
from palate.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"^(?:    |\$ )?(palate|make|python -m) (.+?)(?:\s{2,}#.*| # .*)?$", re.MULTILINE)


def commands() -> list[tuple[str, str, str]]:
    return [(page.name, m[1], m[2].strip()) for page in PAGES for m in COMMAND.finditer(page.read_text("utf-8"))]


@pytest.mark.parametrize(("page", "program", "rest"), commands(), ids=lambda value: str(value)[:40])
def test_a_command_is_understood(page, program, rest):
    words = shlex.split(rest)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[0] in targets
    elif program == "python -m":
        module = words[0].split(".")
        places = [ROOT.joinpath(*module), ROOT.joinpath("src", *module)]
        assert any(place.with_suffix(".py").is_file() or place.is_dir() for place in places), words[0]
    else:
        group = typer.main.get_command(app)
        context = click.Context(group, info_name="palate")
        assert isinstance(group, click.Group | typer.core.TyperGroup)
        command = group.get_command(context, words[0])
        assert command, f"palate {words[0]}"
        while hasattr(command, "get_command"):  # a verb of verbs
            words = words[1:]
            command = command.get_command(context, words[0])
            assert command, f"palate {rest}"
        command.make_context(words[0], words[1:], parent=context)


MADE = {"demo": ["demo", "demo/preferences"]}  # by a target of the Makefile


def made_by(program: str, words: list[str]) -> list[str]:
    """Folders that a command writes."""
    if program == "make":
        return MADE.get(words[0], [])
    if words[0] == "train" and (ROOT / words[1]).is_file():
        return [config.load(ROOT / words[1], [], config.Recipe).output]
    return [words[i + 1] for i, word in enumerate(words) if word in ("--out", "-o")]


def written_out(page: Path) -> dict[str, str]:
    """Recipes that a page shows in full, by the file name in their first line."""
    return {
        m[1]: m[0] for m in re.finditer(r"(?<=```yaml\n)# ([\w.]+\.yaml)\n.*?(?=```)", page.read_text("utf-8"), re.S)
    }


def read_by(program: str, words: list[str]) -> list[str]:
    """Files and folders that a command reads: whatever looks like a path, and a recipe's data."""
    if program != "palate":
        return []
    values = [word for i, word in enumerate(words) if words[i - 1] not in ("--out", "-o", "--scorer")]
    paths = [word for word in values if re.search(r"/|\.[a-z]\w*$", word) and not re.search(r"[:=]", word)]
    if words[0] == "train" and (ROOT / words[1]).is_file():
        data = config.load(ROOT / words[1], [], config.Recipe).data
        paths += [data.path] if data else []
    return paths


def test_the_files_that_commands_name_are_there_when_they_are_typed_in_order():
    made = list(written_out(ROOT / "README.md"))
    for page, program, rest in commands():
        words = shlex.split(rest)
        if page == "README.md":
            for path in read_by(program, words):
                assert path in made or (ROOT / path).exists(), f"palate {rest}: nothing made {path}"
            made += made_by(program, words)
    assert {"runs/samples", "runs/shapes_diffusion_dpo"} <= set(made)


def test_recipes_that_the_readme_shows_are_recipes(tmp_path):
    shown = written_out(ROOT / "README.md")
    assert shown
    for name, text in shown.items():
        (tmp_path / name).write_text(text, "utf-8")
        recipe = config.load(tmp_path / name, [], config.Recipe)
        algorithm = plugins.find("algorithms", recipe.algorithm.name)
        config.section(recipe.algorithm.options, algorithm.Config, "algorithm", name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_there_is_something_to_check():
    assert any(program == "palate" for _, program, _ in commands())
