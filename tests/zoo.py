"""Tiny random pipelines and models, built offline from a seed: the same classes as the real ones, in small.

Shapes are real, weights are not: nothing here makes a picture, but everything that moves tensors can be checked on it.
Layers that diffusers initialises with zeros are made random, since two zeros would agree on anything.
Every builder is cached: treat what it returns as shared, or `copy.deepcopy` it first.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

NOISE_TABLE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

# What a call needs beyond the prompt to stay tiny: the defaults of these classes are made for real sizes.
CALLS: dict[str, dict[str, Any]] = {
    "sd15": {},
    "sd_v_zero_snr": {},
    "sdxl": {},
    "sd3": {"max_sequence_length": 32},
    "flux": {"height": 16, "width": 16, "max_sequence_length": 32},
}


def build(name: str) -> Any:
    """The tiny pipeline of that name, cached."""
    return {"sd15": sd15, "sd_v_zero_snr": sd_v_zero_snr, "sdxl": sdxl, "sd3": sd3, "flux": flux}[name]()


# --- pipelines --------------------------------------------------------------------------------------------------------


@cache
def sd15() -> StableDiffusionPipeline:
    """Stable Diffusion 1.5: epsilon, PNDM in its folder, one CLIP."""
    return _stable_diffusion(PNDMScheduler(**NOISE_TABLE, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False))


@cache
def sd_v_zero_snr() -> StableDiffusionPipeline:
    """Stable Diffusion with v-prediction, zero terminal SNR and trailing steps."""
    scheduler = DDIMScheduler(
        **NOISE_TABLE,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
        set_alpha_to_one=False,
    )
    return _stable_diffusion(scheduler)


def _stable_diffusion(scheduler: Any) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    pipeline = StableDiffusionPipeline(
        vae=_vae(latent_channels=4),
        unet=unet,
        text_encoder=_clip_text(CLIPTextModel, width=16),
        tokenizer=_clip_tokenizer(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _finish(pipeline)


@cache
def sdxl() -> StableDiffusionXLPipeline:
    """SDXL: two text encoders, pooled embeddings and size ids, Euler in its folder."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(latent_channels=4),
        unet=unet,
        text_encoder=_clip_text(CLIPTextModelWithProjection, width=16),
        text_encoder_2=_clip_text(CLIPTextModelWithProjection, width=16),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        scheduler=EulerDiscreteScheduler(**NOISE_TABLE, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )
    return _finish(pipeline)


@cache
def sd3() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3: rectified flow, two CLIPs and a T5, a shifted and scaled autoencoder."""
    torch.manual_seed(2)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
    )
    pipeline = StableDiffusion3Pipeline(
        vae=_vae(latent_channels=4, shift_factor=0.0609, scaling_factor=1.5035),
        transformer=transformer,
        text_encoder=_clip_text(CLIPTextModelWithProjection, width=16),
        text_encoder_2=_clip_text(CLIPTextModelWithProjection, width=16),
        text_encoder_3=_t5(32),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        tokenizer_3=_t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return _finish(pipeline)


@cache
def flux() -> FluxPipeline:
    """FLUX.1-dev: packed latents, embedded guidance, dynamic shift."""
    torch.manual_seed(3)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    pipeline = FluxPipeline(
        vae=_vae(latent_channels=4, shift_factor=0.1159, scaling_factor=0.3611),
        transformer=transformer,
        text_encoder=_clip_text(CLIPTextModel, width=16),
        text_encoder_2=_t5(32),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_t5_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )
    return _finish(pipeline)


def _finish(pipeline: Any) -> Any:
    """Eval mode, no progress bar, and random numbers wherever an initialiser left constants."""
    generator = torch.Generator().manual_seed(7)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
            for parameter in component.parameters():
                if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                    parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _vae(latent_channels: int, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=16,
        **options,
    )


# --- text encoders and tokenizers, without a hub ----------------------------------------------------------------------


def _bytes() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b if b in printable else next(spare)) for b in range(256)]


@cache
def _clip_tokenizer() -> CLIPTokenizer:
    letters = _bytes()
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=32)


def _clip_text(kind: Any, width: int) -> Any:
    tokenizer = _clip_tokenizer()
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=width,
            max_position_embeddings=32,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@cache
def _t5_tokenizer() -> T5Tokenizer:
    letters = "▁abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((letter, -2.0) for letter in letters)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=32)


def _t5(width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=64, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return T5EncoderModel(config)


# --- a language model -------------------------------------------------------------------------------------------------


@cache
def causal_lm() -> tuple[GPT2LMHeadModel, GPT2Tokenizer]:
    """A byte-level GPT-2 of two layers, and its tokenizer."""
    torch.manual_seed(4)
    tokens = [*_bytes(), "<|endoftext|>"]
    tokenizer = GPT2Tokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=64)
    tokenizer.pad_token = tokenizer.eos_token
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokens), n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=end, eos_token_id=end
    )
    return GPT2LMHeadModel(config).eval(), tokenizer
