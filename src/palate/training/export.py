"""The result of a run, in a form that plain diffusers loads and that tells nothing of where it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from palate.training import adapters, durable

WEIGHTS = "pytorch_lora_weights.safetensors"
_METADATA = ("r", "lora_alpha", "target_modules", "use_rslora", "lora_bias")  # all a reader needs; no paths


def export(policy: Any, run: Path) -> Path:
    """Writes `run/adapter/` under LoRA (`pipeline.load_lora_weights(folder)`), else `run/model/`, a pipeline folder.

    Whole or not at all, in the place of an earlier export. Raises durable.StorageError.
    """
    if adapters.has_adapter(policy):
        final = run / "adapter"
        weights, metadata = adapter_of(policy)
        with durable.written_aside(final, needs=sum(weight.nbytes for weight in weights.values())) as folder:
            _write_adapter(policy, folder, weights, metadata)
        return final
    final = run / "model"
    with durable.written_aside(final) as folder:
        if (pipeline := getattr(policy, "pipeline", None)) is not None:
            pipeline.save_pretrained(folder)
            _forget_paths(folder)
        else:
            weights = {name: weight.detach().contiguous() for name, weight in adapters.trainable(policy).items()}
            save_file(weights, folder / "model.safetensors")
    return final


def adapter_of(policy: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The adapter's weights and the few settings that give them meaning."""
    from peft.utils import get_peft_model_state_dict

    state = get_peft_model_state_dict(policy.module, adapter_name=adapters.ADAPTER)
    config = policy.module.peft_config[adapters.ADAPTER].to_dict()
    metadata = {name: config[name] for name in _METADATA if name in config}
    metadata["target_modules"] = sorted(metadata["target_modules"])
    return {name: weight.detach().cpu().contiguous() for name, weight in state.items()}, metadata


def _part(policy: Any) -> str:
    """What the pipeline calls the module; empty without one."""
    components = getattr(getattr(policy, "pipeline", None), "components", {})
    return next((name for name, module in components.items() if module is policy.module), "")


def _write_adapter(policy: Any, folder: Path, weights: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    pipeline, part = getattr(policy, "pipeline", None), _part(policy)
    if part and callable(getattr(pipeline, "save_lora_weights", None)):
        layers = {f"{part}_lora_layers": dict(weights), f"{part}_lora_adapter_metadata": metadata}
        pipeline.save_lora_weights(folder, **layers)  # type: ignore[union-attr]
    else:  # no pipeline that knows adapters: module.load_lora_adapter reads this
        text = {"format": "pt", "lora_adapter_metadata": json.dumps(metadata, sort_keys=True)}
        save_file(dict(weights), folder / WEIGHTS, metadata=text)
    for path in folder.glob("*.safetensors"):
        _in_order(path)


def _forget_paths(folder: Path) -> None:
    """Takes out of a pipeline's configurations where the base model lay on this disk."""
    for path in folder.rglob("*.json"):
        config = json.loads(path.read_text())
        if isinstance(config, dict) and "_name_or_path" in config:
            del config["_name_or_path"]
            path.write_text(json.dumps(config, indent=2) + "\n")


def _in_order(path: Path) -> None:
    """Sorts a file's metadata, which safetensors writes in any order: the same adapter is then the same file."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) == length:
            file.seek(8)
            file.write(text)


def continue_from(policy: Any, folder: Path) -> None:
    """Puts an exported adapter's weights into the policy's fresh one, to train on from there (reference: `start`).

    Raises AdapterError unless both have the same layers, rank and alpha.
    """
    with safe_open(folder / WEIGHTS, "pt") as file:
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    own, settings = adapter_of(policy)
    saved = {name.removeprefix(f"{_part(policy)}."): weight for name, weight in saved.items()}
    alpha = next((value for name, value in metadata.items() if name.endswith("lora_alpha")), settings["lora_alpha"])
    same = {n: w.shape for n, w in saved.items()} == {n: w.shape for n, w in own.items()}
    if not same or alpha != settings["lora_alpha"]:
        raise adapters.AdapterError(
            f"{folder} holds another kind of adapter: train on with the layers, rank and alpha it was made with"
        )
    weights = {
        name.replace(f".{adapters.ADAPTER}.", "."): weight for name, weight in adapters.trainable(policy).items()
    }
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(saved[name])
