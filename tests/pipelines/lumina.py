"""Lumina, Lumina 2 and Z-Image: next-generation DiT blocks; clocks that run backwards and negated predictions."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]
SIZE = {"height": 32, "width": 32}


def next_dit() -> Build:
    """Lumina: a Gemma with a mask by cross-attention, variance channels, guidance over some channels only."""
    torch.manual_seed(50)
    tokenizer = parts.letters(begin=True)
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        norm_eps=1e-5,
        learn_sigma=True,
        qk_norm=True,
        cross_attention_dim=16,
        scaling_factor=1.0,
    )
    torch.nn.init.normal_(transformer.pad_token)  # uninitialised memory, as made
    pipeline = diffusers.LuminaPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=parts.vae_8(4, scaling_factor=0.13025),
        text_encoder=parts.gemma(transformers.GemmaForCausalLM, tokenizer),
        tokenizer=tokenizer,
    )
    return parts.finish(pipeline), {**SIZE, "max_sequence_length": 32, "clean_caption": False}


def two() -> Build:
    """Lumina 2: text and picture in one sequence, guidance rescaled to the conditional prediction's norm."""
    torch.manual_seed(51)
    tokenizer = parts.letters(begin=True)
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        norm_eps=1e-5,
        scaling_factor=1.0,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 32, 32),
        cap_feat_dim=16,
    )
    pipeline = diffusers.Lumina2Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=parts.vae_8(4, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=parts.gemma2(transformers.Gemma2Model, tokenizer, layers=2),
        tokenizer=tokenizer,
    )
    return parts.finish(pipeline), {**SIZE, "max_sequence_length": 64, "system_prompt": "draw"}


def z_image(shift: float = 6.0) -> Build:
    """Z-Image: lists of rows of their own length, a backward clock, a negated prediction."""
    torch.manual_seed(14)
    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):  # uninitialised memory, as made
        torch.nn.init.normal_(token)
    tokenizer = parts.letters()
    pipeline = diffusers.ZImagePipeline(
        tokenizer=tokenizer,
        text_encoder=parts.qwen3(transformers.Qwen3Model, tokenizer),
        vae=parts.vae(16, scaling_factor=0.3611, shift_factor=0.1159),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
    )
    return parts.finish(pipeline), {**SIZE, "max_sequence_length": 32}


def z_image_turbo() -> Build:
    return z_image(shift=3.0)


def z_image_omni() -> Build:
    """Z-Image Omni: the same for pictures to edit, which a SigLIP sees; none are given."""
    base, call = z_image()
    torch.manual_seed(15)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_patches": 16,
        "patch_size": 4,
    }
    transformer = diffusers.ZImageTransformer2DModel.from_config(base.transformer.config, siglip_feat_dim=16)
    for name, token in transformer.named_parameters():
        if name.endswith("pad_token"):
            torch.nn.init.normal_(token)
    pipeline = diffusers.ZImageOmniPipeline(
        **{**base.components, "transformer": transformer},
        siglip=transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**vision)),
        siglip_processor=None,
    )
    return parts.finish(pipeline), call


BUILDS = {
    "LuminaPipeline": next_dit,
    "Lumina2Pipeline": two,
    "ZImagePipeline": z_image,
    "ZImagePipeline (turbo)": z_image_turbo,
    "ZImageOmniPipeline": z_image_omni,
}
