"""Pictures in the folders that benchmarks' own scorers read.

geneval       00000/metadata.jsonl (the prompt's line) and 00000/samples/00000.png ...; github.com/djghosh13/geneval
dpg           <id>.png, up to four candidates in one picture, 2 x 2; github.com/TencentQQGYLab/ELLA, dpg_bench
hpsv2         <style>/00000.jpg, one candidate, numbered within its style; github.com/tgxs002/HPSv2, hpsv2.evaluate
partiprompts  00000-0.png and metadata.jsonl: the prompts have no scorer of their own, so that this layout is Palate's

The first three were read off those repositories' code; none of the scorers has been run on them. Numbers are those of
the benchmark's file, doublets included. HPSv2 wants JPEG, which is lossy: quality 95, without subsampling.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from palate.prompts import Prompt

LAYOUTS = ("geneval", "dpg", "hpsv2", "partiprompts")
Pictures = Callable[[Prompt, int], Path]  # the file of a prompt's candidate


class LayoutError(ValueError):
    """The prompts are not that benchmark's; the message says which file to give."""


def check(layout: str, prompts: Sequence[Prompt], k: int) -> None:
    """Raises LayoutError, before anything is drawn, for what cannot be laid out so."""
    if layout not in LAYOUTS:
        raise LayoutError(f"there is no layout {layout!r}: {', '.join(LAYOUTS)}")
    if layout == "geneval" and any("tag" not in p.facts or "include" not in p.facts for p in prompts):
        raise LayoutError("GenEval's scorer reads each prompt's tag and include: give its evaluation_metadata.jsonl")
    if layout == "dpg" and any(not p.id for p in prompts):
        raise LayoutError("DPG-Bench's scorer knows pictures by their prompts' ids: give its folder of .txt files")
    names = [p.id if layout == "dpg" else p.category for p in prompts if layout in ("dpg", "hpsv2")]
    if bad := next((name for name in names if name != Path(name).name or name in (".", "..")), None):
        raise LayoutError(f"{bad!r} names a file or folder in that benchmark, and cannot be one's name")
    if layout == "dpg" and k > 4:
        raise LayoutError(f"DPG-Bench takes four pictures of a prompt at most, and -k is {k}")
    if layout == "hpsv2" and any(not p.category for p in prompts):
        raise LayoutError("HPSv2's scorer wants styles: give its folder of anime.json, concept-art.json ...")


def write(layout: str, prompts: Sequence[Prompt], pictures: Pictures, k: int, folder: Path) -> Path:
    """Lays out k candidates of each prompt in the folder, anew. Returns it."""
    check(layout, prompts, k)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    {"geneval": _geneval, "dpg": _dpg, "hpsv2": _hpsv2, "partiprompts": _flat}[layout](prompts, pictures, k, folder)
    return folder


def _geneval(prompts: Sequence[Prompt], pictures: Pictures, k: int, folder: Path) -> None:
    for number, prompt in enumerate(prompts):
        samples = folder / f"{number:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(dict(prompt.facts)), encoding="utf-8")
        for j in range(k):
            shutil.copyfile(pictures(prompt, j), samples / f"{j:05d}.png")


def _dpg(prompts: Sequence[Prompt], pictures: Pictures, k: int, folder: Path) -> None:
    for prompt in prompts:
        parts = [_opened(pictures(prompt, j)) for j in range(k)]
        width, height = parts[0].size
        columns, rows = min(k, 2), -(-k // 2)
        sheet = Image.new("RGB", (columns * width, rows * height))
        for j, part in enumerate(parts):
            sheet.paste(part, ((j % 2) * width, (j // 2) * height))
        sheet.save(folder / f"{prompt.id}.png")


def _hpsv2(prompts: Sequence[Prompt], pictures: Pictures, k: int, folder: Path) -> None:
    numbers: Counter[str] = Counter()
    for prompt in prompts:
        style = folder / prompt.category
        style.mkdir(exist_ok=True)
        picture = _opened(pictures(prompt, 0))
        picture.save(style / f"{numbers[prompt.category]:05d}.jpg", "JPEG", quality=95, subsampling=0)
        numbers[prompt.category] += 1


def _flat(prompts: Sequence[Prompt], pictures: Pictures, k: int, folder: Path) -> None:
    lines = []
    for number, prompt in enumerate(prompts):
        for j in range(k):
            name = f"{number:05d}-{j}.png"
            shutil.copyfile(pictures(prompt, j), folder / name)
            lines.append({"file": name, "prompt": prompt.text, "category": prompt.category, **dict(prompt.facts)})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
