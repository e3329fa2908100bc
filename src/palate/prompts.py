"""Files of prompts, as people write them and as benchmarks publish them.

    read("prompts.txt")                    # one a line
    read("prompts.jsonl")                  # {"prompt": ..., "category": ...}, all else kept as facts
    read("PartiPrompts.tsv")               # Prompt, Category, Challenge, Note
    read("drawbench.csv")                  # Prompts, Category
    read("evaluation_metadata.jsonl")      # GenEval: prompt, and the tag as category
    read("benchmark")                      # HPSv2: anime.json, paintings.json ...: lists; their names are categories
    read("dpg_bench/prompts")              # DPG-Bench: a folder of .txt, one prompt each; the file's name is the id

The columns of tables may have any case; a table's delimiter is that of its ending. Errors name the file and line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)
NAMES = ("prompt", "prompts", "caption", "text")  # what the column or key of the prompt is called
CATEGORIES = ("category", "tag", "style")


class PromptError(ValueError):
    """A file of prompts cannot be read; the message names it, the line, and the mend."""


@dataclass(frozen=True)
class Prompt:
    """One prompt. category: "" if none is told. id: of its file, "" if none. facts: whatever else its file tells."""

    text: str
    category: str = ""
    id: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)


def read(path: str | Path) -> list[Prompt]:
    """The prompts of a file or folder in their order, doublets too; blank lines are none.

    Raises PromptError for a file that is not there, of no known kind, not UTF-8, or without prompts.
    """
    path = Path(path)
    if path.is_dir():
        found = list(_folder(path))
    elif path.is_file():
        found = list(_reader(path)(path))
    else:
        raise PromptError(f"prompt file {path} does not exist: write one prompt a line into it, or mend the path")
    if not found:
        raise PromptError(f"{path} holds no prompts: write one a line")
    return found


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The first of each text, in order."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.text, prompt)
    return list(first.values())


def _reader(path: Path) -> Callable[[Path], Iterator[Prompt]]:
    kinds = {".jsonl": _jsonl, ".json": _json, ".tsv": _table, ".csv": _table}
    return kinds.get(path.suffix.lower(), _plain)


def _text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PromptError(f"{path} line {line}: not UTF-8 text; save it as UTF-8") from None


def _plain(path: Path) -> Iterator[Prompt]:
    for line in _text(path).splitlines():
        if text := line.strip():
            yield Prompt(text)


def _jsonl(path: Path) -> Iterator[Prompt]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield _entry(_parsed(line, f"{path} line {number}"), f"{path} line {number}")


def _json(path: Path) -> Iterator[Prompt]:
    """A list of texts or objects, such as one of HPSv2's."""
    found = _parsed(_text(path), str(path))
    if not isinstance(found, list):
        raise PromptError(f"{path} should hold a list of prompts, not a {type(found).__name__}")
    for number, entry in enumerate(found):
        yield _entry(entry, f"{path} entry {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise PromptError(f"{where} is not JSON: {error}") from None


def _entry(entry: Any, where: str) -> Prompt:
    if isinstance(entry, str):
        entry = {"prompt": entry}
    if not isinstance(entry, dict):
        raise PromptError(f"{where} should be a text or an object with a `prompt`, not a {type(entry).__name__}")
    return _made(entry, where)


def _table(path: Path) -> Iterator[Prompt]:
    """A table with a header. Tab-separated ones know no quotes: PartiPrompts has them inside its prompts."""
    tabs = path.suffix.lower() == ".tsv"
    lines = _text(path).splitlines(keepends=True)
    how: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    rows = csv.reader(lines, **how)
    try:
        header = next(rows, [])
        if not any(name.strip().lower() in NAMES for name in header):
            raise PromptError(f"{path} line 1: no column is called {' or '.join(NAMES)}; it has {', '.join(header)}")
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            where = f"{path} line {rows.line_num}"
            if len(row) > len(header):
                raise PromptError(
                    f"{where}: {len(row)} cells under {len(header)} columns; put a prompt with commas in quotes"
                )
            cells = zip(header, row + [""] * (len(header) - len(row)), strict=True)
            yield _made({name.strip(): cell for name, cell in cells if cell.strip()}, where)
    except csv.Error as error:
        raise PromptError(f"{path} line {rows.line_num}: {error}") from None


def _folder(path: Path) -> Iterator[Prompt]:
    """HPSv2's lists by style, or DPG-Bench's files of one prompt each."""
    lists = sorted(path.glob("*.json"))
    for file in lists:
        for prompt in _json(file):
            yield Prompt(prompt.text, prompt.category or file.stem, prompt.id, prompt.facts)
    if lists:
        return
    files = sorted(path.glob("*.txt"), key=_by_number)
    if not files:
        raise PromptError(f"{path} holds neither .json lists of prompts (HPSv2) nor .txt files of one (DPG-Bench)")
    for file in files:
        if not (text := " ".join(_text(file).split())):
            raise PromptError(f"{file} is empty: in a folder each file holds one prompt")
        yield Prompt(text, id=file.stem)


def _by_number(file: Path) -> tuple[int, int, str]:
    """Numbers by value, before names."""
    return (0, int(file.stem), "") if file.stem.isdecimal() else (1, 0, file.stem)


def _made(facts: Mapping[str, Any], where: str) -> Prompt:
    """A prompt of its facts. Raises PromptError where there is none, or it is no text."""
    lower = {str(name).lower(): value for name, value in facts.items()}
    text = next((lower[name] for name in NAMES if name in lower), None)
    if not isinstance(text, str) or not text.strip():
        raise PromptError(f"{where}: no prompt; give one under `prompt`")
    category = next((str(lower[name]) for name in CATEGORIES if lower.get(name) is not None), "")
    return Prompt(text.strip(), category.strip(), str(lower.get("id", "")), facts)


def rows_by_prompt(prompts: Iterable[Key]) -> dict[Key, list[int]]:
    """The places at which each prompt stands, prompts in order of their first."""
    rows: dict[Key, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    return rows
