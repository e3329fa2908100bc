"""Parts that several video pipelines share: autoencoders of frames and the text encoders that came with them."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from tests import zoo

# A call of most of them: five frames of 16 x 16 pixels are two latent frames of 2 x 2.
FIVE_FRAMES: dict[str, Any] = {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 32}


def wan_vae() -> diffusers.AutoencoderKLWan:
    """Wan 2.1's: 4 x 8 x 8 compression, 16 channels with the real means and deviations."""
    return diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def umt5(width: int = 32) -> transformers.UMT5EncoderModel:
    return transformers.UMT5EncoderModel(
        transformers.UMT5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    )


def wan_scheduler(flow_shift: float) -> diffusers.UniPCMultistepScheduler:
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift
    )


def byte_tokenizer(*special: str, length: int = 64) -> transformers.Qwen2Tokenizer:
    """A byte-level tokenizer of Qwen's kind, whose chat template says only what was said."""
    tokens = [*zoo._bytes(), "<|endoftext|>", *special]
    made = transformers.Qwen2Tokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=length)
    made.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return made
