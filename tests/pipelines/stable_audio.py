"""Stable Audio: v-prediction of waveform latents on a cosine path, and its rectified-flow successor.

A projection model adds the start and the end in seconds to the text's states; its scheduler is an EDM solver, whose
`scale_model_input` preconditions.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests import zoo
from tests.pipelines import brownian, parts
from tests.pipelines.audio_parts import oobleck


def stable_audio() -> tuple[Any, dict[str, Any]]:
    brownian.stand_in()
    torch.manual_seed(250)
    transformer = diffusers.StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=4,
        cross_attention_dim=8,
        time_proj_dim=8,
        global_states_input_dim=16,
        cross_attention_input_dim=8,
    )
    scheduler = diffusers.CosineDPMSolverMultistepScheduler(
        solver_order=2,
        prediction_type="v_prediction",
        sigma_data=1.0,
        sigma_schedule="exponential",
        sigma_min=0.3,
        sigma_max=500,
    )
    pipeline = diffusers.StableAudioPipeline(
        vae=oobleck(4),
        text_encoder=zoo._t5(32),
        projection_model=diffusers.StableAudioProjectionModel(
            text_encoder_dim=32, conditioning_dim=8, min_value=0, max_value=32
        ),
        tokenizer=zoo._t5_tokenizer(),
        transformer=transformer,
        scheduler=scheduler,
    )
    return zoo._finish(pipeline), {"audio_end_in_s": 8.0}  # all that its latents hold


def version_3(*, stochastic_sampling: bool) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(251)
    transformer = diffusers.StableAudio3DiTModel(
        io_channels=8,
        patch_size=1,
        embed_dim=32,
        depth=2,
        num_heads=4,
        cond_token_dim=16,
        global_cond_dim=16,
        local_add_cond_dim=5,
        timestep_features_dim=16,
        ff_mult=2,
        num_memory_tokens=3,
        use_differential_attention=False,
    )
    vae = diffusers.AutoencoderSAME(
        audio_channels=2,
        patch_size=2,
        encoder_channels=8,
        encoder_c_mults=(2,),
        encoder_strides=(2,),
        encoder_transformer_depths=(1,),
        latent_dim=8,
        use_differential_attention=False,
        dim_heads=4,
        ff_mult=2,
        sampling_rate=16,
    )
    tokenizer = parts.letters()
    module = transformers.models.t5gemma.configuration_t5gemma.T5GemmaModuleConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        sliding_window=64,
        layer_types=["full_attention", "full_attention"],
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
    )
    config = transformers.T5GemmaConfig(
        encoder=module.to_dict(), decoder=module.to_dict(), is_encoder_decoder=False, vocab_size=len(tokenizer)
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1, stochastic_sampling=stochastic_sampling
    )
    pipeline = diffusers.StableAudio3Pipeline(
        vae=vae,
        text_encoder=transformers.T5GemmaEncoderModel(config),
        tokenizer=tokenizer,
        transformer=transformer,
        duration_embedder=diffusers.pipelines.stable_audio_3.StableAudio3DurationEmbedder(
            output_dim=16, fourier_dim=16
        ),
        scheduler=scheduler,
    )
    return zoo._finish(pipeline), {"duration": 4.0}


def stable_audio_3() -> tuple[Any, dict[str, Any]]:
    return version_3(stochastic_sampling=False)


def distilled() -> tuple[Any, dict[str, Any]]:
    """In few steps, each of which goes all the way to x0 and adds fresh noise."""
    return version_3(stochastic_sampling=True)


BUILDS = {
    "StableAudioPipeline": stable_audio,
    "StableAudio3Pipeline": stable_audio_3,
    "StableAudio3Pipeline (distilled)": distilled,
}
