"""FLUX.1 (dev and schnell), FLUX.2 (dev and klein) and Chroma: packed latents, tokens with position ids, flow."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests import zoo
from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]
TEXT_LAYERS = (1, 2, 3)  # of a text encoder with three layers, instead of those of one with forty


def dev() -> Build:
    return zoo.flux.__wrapped__(), zoo.CALLS["flux"]


def schnell() -> Build:
    """Distilled to four steps: no embedded guidance, no shift."""
    pipeline, call = dev()
    torch.manual_seed(30)
    transformer = diffusers.FluxTransformer2DModel.from_config(pipeline.transformer.config, guidance_embeds=False)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    pipeline.register_modules(transformer=transformer, scheduler=scheduler)
    return parts.finish(pipeline), call


def _two(guidance_embeds: bool) -> Any:
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16 * len(TEXT_LAYERS),
        timestep_guidance_channels=16,
        axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=guidance_embeds,
    )
    parts.open_gates(transformer.time_guidance_embed.timestep_embedder.linear_2)
    return transformer


def _two_scheduler() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def two() -> Build:
    """FLUX.2 dev: layers of a Mistral side by side, embedded guidance."""
    torch.manual_seed(31)
    tokenizer = parts.letters(side="left")
    text = parts.language_config(tokenizer, 16, 3, model_type="mistral", sliding_window=None)
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 12,
        "patch_size": 6,
    }
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, image_token_index=1)
    pipeline = diffusers.Flux2Pipeline(
        scheduler=_two_scheduler(),
        vae=parts.flux2_vae(),
        text_encoder=transformers.Mistral3ForConditionalGeneration(config),
        tokenizer=tokenizer,
        transformer=_two(guidance_embeds=True),
    )
    return parts.finish(pipeline), _two_call()


def klein(is_distilled: bool = False) -> Build:
    """FLUX.2 klein: layers of a Qwen3, guidance by two calls unless distilled."""
    torch.manual_seed(32)
    tokenizer = parts.letters()
    pipeline = diffusers.Flux2KleinPipeline(
        scheduler=_two_scheduler(),
        vae=parts.flux2_vae(),
        text_encoder=parts.qwen3(transformers.Qwen3ForCausalLM, tokenizer, layers=3),
        tokenizer=tokenizer,
        transformer=_two(guidance_embeds=False),
        is_distilled=is_distilled,
    )
    return parts.finish(pipeline), _two_call()


def klein_distilled() -> Build:
    return klein(is_distilled=True)


def klein_kv() -> Build:
    """FLUX.2 klein with a cache for pictures to edit; none are given, so nothing is cached."""
    torch.manual_seed(34)
    tokenizer = parts.letters()
    pipeline = diffusers.Flux2KleinKVPipeline(
        scheduler=_two_scheduler(),
        vae=parts.flux2_vae(),
        text_encoder=parts.qwen3(transformers.Qwen3ForCausalLM, tokenizer, layers=3),
        tokenizer=tokenizer,
        transformer=_two(guidance_embeds=False),
        is_distilled=True,
    )
    return parts.finish(pipeline), _two_call()


def _two_call() -> dict[str, Any]:
    return {"height": 16, "width": 16, "max_sequence_length": 16, "text_encoder_out_layers": TEXT_LAYERS}


def chroma() -> Build:
    """FLUX.1 schnell without its modulation layers: one small net makes all of them; masks, real guidance."""
    torch.manual_seed(33)
    transformer = diffusers.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    pipeline = diffusers.ChromaPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=parts.vae(4, shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=parts.t5(32),
        tokenizer=parts.t5_tokenizer(),
        transformer=transformer,
    )
    return parts.finish(pipeline), {"height": 16, "width": 16, "max_sequence_length": 32}


BUILDS = {
    "FluxPipeline": dev,
    "FluxPipeline (schnell)": schnell,
    "Flux2Pipeline": two,
    "Flux2KleinPipeline": klein,
    "Flux2KleinPipeline (distilled)": klein_distilled,
    "Flux2KleinKVPipeline": klein_kv,
    "ChromaPipeline": chroma,
}
