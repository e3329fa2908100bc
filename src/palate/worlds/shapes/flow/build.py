"""The parts of the flow model, untrained: a StableDiffusion3Pipeline in small.

The pictures, the autoencoder and the tokenizer are those of the first model. Captions are read by two CLIP text models
whose states are joined, and by no T5: in its place the pipeline pads the context with `max_sequence_length` zero
tokens, 256 by default. The transformer is taught to work with 256 and with none, which takes a quarter of the time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from palate.worlds.shapes import build

TOKENS = 18  # the longest caption takes 14; at the four after it the text models say what stands at which side
WIDTHS = (128, 32)  # of the two text models
DEPTHS = (3, 2)  # the pipeline takes the states before the last layer; the last serves the pooled vector
CONTEXT = sum(WIDTHS)
WIDTH, HEADS, DEPTH = 160, 5, 5


def build_tokenizer() -> CLIPTokenizer:
    """The first model's tokenizer, padding to `TOKENS`."""
    return build.build_tokenizer(TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer, which: int) -> CLIPTextModelWithProjection:
    """Text model 0 or 1: token ids [n, TOKENS] to states [n, TOKENS, width] and a pooled vector [n, width]."""
    width = WIDTHS[which]
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=DEPTHS[which],
            num_attention_heads=4,
            projection_dim=width,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class Reader(nn.Module):
    """Both text models, read as the pipeline reads them."""

    def __init__(self) -> None:
        super().__init__()
        tokenizer = build_tokenizer()
        self.models = nn.ModuleList(build_text_encoder(tokenizer, which) for which in (0, 1))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """States before the last layer [n, TOKENS, CONTEXT] and pooled vectors [n, CONTEXT] of ids [n, TOKENS]."""
        read = [model(ids, output_hidden_states=True) for model in self.models]
        return torch.cat([r.hidden_states[-2] for r in read], -1), torch.cat([r.text_embeds for r in read], -1)


def build_transformer() -> SD3Transformer2DModel:
    """The denoiser of latents [n, 16, 8, 8], one token each place: an MM-DiT of about 4.5 M parameters.

    Every block begins as the identity and the whole as zero, as in DiT (Peebles and Xie 2022, 2212.09748, section 3.2).
    """
    transformer = SD3Transformer2DModel(
        sample_size=build.LATENT_SIDE,
        patch_size=1,
        in_channels=build.LATENT_CHANNELS,
        out_channels=build.LATENT_CHANNELS,
        num_layers=DEPTH,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS,
        joint_attention_dim=CONTEXT,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=CONTEXT,
        pos_embed_max_size=build.LATENT_SIDE,
        qk_norm="rms_norm",
    )
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if name == "proj_out" or "norm" in name:  # the norms' linear layers give shift, scale and gate
                nn.init.zeros_(module.weight)
    return transformer


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler on the straight path, its steps of one length: latents this small need no shift towards noise."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def build_pipeline(
    vae: AutoencoderKL, transformer: SD3Transformer2DModel, reader: Reader, tokenizer: CLIPTokenizer
) -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        vae=vae,
        transformer=transformer,
        text_encoder=reader.models[0],
        text_encoder_2=reader.models[1],
        text_encoder_3=None,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=None,
        scheduler=build_scheduler(),
    )


def load_pipeline(folder: Path | str, **options: Any) -> StableDiffusion3Pipeline:
    """The pipeline of a folder, on the CPU in fp32, all parts in eval mode, without a progress bar."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **{"dtype": torch.float32, **options})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
