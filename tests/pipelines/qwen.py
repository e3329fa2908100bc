"""Qwen-Image, Qwen-Image 2.1, Krea 2 and Nucleus: a vision-language model reads the prompt in a chat template.

Templates are cut off by a fixed number of tokens, so each word of theirs is one token here as in the real vocabulary.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.nucleusmoe_image.pipeline_nucleusmoe_image import DEFAULT_SYSTEM_PROMPT

from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]
SIZE = {"height": 32, "width": 32}
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
)


def _shifted(**options: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    """Shifted by the number of tokens, exponentially."""
    return diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type="exponential", **options
    )


def image() -> Build:
    """Qwen-Image: guidance by two calls, rescaled to the norm of the conditional prediction."""
    torch.manual_seed(40)
    tokenizer = parts.letters(TEMPLATE)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    parts.open_gates(transformer.time_text_embed.timestep_embedder.linear_2)
    pipeline = diffusers.QwenImagePipeline(
        scheduler=_shifted(base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02),
        vae=parts.qwen_vae(),
        text_encoder=parts.qwen2_5_vl(tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    return parts.finish(pipeline), {**SIZE, "max_sequence_length": 32}


def image_21(use_kv_cache: bool = True) -> Build:
    """Qwen-Image 2.1: text and picture in one sequence; by default keys and values of the text are kept from step 1."""
    torch.manual_seed(41)
    tokenizer = parts.letters(
        "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\nuser assistant <|image_pad|>",
        chat=parts.MARKED_CHAT,
    )
    transformer = diffusers.QwenImage21Transformer2DModel(
        in_channels=8,
        out_channels=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage21(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=8,
        dim_mult=[1, 1, 2, 2, 2],
        num_res_blocks=1,
        latents_mean=[0.1 * i - 0.2 for i in range(8)],
        latents_std=[1.0 + 0.25 * i for i in range(8)],
    )
    pipeline = diffusers.QwenImage21Pipeline(
        scheduler=_shifted(base_shift=0.5, max_shift=1.15),
        vae=vae,
        text_encoder=parts.qwen3_vl(transformers.Qwen3VLForConditionalGeneration, tokenizer),
        processor=parts.TextProcessor(tokenizer),
        transformer=transformer,
    )
    return parts.finish(pipeline), {"height": 64, "width": 64, "use_kv_cache": use_kv_cache}


def image_21_uncached() -> Build:
    return image_21(use_kv_cache=False)


def krea(is_distilled: bool = False) -> Build:
    """Krea 2: several layers of a Qwen3-VL, fused per token; guidance off is a scale of 0."""
    torch.manual_seed(42)
    tokenizer = parts.letters(TEMPLATE)
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    pipeline = diffusers.Krea2Pipeline(
        scheduler=_shifted(base_shift=0.5, max_shift=1.15, max_image_seq_len=6400),
        vae=parts.qwen_vae(),
        text_encoder=parts.qwen3_vl(transformers.Qwen3VLModel, tokenizer),
        tokenizer=tokenizer,
        transformer=transformer,
        text_encoder_select_layers=(0, 1, 2),
        is_distilled=is_distilled,
    )
    return parts.finish(pipeline), {**SIZE, "max_sequence_length": 16}


def krea_turbo() -> Build:
    return krea(is_distilled=True)


def nucleus() -> Build:
    """Nucleus: experts of its own choosing per token, after a first dense block; the prediction is negated."""
    torch.manual_seed(43)
    tokenizer = parts.letters(DEFAULT_SYSTEM_PROMPT, chat=parts.MARKED_CHAT)
    transformer = diffusers.NucleusMoEImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=5,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=[2.0] * 5,
    )
    for name, weight in transformer.named_parameters():
        if name.endswith(("gate_up_proj", "down_proj")):  # uninitialised memory, as made
            torch.nn.init.normal_(weight, std=0.2)
    pipeline = diffusers.NucleusMoEImagePipeline(
        transformer=transformer,
        scheduler=_shifted(base_shift=0.5, max_shift=1.15),
        vae=parts.qwen_vae(),
        text_encoder=parts.qwen3_vl(transformers.Qwen3VLForConditionalGeneration, tokenizer),
        processor=parts.TextProcessor(tokenizer),
    )
    return parts.finish(pipeline), {**SIZE, "return_index": -1}


BUILDS = {
    "QwenImagePipeline": image,
    "QwenImage21Pipeline": image_21,
    "QwenImage21Pipeline (uncached)": image_21_uncached,
    "Krea2Pipeline": krea,
    "Krea2Pipeline (turbo)": krea_turbo,
    "NucleusMoEImagePipeline": nucleus,
}
