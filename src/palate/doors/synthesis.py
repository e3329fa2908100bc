"""`palate dataset synthesize`: ranked preference data without people, after Syn-Pic (RankDPO, arXiv:2410.18013,
section 3.2 and algorithm 1).

Every prompt has k candidates of each of several models; every scorer scores them all. phi_i = C_i / (n (K - 1)), the
share of its comparisons, over n scorers and K - 1 others, that a candidate wins strictly, ranks them: `prefer` is the
order of phi, and the scores are kept, of which `rankdpo` makes the same phi.

A shard is a pure function of the job and its number: a range of prompts, each picture from a noise of its own keyed by
(seed, prompt, candidate), written aside and renamed. So a run that was killed does what is missing, several machines
may share the work by Ray Data, and the files are the same (to the bit on one kind of device, by one number of threads
and one size of batch).
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from palate import durable, losses, remote, sampling, views, wire
from palate.config import ConfigError
from palate.datasets import parquet
from palate.doors import drawing, judging, lookup
from palate.models.diffusion import DiffusionPolicy
from palate.records import Medium, Preference
from palate.training.logs import Progress

WORK = "work"  # of what is not yet the data set
COST = "cost.json"
MADE_OF = "synthesis.json"
Cost = dict[str, Counter[str]]  # model or scorer -> what it took
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Job:
    """What is to be made, and how. k: candidates of each model. scorers: weight by name, of which the sign counts.

    asked: sampling settings, None for a model's own. batch_size and in_memory, the models held at once, are for speed:
    a job goes on with others, since a smaller batch is what mends a full device.
    """

    out: Path
    prompts: tuple[str, ...]
    models: tuple[str, ...]
    scorers: Mapping[str, float]
    k: int
    seed: int
    per_shard: int
    batch_size: int
    asked: Mapping[str, Any] = field(default_factory=dict)
    in_memory: int = 1

    @property
    def shards(self) -> range:
        return range(-(-len(self.prompts) // self.per_shard))

    def folder(self, number: int) -> Path:
        return self.out / WORK / f"shard-{number:05d}"

    def made_of(self) -> dict[str, Any]:
        """All that says which data set this is."""
        return {
            "models": list(self.models),
            "scorers": dict(self.scorers),
            "k": self.k,
            "seed": self.seed,
            "prompts_sha256": drawing.digest(self.prompts),
            "prompts_per_shard": self.per_shard,
            **self.asked,
        }


class Models:
    """Models by name, so many in memory at once: the one used the longest ago goes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[str, DiffusionPolicy] = {}

    def __call__(self, name: str) -> DiffusionPolicy:
        policy = self._held.pop(name, None)
        if policy is None:
            while len(self._held) >= self._most:
                del self._held[next(iter(self._held))]
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            policy = lookup.load_arm(name)
        self._held[name] = policy
        return policy


def synthesize(
    prompts: str | Path,
    out: Path,
    models: Sequence[str],
    scorers: Sequence[str],
    *,
    k: int,
    seed: int,
    per_shard: int = 64,
    batch_size: int = 8,
    in_memory: int = 1,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    eta: float | None = None,
    ray: bool = False,
    workers: int | None = None,
) -> Path:
    """Ranked preferences in Palate's own format in `out`, and what they cost. Again: only what is missing is made.

    scorers: names, or `name=-1` where less is better; behind a slash one dimension. ray: by Ray Data, with so many
    workers, one each GPU by default. Raises ConfigError for a folder with other data, or what cannot be asked for.
    """
    texts = tuple(lookup.read_prompts(prompts))
    asked = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "eta": eta}
    job = Job(out, texts, tuple(models), _signs(scorers), k, seed, per_shard, batch_size, asked, in_memory)
    if len(set(job.models)) != len(job.models):
        raise ConfigError(f"--model {' '.join(models)}: each model once; -k says how many candidates of each")
    if k * len(job.models) < 2:
        raise ConfigError("one candidate a prompt compares with none: raise -k, or give several models")
    with durable.locked(out):
        if not _finished(job):
            _check(job)
            drawing.same_folder(out / MADE_OF, job.made_of(), "preferences")
            _make(job, ray, workers)
        shutil.rmtree(out / WORK, ignore_errors=True)
        _tell(out)
    return out


def _signs(scorers: Sequence[str]) -> dict[str, float]:
    signs: dict[str, float] = {}
    for text in scorers:
        name, _, sign = text.partition("=")
        if sign not in ("", "1", "-1"):
            raise ConfigError(f"--scorer {text}: only the order of its scores counts; write {name} or {name}=-1")
        if name in signs:
            raise ConfigError(f"--scorer {name} is given twice")
        signs[name] = -1.0 if sign == "-1" else 1.0
    return signs


def _finished(job: Job) -> bool:
    """Whether the folder holds all of this job. Raises ConfigError if it holds another."""
    held, finished = job.out / MADE_OF, (job.out / "manifest.json").is_file()
    if held.is_file():
        drawing.same_folder(held, job.made_of(), "preferences")
    elif finished:
        raise ConfigError(f"{job.out} holds another data set; choose another --out")
    return finished


def _check(job: Job) -> None:
    """Raises for scorers and models that cannot be had: before the folder is this job's, so that a slip leaves it."""
    lookup.weighted(job.scorers).check(job.prompts)
    for model in job.models:
        lookup.check_arm(model)


def _make(job: Job, ray: bool, workers: int | None) -> None:
    """What is missing of the shards, and the data set of all of them."""
    (job.out / WORK).mkdir(exist_ok=True)
    durable.sweep(job.out / WORK)
    missing = [number for number in job.shards if not job.folder(number).is_dir()]
    pictures = len(job.prompts) * len(job.models) * job.k
    left = sum(len(_prompts(job, number)) for number in missing) * len(job.models) * job.k
    with closing(Progress(pictures, pictures - left, what="picture")) as bar:
        if ray and missing:
            _by_ray(job, missing, workers, bar.advance)
        else:
            held = Models(job.in_memory)
            for number in missing:
                make_shard(job, number, held, bar.advance)
    total: Cost = {}
    for number in job.shards:
        for name, spent in json.loads((job.folder(number) / COST).read_text(encoding="utf-8")).items():
            total.setdefault(name, Counter()).update(spent)
    judging.write_json(job.out / COST, total)
    parquet.join(job.out, [job.folder(number) for number in job.shards])


# --- a shard ----------------------------------------------------------------------------------------------------------


def make_shard(job: Job, number: int, models: Models, advance: Advance = lambda more: None) -> None:
    """The shard of that number, a finished data set in a folder of its own with what it cost; whole or not at all."""
    cost: Cost = {}
    rows = _rows(job, _prompts(job, number), models, cost, advance)
    with durable.written_aside(job.folder(number)) as aside:
        parquet.write(aside, rows)
        judging.write_json(aside / COST, cost)


def _prompts(job: Job, number: int) -> Sequence[str]:
    return job.prompts[number * job.per_shard : (number + 1) * job.per_shard]


def _rows(job: Job, prompts: Sequence[str], models: Models, cost: Cost, advance: Advance) -> list[Preference]:
    """A row of each prompt: candidates of the first model, then of the next."""
    made = [_sampled(job, place, prompts, models, cost, advance) for place in range(len(job.models))]
    media = [[picture for some in made for picture in some[p]] for p in range(len(prompts))]
    flat = [picture for some in media for picture in some]
    wide = len(job.models) * job.k
    scores = _scores(job, [prompt for prompt in prompts for _ in range(wide)], flat, cost)
    names, table = tuple(scores), np.stack(list(scores.values()), -1).reshape(len(prompts), wide, -1)
    return [
        Preference(
            prompt=prompt,
            media=tuple(Medium("image/png", wire.png(picture)) for picture in media[p]),
            dimensions=names,
            sources=tuple(model for model in job.models for _ in range(job.k)),
            seeds=(job.seed,) * wide,
            **ranked(table[p]),
        )
        for p, prompt in enumerate(prompts)
    ]


def ranked(scores: np.ndarray) -> dict[str, Any]:
    """prefer and votes [K, K] and scores [K, D] of K candidates' scores: the order of phi, with as many votes as
    scorers could judge both."""
    known = np.isfinite(scores)
    scores = np.where(known, scores, np.nan)
    phi = losses.win_shares(torch.from_numpy(scores)[None], torch.ones(1, len(scores), dtype=torch.bool))[0]
    prefer = views.prefer_from_scores(phi.numpy())
    judges = np.where(np.isnan(prefer), 0, (known[:, None] & known[None]).sum(-1))
    return {"prefer": prefer.tolist(), "votes": judges.tolist(), "scores": scores.tolist()}


def _sampled(
    job: Job, place: int, prompts: Sequence[str], models: Models, cost: Cost, advance: Advance
) -> list[list[Image.Image]]:
    """k pictures of each prompt by one of the models."""
    name, began = job.models[place], time.perf_counter()
    policy = models(name)
    loaded = time.perf_counter()
    numbers = range(place * job.k, (place + 1) * job.k)
    media = sampling.sample(
        policy,
        [prompt for prompt in prompts for _ in numbers],
        [f"{prompt}/{number}" for prompt in prompts for number in numbers],
        seed=job.seed,
        batch_size=job.batch_size,
        progress=advance,
        **lookup.settings_of(name, policy, **job.asked),
    )
    if not all(isinstance(picture, Image.Image) for picture in media):
        raise ConfigError(f"{name} makes no pictures, and palate dataset synthesize writes nothing else")
    spent = {"pictures": len(media), "seconds": time.perf_counter() - loaded, "loading": loaded - began}
    cost[f"model {name}"] = Counter(spent)
    return [media[row : row + job.k] for row in range(0, len(media), job.k)]


def _scores(job: Job, prompts: Sequence[str], media: Sequence[Image.Image], cost: Cost) -> dict[str, np.ndarray]:
    """Scores [n] by dimension, each scorer asked for a batch at a time."""
    found: dict[str, np.ndarray] = {}
    for name, sign in job.scorers.items():
        judge = lookup.find_scorer(lookup.split_scorer(name)[0])
        before = judging.tally_of(judge)
        scorer, began = lookup.weighted({name: sign}), time.perf_counter()
        calls = list(judging.whole_prompts(prompts, job.batch_size))
        parts = [scorer([prompts[row] for row in rows], [media[row] for row in rows]) for rows in calls]
        back = np.argsort(np.concatenate(calls))
        given = {d: np.concatenate([part[d] for part in parts])[back] for d in parts[0]}
        unknown = int(sum((~np.isfinite(values)).sum() for values in given.values()))
        spent = {
            "calls": len(calls),
            "pictures": len(media),
            "unknown": unknown,
            "seconds": time.perf_counter() - began,
        }
        cost[f"scorer {name}"] = Counter(spent | judging.tally_since(judge, before))
        found |= {(d if d not in found else f"{name}.{d}"): values for d, values in given.items()}
    return found


# --- several machines -------------------------------------------------------------------------------------------------


class _Worker:
    """One of Ray's actors: its models stay between shards."""

    def __init__(self, job: Job) -> None:
        self._job, self._models = job, Models(job.in_memory)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        number = int(row["number"])
        if not self._job.folder(number).is_dir():  # Ray may try a shard again that was done
            make_shard(self._job, number, self._models)
        return {"number": number, "prompts": len(_prompts(self._job, number))}


def _by_ray(job: Job, missing: Sequence[int], workers: int | None, advance: Advance) -> None:
    """The shards by Ray Data, on the cluster of RAY_ADDRESS or on this machine; `out` must be a folder they share."""
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ModuleNotFoundError:
        raise ConfigError("--ray needs Ray Data: pip install 'palate[ray]'") from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="WARNING")
    gpus = int(ray.cluster_resources().get("GPU", 0))
    workers = min(workers or max(gpus, 1), len(missing))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    shards = ray.data.from_items([{"number": number} for number in missing], override_num_blocks=len(missing))
    pool = ray.data.ActorPoolStrategy(size=workers)
    done = shards.map(_Worker, fn_constructor_args=(job,), compute=pool, num_cpus=1, num_gpus=1 if gpus else 0)
    try:
        for row in done.iter_rows():
            advance(int(row["prompts"]) * len(job.models) * job.k)
    except ray.exceptions.RayError as error:
        raise _cause(error) from None


def _cause(error: BaseException) -> BaseException:
    """What a worker met, out of Ray's wrapping, if it is for the user to mend."""
    inner: BaseException | None = error
    while inner is not None:
        if not type(inner).__module__.startswith("ray.") and isinstance(
            inner, ValueError | OSError | remote.RemoteError
        ):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error


# --- what it cost -----------------------------------------------------------------------------------------------------


def _tell(out: Path) -> None:
    """How much there is, and what it cost, by model and by scorer."""
    total = json.loads((out / COST).read_text(encoding="utf-8"))
    facts = parquet.manifest(out)
    for name, spent in total.items():
        each = f"{spent['seconds']:,.1f} s, {spent['seconds'] / max(spent['pictures'], 1):.3f} s a picture"
        if name.startswith("model "):
            print(f"{name}: {spent['pictures']:,} pictures, {each}, loading {spent['loading']:,.1f} s")
        else:
            calls = f"{spent['calls']:,} calls, {spent['pictures']:,} pictures"
            print(f"{name}: {calls}, {each}, {spent['unknown']:,} scores unknown")
        judging.tell_tally(spent)
    seconds = sum(spent["seconds"] + spent.get("loading", 0.0) for spent in total.values())
    print(f"{facts.rows:,} ranked prompts in {out}: {seconds:,.0f} s in all")
