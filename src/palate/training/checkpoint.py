"""Checkpoints: folders `step-00000100/` of safetensors and JSON, nothing pickled, whole or not there at all.

    step-00000100/
      manifest.json           format, step, and the size and SHA-256 of every other file
      state.json              each part's plain values; a tensor is replaced by its name in the part's file
      <part>.safetensors      each part's tensors: weights, optimiser, ema, algorithm, source, ...

A part is any nesting of dicts, lists, tuples, numbers, strings, None and tensors. The newest valid folder is what a run
continues from; one that does not agree with its manifest is named and passed over, never silently.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from palate import durable

FORMAT = 2
MANIFEST, STATE = "manifest.json", "state.json"
_NAME = re.compile(r"step-(\d{8,})")

Say = Callable[[str], None]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message names it and says why."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved after `step` optimiser steps: parts by name, as they were given to `save`."""

    step: int
    parts: dict[str, Any]
    folder: Path


# --- plain values with tensors in them --------------------------------------------------------------------------------


def pack(tree: Any, tensors: dict[str, Tensor], place: str = "") -> Any:
    """The tree as JSON values; its tensors go into `tensors` under their places. Raises TypeError for anything else."""
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, Tensor):
        name = place or "."
        while name in tensors:  # {"a.b": x, "a": {"b": y}}
            name += "'"
        tensors[name] = tree.detach().cpu().contiguous()
        return {"$tensor": name}
    if isinstance(tree, torch.dtype):
        return {"$dtype": str(tree).removeprefix("torch.")}
    if isinstance(tree, list | tuple):
        items = [pack(item, tensors, f"{place}.{index}".strip(".")) for index, item in enumerate(tree)]
        return items if isinstance(tree, list) else {"$tuple": items}
    if isinstance(tree, Mapping):
        if any(not isinstance(key, str) or key.startswith("$") for key in tree):
            return {"$items": pack([list(item) for item in tree.items()], tensors, place)}
        return {key: pack(value, tensors, f"{place}.{key}".strip(".")) for key, value in tree.items()}
    raise TypeError(f"{place}: a {type(tree).__name__} cannot be kept in a checkpoint; keep numbers, text or tensors")


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given."""
    if isinstance(tree, list):
        return [unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$dtype" in tree:
        return getattr(torch, tree["$dtype"])
    if "$tuple" in tree:
        return tuple(unpack(item, tensors) for item in tree["$tuple"])
    if "$items" in tree:
        return dict(unpack(tree["$items"], tensors))
    return {key: unpack(value, tensors) for key, value in tree.items()}


# --- writing ----------------------------------------------------------------------------------------------------------


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def save(root: Path, step: int, parts: Mapping[str, Any], *, keep: int) -> Path:
    """Writes `root/step-...` durably, then removes all but the newest `keep`. Raises durable.StorageError."""
    values: dict[str, Any] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    for part, tree in parts.items():
        tensors[part] = {}
        values[part] = pack(tree, tensors[part])
    needs = sum(tensor.nbytes for found in tensors.values() for tensor in found.values())
    final = root / name_of(step)
    with durable.written_aside(final, needs=needs) as aside:
        for part, found in tensors.items():
            if found:
                save_file(_unshared(found), aside / f"{part}.safetensors")
        (aside / STATE).write_text(json.dumps(values))
        files = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(aside.iterdir())}
        (aside / MANIFEST).write_text(json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1))
    retain(root, keep)
    return final


def retain(root: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints."""
    for old in folders(root)[:-keep]:
        durable.remove_folder(old)


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory: later ones are copied."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        at = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if at in seen or tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
        seen.add(at)
    return out


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading ----------------------------------------------------------------------------------------------------------


def folders(root: Path) -> list[Path]:
    """The checkpoints under a folder, oldest first, valid or not."""
    found = [(int(match[1]), path) for path in root.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def verify(folder: Path) -> int:
    """The step of a whole checkpoint. Raises CheckpointError, naming the file, if anything is not as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{folder} has format {manifest['format']}, this version reads {FORMAT}")
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                raise CheckpointError(f"{folder} is damaged: {name} is missing")
            if path.stat().st_size != expected["size"]:
                size = path.stat().st_size
                raise CheckpointError(f"{folder} is damaged: {name} has {size} of {expected['size']} bytes")
            if _sha256(path) != expected["sha256"]:
                raise CheckpointError(f"{folder} is damaged: the content of {name} has changed")
        if folder.name != name_of(manifest["step"]):
            raise CheckpointError(f"{folder} is damaged: its manifest is of step {manifest['step']}")
        return int(manifest["step"])
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no checkpoint: it has no {MANIFEST}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder} is damaged: {MANIFEST} cannot be read ({type(error).__name__})") from None


def load(folder: Path) -> Checkpoint:
    """Reads a checkpoint, checked against its manifest first. Raises CheckpointError if it is missing or damaged."""
    step = verify(folder)
    values = json.loads((folder / STATE).read_text())
    parts = {}
    for part, tree in values.items():
        file = folder / f"{part}.safetensors"
        parts[part] = unpack(tree, load_file(file) if file.exists() else {})
    return Checkpoint(step, parts, folder)


def newest(root: Path, say: Say = print) -> Path | None:
    """The newest valid checkpoint, None if there is none at all; damaged ones are named and passed over.

    Raises CheckpointError if there are checkpoints and none is valid: a run never starts afresh by accident.
    """
    problems = []
    for folder in reversed(folders(root)):
        try:
            verify(folder)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            say(f"{problem}; continuing from {folder.name} instead")
        return folder
    if problems:
        raise CheckpointError(f"{'; '.join(problems)}: no valid checkpoint is left; move {root} away to start again")
    return None


def set_aside(root: Path, after: int) -> None:
    """Renames checkpoints later than a step to `aside-step-*`: they belong to a course that is not continued."""
    for folder in folders(root):
        if int(folder.name.removeprefix("step-")) > after:
            target = root / f"aside-{folder.name}"
            if target.exists():
                durable.remove_folder(target)
            folder.rename(target)
