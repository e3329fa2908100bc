"""Parts that several audio pipelines share: tokenizers of CLAP, autoencoders of sound and spectrograms, vocoders."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests import zoo

# AudioLDM, AudioLDM2 and MusicLDM alike.
LDM_TABLE: dict[str, Any] = {
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def roberta_tokenizer() -> transformers.RobertaTokenizer:
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *zoo._bytes(), "<mask>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return transformers.RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=32)


def clap_text(tokenizer: Any) -> dict[str, Any]:
    """The config of CLAP's text branch."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 40,
        "projection_dim": 8,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def clap(tokenizer: Any) -> transformers.ClapModel:
    sound = {
        "spec_size": 8,
        "window_size": 4,
        "num_mel_bins": 8,
        "intermediate_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [1, 1],
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "patch_embeds_hidden_size": 8,
        "projection_dim": 8,
        "patch_size": 2,
        "patch_stride": 2,
        "patch_embed_input_channels": 4,
    }
    return transformers.ClapModel(
        transformers.ClapConfig(text_config=clap_text(tokenizer), audio_config=sound, projection_dim=8)
    )


def spectrogram_vae() -> diffusers.AutoencoderKL:
    """Mel spectrograms as pictures of one channel, a quarter a side."""
    return diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.9227,
    )


def vocoder() -> transformers.SpeechT5HifiGan:
    """Eight mel bins to sound, four samples a frame, with weights that let something be heard."""
    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=8,
        sampling_rate=16000,
        upsample_initial_channel=8,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
    )
    made = transformers.SpeechT5HifiGan(config)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter)
    return made


def oobleck(channels: int) -> diffusers.AutoencoderOobleck:
    """Stereo, two samples a latent."""
    return diffusers.AutoencoderOobleck(
        encoder_hidden_size=2 * channels,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=channels,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=4,
    )
