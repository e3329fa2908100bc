"""HiDream and AuraFlow: both flow models of two streams that become one."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]


def hidream(scheduler: Any = None) -> Build:
    """HiDream I1: two CLIPs, a T5 and every layer of a Llama; routed experts; the prediction is negated."""
    torch.manual_seed(60)
    tokenizer = parts.letters(begin=True)
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[32, 16],
        text_emb_dim=32,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16),
        llama_layers=[1, 3],
    )
    clips = [parts.clip_text(transformers.CLIPTextModelWithProjection, width=16) for _ in range(2)]
    text_encoder_4 = parts.llama(transformers.LlamaForCausalLM, tokenizer, layers=4)
    text_encoder_4.set_attn_implementation("eager")  # the pipeline asks for attentions
    pipeline = diffusers.HiDreamImagePipeline(
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=parts.vae(4, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clips[0],
        tokenizer=parts.clip_tokenizer(),
        text_encoder_2=clips[1],
        tokenizer_2=parts.clip_tokenizer(),
        text_encoder_3=parts.t5(32),
        tokenizer_3=parts.t5_tokenizer(),
        text_encoder_4=text_encoder_4,
        tokenizer_4=tokenizer,
        transformer=transformer,
    )
    pipeline.default_sample_size = 8  # every size is scaled to the area of this one
    return parts.finish(pipeline), {"height": 16, "width": 16, "max_sequence_length": 32}


def hidream_unipc() -> Build:
    """The same with a multistep flow solver, whose steps the pipeline spaces in another way."""
    return hidream(
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    )


def hidream_dev() -> Build:
    """Distilled: jumps to x0 and back to noise, with shift 6."""
    return hidream(diffusers.FlowMatchLCMScheduler(shift=6.0))


def aura_flow() -> Build:
    """AuraFlow: a UMT5, register tokens, learned positions that are cut to size; attention without biases."""
    torch.manual_seed(61)
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        out_channels=4,
        pos_embed_max_size=64,
    )
    parts.open_gates(transformer.time_step_proj.linear_2)
    pipeline = diffusers.AuraFlowPipeline(
        tokenizer=parts.t5_tokenizer(),
        text_encoder=parts.umt5(32),
        vae=parts.vae(4, scaling_factor=0.13025),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
    )
    return parts.finish(pipeline), {"height": 16, "width": 16, "max_sequence_length": 32}


BUILDS = {
    "HiDreamImagePipeline": hidream,
    "HiDreamImagePipeline (UniPC)": hidream_unipc,
    "HiDreamImagePipeline (dev)": hidream_dev,
    "AuraFlowPipeline": aura_flow,
}
