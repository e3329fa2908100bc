"""What a command is asked for, judged before anything heavy is imported: a slip costs a second, not the loading of a
library or a model.

    recipe, algorithm, options = asked.training("mine.yaml", ["training.max_steps=10"])
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from palate import config, datasets, durable, plugins, views
from palate import prompts as prompt_files
from palate.config import AlgorithmSettings, ConfigError, DataSettings, Recipe
from palate.doors import judges
from palate.models.naming import resolve_model
from palate.prompts import Prompt

WORLD = "world:"
IMPLICIT = "implicit:"
_OF_A_RUN = ("config.yaml", "checkpoints", "result.json")
_HARMLESS = (".log", ".out", ".err")  # what the shell may have been told to keep there


# --- training ---------------------------------------------------------------------------------------------------------


def training(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Any, Any]:
    """The recipe with all options of its algorithm, the algorithm's module, and its options.

    Raises ConfigError, PluginError, DatasetError, FileNotFoundError or StorageError, one line each, for whatever can be
    seen to be wrong without a model.
    """
    recipe = looked_at(path, overrides)
    beside, first = Path(path).parent, os.environ.get("RANK", "0") == "0"
    if first:
        _check_output(Path(recipe.output), Path(path))
    if recipe.data:
        reader(recipe.data, Path(path))
        scorers(recipe.data.relabel or {})
    for section in (recipe.rollout, recipe.evaluation):
        if section is not None:
            prompt_lines(section.prompts, beside)
            scorers(section.scorers)
    algorithm = plugins.find("algorithms", recipe.algorithm.name)  # from here on it takes torch
    _check_owners(recipe.algorithm, algorithm, path)
    options = config.section(recipe.algorithm.options, algorithm.Config, "algorithm", path)
    _check_source(recipe, algorithm, path)
    # Every option as it is now, so that another default tomorrow is seen as a change, and 1e3 and 1000 as none.
    resolved = {"name": recipe.algorithm.name, **options.model_dump(mode="json")}
    recipe = recipe.model_copy(update={"algorithm": AlgorithmSettings.model_validate(resolved)})
    if first:
        finished(recipe)
    return recipe, algorithm, options


def looked_at(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe as it is written. Raises as `training` for its keys, and for the names of its method and model."""
    recipe = config.load(path, overrides, Recipe)
    plugins.check("algorithms", recipe.algorithm.name)
    model(recipe.model.name)
    return recipe


def finished(recipe: Recipe) -> bool:
    """Whether the recipe's folder holds its finished run. Raises ConfigError for a run of another recipe there."""
    folder = Path(recipe.output)
    held, result = folder / "config.yaml", folder / "result.json"
    begun = any((folder / "checkpoints").glob("step-*")) or result.is_file()
    if not held.is_file() or not begun:  # one that failed before its first checkpoint may be mended
        return False
    if changes := config.load(held, (), Recipe).changes(recipe):
        raise ConfigError(f"{folder} was begun with another recipe: {'; '.join(changes)}; choose another output")
    return result.is_file()


def _check_output(folder: Path, recipe: Path) -> None:
    """Raises ConfigError for a folder of something else, StorageError for one that another run is using."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{recipe}: output is {folder}, which is a file; name a folder")
    if not folder.is_dir():
        return
    durable.check_free(folder)
    if any((folder / name).exists() for name in _OF_A_RUN):
        return
    others = [inside.name for inside in sorted(folder.iterdir()) if not _harmless(inside, recipe)]
    if others:
        named = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise ConfigError(
            f"{recipe}: output is {folder}, which is no run's folder and not empty ({named}); choose another folder"
        )


def _harmless(path: Path, recipe: Path) -> bool:
    """What a folder may hold that is no run's yet."""
    ours = path.name == durable.LOCK or path.name.startswith((".", durable.ASIDE))
    return ours or path.suffix in _HARMLESS or path.resolve() == recipe.resolve()


def _check_owners(given: AlgorithmSettings, algorithm: Any, path: str | Path) -> None:
    """Raises ConfigError for an option that is another algorithm's, as is left over when the name is changed."""
    own = list(algorithm.Config.model_fields)
    for key in given.options:
        if key in own:
            continue
        owners = [
            name
            for name in plugins.available("algorithms")
            if key in plugins.find("algorithms", name).Config.model_fields
        ]
        if owners:
            near = [name for name in own if key.startswith(name)] or difflib.get_close_matches(key, own, 1, 0.5) or own
            raise ConfigError(
                f"{path}: 'algorithm.{key}' belongs to {' and '.join(owners)}; {given.name} has {', '.join(near)}: "
                "rename it or take it out"
            )


def _check_source(recipe: Recipe, algorithm: Any, path: str | Path) -> None:
    wants = algorithm.NEEDS.source
    has = "offline" if recipe.data else "online"
    if wants != has:
        section = "data" if wants == "offline" else "rollout"
        raise ConfigError(f"{path}: {recipe.algorithm.name} is an {wants} method: give it the section '{section}'")
    if recipe.data and recipe.data.relabel and recipe.data.dimension != views.OVERALL:
        raise ConfigError(
            f"{path}: data.relabel judges all anew, so that no data.dimension is left: leave one of them out (a single "
            "score is named behind a slash: `relabel: {scorer/score: 1}`)"
        )
    if recipe.data and recipe.data.reference_draws and algorithm.NEEDS.reference == "none":
        raise ConfigError(f"{path}: {recipe.algorithm.name} has no reference: leave out data.reference_draws")
    if recipe.rollout and algorithm.NEEDS.k is None and recipe.rollout.k < 2:
        raise ConfigError(
            f"{path}: {recipe.algorithm.name} compares candidates of a prompt: set rollout.k to 2 or more"
        )


def reader(data: DataSettings, path: Path) -> datasets.Reader:
    """The preferences that the recipe at `path` names, from here or from the recipe's own folder, or on the hub.

    Raises ConfigError if they are nowhere, DatasetError if they are of no known format.
    """
    for place in (Path(data.path), path.parent / data.path):
        if place.exists():
            return datasets.open(place, data.format, data.split)
    ours = Path(data.path).parts[-2:] == ("demo", "preferences")
    local = ours or data.path.startswith((".", "/", "~")) or Path(data.path).parent.is_dir()
    if data.path.count("/") == 1 and not local:
        return datasets.open(data.path, data.format, data.split)
    mend = "`make demo` writes it" if ours else "give the path of the data, from here or from the recipe's own folder"
    raise ConfigError(f"{path}: data.path is {data.path}, and there is no such folder; {mend}")


# --- models, prompts, scorers -----------------------------------------------------------------------------------------


def sampling(models: Iterable[str], prompts: str | Path, *, image: Path | None = None, out: Path | None = None) -> None:
    """Raises ConfigError or FileNotFoundError for models, prompts or pictures that are not there, or an `out` that is a
    file."""
    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file, and a folder is wanted: choose another name")
    for name in models:
        model(name)
    prompt_lines(prompts)
    if image is not None and not image.exists():
        raise ConfigError(f"--image {image}: there is no such file or folder; give a picture, or a folder of them")


def arguments(given: Sequence[str]) -> dict[str, bool | int | float | str]:
    """Arguments of a model's calls, each as NAME=VALUE. Raises ConfigError for what is not, or stands twice."""
    found: dict[str, bool | int | float | str] = {}
    for text in given:
        name, equals, written = text.partition("=")
        try:
            value = yaml.safe_load(written)
        except yaml.YAMLError:
            value = None
        if not equals or not name.isidentifier() or not isinstance(value, bool | int | float | str):
            raise ConfigError(f"--call {text}: write NAME=VALUE, such as num_frames=33")
        if name in found:
            raise ConfigError(f"--call {name} is given twice")
        found[name] = value
    return found


def comparison_folder(models: Sequence[str]) -> Path:
    """Where a comparison goes that is told no folder: each of other models has its own."""
    slugs = (re.sub(r"[^\w.-]+", "-", name.removeprefix("runs/")).strip("-.") for name in models)
    return Path("runs/compare") / "-vs-".join(slugs)[:120]


def model(name: str) -> None:
    """Raises FileNotFoundError for a name that is no folder, no run, no world and no hub id."""
    if not (Path(name) / "config.yaml").is_file():
        resolve_model(name)


def run(folder: Path, *, finished: bool = False) -> None:
    """Raises ConfigError for what is no run's folder; finished: nor for one whose training has not ended."""
    held = ("config.yaml",) if finished else ("config.yaml", "metrics.jsonl", "result.json")
    if not any((folder / name).is_file() for name in held):
        raise ConfigError(f"{folder} is no run's folder: it has no config.yaml")
    if finished and not (folder / "model").is_dir() and not (folder / "adapter").is_dir():
        raise ConfigError(f"{folder} has no adapter/ yet: let its training finish by the command that began it")


def scorers(names: Iterable[str]) -> None:
    """Raises PluginError for the name of a scorer that there is not."""
    for name in names:
        if name.startswith(WORLD):
            plugins.world(judges.split(name)[0])
        elif not name.startswith(IMPLICIT):
            plugins.check("scorers", judges.parse(judges.split(name)[0]).plugin)


def prompt_lines(prompts: str | Path | Sequence[str], base: Path | None = None) -> list[Prompt]:
    """Prompts in order: a list, a file as `palate.prompts` reads, or `world:<name>[:train|:eval]`; one that stands
    there twice comes twice.

    base: another folder to look for the file in. Raises ConfigError naming the file, and the line that is no text.
    """
    if not isinstance(prompts, str | Path):
        found, source = [Prompt(text.strip()) for text in prompts if text.strip()], "the list of prompts"
    elif str(prompts).startswith(WORLD):
        name, _, split = str(prompts).removeprefix(WORLD).partition(":")
        of_world, source = plugins.world(name), str(prompts)
        category = getattr(of_world, "category", lambda text: "")
        found = [Prompt(text, category(text)) for text in of_world.prompts(split or "train")]
    else:
        path = base / prompts if base and not Path(prompts).exists() else Path(prompts)
        try:
            found, source = prompt_files.read(path), str(path)
        except prompt_files.PromptError as error:
            raise ConfigError(str(error)) from None
    if not found:
        raise ConfigError(f"{source} holds no prompts: write one a line")
    return found
