"""HunyuanVideo: a chat model's hidden states cropped after the system prompt, rectified flow.

The first takes its guidance as an embedding and a pooled CLIP vector; 1.5 guides by two passes, which a guider
component runs and combines, reads glyphs with a ByT5 and takes the first frame beside the noise, empty here.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests import zoo
from tests.pipelines import parts
from tests.pipelines.video_parts import FIVE_FRAMES, clip_77, hunyuan_vae


def hunyuan_video() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(130)
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(2, 4, 4),
    )
    tokenizer = parts.letters()
    pipeline = diffusers.HunyuanVideoPipeline(
        text_encoder=parts.llama(transformers.LlamaModel, tokenizer, layers=3),
        tokenizer=tokenizer,
        **clip_77(),
        transformer=transformer,
        vae=hunyuan_vae(4),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    template = {"template": "Film: {}.", "crop_start": 6}
    return zoo._finish(pipeline), {**FIVE_FRAMES, "prompt_template": template}


def version_15(guidance_scale: float) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(131)
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=16,
        text_embed_2_dim=32,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    vae.enable_slicing()  # its attention's mask is made for a batch of one
    tokenizer = parts.letters()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    text = transformers.Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.5,  # states of a trained model's size, so that they are heard
    )
    glyphs = transformers.T5Config(
        vocab_size=384, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    pipeline = diffusers.HunyuanVideo15Pipeline(
        text_encoder=transformers.Qwen2_5_VLTextModel(text),
        tokenizer=tokenizer,
        transformer=transformer,
        vae=vae,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder_2=transformers.T5EncoderModel(glyphs),
        tokenizer_2=transformers.ByT5Tokenizer(),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=guidance_scale),
    )
    # The class's own are 1,108 tokens of system prompt and caption, 256 of glyphs and 729 of a picture.
    pipeline.system_message, pipeline.prompt_template_encode_start_idx = "Film: ", 6
    pipeline.tokenizer_max_length, pipeline.tokenizer_2_max_length = 26, 16
    pipeline.vision_num_semantic_tokens = 4
    return zoo._finish(pipeline), {"height": 16, "width": 16, "num_frames": 5}


def hunyuan_video_15() -> tuple[Any, dict[str, Any]]:
    return version_15(guidance_scale=6.0)


def distilled() -> tuple[Any, dict[str, Any]]:
    """Made to go without guidance."""
    return version_15(guidance_scale=1.0)


BUILDS = {
    "HunyuanVideoPipeline": hunyuan_video,
    "HunyuanVideo15Pipeline": hunyuan_video_15,
    "HunyuanVideo15Pipeline (distilled)": distilled,
}
