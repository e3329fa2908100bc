"""What else runs on Stable Diffusion's parts and takes text alone: guidance by other means, other outputs."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.deprecated.stable_diffusion_safe import StableDiffusionPipelineSafe
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

from tests import zoo
from tests.pipelines import parts

Build = tuple[Any, dict[str, Any]]


def _as(kind: Any, pipeline: Any = None) -> Any:
    """A pipeline of that class over Stable Diffusion's parts."""
    base = pipeline or zoo.sd15.__wrapped__()
    used = {name: part for name, part in base.components.items() if name != "image_encoder"}
    return parts.finish(kind(**used, requires_safety_checker=False))


def self_attention() -> Build:
    """SAG: a third prediction on a picture blurred where the middle block attends."""
    base = zoo.sd15.__wrapped__()
    base.scheduler = diffusers.DDIMScheduler(**zoo.NOISE_TABLE, clip_sample=False, steps_offset=1)
    return _as(diffusers.StableDiffusionSAGPipeline, base), {}


def panorama() -> Build:
    """MultiDiffusion: views of the picture in windows, averaged; here one window is the picture."""
    base = zoo.sd15.__wrapped__()
    base.scheduler = diffusers.DDIMScheduler(**zoo.NOISE_TABLE, clip_sample=False, steps_offset=1)
    return _as(diffusers.StableDiffusionPanoramaPipeline, base), {"height": 16, "width": 16}


def semantic() -> Build:
    """SEGA: edit prompts steer the guidance; none are given."""
    return _as(diffusers.SemanticStableDiffusionPipeline), {}


def depth() -> Build:
    """LDM3D: the autoencoder holds three colours and a depth packed into three more."""
    base = zoo.sd15.__wrapped__()
    torch.manual_seed(24)
    base.register_modules(vae=parts.vae(4, in_channels=6, out_channels=6))
    pipeline = diffusers.StableDiffusionLDM3DPipeline(**base.components, requires_safety_checker=False)
    return parts.finish(pipeline), {}


def safe() -> Build:
    """Safe latent diffusion: a third prediction steers away from a fixed text, with momentum from step to step."""
    return _as(StableDiffusionPipelineSafe), {}


def gligen() -> Build:
    """GLIGEN: gated attention to grounded phrases, switched off inside the UNet after the first third of the steps."""
    base = zoo.sd15.__wrapped__()
    torch.manual_seed(21)
    base.register_modules(
        unet=diffusers.UNet2DConditionModel.from_config(base.unet.config, attention_type="gated"),
        text_encoder=parts.clip_text(transformers.CLIPTextModel, width=16),
    )
    for name, gate in base.unet.named_parameters():
        if name.endswith(("alpha_attn", "alpha_dense")):  # zero as made: nothing would pass
            torch.nn.init.constant_(gate, 0.7)
    call = {"gligen_phrases": ["a bird"], "gligen_boxes": [[0.1, 0.2, 0.7, 0.8]]}
    return _as(diffusers.StableDiffusionGLIGENPipeline, base), call


def un_clip() -> Build:
    """Stable unCLIP: a prior draws an image embedding, which the UNet is told with noise; two loops in one call."""
    torch.manual_seed(22)
    base = zoo.sd15.__wrapped__()
    width = 16
    scheduler = {"beta_schedule": "squaredcos_cap_v2"}
    unet = diffusers.UNet2DConditionModel.from_config(
        base.unet.config, class_embed_type="projection", projection_class_embeddings_input_dim=2 * width
    )
    pipeline = diffusers.StableUnCLIPPipeline(
        prior_tokenizer=parts.clip_tokenizer(),
        prior_text_encoder=parts.clip_text(transformers.CLIPTextModelWithProjection, width),
        prior=parts.prior(width),
        prior_scheduler=diffusers.DDPMScheduler(
            **scheduler,
            variance_type="fixed_small_log",
            prediction_type="sample",
            clip_sample=True,
            clip_sample_range=5.0,
        ),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=width),
        image_noising_scheduler=diffusers.DDPMScheduler(**scheduler),
        tokenizer=base.tokenizer,
        text_encoder=base.text_encoder,
        unet=unet,
        scheduler=zoo.sd_v_zero_snr.__wrapped__().scheduler,
        vae=base.vae,
    )
    return parts.finish(pipeline), {"height": 16, "width": 16, "prior_num_inference_steps": 2}


BUILDS = {
    "StableDiffusionSAGPipeline": self_attention,
    "StableDiffusionPanoramaPipeline": panorama,
    "SemanticStableDiffusionPipeline": semantic,
    "StableDiffusionLDM3DPipeline": depth,
    "StableDiffusionPipelineSafe": safe,
    "StableDiffusionGLIGENPipeline": gligen,
    "StableUnCLIPPipeline": un_clip,
}
