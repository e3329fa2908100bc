"""What the commands do: train by a recipe, sample, compare. Each writes a folder that another command can read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from palate import assembly, config, plugins, sampling
from palate.config import ConfigError, Recipe
from palate.evaluation import compare as comparing
from palate.evaluation import grids, report
from palate.models.diffusion import DiffusionPolicy
from palate.training import adapters, durable
from palate.training.logs import Progress
from palate.training.processes import join
from palate.training.sources import Source
from palate.training.trainer import Result


def train(path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Trains by a recipe, compares with the base if it says how, and writes the report. Returns the run's folder.

    The same command again resumes an unfinished run; a finished one says so. Raises ConfigError for a folder whose
    recipe differs.
    """
    recipe = config.load(path, overrides, Recipe)
    algorithm = plugins.find("algorithms", recipe.algorithm.name)
    options = config.section(recipe.algorithm.options, algorithm.Config, "algorithm", path)
    _check_source(recipe, algorithm, path)
    folder, beside = Path(recipe.output), Path(path).parent
    if _finished(folder, recipe):
        print(f"{folder} is finished; its report is {folder / 'report.html'}")
        return folder

    policy = assembly.load_policy(recipe.model, recipe.training.seed)
    reference = assembly.reference_for(policy, algorithm, options)
    source = _source(policy, recipe, algorithm, options, reference, beside)
    evaluate = _evaluation(policy, recipe, beside, folder) if recipe.evaluation else None
    result = assembly.fit(
        policy, algorithm, options, source, recipe.training, folder, reference=reference, evaluate=evaluate
    )
    if join(policy.device).first:
        _conclude(policy, recipe, beside, folder, result)
    return folder


def _source(
    policy: DiffusionPolicy, recipe: Recipe, algorithm: Any, options: Any, reference: Any, beside: Path
) -> Source:
    """Stored preferences, or rounds of the policy's own samples."""
    if recipe.data:
        folder = beside / recipe.data.path if not Path(recipe.data.path).exists() else Path(recipe.data.path)
        read = assembly.read_preferences(folder, recipe.data.max_bad_fraction)
        if recipe.model.check_kind:
            assembly.check_kind(policy, read)
        rows = assembly.encode(policy, read)
        return assembly.offline_source(policy, rows, options, recipe.training, recipe.data.held_out)
    assert recipe.rollout
    return assembly.online_source(
        policy,
        algorithm,
        options,
        assembly.read_prompts(recipe.rollout.prompts, beside),
        assembly.weighted(recipe.rollout.scorers),
        recipe.rollout,
        recipe.training,
        _sampler(policy, recipe.model.name, recipe.rollout),
        reference,
    )


def _sampler(policy: DiffusionPolicy, model: str, wanted: Any) -> dict[str, Any]:
    """The sampling settings of a recipe's section, filled up with the model's own."""
    return assembly.settings_of(
        model,
        policy,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale,
        eta=wanted.eta,
    )


def _check_source(recipe: Recipe, algorithm: Any, path: str | Path) -> None:
    wants = algorithm.NEEDS.source
    has = "offline" if recipe.data else "online"
    if wants != has:
        section = "data" if wants == "offline" else "rollout"
        raise ConfigError(f"{path}: {recipe.algorithm.name} is an {wants} method: give it the section '{section}'")
    if recipe.rollout and algorithm.NEEDS.k is None and recipe.rollout.k < 2:
        raise ConfigError(
            f"{path}: {recipe.algorithm.name} compares candidates of a prompt: set rollout.k to 2 or more"
        )


def _finished(folder: Path, recipe: Recipe) -> bool:
    """Whether the folder holds this recipe's finished run. Writes the resolved recipe into a new folder."""
    held = folder / "config.yaml"
    begun = any((folder / "checkpoints").glob("step-*")) or (folder / "result.json").is_file()
    if held.is_file() and begun:  # a run that failed before its first checkpoint may be mended in place
        changes = config.difference(config.load(held, (), Recipe), recipe)
        if changes:
            raise ConfigError(f"{folder} was begun with another recipe: {'; '.join(changes)}; choose another output")
        return (folder / "result.json").is_file()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.dump(recipe, held)
    except PermissionError as error:
        raise durable.StorageError(f"{folder}: no permission to write; choose another output") from error
    return False


def _evaluation(
    policy: DiffusionPolicy, recipe: Recipe, beside: Path, folder: Path
) -> Callable[[int], Mapping[str, float]]:
    """Fixed prompts from fixed noise, scored, and their grid in samples/; a few, since it is done often."""
    assert recipe.evaluation
    prompts, seed = assembly.read_prompts(recipe.evaluation.prompts, beside)[:32], recipe.evaluation.seed
    scorer = assembly.weighted(recipe.evaluation.scorers)
    settings = _sampler(policy, recipe.model.name, recipe.evaluation)

    def evaluate(step: int) -> Mapping[str, float]:
        arm = comparing.run_arm(policy, prompts, scorer, n=1, seed=seed, settings=settings)
        (folder / "samples").mkdir(exist_ok=True)
        grids.grid(arm.media, columns=8, scale=2).save(folder / "samples" / f"step_{step:06d}.png")
        return {f"evaluation/{name}": float(np.nanmean(values)) for name, values in arm.scores.items()}

    return evaluate


def _conclude(policy: DiffusionPolicy, recipe: Recipe, beside: Path, folder: Path, result: Result) -> None:
    """result.json with the comparison, and the report."""
    facts: dict[str, Any] = {
        "method": recipe.algorithm.name,
        "seed": recipe.training.seed,
        "step": result.step,
        "ended": result.reason,
        "weights": f"{result.exported}, step {result.exported_step}",
        "versions": report.versions(),
    }
    if recipe.evaluation:
        prompts = assembly.read_prompts(recipe.evaluation.prompts, beside)[: recipe.evaluation.max_prompts]
        run_arm = partial(
            comparing.run_arm,
            prompts=prompts,
            scorer=assembly.weighted(recipe.evaluation.scorers),
            n=recipe.evaluation.n,
            seed=recipe.evaluation.seed,
            settings=_sampler(policy, recipe.model.name, recipe.evaluation),
        )
        tuned = run_arm(policy)
        with base_of(policy, recipe.model.name) as untouched:
            before = run_arm(untouched)
        facts |= summary(before, tuned, dict.fromkeys(before.scores, 1.0))
        facts["pairs"] = grids.write_pairs(folder / "samples", before.prompts[:16], before.media[:16], tuned.media[:16])
    write_json(folder / "result.json", facts)
    report.write(report.from_run(folder), folder / "report.html")
    print(f"done: {folder / 'report.html'}")


@contextlib.contextmanager
def base_of(policy: DiffusionPolicy, model: str) -> Iterator[DiffusionPolicy]:
    """The model as it was before training: the adapter off, or, fully fine-tuned, loaded once more."""
    if adapters.has_adapter(policy):
        with adapters.without_adapter(policy.module):
            yield policy
    else:
        yield DiffusionPolicy.load(model, device=policy.device, dtype=policy.pipeline.dtype)


def summary(
    base: comparing.Arm, tuned: comparing.Arm, weights: Mapping[str, float], judge: str = "reward", tie: float = 0.0
) -> dict[str, Any]:
    """The verdict as `result.json` holds it: win rate of tuned over base with its interval, and every dimension."""
    judged = comparing.judge(base, tuned, weights, tie=tie)
    verdict = judged.verdict
    return {
        "win_rate": verdict.rate,
        "win_rate_ci95": list(verdict.ci95),
        "ties": verdict.ties,
        "pairs_judged": verdict.n,
        "prompts_judged": verdict.n_prompts,
        "base": {name: found.b.mean for name, found in judged.dimensions.items()},
        "tuned": {name: found.a.mean for name, found in judged.dimensions.items()},
        "wins": {judge: asdict(verdict)},
        "dimensions": {name: asdict(found) for name, found in judged.dimensions.items()},
    }


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    aside = path.with_name(path.name + ".partial")
    aside.write_text(json.dumps(_finite(facts), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(path)


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON has no word for: an interval of a single prompt is endless."""
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- sample and compare -----------------------------------------------------------------------------------------------


def sample(
    model: str,
    prompts: str | Path,
    *,
    k: int,
    out: Path,
    seed: int,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    eta: float | None = None,
    batch_size: int = 8,
) -> Path:
    """k pictures of each prompt under out/, and samples.jsonl saying which is which. Again: only what is missing."""
    texts = assembly.read_prompts(prompts)
    asked = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "eta": eta}
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    _same_folder(out / "sampling.json", {"model": model, "seed": seed, "prompts_sha256": digest, **asked})
    wanted = [(i, j) for i in range(len(texts)) for j in range(k) if not _picture(out, i, j).is_file()]
    if wanted:
        policy = assembly.load_arm(model)
        settings = assembly.settings_of(model, policy, **asked)
        bar = Progress(len(wanted), 0, what="picture")
        for start in range(0, len(wanted), batch_size):
            part = wanted[start : start + batch_size]
            rows, ids = [texts[i] for i, _ in part], [f"{texts[i]}/{j}" for i, j in part]
            media = sampling.sample(policy, rows, ids, seed=seed, batch_size=batch_size, **settings)
            for (i, j), picture in zip(part, media, strict=True):
                aside = _picture(out, i, j).with_suffix(".partial")
                picture.save(aside, "PNG")
                aside.replace(_picture(out, i, j))
            bar.update(start + len(part), {})
        bar.close()
    rows_out = [
        {"prompt": text, "file": _picture(out, i, j).name, "candidate": j, "seed": seed, "model": model}
        for i, text in enumerate(texts)
        for j in range(k)
    ]
    (out / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_out), encoding="utf-8")
    print(f"{len(rows_out)} pictures in {out} ({len(wanted)} new)")
    return out


def _same_folder(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes what the folder is made of, or raises ConfigError with the difference from what it was made of before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        changes = config.difference(json.loads(path.read_text(encoding="utf-8")), settings)
        if changes:
            raise ConfigError(f"{path.parent} holds other samples: {'; '.join(changes)}; choose another --out")
    write_json(path, settings)


def _picture(out: Path, prompt: int, candidate: int) -> Path:
    return out / f"{prompt:05d}-{candidate}.png"


def compare(
    a: str,
    b: str,
    *,
    prompts: str | Path,
    scorers: Sequence[str],
    n: int,
    out: Path,
    seed: int,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    eta: float | None = None,
    batch_size: int = 8,
) -> Path:
    """b against a on the same prompts from the same noise: result.json and report.html in out."""
    texts = assembly.read_prompts(prompts)
    scorer = assembly.weighted(dict.fromkeys(scorers, 1.0))
    arms, settings = [], None
    for model in (a, b):
        policy = assembly.load_arm(model)
        if settings is None:  # one sampler for both, the base's: what is compared is the models
            settings = assembly.settings_of(
                model, policy, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, eta=eta
            )
        bar = Progress(len(texts) * n, 0, what="picture")
        sampler = {**settings, "batch_size": batch_size}
        arms.append(comparing.run_arm(policy, texts, scorer, n=n, seed=seed, settings=sampler, progress=bar.advance))
        bar.close()
    out.mkdir(parents=True, exist_ok=True)
    facts = {
        "a": a,
        "b": b,
        "seed": seed,
        "sampling": settings,
        **summary(arms[0], arms[1], dict.fromkeys(arms[0].scores, 1.0)),
    }
    facts["pairs"] = grids.write_pairs(out / "samples", arms[0].prompts[:16], arms[0].media[:16], arms[1].media[:16])
    write_json(out / "result.json", facts)
    report.write(report.from_run(out), out / "report.html")
    low, high = facts["win_rate_ci95"]
    print(f"{b} wins {facts['win_rate']:.1%} of {facts['pairs_judged']} pairs (95% interval {low:.1%} to {high:.1%})")
    print(f"{out / 'report.html'}")
    return out
