"""GLM-Image: a language model first draws tokens of a small picture, which the denoiser is told beside glyphs.

The draw is random, seeded by the first generator of a batch: the conditioning is not a function of the prompt alone.
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from tests.pipelines import parts

CODES = 64  # of the vision vocabulary; the two after them open and close a picture
GRIDS = [[1, 2, 2], [1, 1, 1]]  # of the picture to be drawn, in 32nds of a side, and of the thumbnail before it


class Processor(parts.TextProcessor):
    """The real one adds the sizes to the prompt; this only hands them over."""

    def apply_chat_template(self, messages: Any, *, tokenize: bool = True, **options: Any) -> Any:
        prompts = [message["content"][0]["text"] for turn in messages for message in turn]
        inputs = self.tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        for name in ("input_ids", "attention_mask"):  # generation begins with an opened picture
            last = CODES if name == "input_ids" else 1
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, 1), value=last)
        inputs["image_grid_thw"] = torch.tensor(GRIDS * len(prompts))
        inputs["images_per_sample"] = torch.tensor([len(GRIDS)] * len(prompts))
        return inputs


def glm_image() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(180)
    tokenizer = parts.letters(begin=True)
    text = parts.language_config(
        tokenizer,
        16,
        1,
        vision_vocab_size=CODES + 2,
        eos_token_id=CODES + 1,
        initializer_range=1.0,  # so that another prompt draws other tokens from the same seed
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    )
    del text["head_dim"]
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "intermediate_size": 32,
    }
    config = transformers.GlmImageConfig(
        text_config=text,
        vision_config=vision,
        vq_config={"embed_dim": 16, "num_embeddings": CODES, "latent_channels": 16},
        image_start_token_id=CODES,
        image_end_token_id=CODES + 1,
        image_token_id=CODES,
    )
    glyphs = transformers.T5Config(
        vocab_size=384, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    transformer = diffusers.GlmImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=CODES + 2,
    )
    language_model = transformers.GlmImageForConditionalGeneration(config)
    language_model.generation_config.eos_token_id = None  # a trained one closes a picture when it is complete
    pipeline = diffusers.GlmImagePipeline(
        tokenizer=transformers.ByT5Tokenizer(),
        processor=Processor(tokenizer),
        text_encoder=transformers.T5EncoderModel(glyphs),
        vision_language_encoder=language_model,
        vae=parts.vae_8(4, latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 1.5, 0.5, 2.0]),
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        ),
    )
    return parts.finish(pipeline), {"height": 64, "width": 64, "max_sequence_length": 16}


BUILDS = {"GlmImagePipeline": glm_image}
