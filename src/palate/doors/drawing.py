"""`palate sample`: media of prompts, from noise or out of other pictures, each from its own seed, resumable."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from palate import config, durable, editing, kinds, sampling
from palate.config import ConfigError
from palate.doors import judging, lookup, matching
from palate.evaluation import layouts
from palate.media import PICTURE_FORMATS, MediaError, decode, type_of_path
from palate.models.contracts import Media
from palate.models.diffusion import DiffusionPolicy
from palate.records import Medium
from palate.training.logs import Progress

STRENGTH = 0.6  # of an edit, as Diffusion-DPO's (arXiv:2311.12908, section 5.2)
_ENDINGS = {f".{kind.lower()}" for kind in PICTURE_FORMATS} | {".jpg"}


def sample(
    model: str,
    prompts: str | Path,
    *,
    k: int,
    out: Path,
    seed: int,
    batch_size: int = 8,
    image: str | Path | None = None,
    strength: float | None = None,
    layout: str | None = None,
    **asked: Any,
) -> Path:
    """k candidates of each prompt under out/, and samples.jsonl saying which is which. Again: only what is missing.

    Pictures are PNG files, videos WebM, sounds WAV (`palate.kinds`); samples.jsonl tells their sizes and rates, too.
    asked: the arguments of the model's calls and the settings of its sampler, as of `ordered`.
    image: a picture, or a folder of them in the order of their names, that the prompts change by `strength` (SDEdit,
    `palate.editing`): one for all prompts, or one prompt for all, or as many of each. They are scaled to cover the size
    that the model draws, and cropped to its middle. layout: of a benchmark (`palate.evaluation.layouts`), whose folder
    is then written as out/<layout>, too.
    """
    if layout:
        layouts.check(layout, lookup.prompt_lines(prompts), k)
        if (kind := matching.made_by(model)) not in (None, "pictures"):
            raise ConfigError(f"--layout {layout} is of pictures, and {model} makes {kind}")
    order = ordered(model, prompts, seed=seed, image=image, strength=strength, **asked)
    with durable.locked(out):
        same_folder(out / "sampling.json", order.made_of, "samples")
        places = [(i, j) for i in range(len(order.rows)) for j in range(k)]
        files = {place: path for place in places if (path := _found(out, _name(*place))) is not None}
        wanted = [place for place in places if place not in files]
        for i, j, medium in order.draw(wanted, batch_size):
            files[i, j] = kinds.keep(out, _name(i, j), medium)
        made = [_line(order, place, files[place]) for place in places]
        (out / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made), encoding="utf-8")
        if layout:
            place = {text: i for i, (text, _) in enumerate(order.rows)}
            rows = lookup.prompt_lines(prompts)
            layouts.write(layout, rows, lambda row, j: files[place[row.text], j], k, out / layout)
    print(f"{len(made)} {kinds.kind_of_type(made[0]['type'])} in {out} ({len(wanted)} new)")
    return out


Row = tuple[str, Path | None]  # a prompt, and the picture that it changes
Draw = Callable[[Sequence[Row], Sequence[str], int], list[Any]]


@dataclass(frozen=True)
class Order:
    """What is to be drawn. rows: of which each has its candidates. made_of: by what they are known again. call:
    arguments of each call of the pipeline. asked: of the sampler."""

    model: str
    seed: int
    call: Mapping[str, Any]
    asked: Mapping[str, Any]
    rows: Sequence[Row]
    originals: _Originals | None
    made_of: Mapping[str, Any]

    def draw(self, wanted: Sequence[tuple[int, int]], batch_size: int) -> Generator[tuple[int, int, Media], None, None]:
        """Row, candidate and medium of each that is wanted; nothing is loaded if none is."""
        if not wanted:
            return
        policy = lookup.load_arm(self.model, self.call)
        how = {"seed": self.seed, **lookup.settings_of(self.model, policy, **self.asked)}
        draw = self.originals.draw(policy, how) if self.originals else partial(_drawn, policy, how)
        with contextlib.closing(Progress(len(wanted), 0, what="sample")) as bar:
            for start in range(0, len(wanted), batch_size):
                part = wanted[start : start + batch_size]
                rows, ids = [self.rows[i] for i, _ in part], [f"{self.rows[i][0]}/{j}" for i, j in part]
                media = draw(rows, ids, batch_size)
                yield from ((i, j, medium) for (i, j), medium in zip(part, media, strict=True))
                bar.advance(len(part))


def ordered(
    model: str,
    prompts: str | Path,
    *,
    seed: int,
    image: str | Path | None = None,
    strength: float | None = None,
    call: Mapping[str, Any] | None = None,
    **asked: Any,
) -> Order:
    """Checked before anything is drawn. call: arguments of each call of the pipeline, such as num_frames. asked: of
    `sampler`."""
    asked = sampler(**asked)
    lines = [prompt.text for prompt in lookup.prompt_lines(prompts)]
    texts = list(dict.fromkeys(lines))
    originals = _originals(image, strength, lines)
    rows: Sequence[Row] = originals.rows if originals else [(text, None) for text in texts]
    if len(rows) < len(lines):
        print(f"{len(lines) - len(rows)} lines of {prompts} repeat a prompt: it is drawn once (-k draws more of each)")
    known = {"model": model, "seed": seed, "prompts_sha256": digest(originals.texts if originals else texts), **asked}
    known |= ({"call": dict(call)} if call else {}) | (originals.made_of if originals else {})
    return Order(model, seed, call or {}, asked, rows, originals, known)


def _drawn(
    policy: DiffusionPolicy, how: Mapping[str, Any], rows: Sequence[Row], ids: Sequence[str], batch_size: int
) -> list[Any]:
    return sampling.sample(policy, [text for text, _ in rows], ids, batch_size=batch_size, **how)


class _Originals:
    """Pictures that prompts are to change. Raises ConfigError if they cannot be paired, or the strength cannot be.

    A prompt may stand twice where there are as many pictures: each changes one.
    """

    def __init__(self, image: Path, strength: float, lines: Sequence[str]) -> None:
        self.strength, paths = strength, _pictures(image)
        texts = self.texts = list(lines) if len(lines) == len(paths) else list(dict.fromkeys(lines))
        try:
            editing.steps_run(strength, 1)
        except ValueError as error:
            raise ConfigError(f"--strength: {error}") from None
        n = max(len(paths), len(texts))
        if {len(paths), len(texts)} - {1, n}:
            raise ConfigError(
                f"{image} holds {len(paths)} pictures for {len(texts)} prompts: give as many of each, or one of either"
            )
        self.rows = [(texts[i % len(texts)], paths[i % len(paths)]) for i in range(n)]
        content = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths))
        self.made_of = {"image_sha256": content.hexdigest(), "strength": strength}

    def draw(self, policy: DiffusionPolicy, how: Mapping[str, Any]) -> Draw:
        blank = policy.decode(torch.zeros(1, *policy.latent_shape, device=policy.device))[0]
        if not isinstance(blank, Image.Image):
            raise ConfigError("the model does not draw pictures: only pictures can be changed")

        def edited(rows: Sequence[Row], ids: Sequence[str], batch_size: int) -> list[Any]:
            media = [fitted(path, blank.size) for _, path in rows if path]
            texts = [text for text, _ in rows]
            return editing.edit(policy, media, texts, ids, strength=self.strength, batch_size=batch_size, **how)

        return edited


def _originals(image: str | Path | None, strength: float | None, lines: Sequence[str]) -> _Originals | None:
    if image is None:
        if strength is not None:
            raise ConfigError("--strength says how far a picture is changed: give the picture by --image")
        return None
    return _Originals(Path(image), STRENGTH if strength is None else strength, lines)


def _pictures(image: Path) -> list[Path]:
    if image.is_file():
        return [image]
    found = sorted(path for path in image.glob("*") if path.suffix.lower() in _ENDINGS) if image.is_dir() else []
    if not found:
        raise ConfigError(f"--image {image}: no such file, nor a folder with {', '.join(sorted(_ENDINGS))} in it")
    return found


def fitted(path: Path, size: tuple[int, int]) -> Image.Image:
    """The picture, scaled to cover the size and cropped to its middle."""
    try:
        picture = decode(Medium(type_of_path(path.name), path=path.name), path.parent)
    except MediaError as error:
        raise ConfigError(f"--image {path}: {error}") from None
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def _name(row: int, candidate: int) -> str:
    return f"{row:05d}-{candidate}"


def _found(folder: Path, name: str) -> Path | None:
    """The file of that name, whichever kind it is of."""
    return next((path for ending in kinds.ENDINGS.values() if (path := folder / f"{name}{ending}").is_file()), None)


def _line(order: Order, place: tuple[int, int], file: Path) -> dict[str, Any]:
    """What samples.jsonl says of a file."""
    text, original = order.rows[place[0]]
    told = {"prompt": text, "file": file.name, "candidate": place[1], "seed": order.seed, "model": order.model}
    told |= kinds.measured(file)
    if order.originals and original:
        told |= {"image": original.name, "strength": order.originals.strength}
    return told


def sampler(
    num_inference_steps: int | None = None, guidance_scale: float | None = None, eta: float | None = None
) -> dict[str, Any]:
    """Settings of a sampler that were asked for, None for a model's own."""
    return {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "eta": eta}


def digest(prompts: Sequence[str]) -> str:
    """By which a list of prompts is known again."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()


def same_folder(path: Path, settings: Mapping[str, Any], what: str) -> None:
    """Writes what the folder is made of, or raises ConfigError with the difference from what it was made of before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        changes = config.difference(json.loads(path.read_text(encoding="utf-8")), settings)
        if changes:
            raise ConfigError(f"{path.parent} holds other {what}: {'; '.join(changes)}; choose another --out")
    judging.write_json(path, settings)
