"""LoRAs on a diffusers pipeline: read, named, switched on together, fused, written. A layer adds them in order.

    loras.load(pipeline, loras.lineage("runs/first"))     # a run's adapter, after those it was trained on top of

A folder of Palate's holds the adapter of the first denoiser where `pipeline.load_lora_weights` looks for it, that of a
second expert in a folder of its name, and what it was trained on top of in `base/`, `base_2/` and so on.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers.utils import logging
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from palate.models import hub
from palate.models.probe import denoisers
from palate.training.adapters import ADAPTER, AdapterError, several_adapters

WEIGHTS = "pytorch_lora_weights.safetensors"
BASE = "base"
_METADATA = ("r", "lora_alpha", "target_modules", "use_rslora", "lora_bias")  # all a reader needs; no paths
_IF_SET = ("rank_pattern", "alpha_pattern", "use_dora")
_PREFIX = "transformer"  # where `load_lora_adapter` and `load_into_transformer_2` look for a second expert's layers


# --- reading ----------------------------------------------------------------------------------------------------------


def lineage(source: str | Path) -> list[str]:
    """What is to be loaded, in order, for a LoRA: a hub id, a file, a folder, or a run's folder with all that it was
    trained on top of.

    Raises AdapterError for a run that has no adapter, and for what is neither here nor on the hub.
    """
    folder = Path(source) if Path(source).exists() else _fetched(str(source))
    if (folder / "config.yaml").is_file():
        if not (folder / "adapter").is_dir():
            mend = f"set model.name to {folder / 'model'}" if (folder / "model").is_dir() else "let its training finish"
            raise AdapterError(f"{folder} is a run without adapter/: {mend}")
        folder = folder / "adapter"
    below = [str(folder / name) for name in map(base_name, range(100)) if (folder / name / WEIGHTS).is_file()]
    return [*below, str(folder)]


def _fetched(name: str) -> Path:
    """A LoRA of the hub, as far as its files are called as ours; the name itself if they are not."""
    from huggingface_hub import snapshot_download

    try:
        here = not hub.reached(name, WEIGHTS)
        found = Path(snapshot_download(name, allow_patterns=[WEIGHTS, f"*/{WEIGHTS}"], local_files_only=here))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise AdapterError(f"{name}: no LoRA here, nor to be had from the hub ({reason})") from error
    return found if (found / WEIGHTS).is_file() else Path(name)


def base_name(index: int) -> str:
    """`base`, `base_2`, `base_3`, ..."""
    return f"{BASE}_{index + 1}" if index else BASE


def load(pipeline: Any, sources: Sequence[str], names: Sequence[str] | None = None) -> None:
    """Adds LoRAs to a pipeline, switched on and frozen. names: of the adapters; `base`, `base_2`, ... by default.

    Only safetensors are read. Raises AdapterError for one that cannot be read or has no layer of the model's.
    """
    names = names or [base_name(index) for index in range(len(sources))]
    for source, name in zip(sources, names, strict=True):
        try:
            with several_adapters(), _quietly():
                _load(pipeline, source, name)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise AdapterError(f"{source} cannot be read as a LoRA of {type(pipeline).__name__}: {reason}") from error
        if not any(name in _configs(module) for module in _modules(pipeline).values()):
            raise AdapterError(f"{source} holds no layer of {type(pipeline).__name__}: is it a LoRA of another model?")
    for module in _modules(pipeline).values():
        for layer in layers(module):
            layer.set_adapter(list(names), inference_mode=True)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without diffusers' notes on parts of the pipeline that a LoRA is not for."""
    held = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(held)


def load_run(pipeline: Any, run: Path) -> None:
    """Adds a run's adapter to its base, under the name it was trained by, after those it was trained on top of."""
    sources = lineage(run)
    load(pipeline, sources, [*map(base_name, range(len(sources) - 1)), ADAPTER])


def _load(pipeline: Any, source: str, name: str) -> None:
    parts = list(denoisers(pipeline).items())
    whole = callable(getattr(pipeline, "load_lora_weights", None))
    if whole:
        pipeline.load_lora_weights(source, adapter_name=name, use_safetensors=True, **_weight_name(source))
        rest = parts
    else:
        (_, first), *rest = parts
        first.load_lora_adapter(source, prefix=None, adapter_name=name, use_safetensors=True)  # type: ignore[operator]
    for part, module in rest:
        if (Path(source) / part / WEIGHTS).is_file():
            prefix = _PREFIX if whole else None
            module.load_lora_adapter(  # type: ignore[operator]
                str(Path(source) / part), prefix=prefix, adapter_name=name, weight_name=WEIGHTS, use_safetensors=True
            )


def _weight_name(source: str) -> dict[str, str]:
    """The file in a folder of ours, whatever else lies beside it; of any other, diffusers finds it."""
    return {"weight_name": WEIGHTS} if (Path(source) / WEIGHTS).is_file() else {}


# --- on a pipeline ----------------------------------------------------------------------------------------------------


def layers(module: nn.Module) -> list[Any]:
    """A module's adapted layers."""
    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


def _modules(pipeline: Any) -> dict[str, nn.Module]:
    return {part: module for part, module in pipeline.components.items() if isinstance(module, nn.Module)}


def _configs(module: nn.Module) -> Mapping[str, Any]:
    return getattr(module, "peft_config", {})


def fuse(pipeline: Any) -> list[str]:
    """Adds all LoRAs into the weights they adapt, to rounding in the weights' own dtype, and forgets them. Returns the
    names of the parts whose weights have changed.

    Raises AdapterError, with nothing fused of the layer, if a weight would not be finite.
    """
    adapted = [part for part, module in _modules(pipeline).items() if layers(module)]
    try:
        if callable(getattr(pipeline, "fuse_lora", None)):
            if adapted:
                pipeline.fuse_lora(components=adapted, safe_fusing=True)
                pipeline.unload_lora_weights()
            return adapted
        for part in adapted:
            module: Any = getattr(pipeline, part)
            module.fuse_lora(safe_fusing=True)
            module.unload_lora()
        return adapted
    except ValueError as error:
        raise AdapterError(f"the adapter cannot be added into the model's weights: {error}") from error


# --- writing ----------------------------------------------------------------------------------------------------------


def state_of(module: nn.Module, name: str = ADAPTER) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An adapter's weights and the few settings that give them meaning."""
    from peft.utils import get_peft_model_state_dict

    config = _configs(module)[name].to_dict()
    if not {"r", "lora_alpha"} <= config.keys():
        raise AdapterError(f"the adapter {name!r} is no LoRA but {config.get('peft_type')}: only LoRAs are written")
    metadata = {key: config[key] for key in _METADATA if key in config}
    metadata |= {key: config[key] for key in _IF_SET if config.get(key)}
    if not isinstance(metadata["target_modules"], str):
        metadata["target_modules"] = sorted(metadata["target_modules"])
    state = get_peft_model_state_dict(module, adapter_name=name)
    return {key: weight.detach().cpu().contiguous() for key, weight in state.items()}, metadata


def save(pipeline: Any, modules: Mapping[str, nn.Module], folder: Path, name: str = ADAPTER) -> None:
    """Writes an adapter of the named modules as `load` and plain diffusers read it, the same bytes each time.

    pipeline: None, or one that does not know LoRAs, for `module.load_lora_adapter(folder, prefix=None)`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write = getattr(pipeline, "save_lora_weights", None)
    known = set(inspect.signature(write).parameters) if callable(write) else set()
    together: dict[str, Any] = {}
    for index, (part, module) in enumerate(modules.items()):
        weights, metadata = state_of(module, name)
        if f"{part}_lora_layers" in known:
            together |= {f"{part}_lora_layers": weights, f"{part}_lora_adapter_metadata": metadata}
            continue
        place = folder / part if index else folder
        prefix = f"{_PREFIX}." if known else ""
        _write(place / WEIGHTS, {prefix + key: weight for key, weight in weights.items()}, prefix, metadata)
    if together:
        pipeline.save_lora_weights(folder, **together)
    for path in folder.rglob("*.safetensors"):
        _in_order(path)


def save_base(pipeline: Any, folder: Path, name: str) -> None:
    """Writes an adapter that was loaded with the pipeline: of all its parts, text encoders too."""
    save(pipeline, {part: m for part, m in _modules(pipeline).items() if name in _configs(m)}, folder, name)


def _write(path: Path, weights: Mapping[str, Tensor], prefix: str, metadata: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    said = json.dumps({prefix + key: value for key, value in metadata.items()}, sort_keys=True)
    save_file(dict(weights), path, metadata={"format": "pt", "lora_adapter_metadata": said})


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
