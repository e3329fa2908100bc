"""Pictures in two parallel folders, or side by side with a suffix, the winner's and the loser's.

    pairs/chosen/0001.png      pairs/0001_w.png
    pairs/rejected/0001.png    pairs/0001_l.png
    pairs/chosen/0001.txt      pairs/0001.txt         the prompt: in a text file of the same name,
    pairs/prompts.jsonl        pairs/prompts.csv      or in a table of `name` and `prompt`

Folder names come in pairs: chosen/rejected, win/lose, w/l, winner/loser, preferred/rejected, good/bad, better/worse.
Suffixes are `_w` and `_l`; `_e` (kohya-ss/sd-scripts) marks pictures that tie: `0001_e1.png` and `0001_e2.png`.
A picture whose partner is missing is a flaw, and so are two of one name on one side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from palate.media import DatasetError, type_of_path
from palate.reading import Source, converted, pair
from palate.records import Medium, Preference, RecordError
from palate.tables import Flaw, table_rows

NAMES = (
    ("chosen", "rejected"),
    ("win", "lose"),
    ("w", "l"),
    ("winner", "loser"),
    ("winners", "losers"),
    ("preferred", "rejected"),
    ("good", "bad"),
    ("better", "worse"),
)
_TWICE = "twice"  # the side of a second medium of one name
_SUFFIXED = re.compile(r"(?P<name>.+)_(?P<side>[wl]|e[12])")


def sniff(source: Source) -> bool:
    folder = source.path
    if folder is None or not folder.is_dir():
        return False
    return _sides(folder) is not None or any(_SUFFIXED.fullmatch(file.stem) for file in _media(folder))


def rows(source: Source) -> Iterator[Preference | Flaw]:
    folder = source.local
    prompts = _prompts(folder)

    def convert(sides: dict[str, Path], name: str) -> Preference:
        files = [sides[side] for side in ("w", "l", "e1", "e2") if side in sides]
        if _TWICE in sides:
            raise RecordError("media", f"stand twice on one side, under several endings ({sides[_TWICE].name})")
        if set(sides) not in ({"w", "l"}, {"e1", "e2"}):
            raise RecordError("media", "have two verdicts")
        paths = [_shown(file, folder) for file in files]
        media = tuple(Medium(type_of_path(path), path=path) for path in paths)
        return Preference(
            _prompt(name, files, prompts), media, **pair(1.0 if "w" in sides else 0.5), where=", ".join(paths)
        )

    for name, sides in sorted(_pairs(folder).items()):
        yield _lone(folder, sides) or converted(convert, sides, name)


def _shown(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _lone(folder: Path, sides: Mapping[str, Path]) -> Flaw | None:
    """A picture of which there is no other side, and where that is looked for."""
    if len(sides) != 1:
        return None
    ((side, file),) = sides.items()
    if (folders := _sides(folder)) is not None:
        partner = f"{folders[side == 'w'].name}/{file.name}"
    else:
        other = {"w": "l", "l": "w", "e1": "e2", "e2": "e1"}[side]
        partner = file.with_stem(file.stem.removesuffix(side) + other).name
    return Flaw(_shown(file, folder), f"{partner} is missing", "without a partner")


def count(source: Source) -> int:
    return len(_pairs(source.local))


def _sides(folder: Path) -> tuple[Path, Path] | None:
    there = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    return next(((there[a], there[b]) for a, b in NAMES if a in there and b in there), None)


def _media(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if type_of_path(path.name).split("/")[0] in ("image", "video", "audio") and path.is_file():
            yield path


def _pairs(folder: Path) -> Mapping[str, dict[str, Path]]:
    """By name, the files of each side."""
    found: dict[str, dict[str, Path]] = {}
    if (sides := _sides(folder)) is not None:
        for side, inside in zip("wl", sides, strict=True):
            for path in _media(inside):
                _put(found, path.stem, side, path)
    else:
        for path in _media(folder):
            if match := _SUFFIXED.fullmatch(path.stem):
                _put(found, match["name"], match["side"], path)
    return found


def _put(found: dict[str, dict[str, Path]], name: str, side: str, path: Path) -> None:
    sides = found.setdefault(name, {})
    sides[_TWICE if side in sides else side] = path


def _prompts(folder: Path) -> dict[str, str]:
    """Prompts by name, of a table; empty if there is none."""
    for name in ("prompts.jsonl", "prompts.csv", "metadata.jsonl", "metadata.csv"):
        if (file := folder / name).is_file():
            found: dict[str, str] = {}
            for where, raw in table_rows(file):
                fields = {} if isinstance(raw, Flaw) else raw
                key, prompt = _key(fields), fields.get("prompt", fields.get("text"))
                if key is None or not isinstance(prompt, str):
                    raise DatasetError(f"{where}: must have `name` and `prompt`")
                found[key] = prompt
            return found
    return {}


def _key(raw: Mapping[str, Any]) -> str | None:
    name = raw.get("name", raw.get("file_name"))
    if not isinstance(name, str):
        return None
    stem = Path(name).stem if type_of_path(name).startswith(("image", "video", "audio")) else name
    match = _SUFFIXED.fullmatch(stem)
    return match["name"] if match else stem


def _prompt(name: str, files: list[Path], prompts: Mapping[str, str]) -> str:
    if name in prompts:
        return prompts[name]
    for file in files:
        for text in (file.with_suffix(".txt"), file.with_name(f"{name}.txt"), file.parent.parent / f"{name}.txt"):
            if text.is_file() and text.stat().st_size < 2**20:
                return _text(text)
    raise RecordError("prompt", f"is missing: write it into {name}.txt, or into prompts.csv or prompts.jsonl")


def _text(file: Path) -> str:
    try:
        return " ".join(file.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        place = "/".join(file.parts[-2:])
        raise RecordError("prompt", f"cannot be read: {place} is not UTF-8 text; save it as UTF-8") from None
