"""By what a model is known again: the files that it is loaded from, so that other weights under its name show."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from palate.doors import lookup
from palate.models import hub
from palate.models.naming import resolve_model
from palate.training import loras

_LOADED = {".safetensors", ".json", ".txt", ".model"}  # what a pipeline or an adapter is read from
WHOLE_BYTES = 64 * 2**20  # larger files are known by their size and pieces of them
_PIECES, _PIECE_BYTES = 64, 64 * 2**10


def of_model(model: str) -> str:
    """A digest of a hub id's commit, a folder's files, or, of a run, its base, its adapters and its recipe's call.

    A file of more than WHOLE_BYTES counts by its size and 64 evenly spaced pieces of it: training moves all weights,
    and reading gigabytes would take longer than drawing. Raises as `lookup.check_arm` does.
    """
    lookup.check_arm(model)
    run = Path(model)
    base = lookup.base_of(run)
    if base is None:
        return _digest([_of_source(model)])
    parts: list[Any] = [lookup.recipe_of(run)["model"].get("call")]
    if (run / "model").is_dir():
        parts.append(_of_files(run / "model"))
    else:
        parts += [_of_source(base), *(_of_adapter(source) for source in loras.lineage(run))]
    return _digest(parts)


def _of_source(model: str) -> str:
    source = resolve_model(model)
    return _of_files(Path(source)) if Path(source).is_dir() else f"{source}@{_commit(source)}"


def _of_adapter(source: str | Path) -> str:
    return _of_files(Path(source)) if Path(source).exists() else str(source)


def _commit(source: str) -> str:
    """The commit of a model on the hub that is used here; empty where nothing of it can be had."""
    from huggingface_hub import hf_hub_download

    try:
        held = hf_hub_download(source, "model_index.json", local_files_only=not hub.reached(source))
    except (OSError, ValueError):  # whoever loads the model says what is wrong with it
        return ""
    return Path(held).parent.name


def _of_files(place: Path) -> str:
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.suffix in _LOADED)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"\x1e{path.relative_to(place) if path != place else path.name}\x1f".encode())
        for piece in _pieces(path):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            while piece := file.read(2**20):
                yield piece
            return
        yield str(size).encode()
        for number in range(_PIECES):
            file.seek(number * max(size - _PIECE_BYTES, 0) // (_PIECES - 1))
            yield file.read(_PIECE_BYTES)


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
