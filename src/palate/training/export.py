"""The result of a run, in a form that plain diffusers loads and that tells nothing of where it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from palate import durable
from palate.models.loading import quietly
from palate.training import adapters, loras
from palate.training.loras import WEIGHTS

__all__ = ["WEIGHTS", "export", "save_pipeline"]


def export(policy: Any, run: Path) -> Path:
    """Writes `run/adapter/` under LoRA (`pipeline.load_lora_weights(folder)`), else `run/model/`, a pipeline folder.

    LoRAs that the model came with are written beside the new one, in `base/`, `base_2/`, ...: it is nothing without
    them. Whole or not at all, in the place of an earlier export. Raises durable.StorageError.
    """
    if adapters.has_adapter(policy):
        final = run / "adapter"
        needs = sum(weight.nbytes for weight in adapters.trainable(policy).values())
        with durable.written_aside(final, needs=needs) as folder:
            _write_adapter(policy, folder)
        return final
    final = run / "model"
    with durable.written_aside(final) as folder:
        if (pipeline := getattr(policy, "pipeline", None)) is not None:
            with policy.residency.whole():
                save_pipeline(pipeline, folder)
        else:
            weights = {name: weight.detach().contiguous() for name, weight in adapters.trainable(policy).items()}
            save_file(weights, folder / "model.safetensors")
    return final


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """A pipeline's folder in safetensors, that does not say where the base model lay on this disk."""
    with quietly():
        pipeline.save_pretrained(folder)
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict) and "_name_or_path" in config:
            del config["_name_or_path"]
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_adapter(policy: Any, folder: Path) -> None:
    modules, pipeline = adapters.modules_of(policy), getattr(policy, "pipeline", None)
    loras.save(pipeline, {_part(pipeline, name, module): module for name, module in modules.items()}, folder)
    for name in dict.fromkeys(name for module in modules.values() for name in adapters.base_adapters(module)):
        loras.save_base(pipeline, folder / name, name)


def _part(pipeline: Any, name: str, module: nn.Module) -> str:
    """What the pipeline calls the module; the policy's own name for it without one."""
    components = getattr(pipeline, "components", {})
    return next((part for part, component in components.items() if component is module), name)
