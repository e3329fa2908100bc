"""Sound and music from spectrograms: AudioLDM, AudioLDM 2 and MusicLDM, latent diffusion with a vocoder behind it.

AudioLDM and MusicLDM hand CLAP's one vector over as a class label; AudioLDM 2 two sequences, one of them written by a
language model.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests import zoo
from tests.pipelines.audio_parts import (
    LDM_TABLE,
    clap,
    clap_text,
    roberta_tokenizer,
    spectrogram_vae,
    vocoder,
)

CALL: dict[str, Any] = {"audio_length_in_s": 0.008}  # 32 frames of the spectrogram, 8 x 2 latents
SIZES: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": (8, 16),
}


def labelled_unet() -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        **SIZES,
        attention_head_dim=4,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=8,
        class_embeddings_concat=True,
    )


def audioldm() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(240)
    tokenizer = roberta_tokenizer()
    text = transformers.ClapTextConfig(**clap_text(tokenizer))
    pipeline = diffusers.AudioLDMPipeline(
        vae=spectrogram_vae(),
        text_encoder=transformers.ClapTextModelWithProjection(text),
        tokenizer=tokenizer,
        unet=labelled_unet(),
        scheduler=diffusers.DDIMScheduler(**LDM_TABLE),
        vocoder=vocoder(),
    )
    return zoo._finish(pipeline), dict(CALL)


def musicldm() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(241)
    tokenizer = roberta_tokenizer()
    pipeline = diffusers.MusicLDMPipeline(
        vae=spectrogram_vae(),
        text_encoder=clap(tokenizer),
        tokenizer=tokenizer,
        feature_extractor=transformers.ClapFeatureExtractor(feature_size=8, truncation="rand_trunc"),
        unet=labelled_unet(),
        scheduler=diffusers.DDIMScheduler(**LDM_TABLE),
        vocoder=vocoder(),
    )
    return zoo._finish(pipeline), dict(CALL)


def audioldm2() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(242)
    tokenizer = roberta_tokenizer()
    writer = transformers.GPT2Config(
        n_embd=16, n_head=1, n_layer=1, vocab_size=64, n_positions=99, bos_token_id=None, eos_token_id=None
    )
    writer.max_new_tokens = 8
    pipeline = diffusers.AudioLDM2Pipeline(
        vae=spectrogram_vae(),
        text_encoder=clap(tokenizer),
        text_encoder_2=zoo._t5(32),
        projection_model=diffusers.AudioLDM2ProjectionModel(
            text_encoder_dim=8, text_encoder_1_dim=32, langauge_model_dim=16
        ),
        language_model=transformers.GPT2LMHeadModel(writer),
        tokenizer=tokenizer,
        tokenizer_2=zoo._t5_tokenizer(),
        feature_extractor=transformers.ClapFeatureExtractor(feature_size=8, truncation="rand_trunc"),
        unet=diffusers.AudioLDM2UNet2DConditionModel(**{**SIZES, "cross_attention_dim": ((None, 16, 32),) * 2}),
        scheduler=diffusers.DDIMScheduler(**LDM_TABLE),
        vocoder=vocoder(),
    )
    return zoo._finish(pipeline), dict(CALL)


BUILDS = {"AudioLDMPipeline": audioldm, "MusicLDMPipeline": musicldm, "AudioLDM2Pipeline": audioldm2}
