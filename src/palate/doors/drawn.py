"""What the models of a comparison have drawn and how it was scored, kept as it comes, so that a kill loses one batch.

    drawn/sampling.json      the sampler of all models, the first one's
    drawn/judges.json        fingerprints of scorers that run elsewhere
    drawn/0/00003-1.png      candidate 1 of prompt 3 by the first model; WebM of videos, WAV of sounds
    drawn/0/scores.jsonl     a line a batch, written when its files are there: rows, files, scores, and whose these are

Batches are the same however often a comparison is stopped, so that on a CPU its numbers are, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from palate import kinds, sampling, wire
from palate.config import ConfigError
from palate.doors import judging, lookup, matching
from palate.evaluation.compare import Arm
from palate.kinds import Kind
from palate.media import type_of_path
from palate.models.contracts import Media
from palate.records import Medium
from palate.training.logs import Progress

SCORES, SAMPLER, JUDGES = "scores.jsonl", "sampling.json", "judges.json"


@dataclass(frozen=True)
class Plan:
    """What is to be drawn: n samples of each text by each model, those of one number from one noise whatever the model.

    judges: names of the scorers. kind: of what all models make, None where it is not known beforehand. call: arguments
    of each call of a pipeline. asked: settings of the sampler, None for the first model's own.
    """

    models: Sequence[str]
    texts: Sequence[str]
    n: int
    seed: int
    judges: Sequence[str]
    kind: Kind | None
    call: Mapping[str, Any]
    asked: Mapping[str, Any]
    batch_size: int

    @property
    def rows(self) -> list[str]:
        """The prompt of each sample."""
        return [text for text in self.texts for _ in range(self.n)]

    @property
    def ids(self) -> list[str]:
        return [f"judging/{text}/{number}" for text in self.texts for number in range(self.n)]


def arms(plan: Plan, scorer: lookup.Weighted, folder: Path) -> tuple[list[Arm], dict[str, Any]]:
    """What each model makes, scored, and the sampler of all, the first model's: what is compared is the models.

    folder: where it is kept, and looked for before anything is drawn; a model that is done is not loaded. Raises
    ConfigError for models that make media of several kinds, or such as a scorer does not judge, and for a server that
    is another scorer than before.
    """
    found: list[Arm] = []
    held = folder / SAMPLER
    settings = json.loads(held.read_text(encoding="utf-8")) if held.is_file() else None
    for number, model in enumerate(plan.models):
        kept = _Kept.read(folder / str(number))
        if settings is None or len(kept.files) < len(plan.rows):
            _check_judges(folder / JUDGES, scorer)
            policy = lookup.load_arm(model, plan.call)
            if settings is None:
                settings = lookup.settings_of(model, policy, **plan.asked)
                judging.write_json(held, settings)
            plan = _draw(plan, model, policy, settings, scorer, kept)
            del policy  # before the next is loaded: two at once need not fit
        scorer.origins |= kept.origins
        found.append(kept.arm(plan.rows))
    return found, settings or {}


def _check_judges(path: Path, scorer: lookup.Weighted) -> None:
    """Notes who answers for scorers that run elsewhere. Raises ConfigError if it is another than before."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    now = scorer.fingerprints
    for name, was in known.items():
        if name in now and not wire.same_scorer(was, now[name]):
            raise ConfigError(
                f"{name} is another scorer than the one that judged the first part (fingerprint {now[name]:.80}, not "
                f"{was:.80}): serve the former one again, or choose another --out"
            )
    judging.write_json(path, now | known)


def _draw(
    plan: Plan, model: str, policy: Any, settings: Mapping[str, Any], scorer: lookup.Weighted, kept: _Kept
) -> Plan:
    """Draws and scores the batches that are not all there. Returns the plan, in which the kind of media is known."""
    rows, ids = plan.rows, plan.ids
    batches = sampling.batches(policy, rows, plan.batch_size, guided=settings["guidance_scale"] is not None)
    lacking = [batch for batch in batches if not kept.files.keys() >= set(batch)]
    with closing(Progress(len(rows), len(rows) - sum(map(len, lacking)), what=f"{model}: sample")) as bar:
        for batch in lacking:
            texts = [rows[row] for row in batch]
            how = {"seed": plan.seed, "batch_size": plan.batch_size, **settings}
            media = sampling.sample(policy, texts, [ids[row] for row in batch], **how)
            plan = _agreed(plan, model, media[0])
            files = kept.write(batch, plan.n, media)
            kept.note(batch, files, scorer(texts, list(files)), scorer.origins)
            bar.advance(len(batch))
    return plan


def _agreed(plan: Plan, model: str, made: Media) -> Plan:
    """The plan with the kind of a model's medium, which scorers have to judge and other models to make."""
    kind = kinds.kind_of(made)
    if plan.kind is None:
        matching.check(plan.judges, kind, f"{model} makes")
    elif plan.kind != kind:
        raise ConfigError(f"only media of one kind can be compared: {model} makes {kind}, and not {plan.kind}")
    return replace(plan, kind=kind)


# --- on disk ----------------------------------------------------------------------------------------------------------


class Files(Sequence[Media]):
    """Media of files, each read when it is asked for: all of a comparison need not fit into memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, place: int) -> Media: ...
    @overload
    def __getitem__(self, place: slice) -> Files: ...
    def __getitem__(self, place: int | slice) -> Media:
        if isinstance(place, slice):
            return Files(self.paths[place])
        path = self.paths[place]
        return kinds.read(Medium(type_of_path(path.name), path=path.name), path.parent)


def file_of(arm: Arm, place: int) -> Path:
    """Where a medium of an arm of `arms` lies."""
    assert isinstance(arm.media, Files)
    return arm.media.paths[place]


@dataclass
class _Kept:
    """What a model's folder holds so far, by row: files, scores; and which scorer each score is of."""

    folder: Path
    files: dict[int, str] = field(default_factory=dict)
    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    origins: dict[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> _Kept:
        """As far as lines are whole and their files are as they were written: what a kill cut off is drawn anew."""
        folder.mkdir(parents=True, exist_ok=True)
        kept, path = cls(folder), folder / SCORES
        content = path.read_bytes() if path.is_file() else b""
        if whole := content[: content.rfind(b"\n") + 1]:
            for text in whole.decode().splitlines():
                kept._take(json.loads(text))
        if len(whole) < len(content):
            os.truncate(path, len(whole))  # else the next line would be part of this one
        return kept

    def _take(self, line: Mapping[str, Any]) -> None:
        files = [self.folder / name for name in line["files"]]
        if not all(
            file.is_file() and file.stat().st_size == size for file, size in zip(files, line["bytes"], strict=True)
        ):
            return
        for place, row in enumerate(line["rows"]):
            self.files[row] = line["files"][place]
            values = {name: given[place] for name, given in line["scores"].items()}
            self.scores[row] = {name: np.nan if value is None else value for name, value in values.items()}
        self.origins |= {score: (name, dimension) for score, (name, dimension) in line["origins"].items()}

    def write(self, rows: Sequence[int], n: int, media: Sequence[Media]) -> Files:
        """A batch's files, which are what is judged: people would see the same."""
        names = [f"{row // n:05d}-{row % n}" for row in rows]
        return Files([kinds.keep(self.folder, name, medium) for name, medium in zip(names, media, strict=True)])

    def note(
        self,
        rows: Sequence[int],
        files: Files,
        scores: Mapping[str, np.ndarray],
        origins: Mapping[str, tuple[str, str]],
    ) -> None:
        """The line that says that a batch is there."""
        line = {
            "rows": list(rows),
            "files": [path.name for path in files.paths],
            "bytes": [path.stat().st_size for path in files.paths],
            "scores": {score: [None if np.isnan(v) else float(v) for v in values] for score, values in scores.items()},
            "origins": {score: list(origins[score]) for score in scores},
        }
        with (self.folder / SCORES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(line)

    def arm(self, rows: Sequence[str]) -> Arm:
        """All rows, in order."""
        places = range(len(rows))
        media = Files([self.folder / self.files[row] for row in places])
        return Arm(
            list(rows), media, {name: np.array([self.scores[row][name] for row in places]) for name in self.scores[0]}
        )
