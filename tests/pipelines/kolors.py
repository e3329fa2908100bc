"""Kolors: SDXL's UNet told by a ChatGLM, and with perturbed attention."""

from __future__ import annotations

import io
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import sentencepiece
import torch
from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

from tests import zoo
from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]
TOKENS = 16


@cache
def _tokenizer() -> Any:
    """ChatGLM's own class over a vocabulary of letters."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog 0123456789"]),
        model_writer=model,
        model_type="char",
        vocab_size=42,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.model"
        file.write_bytes(model.getvalue())
        return ChatGLMTokenizer(str(file))


def _kolors(kind: Any, **options: Any) -> Build:
    torch.manual_seed(160)
    width = 16
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=24,
        encoder_hid_dim=width,
        encoder_hid_dim_type="text_proj",
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + width,
    )
    text = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=128,
        hidden_size=width,
        ffn_hidden_size=32,
        kv_channels=8,
        num_attention_heads=2,
        multi_query_attention=True,
        multi_query_group_num=1,
        add_qkv_bias=True,
        seq_length=TOKENS,
        original_rope=True,
        use_cache=False,
    )
    text_encoder = ChatGLMModel(text)
    for weight in text_encoder.parameters():  # uninitialised memory, as made
        torch.nn.init.normal_(weight, std=0.2)
    pipeline = kind(
        vae=parts.vae(4, scaling_factor=0.13025),
        text_encoder=text_encoder,
        tokenizer=_tokenizer(),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            **{**zoo.NOISE_TABLE, "beta_end": 0.014},
            num_train_timesteps=1100,
            steps_offset=1,
            timestep_spacing="leading",
        ),
        force_zeros_for_empty_prompt=False,
        **options,
    )
    return parts.finish(pipeline), {"height": 16, "width": 16, "max_sequence_length": TOKENS}


def plain() -> Build:
    return _kolors(diffusers.KolorsPipeline)


def pag() -> Build:
    return _kolors(diffusers.KolorsPAGPipeline, pag_applied_layers="mid")


BUILDS = {"KolorsPipeline": plain, "KolorsPAGPipeline": pag}
