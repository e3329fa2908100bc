"""Stages `measure`, `table` and `pictures`: how a model draws captions it never saw, sampled as Palate samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from palate import sampling
from palate.evaluation.grids import grid
from palate.models.diffusion import DiffusionPolicy
from palate.worlds.shapes import data, oracle
from palate.worlds.shapes.pretrain.course import history
from palate.worlds.shapes.pretrain.denoiser import Kind

SEED = 0


def measure(kind: Kind, folder: Path, work: Path, n: int) -> dict[str, Any]:
    """Figures of the folder's model on n held-out captions at the shipped settings, noted in its world.json."""
    noted = json.loads((folder / "world.json").read_text()) | {"sampling": kind.sampling}
    noted["training"] |= history(work)
    noted["base"] = {"weights": digest(folder), "captions": n, **figures(kind, folder, n, kind.sampling)}
    (folder / "world.json").write_text(json.dumps(noted, indent=2) + "\n")
    return noted["base"]


def table(kind: Kind, folder: Path, n: int, settings: Sequence[str]) -> None:
    """Print the same figures at other settings, `steps:eta:guidance` each, as a table in Markdown."""
    for i, text in enumerate(settings):
        steps, eta, guidance = text.split(":")
        wanted = {"num_inference_steps": int(steps), "eta": float(eta), "guidance_scale": float(guidance)}
        row = {"steps": int(steps), "eta": float(eta), "guidance": float(guidance)} | figures(kind, folder, n, wanted)
        for cells in ([row, ["---"] * len(row)] if i == 0 else []) + [row.values()]:
            print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def figures(kind: Kind, folder: Path, n: int, settings: dict[str, Any]) -> dict[str, float]:
    """Mean scores, and the shares of pictures `marked`, `deformed` and, of those where it can be told, `related`."""
    prompts = data.captions(n, SEED, "eval")
    pictures = draw(DiffusionPolicy.load(folder, call=kind.call), prompts, SEED, settings)
    scores = oracle.score(prompts, pictures)
    read = [oracle.read(picture) for picture in pictures]
    shares = {name: float(values.mean()) for name, values in scores.items()}
    shares["marked"] = float((scores["safety"] < 0.5).mean())
    shares["deformed"] = float(np.mean([any(o.deformed for o in record.objects) for record in read]))
    shares["related"] = related(prompts, read)
    return {name: round(share, 3) for name, share in shares.items()}


def pictures(kind: Kind, folder: Path, n: int, file: Path) -> None:
    """Write n pictures at the shipped settings, with their captions, as one."""
    prompts = data.captions(n, SEED, "eval")
    drawn = draw(DiffusionPolicy.load(folder, call=kind.call), prompts, SEED, kind.sampling)
    grid(drawn, columns=6, scale=2, labels=prompts).save(file, optimize=True)


def draw(policy: DiffusionPolicy, prompts: Sequence[str], seed: int, settings: dict[str, Any]) -> list[Any]:
    """A picture of each prompt, row i from the noise of (seed, i)."""
    return sampling.sample(policy, prompts, [str(i) for i in range(len(prompts))], seed=seed, **settings)


def related(prompts: Sequence[str], records: Sequence[oracle.Record]) -> float:
    """Share of pictures in which the two things asked for, told by shape and colour, lie as asked; chance is 1/4."""
    right = []
    for text, record in zip(prompts, records, strict=True):
        asked, seen = data.parse_caption(text), record.objects
        found = [[o for o in seen if (o.shape, o.colour) == (thing.shape, thing.colour)] for thing in asked.things]
        if asked.relation and all(len(same) == 1 for same in found) and found[0] != found[1]:
            right.append(oracle.relation(found[0][0], found[1][0]) == asked.relation)
    return float(np.mean(right)) if right else float("nan")


def digest(folder: Path) -> str:
    """SHA-256 of a pipeline folder's weights, so that figures can be held to the weights they were measured on."""
    read = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        read.update(file.read_bytes())
    return read.hexdigest()
