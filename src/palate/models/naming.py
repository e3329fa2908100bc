"""What a model's name stands for: a folder, a hub id, or the model a world ships. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palate import plugins


def call_defaults(name: str | Path) -> dict[str, Any]:
    """Arguments of every call of the pipeline that a world's model is to be used with; none for another model."""
    if not str(name).startswith("world:"):
        return {}
    return getattr(plugins.world(str(name)), "call_defaults", dict)()


def resolve_model(name: str | Path) -> str:
    """A folder or a hub id for a model's name; `world:<name>` is the model a world ships.

    Raises FileNotFoundError, naming the folder or world and the mend.
    """
    text = str(name)
    if text.startswith("world:"):
        try:
            folder: Path = plugins.world(text).weights_dir()
        except plugins.PluginError as error:
            raise FileNotFoundError(f"{text}: {error}") from None
        if not (folder / "model_index.json").exists():
            raise FileNotFoundError(f"{text}: its weights are not in {folder}; reinstall the package, or pretrain it")
        return str(folder)
    looks_local = isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1
    folder = Path(text).expanduser()
    parent = text.partition("/")[0]
    if folder.exists():
        if not (folder / "model_index.json").exists():
            raise FileNotFoundError(f"{folder}: has no model_index.json; give the folder `save_pretrained` wrote")
        return str(folder)
    if looks_local:
        raise FileNotFoundError(f"{text}: no such folder; give a pipeline's folder, a hub id, or world:shapes")
    if Path(parent).is_dir():  # a slip in a local path must not go to the network
        raise FileNotFoundError(
            f"{text}: no such folder in {parent}/; mend the path (or, if it is a hub id, call from another folder)"
        )
    return text
