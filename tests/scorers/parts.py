"""Tiny judges with random weights in folders as the real ones have, and things for them to judge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from tests import zoo

PROMPTS = ["a red circle", "a blue square on grass", "two cats"]


def clip_tokenizer(limit: int = 77) -> CLIPTokenizer:
    letters = zoo._bytes()
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=limit)


def scatter(module: nn.Module, seed: int = 0, size: float = 0.2) -> nn.Module:
    """Every weight random, so that nothing is at its initial constant and nothing cancels."""
    maker = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(module.named_parameters()):
            noise = size * torch.randn(weight.shape, generator=maker)
            weight.copy_(noise + 1 if "norm" in name.lower() and name.endswith("weight") else noise)
    return module.eval()


def clip_config(words: int, image: int = 28, limit: int = 24) -> CLIPConfig:
    text = {
        "vocab_size": words,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "max_position_embeddings": limit,
        "projection_dim": 20,
        "hidden_act": "gelu",
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
    }
    vision = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "image_size": image,
        "patch_size": 7,
        "projection_dim": 20,
        "hidden_act": "gelu",
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)


def clip(folder: Path, *, limit: int = 24, scale: float = 2.5) -> tuple[Path, CLIPModel]:
    """A CLIP's folder: model, tokenizer, preprocessor; and the model."""
    tokenizer = clip_tokenizer(limit)
    model = scatter(CLIPModel(clip_config(len(tokenizer), limit=limit)))
    with torch.no_grad():
        model.logit_scale.fill_(scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 28}, "do_center_crop": true, '
        '"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711], '
        '"resample": 3, "image_processor_type": "CLIPImageProcessor"}'
    )
    return folder, model


def head(width: int, seed: int = 3) -> dict[str, Tensor]:
    """A reward head's weights by their published names."""
    maker = torch.Generator().manual_seed(seed)
    state, at = {}, width
    for place, wide in zip((0, 2, 4, 6, 7), (1024, 128, 64, 16, 1), strict=True):
        state[f"layers.{place}.weight"] = torch.randn(wide, at, generator=maker) / at**0.5
        state[f"layers.{place}.bias"] = torch.randn(wide, generator=maker) / 10
        at = wide
    return state


def through_head(state: dict[str, Tensor], x: np.ndarray) -> np.ndarray:
    """[n, width] -> [n] in float64."""
    for place in (0, 2, 4, 6, 7):
        x = x @ state[f"layers.{place}.weight"].double().numpy().T + state[f"layers.{place}.bias"].double().numpy()
    return x[:, 0]


def pictures(n: int = 4, size: tuple[int, int] = (40, 33)) -> list[Image.Image]:
    """Unlike one another, oblong."""
    made = []
    for i in range(n):
        values = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
        picture = Image.fromarray(values)
        ImageDraw.Draw(picture).rectangle((4, 4, 20 + i, 24), fill=(255 - 60 * i, 60 * i, 90))
        made.append(picture)
    return made


def normal(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def saved(path: Path, state: dict[str, Tensor]) -> Path:
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in state.items()}, path)
    return path


def each_size(load: Any, folder: Any, **how: Any) -> Iterator[Any]:
    """The scorer at batch sizes that split anything differently."""
    for size in (1, 3, 32):
        yield load(str(folder), batch_size=size, **how)
