"""What a model is made of, as a digest: two that agree in it encode the same media and prompts to the same numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from palate.models.probe import denoisers

_WRITTEN = ("architectures", "dtype", "torch_dtype", "transformers_version")  # added to a config when it is saved
_LIBRARIES = ("diffusers", "transformers")
VERSION = 1  # of what `encode` and `condition` do with the same weights: raised where their outcome changes


def digest_of(tensors: Mapping[str, Tensor], *facts: object) -> str:
    """A 128-bit digest of tensors, their names, shapes and dtypes, and of whatever else prints the same everywhere."""
    digest = hashlib.blake2b("\x1f".join(map(str, facts)).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        raw = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
        digest.update(f"\x1e{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def codec_identity(policy: Any) -> str:
    """Of what turns media into latents, at any size: the autoencoder's weights and config."""
    return _identity(policy, [name for name in parts(policy.pipeline) if encodes_media(getattr(policy.pipeline, name))])


def prompt_identity(policy: Any) -> str:
    """Of what turns prompts into conditions, at any size: text encoders, tokenizers, the denoisers' configs, the
    pipeline's own switches, and the libraries whose code words and cuts the prompts.
    """
    names = [name for name in parts(policy.pipeline) if not encodes_media(getattr(policy.pipeline, name))]
    words = {name: _vocabulary(part) for name, part in policy.pipeline.components.items() if _is_tokenizer(part)}
    shapes = {name: _settings(module) for name, module in policy.modules.items() if hasattr(module, "config")}
    switches = {
        k: v for k, v in policy.pipeline.config.items() if k[0] != "_" and isinstance(v, bool | int | float | str)
    }
    return _identity(policy, names, words, shapes, sorted(switches.items()), *map(version, _LIBRARIES))


def geometry(policy: Any) -> str:
    """Of what a policy draws: the arguments of its calls and the shape of its latents."""
    return repr((sorted(policy.call.items()), tuple(policy.latent_shape)))


def parts(pipeline: Any) -> Iterator[str]:
    """Names of the pipeline's modules that are no denoiser: autoencoders, text encoders, projections."""
    known = set(denoisers(pipeline))
    return (
        name for name, part in sorted(pipeline.components.items()) if isinstance(part, nn.Module) and name not in known
    )


def encodes_media(part: Any) -> bool:
    return callable(getattr(part, "encode", None)) and callable(getattr(part, "decode", None))


def _is_tokenizer(part: Any) -> bool:
    return callable(getattr(part, "get_vocab", None))


def _vocabulary(tokenizer: Any) -> str:
    said = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(f"{type(tokenizer).__name__}{tokenizer.model_max_length}{said}".encode()).hexdigest()


def _identity(policy: Any, names: list[str], *facts: object) -> str:
    tensors: dict[str, Tensor] = {}
    configs: list[object] = [VERSION, type(policy.pipeline).__name__, *facts]
    for name in names:
        module = getattr(policy.pipeline, name)
        tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        configs.append((name, _settings(module)))
    return digest_of(tensors, *configs)


def _settings(module: nn.Module) -> list[tuple[str, str]]:
    """A module's config, without what only says where it was read from and what wrote it."""
    config: Any = getattr(module, "config", None) or {}
    held = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return sorted(
        (key, json.dumps(value, default=repr)) for key, value in held.items() if key[0] != "_" and key not in _WRITTEN
    )
