"""Parts that tiny pipelines share: tokenizers built in memory, text encoders and autoencoders with random weights.

Nothing is downloaded. Call `finish` on a whole pipeline before it is used: it is then in eval mode and holds no layer
that an initialiser left at zero.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import diffusers
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from tests import zoo

finish = zoo._finish  # eval mode, quiet, nothing left at a constant
vae = zoo._vae
clip_tokenizer = zoo._clip_tokenizer
t5_tokenizer, t5 = zoo._t5_tokenizer, zoo._t5

# Said as it is, without roles: strings, or lists of typed parts. System messages are real pages of text: left out.
CHAT = (
    "{% for m in messages %}{% if m.role != 'system' %}{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endif %}{% endfor %}"
)
# As Qwen writes a conversation, every turn between marks.
MARKED_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
)


def letters(
    *templates: str, max_length: int = 64, side: str = "right", chat: str = CHAT, begin: bool = False
) -> transformers.Qwen2Tokenizer:
    """A byte-level tokenizer with a chat template; by default one that says only what was said.

    Each word, sign and <|mark|> of the templates is one token, so that a pipeline that cuts its template off by the
    number of tokens cuts where it should. `begin`: a first token that says nothing, as Gemma and Llama have, so that no
    prompt is empty.
    """
    alphabet = [*zoo._bytes(), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    made = transformers.Qwen2Tokenizer(vocab={t: i for i, t in enumerate(alphabet)}, merges=[], padding_side=side)
    made.model_max_length = max_length
    made.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    words = {word for text in templates for word in re.findall(r"<\|\w+\|>| ?\w+", text) if len(word) > 1}
    made.add_tokens(sorted(words))
    made.chat_template = chat
    if begin:
        start = (made.eos_token, made.eos_token_id)
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{start[0]} $A", pair=f"{start[0]} $A $B", special_tokens=[start]
        )
    return made


class TextProcessor:
    """The text side of a vision-language processor, whose other side needs torchvision."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, text: Any = None, **options: Any) -> Any:
        return self.tokenizer(text, **{name: value for name, value in options.items() if name != "images"})

    def apply_chat_template(self, messages: Any, *, tokenize: bool = False, **options: Any) -> Any:
        """As the tokenizer's, but what it tokenizes is a batch, of one conversation too."""
        said = self.tokenizer.apply_chat_template(messages, tokenize=tokenize, **options)
        return [said] if tokenize and isinstance(said[0], int) else said


def long_t5_tokenizer(max_length: int) -> transformers.T5Tokenizer:
    """For pipelines that pad to a length which is not an argument of theirs."""
    made = copy.deepcopy(t5_tokenizer())
    made.model_max_length = max_length
    return made


# --- text encoders ----------------------------------------------------------------------------------------------------


def language_config(tokenizer: Any, width: int, layers: int, **options: Any) -> dict[str, Any]:
    """What the configs of all decoder-only language models name alike."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": width // 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,  # a fresh model's 0.02 leaves all prompts nearly the same at this width
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        **options,
    }


def clip_text(kind: Any, width: int, positions: int = 32) -> Any:
    """`positions`: 77 for pipelines that pad to that."""
    made = zoo._clip_text(kind, width)
    return (
        made
        if positions == 32
        else kind(type(made.config)(**{**made.config.to_dict(), "max_position_embeddings": positions}))
    )


def qwen3(kind: Any, tokenizer: Any, width: int = 16, layers: int = 2) -> Any:
    return kind(transformers.Qwen3Config(**language_config(tokenizer, width, layers)))


def llama(kind: Any, tokenizer: Any, width: int = 16, layers: int = 2) -> Any:
    return kind(transformers.LlamaConfig(**language_config(tokenizer, width, layers)))


def glm(kind: Any, tokenizer: Any, width: int = 16, layers: int = 2) -> Any:
    return kind(transformers.GlmConfig(**language_config(tokenizer, width, layers)))


def gemma(kind: Any, tokenizer: Any, width: int = 16, layers: int = 2) -> Any:
    return kind(transformers.GemmaConfig(**language_config(tokenizer, width, layers)))


def gemma2(kind: Any, tokenizer: Any, width: int = 16, layers: int = 1) -> Any:
    return kind(transformers.Gemma2Config(**language_config(tokenizer, width, layers)))


def umt5(width: int) -> transformers.UMT5EncoderModel:
    return transformers.UMT5EncoderModel(
        transformers.UMT5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=37, num_layers=1, num_heads=4)
    )


def _rope(width: int) -> dict[str, Any]:
    """Three-axis rotary positions over half a head: time, height, width."""
    half = width // 4
    section = [half - 2 * (half // 3), half // 3, half // 3]
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}


def qwen2_5_vl(tokenizer: Any, width: int = 16, layers: int = 2) -> transformers.Qwen2_5_VLForConditionalGeneration:
    text = language_config(tokenizer, width, layers, rope_parameters=_rope(width))
    del text["head_dim"]
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": width}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    )


def qwen3_vl(kind: Any, tokenizer: Any, width: int = 16, layers: int = 2) -> Any:
    text = language_config(tokenizer, width, layers, rope_parameters=_rope(width))
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": width,
        "deepstack_visual_indexes": [0],
    }
    return kind(transformers.Qwen3VLConfig(text_config=text, vision_config=vision))


# --- denoisers --------------------------------------------------------------------------------------------------------


def prior(width: int, tokens: int = 32) -> diffusers.PriorTransformer:
    """unCLIP's: from a text embedding to an image embedding of that width."""
    made = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=width, num_embeddings=tokens
    )
    torch.nn.init.uniform_(made.clip_std, 0.5, 1.5)  # zero as made, and so would every embedding be
    return made


def open_gates(clock: torch.nn.Linear, factor: float = 8.0) -> None:
    """Scale the last layer of a clock's embedding up.

    Trained modulations are of order one. Fresh ones are near zero, which closes the gates that the prompt passes.
    """
    clock.weight.data *= factor


# --- autoencoders -----------------------------------------------------------------------------------------------------


def vae_8(latent_channels: int, **options: Any) -> diffusers.AutoencoderKL:
    """Of four blocks: 8 x smaller a side, for pipelines that take that for granted."""
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=32,
        **options,
    )


def qwen_vae(channels: int = 4) -> diffusers.AutoencoderKLQwenImage:
    """The causal video autoencoder of Qwen-Image, 4 x smaller a side, each channel with its own mean and scale."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1 * i - 0.2 for i in range(channels)],
        latents_std=[1.0 + 0.25 * i for i in range(channels)],
    )


def deep_compression_vae() -> diffusers.AutoencoderDC:
    """Sana's autoencoder: convolutions and linear attention, no distribution over latents."""
    blocks = ("ResBlock", "EfficientViTBlock")
    return diffusers.AutoencoderDC(
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


def flux2_vae() -> diffusers.AutoencoderKLFlux2:
    """Its latents are patched two by two, then normalised by the running statistics of a batch norm."""
    vae = diffusers.AutoencoderKLFlux2(
        sample_size=16,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(4, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae
