"""Hunyuan-DiT and HunyuanImage 2.1."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from diffusers.guiders import AdaptiveProjectedMixGuidance

from tests.pipelines import parts
from tests.pipelines.qwen import TEMPLATE

Build = tuple[Any, dict[str, Any]]
TOKENS = 16  # of either text encoder; the pipelines' own 77, 256, 1000 and 128 are not arguments


def _bert() -> tuple[Any, Any]:
    words = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_letters()])}
    tokenizer = transformers.BertTokenizer(vocab=words, model_max_length=77)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=77,
    )
    return tokenizer, transformers.BertModel(config)


def _letters() -> list[str]:
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
    return [*alphabet, *(f"##{letter}" for letter in alphabet)]


def _dit(kind: Any, **options: Any) -> Build:
    torch.manual_seed(70)
    tokenizer, text_encoder = _bert()
    transformer = diffusers.HunyuanDiT2DModel(
        sample_size=8,
        num_layers=4,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        hidden_size=16,
        cross_attention_dim=16,
        cross_attention_dim_t5=32,
        pooled_projection_dim=16,
        activation_fn="gelu-approximate",
        text_len=77,
        text_len_t5=256,
    )
    pipeline = kind(
        vae=parts.vae(4, scaling_factor=0.13025),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=parts.t5(32),
        tokenizer_2=parts.long_t5_tokenizer(256),
        transformer=transformer,
        scheduler=diffusers.DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.03,
            beta_schedule="scaled_linear",
            clip_sample=False,
            prediction_type="v_prediction",
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **options,
    )
    return parts.finish(pipeline), {"height": 16, "width": 16, "use_resolution_binning": False}


def dit() -> Build:
    """Hunyuan-DiT: a BERT and a T5, size and style ids, skips between blocks, v-prediction with variance channels."""
    return _dit(diffusers.HunyuanDiTPipeline)


def dit_pag() -> Build:
    return _dit(diffusers.HunyuanDiTPAGPipeline, pag_applied_layers="blocks.1")


def image(distilled: bool = False) -> Build:
    """HunyuanImage 2.1: a Qwen2.5-VL, glyphs by bytes, guidance by a component with momentum unless distilled."""
    torch.manual_seed(71)
    tokenizer = parts.letters(TEMPLATE)
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        guidance_embeds=distilled,
        text_embed_dim=16,
        text_embed_2_dim=16,
        rope_axes_dim=(4, 4),
        use_meanflow=distilled,
    )
    parts.open_gates(transformer.time_guidance_embed.timestep_embedder.linear_2)
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        scaling_factor=0.75289,
        spatial_compression_ratio=2,
        sample_size=32,
    )
    glyphs = transformers.T5Config(
        vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    guiders = {
        name: AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=start)
        for name, start in (("guider", 2), ("ocr_guider", 3))
    }
    pipeline = diffusers.HunyuanImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=4.0 if distilled else 5.0),
        vae=vae,
        text_encoder=parts.qwen2_5_vl(tokenizer, layers=3),
        tokenizer=tokenizer,
        text_encoder_2=transformers.T5EncoderModel(glyphs),
        tokenizer_2=transformers.ByT5Tokenizer(),
        transformer=transformer,
        **({} if distilled else guiders),
    )
    pipeline.tokenizer_max_length = pipeline.tokenizer_2_max_length = TOKENS
    return parts.finish(pipeline), {"height": 16, "width": 16}


def image_distilled() -> Build:
    """The same with an embedded guidance scale and two clocks, now and next."""
    return image(distilled=True)


BUILDS = {
    "HunyuanDiTPipeline": dit,
    "HunyuanDiTPAGPipeline": dit_pag,
    "HunyuanImagePipeline": image,
    "HunyuanImagePipeline (distilled)": image_distilled,
}
