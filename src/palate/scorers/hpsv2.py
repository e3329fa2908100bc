"""HPSv2 and HPSv2.1: human preference for a picture given its prompt, the cosine of a tuned CLIP-H.

Wu et al. (arXiv:2306.09341). Raw cosines, near 0.2 to 0.3, as its package gives them; papers print them times 100.
Versions 2 and 2.1 are other weights under the same formula: their scores do not compare. Pictures are made to fit by
their longer side and padded with black, as that package does, not cropped.

Weights are published as a pickle of open_clip's names; `CONVERT` makes it a safetensors file, in any environment that
trusts it. A folder that holds a `CLIPModel` (config.json) is taken as it is. The tokenizer is in the folder, or by the
option `tokenizer`, else that of the CLIP-H that HPSv2 was tuned from, on the hub: all have the same.
"""

from __future__ import annotations

from pathlib import Path

from palate.models import pretrained
from palate.models.clip import Clip, from_open_clip
from palate.models.pixels import Pixels
from palate.models.scoring import PictureJudge, Precision

NAME = "hpsv2"
TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
CONVERT = (
    "python -c \"import torch; from safetensors.torch import save_file; s = torch.load('HPS_v2.1_compressed.pt', "
    "map_location='cpu', weights_only=True)['state_dict']; "
    "save_file({k: v.contiguous().clone() for k, v in s.items()}, 'hpsv2.1.safetensors')\""
)


def load(
    model: str = "",
    tokenizer: str = "",
    device: str = "cpu",
    dtype: Precision = "float32",
    batch_size: int = 32,
    frames: int = 16,
) -> PictureJudge:
    """Of a safetensors file in open_clip's names, or a folder or hub id of one or of a CLIPModel.

    Raises PretrainedError.
    """
    if not model:
        wanted = f"say where its weights are, {NAME}:/path/to/hpsv2.1.safetensors"
        raise pretrained.PretrainedError(f"{NAME}: {wanted}; they come of HPS_v2.1_compressed.pt by: {CONVERT}")
    source = Path(pretrained.resolve(model, NAME))
    if (source / "config.json").is_file() or not source.exists():
        from transformers import CLIPModel

        network = pretrained.model(CLIPModel, model, NAME)
    else:
        network = from_open_clip(pretrained.tensors(model, NAME, CONVERT), NAME, model)
    folder = source if source.is_dir() else source.parent
    beside = str(folder) if pretrained.has_tokenizer(folder) else TOKENIZER
    words = pretrained.tokenizer(tokenizer or beside, NAME)
    size = network.config.vision_config.image_size
    towers = Clip(NAME, network, words, Pixels(size, size, "pad"), device, dtype)
    return PictureJudge(NAME, towers.cosines, batch_size, frames)
