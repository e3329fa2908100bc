"""Stable Cascade: a prior in a very small space, then a decoder of its own; schedulers over a ratio, not a time."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from diffusers.models import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

from tests.pipelines import parts


def combined() -> tuple[Any, dict[str, Any]]:
    """Both stages in one call."""
    torch.manual_seed(170)
    shared = {"conditioning_dim": 16, "timestep_ratio_embedding_dim": 8, "dropout": (0.1, 0.1)}
    blocks = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
    prior = StableCascadeUNet(
        **shared,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(blocks, blocks),
        clip_image_in_channels=16,
        clip_text_in_channels=16,
        clip_text_pooled_in_channels=16,
        switch_level=(False,),
    )
    decoder = StableCascadeUNet(
        **shared,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        block_out_channels=(16, 16),
        num_attention_heads=(-1, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(blocks[:2], blocks),
        clip_text_pooled_in_channels=16,
        effnet_in_channels=4,
        pixel_mapper_in_channels=3,
    )
    text = [parts.clip_text(transformers.CLIPTextModelWithProjection, width=16) for _ in range(2)]
    pipeline = diffusers.StableCascadeCombinedPipeline(
        tokenizer=parts.clip_tokenizer(),
        text_encoder=text[0],
        decoder=decoder,
        scheduler=diffusers.DDPMWuerstchenScheduler(),
        vqgan=PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=4, embed_dim=8),
        prior_prior=prior,
        prior_text_encoder=text[1],
        prior_tokenizer=parts.clip_tokenizer(),
        prior_scheduler=diffusers.DDPMWuerstchenScheduler(),
        prior_feature_extractor=None,
        prior_image_encoder=None,
    )
    return parts.finish(pipeline), {"height": 128, "width": 128, "prior_num_inference_steps": 2}


BUILDS = {"StableCascadeCombinedPipeline": combined}
