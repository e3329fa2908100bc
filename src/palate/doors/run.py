"""`palate train`: trains by a recipe, into a folder that other commands can read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from palate import config, durable, views
from palate.config import DataSettings, Recipe, RoundsRecipe
from palate.doors import asked, assembly, encoding, judging, lineage, lookup, matching
from palate.evaluation import report
from palate.models.diffusion import DiffusionPolicy
from palate.relabel import Relabel
from palate.training.cache import TensorCache, default_folder
from palate.training.labels import Labels
from palate.training.offline import Offline
from palate.training.online import Online
from palate.training.processes import Processes, join
from palate.training.trainer import Result

_PLACES = (
    ("model", "name"),
    ("model", "adapter"),
    ("data", "path"),
    ("rollout", "prompts"),
    ("evaluation", "prompts"),
)  # where a recipe names a file, a folder or something on a hub


def train(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Trains by a recipe, compares with the base if it says how, and writes the report. Returns the run's folder.

    The same command again resumes an unfinished run; a finished one says so. Raises ConfigError for a folder whose
    recipe differs, StorageError for one that another run is using.
    """
    recipe, algorithm, options = asked.training(path, overrides)
    folder = Path(recipe.output)
    processes = join(torch.device(lookup.pick_device(recipe.model.device)))
    with contextlib.ExitStack() as stack:
        if processes.first:
            stack.enter_context(durable.unmade(folder, unless_more_than=(durable.LOCK, "config.yaml")))
            stack.enter_context(durable.locked(folder))
        if not _finished(recipe, processes):
            _train(recipe, algorithm, options, folder, Path(path), processes)
        elif processes.first:
            judging.mend(folder)
            print(f"{folder} is finished; its report is {folder / 'report.html'}")
    return folder


def _train(recipe: Recipe, algorithm: Any, options: Any, folder: Path, path: Path, processes: Processes) -> None:
    """`train` in a folder that is this run's alone. What can be mended is found before a model is loaded."""
    beside, first = path.parent, processes.first
    _check_inputs(recipe, path)
    if first:
        config.dump(recipe, folder / "config.yaml")
    policy = lookup.load_policy(recipe.model, recipe.training.seed)
    assembly.check_fits(policy, algorithm, options, path)  # before hours of encoding
    draws = recipe.data.reference_draws if recipe.data else 0
    reference = None if draws else assembly.reference_for(policy, algorithm, options)
    with _cache(recipe, processes) as cache:
        source = _source(policy, recipe, algorithm, options, reference, path, cache)
        if draws and isinstance(source, Offline):
            assembly.know_reference(policy, algorithm, options, source, recipe.training, folder / "reference")
        _settle(policy, recipe, beside)
        known = views.overlap(judging.judged_on(recipe.evaluation, beside), source.prompts) if recipe.evaluation else []
        if known and first:
            print(f"warning: {report.caution(len(known))}")  # before the training: the recipe can still be mended
        evaluate = None
        if recipe.evaluation:
            evaluate = judging.watch(
                policy, recipe.model.name, recipe.evaluation, folder, beside, lambda said: source.note(said),
                rewards=lineage.of_recipe(recipe.model_dump(), beside),
                looks=recipe.training.max_steps // (recipe.training.evaluate_every or 1) + 2,
            )  # fmt: skip
        how: dict[str, Any] = {"reference": reference, "evaluate": evaluate, "locked": True}
        result = assembly.fit(policy, algorithm, options, source, recipe.training, folder, **how)
        if first:
            _conclude(policy, recipe, beside, folder, result, source)


def _settle(policy: DiffusionPolicy, recipe: Recipe, beside: Path) -> None:
    """With all that is trained on encoded, nothing but the denoiser need stay; prompts to be drawn are remembered."""
    if recipe.data is None:
        return
    wanted = recipe.evaluation
    if wanted is None:
        policy.settle([])
    else:
        guided = judging.sampler_of(policy, recipe.model.name, wanted)["guidance_scale"] is not None
        policy.settle(judging.judged_on(wanted, beside), guided=guided)


@contextlib.contextmanager
def _cache(recipe: Recipe, processes: Processes) -> Iterator[TensorCache | None]:
    """Where latents and conditions of stored preferences are kept; nothing for an online run.

    The first process guards it for all of them, from before they open it.
    """
    if recipe.data is None:
        yield None
        return
    if not processes.first:
        processes.wait()
    folder, budget = recipe.data.cache or default_folder(), recipe.data.cache_gb * 2**30
    with TensorCache(folder, budget, guard=processes.first) as cache:
        if processes.first:
            processes.wait()
        yield cache


def _scorers(recipe: Recipe) -> list[str]:
    """All that a recipe names, whatever for."""
    named = [recipe.rollout.scorers] if recipe.rollout else []
    named += [recipe.data.relabel] if recipe.data and recipe.data.relabel else []
    named += [recipe.evaluation.scorers] if recipe.evaluation else []
    return [name for scorers in named for name in scorers]


def _check_inputs(recipe: Recipe, path: Path) -> None:
    """Raises ConfigError for data, prompts or a LoRA that are not there, and what a scorer cannot judge."""
    matching.check_models(_scorers(recipe), [recipe.model.name])
    if recipe.model.adapter:
        lookup.check_adapter(recipe.model.name, recipe.model.adapter)
    if recipe.data:
        asked.reader(recipe.data, path)
        if recipe.data.relabel:
            lookup.weighted(recipe.data.relabel)
    if recipe.rollout:
        lookup.weighted(recipe.rollout.scorers).check(lookup.read_prompts(recipe.rollout.prompts, path.parent))
    if recipe.evaluation:
        judging.check(recipe.evaluation, path.parent, lineage.of_recipe(recipe.model_dump(), path.parent))


def _change(data: DataSettings, folder: Path, rank: int) -> contextlib.AbstractContextManager[encoding.Change | None]:
    """What becomes of a row before it is learnt from; scores are kept in the run's folder."""
    if not data.relabel:
        return contextlib.nullcontext()
    return Labels(Relabel(lookup.weighted(data.relabel), data.relabel_temperature), folder, data.relabel, rank)


def _source(
    policy: DiffusionPolicy,
    recipe: Recipe,
    algorithm: Any,
    options: Any,
    reference: Any,
    path: Path,
    cache: TensorCache | None,
) -> Offline | Online:
    """Stored preferences, or rounds of the policy's own samples."""
    if recipe.data and cache:
        reader = asked.reader(recipe.data, path)
        folder, processes = Path(recipe.output), join(policy.device)
        if recipe.model.check_kind and not recipe.model.name.startswith(lookup.WORLD):  # whose own weights are known
            doubt = encoding.check_kind(policy, encoding.sample_of(reader))
            if doubt and processes.first:
                print(f"warning: {doubt}")
        with _change(recipe.data, folder, processes.rank) as change:
            rows = encoding.stored(
                policy,
                reader,
                cache,
                folder,
                max_bad_fraction=recipe.data.max_bad_fraction,
                dimension=recipe.data.dimension,
                sizes=encoding.sizes_of(policy, recipe.data.buckets),
                change=change,
                processes=processes,
            )
        return assembly.offline_source(
            policy, rows, algorithm, options, recipe.training, recipe.data.held_out, recipe.data.reference_draws
        )
    assert recipe.rollout
    return assembly.online_source(
        policy,
        algorithm,
        options,
        lookup.read_prompts(recipe.rollout.prompts, path.parent),
        lookup.weighted(recipe.rollout.scorers),
        recipe.rollout,
        recipe.training,
        judging.sampler_of(policy, recipe.model.name, recipe.rollout),
        reference,
    )


def _finished(recipe: Recipe, processes: Processes) -> bool:
    """Whether the folder holds this recipe's finished run; the first process looks, and tells the others."""
    return processes.tell("finished" if processes.first and asked.finished(recipe) else None) is not None


def _conclude(
    policy: DiffusionPolicy, recipe: Recipe, beside: Path, folder: Path, result: Result, source: Offline | Online
) -> None:
    """result.json, with the comparison if the recipe asks for one, the report, and the card beside the weights."""
    facts: dict[str, Any] = {
        "method": recipe.algorithm.name,
        "seed": recipe.training.seed,
        "step": result.step,
        "ended": result.reason,
        "weights": f"{result.exported}, step {result.exported_step}",
        "warnings": list(result.warnings),
        "trained_on": assembly.trained_on(source),
        "local": local_places(recipe, beside),
        "versions": report.versions(),
    }
    if recipe.evaluation:
        base = recipe.model
        facts |= judging.judge(
            policy, base.name, recipe.evaluation, folder, source.prompts, beside, base.adapter,
            rewards=lineage.of_recipe(recipe.model_dump(), beside),
        )  # fmt: skip
        if (guard := facts["against_base"]["guard"]) and guard["alarm"]:
            facts["warnings"] = [*facts["warnings"], guard["says"]]
    judging.publish(folder, facts)
    measured = "guard/loss" if recipe.evaluation and recipe.evaluation.guard == "stop" else "validation/loss"
    by = f" ({measured} {result.loss:.4g})" if result.loss is not None else ""
    print(f"kept: {result.exported}, step {result.exported_step} of {result.step}{by}")
    print(f"done: {folder / 'report.html'}")
    for warning in facts["warnings"]:  # once more, where nothing scrolls it away
        print(f"warning: {warning}")


def local_places(recipe: Recipe | RoundsRecipe, beside: Path) -> list[str]:
    """The recipe's keys whose values are files or folders here, not names on a hub, although they may look like some.

    beside: the recipe's folder, from which they may be meant, too.
    """
    told = recipe.model_dump()
    named = {place: (told[place[0]] or {}).get(place[1]) for place in _PLACES if told.get(place[0])}
    return [
        ".".join(place)
        for place, name in named.items()
        if isinstance(name, str) and any(path.expanduser().exists() for path in (Path(name), beside / name))
    ]
