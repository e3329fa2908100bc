"""Families that were not thought of when the probe was written; loading is the proof that each replays bit for bit.

What is new in each: PixArt drops variance channels and carries a mask; Wan is video, guides in two passes and names a
flow solver; Z-Image passes lists of rows, runs its clock backwards and negates its output; CogVideoX predicts v of
frames; Sana has another autoencoder.
"""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers

from palate import sampling
from palate.models.diffusion import DiffusionPolicy, prediction_kind_errors
from palate.transitions import gaussian_log_prob
from tests import zoo


def letters(*extra: str) -> transformers.Qwen2Tokenizer:
    """A byte-level tokenizer with a chat template that says only what was said."""
    tokens = [*zoo._bytes(), "<|endoftext|>", *extra]
    made = transformers.Qwen2Tokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=64)
    made.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return made


def pixart() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(10)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    pipeline = diffusers.PixArtSigmaPipeline(
        tokenizer=zoo._t5_tokenizer(),
        text_encoder=zoo._t5(32),
        vae=zoo._vae(4),
        transformer=transformer,
        scheduler=scheduler,
    )
    size = {"height": 16, "width": 16, "use_resolution_binning": False}
    return pipeline, {**size, "max_sequence_length": 32, "clean_caption": False}


def wan() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(11)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    text = transformers.UMT5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = diffusers.WanPipeline(
        tokenizer=zoo._t5_tokenizer(),
        text_encoder=transformers.UMT5EncoderModel(text),
        vae=vae,
        transformer=transformer,
        transformer_2=None,
        scheduler=scheduler,
    )
    return pipeline, {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 32}


def cogvideox() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(12)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=32,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False
    )
    pipeline = diffusers.CogVideoXPipeline(
        tokenizer=zoo._t5_tokenizer(),
        text_encoder=zoo._t5(32),
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    )
    return pipeline, {"height": 16, "width": 16, "num_frames": 8, "max_sequence_length": 32}


def sana() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(13)
    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=16,
    )
    blocks = ("ResBlock", "EfficientViTBlock")
    vae = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    text = transformers.Gemma2Config(
        head_dim=8,
        hidden_size=8,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        num_key_value_heads=2,
        vocab_size=300,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    pipeline = diffusers.SanaPipeline(
        tokenizer=letters(),
        text_encoder=transformers.Gemma2Model(text),
        vae=vae,
        transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )
    size = {"height": 32, "width": 32, "use_resolution_binning": False}
    return pipeline, {**size, "max_sequence_length": 32, "complex_human_instruction": None}


def zimage() -> tuple[Any, dict[str, Any]]:
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
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    tokenizer = letters()
    text = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    pipeline = diffusers.ZImagePipeline(
        tokenizer=tokenizer,
        text_encoder=transformers.Qwen3Model(text),
        vae=zoo._vae(16, scaling_factor=0.3611, shift_factor=0.1159),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return pipeline, {"height": 32, "width": 32, "max_sequence_length": 32}


FAMILIES = {f.__name__: f for f in (pixart, wan, cogvideox, sana, zimage)}


@pytest.mark.parametrize("name", sorted(FAMILIES))
@torch.no_grad()
def test_another_family_replays_samples_and_decodes(name: str) -> None:
    pipeline, call = FAMILIES[name]()
    held = DiffusionPolicy(zoo._finish(pipeline), call=call)
    assert held.capture.guided is not None, held.capture.unguided_reason
    generators = [torch.Generator().manual_seed(row) for row in range(2)]
    media, record = held.generate(
        ["a big bird", "a red fish"], generators, num_inference_steps=3, guidance_scale=3.0, eta=0.5
    )
    x, t, t_prev = record.x[:, 1], record.t[1].expand(2), record.t[2].expand(2)
    mean, std = record.kernel.mean_std(held.predict(x, t, record.cond, 3.0), x, t, t_prev)
    assert torch.equal(gaussian_log_prob(record.x[:, 2], mean, std), record.logps[:, 1])
    again = held.decode(record.x[:, -1])
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(media, again, strict=True))


@torch.no_grad()
def test_prompts_that_are_not_padded_are_sampled_together() -> None:
    """Z-Image takes prompts of any lengths in one call, but their conditions do not stack: pictures, no rollout."""
    pipeline, call = zimage()
    held = DiffusionPolicy(zoo._finish(pipeline), call=call)
    prompts, ids = ["a big bird", "a very big red bird"], ["0", "1"]
    how = {"seed": 0, "num_inference_steps": 2, "guidance_scale": None}
    assert len(sampling.sample(held, prompts, ids, **how)) == 2
    for batch_size in (1, 2):
        with pytest.raises(ValueError, match=r"prompts of different lengths.* use prompts of one length"):
            sampling.rollout(held, prompts, ids, **how, eta=0.5, batch_size=batch_size)
    kinds = prediction_kind_errors(held, held.decode(torch.zeros(2, *held.latent_shape)), prompts)
    assert all(np.isfinite(error) for error in kinds.values())


@pytest.mark.parametrize("name", ["pixart", "sana"])
def test_other_autoencoders_encode(name: str) -> None:
    pipeline, call = FAMILIES[name]()
    held = DiffusionPolicy(zoo._finish(pipeline), call=call)
    media = held.decode(torch.randn(2, *held.latent_shape, generator=torch.Generator().manual_seed(0)))
    assert held.encode(media).shape == (2, *held.latent_shape)
