"""Bria 3, FIBO and FIBO 2: FLUX's layout with real guidance in one call of two halves."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.bria_fibo2.pipeline_bria_fibo2 import PROMPT_TEMPLATE

from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]


def three() -> Build:
    """Bria 3: a T5 without padding or masks."""
    torch.manual_seed(120)
    transformer = diffusers.BriaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=None,
        axes_dims_rope=[0, 4, 4],
    )
    pipeline = diffusers.BriaPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=parts.vae(4, scaling_factor=0.13025, shift_factor=0.0),
        text_encoder=parts.t5(32),
        tokenizer=parts.t5_tokenizer(),
    )
    return parts.finish(pipeline), {"height": 16, "width": 16, "max_sequence_length": 32}


def fibo() -> Build:
    """FIBO: every layer of a SmolLM3 beside a block of its own, a video autoencoder 16 x smaller a side."""
    torch.manual_seed(121)
    tokenizer = parts.letters(begin=True)
    transformer = diffusers.BriaFiboTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        text_encoder_dim=16,
        pooled_projection_dim=None,
        axes_dims_rope=[0, 4, 4],
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        is_residual=True,
        scale_factor_spatial=16,
        temperal_downsample=[False, True, True],
    )
    text = transformers.SmolLM3Config(
        **parts.language_config(tokenizer, 16, 2, vocab_size=128_256)
    )  # an empty prompt is token 128000
    pipeline = diffusers.BriaFiboPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=transformers.SmolLM3ForCausalLM(text),
        tokenizer=tokenizer,
    )
    return parts.finish(pipeline), {"height": 64, "width": 64, "max_sequence_length": 32}


def fibo_two() -> Build:
    """FIBO 2: bundles of a Qwen3-VL's layers, one resampled to a few tokens, the others by cross-attention."""
    torch.manual_seed(122)
    tokenizer = parts.letters(PROMPT_TEMPLATE)
    bundles = ((0, 1), (1, 2))
    transformer = diffusers.BriaFibo2Transformer2DModel(
        in_channels=4,
        patch_size=2,
        dim=16,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=32,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=2,
        gist_min_text_len=8,
        gist_max_text_len=64,
        axes_dims=(4, 2, 2),
        axes_lens=(64, 32, 32),
    )
    pipeline = diffusers.BriaFibo2Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=parts.flux2_vae(),
        text_encoder=parts.qwen3_vl(transformers.Qwen3VLForConditionalGeneration, tokenizer),
        processor=parts.TextProcessor(tokenizer),
    )
    pipeline.text_encoder_out_layers = bundles
    return parts.finish(pipeline), {"height": 16, "width": 16}


BUILDS = {"BriaPipeline": three, "BriaFiboPipeline": fibo, "BriaFibo2Pipeline": fibo_two}
