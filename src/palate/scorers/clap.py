"""CLAP score: how well a sound fits its prompt, the cosine of a CLAP's two embeddings.

Wu et al. (arXiv:2211.06687). The raw cosine, in -1 to 1. A sound is brought to the model's rate and to one channel (the
mean), and cut into windows of the model's length (10 s), the last of which ends with the sound; its score is the mean
over them. Nothing is drawn at random, as the model's own feature extractor would for a long sound. A sound shorter than
a window is repeated to fill it, as in the model's training.

A sound is `(waveform, rate)`, or a waveform [C, L] or [L] with its rate in its attribute `rate`; one that does not say
it is at the option `rate`. In hertz.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from palate.models import pretrained, scoring
from palate.models.contracts import Media
from palate.models.pretrained import PretrainedError
from palate.models.scoring import Precision, Words

NAME = "clap"
MODEL = "laion/clap-htsat-unfused"
TOKENS = 77  # as in CLAP's training


class Clap:
    """`{"clap": [n]}` of sounds."""

    dimensions = (NAME,)
    reads_prompts = True
    judges = ("sounds",)

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        extract: Any,
        rate: int = 0,
        device: str = "cpu",
        dtype: Precision = "float32",
        batch_size: int = 32,
    ) -> None:
        """rate: in hertz, of waveforms that come without; 0, they are refused."""
        pretrained.check_words(NAME, tokenizer, model.config.text_config)
        self._model = scoring.settle(model, device, dtype)
        self._words, self._extract, self._rate = Words(NAME, tokenizer, TOKENS), extract, rate
        self._device, self._dtype, self._batch_size = device, getattr(torch, dtype), batch_size

    def __call__(self, prompts: Sequence[str], media: Sequence[Media]) -> dict[str, np.ndarray]:
        parts = [self._windows(row, medium) for row, medium in enumerate(media)]
        return scoring.score(NAME, prompts, media, parts, self._judge, self._batch_size)

    def _judge(self, prompts: list[str], windows: list[np.ndarray]) -> Tensor:
        some, place = scoring.distinct(prompts)
        words = {name: ids.to(self._device) for name, ids in self._words(some).items()}
        heard = self._extract(windows, sampling_rate=self._extract.sampling_rate, return_tensors="pt")["input_features"]
        heard = heard.to(self._device, self._dtype)
        # Whether a sound is longer than a window decides how a fused model hears it; no window is, whatever the
        # extractor says, which of a batch of short sounds calls one at random longer.
        longer = torch.zeros(len(windows), 1, dtype=torch.bool, device=self._device)
        with torch.autocast(torch.device(self._device).type, enabled=False):
            texts = _embedding(self._model.get_text_features(**words))[place]
            sounds = _embedding(self._model.get_audio_features(input_features=heard, is_longer=longer))
        return (texts * sounds).sum(-1)

    def _windows(self, row: int, medium: Media) -> list[np.ndarray]:
        """A sound as float32 windows at the model's rate, each at most as long as the model hears at once."""
        own = getattr(medium, "rate", 0) or self._rate
        wave, rate = medium if isinstance(medium, tuple) and len(medium) == 2 else (medium, own)
        if not isinstance(wave, np.ndarray | Tensor) or wave.ndim not in (1, 2) or 0 in wave.shape:
            raise ValueError(f"{NAME} judges sounds, waveforms [C, L], and row {row} is a {type(medium).__name__}")
        if not isinstance(rate, int | np.integer) or rate <= 0:
            raise ValueError(f"{NAME}: the sound of row {row} does not say its rate: give (waveform, rate), or say "
                             f"{NAME},rate:44100")  # fmt: skip
        made = torch.as_tensor(wave).detach().float().cpu().numpy()
        mono = resample(made.mean(0) if made.ndim == 2 else made, int(rate), int(self._extract.sampling_rate))
        length = int(self._extract.nb_max_samples)
        if len(mono) <= length:
            return [mono]
        starts = [*range(0, len(mono) - length, length), len(mono) - length]
        return [mono[start : start + length] for start in starts]


def _embedding(output: Any) -> Tensor:
    """[n, d] float32 of norm 1; transformers 5 wraps features in an output."""
    return F.normalize((output if isinstance(output, Tensor) else output.pooler_output).float(), dim=-1)


def resample(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """A waveform [L] at another rate, [ceil(L * wanted / rate)], by a polyphase filter."""
    if rate == wanted:
        return wave
    from scipy.signal import resample_poly

    shared = math.gcd(rate, wanted)
    made: np.ndarray = resample_poly(wave.astype(np.float64), wanted // shared, rate // shared)
    return made.astype(np.float32)


def load(
    model: str = MODEL,
    rate: int = 0,
    device: str = "cpu",
    dtype: Precision = "float32",
    batch_size: int = 32,
) -> Clap:
    """Of a CLAP's folder or hub id; rate as in `Clap`. Raises PretrainedError."""
    from transformers import ClapFeatureExtractor, ClapModel

    network = pretrained.model(ClapModel, model, NAME)
    source = pretrained.resolve(model, NAME)
    try:
        extract = ClapFeatureExtractor.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise PretrainedError(f"{NAME}: {source} lacks a usable preprocessor_config.json ({reason})") from None
    fused = bool(network.config.audio_config.enable_fusion)
    if fused != (extract.truncation == "fusion"):
        raise PretrainedError(f"{NAME}: {source} is {'a' if fused else 'no'} fused model and its "
                              f"preprocessor_config.json says truncation {extract.truncation!r}")  # fmt: skip
    return Clap(network, pretrained.tokenizer(source, NAME), extract, rate, device, dtype, batch_size)
