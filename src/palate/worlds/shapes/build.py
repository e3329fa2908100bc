"""The parts of the shapes model, untrained: a StableDiffusionPipeline in small.

64 x 64 pictures become 8 x 8 latents of 16 channels; captions are read by a two-layer CLIP text model in whose
vocabulary every word of this world is one token.
"""

from __future__ import annotations

import itertools
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from palate.worlds.shapes import data, language

LATENT_CHANNELS = 16
LATENT_SIDE = 8
TEXT_WIDTH = 128
MAX_TOKENS = 24


def build_vae() -> AutoencoderKL:
    """The autoencoder, `[n, 3, 64, 64]` in -1..1 to `[n, 16, 8, 8]`, about 2 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 48, 96, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=data.SIDE,
        force_upcast=False,
    )


def build_unet() -> UNet2DConditionModel:
    """The denoiser of latents `[n, 16, 8, 8]`, about 4 M parameters."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(80, 128),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


def build_tokenizer(tokens: int = MAX_TOKENS) -> CLIPTokenizer:
    """A CLIP tokenizer with the byte alphabet and the merges that make each word of the captions one token."""
    alphabet = _byte_alphabet()
    vocabulary = alphabet + [letter + "</w>" for letter in alphabet]
    merges: list[tuple[str, str]] = []
    for word in _words():  # later merges rank lower, so they never undo a word that is already whole
        while len(parts := _apply(merges, word)) > 1:
            merges.append((parts[0], parts[1]))
            vocabulary.append(parts[0] + parts[1])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges, model_max_length=tokens)


def _words() -> list[str]:
    phrases = ["a", "on"]
    for part in (language.SIZES, language.COLOURS, language.SHAPES, language.RELATIONS, language.BACKGROUNDS):
        phrases += part
    return sorted(set(re.findall(r"[a-z]+", " ".join(phrases))))


def _apply(merges: list[tuple[str, str]], word: str) -> list[str]:
    """Byte-pair encoding of a word: the earliest merge that fits, wherever it fits, until none does."""
    parts = [*word[:-1], word[-1] + "</w>"]
    while fitting := [m for m in merges if m in itertools.pairwise(parts)]:
        joined: list[str] = []
        for part in parts:
            if joined and (joined[-1], part) == fitting[0]:
                joined[-1] += part
            else:
                joined.append(part)
        parts = joined
    return parts


def _byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes of GPT-2's byte-level encoding, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b if b in printable else next(spare)) for b in range(256)]


def tokenise(texts: list[str], tokens: int = MAX_TOKENS) -> Tensor:
    """Token ids [n, tokens], padded."""
    tokenizer = _tokenizer(tokens)
    return tokenizer(texts, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt").input_ids


_tokenizer = cache(build_tokenizer)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text model, token ids `[n, 24]` to `[n, 24, 128]`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=TEXT_WIDTH,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """DDIM on Stable Diffusion's noise table."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
        prediction_type="epsilon",
    )


def build_pipeline(
    vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def load_pipeline(folder: Path | str, **options: Any) -> StableDiffusionPipeline:
    """The pipeline of a folder, on the CPU in fp32, all parts in eval mode, without a progress bar."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, **{"dtype": torch.float32, **options})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
