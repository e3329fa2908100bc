"""Text pairs as TRL reads them: `prompt`, `chosen`, `rejected`, or unpaired `prompt`, `completion`, `label`.

    {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Seven."}                            standard
    {"prompt": [{"role": "user", "content": ...}], "chosen": [{"role": "assistant", ...}], ...}     conversational
    {"chosen": [...], "rejected": [...]}                      implicit prompt: what both begin with
    {"prompt": ..., "completion": ..., "label": true}         one candidate, its label 1 or 0 as the score `label`

A text is a medium of type text/plain; messages are one of application/json, and a prompt of messages is kept as JSON.
`score_chosen` and `score_rejected`, where they are, become the score `score`. Pictures in conversations are not read.

Written are pairs of texts, with the score `score`; ties, other scores and aspects are left out and counted. P(chosen
over rejected), votes and the weight go into the columns `preference`, `votes` and `weight`, which are read back here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from palate.media import DatasetError, medium_bytes, type_of_path
from palate.reading import Source, Written, number, pair
from palate.records import Medium, Preference, RecordError
from palate.tables import Flaw, Raw

PLAIN, MESSAGES = "text/plain", "application/json"


def sniff(source: Source) -> bool:
    first = source.first
    if {"prompt", "completion", "label"} <= first.keys():
        return True
    return {"chosen", "rejected"} <= first.keys() and not all(
        isinstance(first[side], str) and type_of_path(first[side]).startswith(("image/", "video/", "audio/"))
        for side in ("chosen", "rejected")
    )


def rows(source: Source) -> Iterator[Preference | Flaw]:
    scored = ("score",) if "score_chosen" in source.first else ()

    def convert(raw: Raw, where: str) -> Preference:
        if raw.get("images") or raw.get("image"):
            raise RecordError("images", "cannot be held by a row of texts")
        if "completion" in raw:
            return _unpaired(raw, where)
        prompt, chosen, rejected = _implicit(raw) if "prompt" not in raw else (raw[n] for n in _NAMES)
        return Preference(
            _prompt(prompt),
            (_medium(chosen, "chosen"), _medium(rejected, "rejected")),
            **pair(_or(raw.get("preference"), "preference"), _or(raw.get("votes"), "votes")),
            scores=tuple((number(raw.get(f"score_{side}"), "score"),) for side in _NAMES[1:]) if scored else (),
            dimensions=scored,
            weight=_or(raw.get("weight"), "weight"),
            where=where,
        )

    return source.rows(convert)


_NAMES = ("prompt", "chosen", "rejected")


def _or(value: Any, name: str) -> float:
    return 1.0 if value is None else number(value, name)


def _unpaired(raw: Raw, where: str) -> Preference:
    if not isinstance(raw["label"], bool) and raw["label"] not in (0, 1):
        raise RecordError("label", f"must be true or false, got {raw['label']!r}")
    return Preference(
        _prompt(raw["prompt"]),
        (_medium(raw["completion"], "completion"),),
        ((math.nan,),),
        scores=((float(raw["label"]),),),
        dimensions=("label",),
        where=where,
    )


def _implicit(raw: Raw) -> tuple[Any, Any, Any]:
    """The prompt that both conversations, or texts, begin with, and what is left of them."""
    chosen, rejected = raw["chosen"], raw["rejected"]
    if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
        raise RecordError("chosen", "and rejected must both be texts or both be lists of messages")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if isinstance(chosen, str):  # not in the middle of a word
        shared = max(chosen[:shared].rfind(" "), chosen[:shared].rfind("\n")) + 1
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _prompt(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(_messages(value, "prompt"), ensure_ascii=False)


def _medium(value: Any, name: str) -> Medium:
    if isinstance(value, str):
        return Medium(PLAIN, value.encode())
    return Medium(MESSAGES, json.dumps(_messages(value, name), ensure_ascii=False).encode())


def _messages(value: Any, name: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in value
    ):
        raise RecordError(name, "must be a text or a list of messages with `role` and a text as `content`")
    return value


def write(target: str | Path, rows: Iterable[Preference], *, media_root: str | Path | None = None) -> Written:
    """One JSONL file. Raises DatasetError for media that are no texts, FileExistsError if the file is there already."""
    target = Path(target)
    if target.suffix != ".jsonl":
        raise DatasetError(f"{target}: TRL's pairs are written as one file: let its name end in .jsonl")
    if target.exists():
        raise FileExistsError(f"{target} is there already: choose another name or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Written()
    aside = target.with_name(target.name + ".unfinished")
    try:
        with aside.open("w", encoding="utf-8") as file:
            for row in rows:
                scored = row.dimensions == ("score",)
                for i, j, p, votes in made.pairs(row, scored=scored):
                    if p == 0.5:
                        made.left_out["ties"] += 1
                        continue
                    best, other = (i, j) if p > 0.5 else (j, i)
                    texts = [_text(row.media[k], row.where or row.id, media_root) for k in (best, other)]
                    prompt = _asked(row.prompt) if isinstance(texts[0], list) else row.prompt
                    record = {"prompt": prompt, "chosen": texts[0], "rejected": texts[1]}
                    extra: dict[str, float | None] = {"preference": max(p, 1 - p), "votes": votes, "weight": row.weight}
                    for name, k in zip(_NAMES[1:], (best, other), strict=True) if scored else ():
                        extra[f"score_{name}"] = None if math.isnan(row.scores[k][0]) else row.scores[k][0]
                    file.write(json.dumps({**record, **extra}, ensure_ascii=False) + "\n")
                    made.rows += 1
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
    return made


def _asked(prompt: str) -> Any:
    """The messages that a prompt of a conversation was read from; the prompt itself if it was a text."""
    try:
        return _messages(json.loads(prompt), "prompt")
    except ValueError:
        return prompt


def _text(found: Medium | None, where: str, media_root: str | Path | None) -> Any:
    if found is None or found.type not in (PLAIN, MESSAGES):
        raise DatasetError(f"{where}: holds a {found.type if found else 'gap'}; TRL's pairs are texts")
    content = medium_bytes(found, media_root).decode()
    return json.loads(content) if found.type == MESSAGES else content
