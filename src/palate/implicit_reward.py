"""The reward that a tuned model stands for, as a scorer: how much better than its reference it denoises a medium.

    palate compare world:shapes runs/other --prompts p.txt --scorer implicit:runs/shapes_diffusion_dpo

Rafailov et al. 2023 (2305.18290, eq. 5) for denoising errors, as in Diffusion-DPO (2311.12908, section 5.4):

    r(x, c) = beta E_{t, e} [ err_ref(x, t, e) - err(x, t, e) ],   up to a constant per prompt

with err the MEAN over latent dimensions, so that only media of one prompt compare. One draw is mostly noise: ten are
averaged. A prompt's media share its draws, which depend on the seed and the prompt alone. Times are drawn as training
drew them: elsewhere (a student's other timesteps) the tuned model was never told anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palate import likelihood
from palate.models.contracts import Denoiser, Media
from palate.training import adapters
from palate.training.sources import Drawing, to_device

NAME = "implicit_reward"


class ImplicitReward:
    """A `Scorer` of one dimension, `implicit_reward`.

    policy, reference: over the same latents; without a reference, the policy with its adapter switched off. beta: of
    MEAN errors, only a scale; 2500 is `beta_dpo: 5000`. draws: of t and noise, averaged. batch_size: rows at once.
    """

    dimensions = (NAME,)

    def __init__(
        self,
        policy: Denoiser,
        reference: Denoiser | None = None,
        *,
        beta: float = 2500.0,
        draws: int = 10,
        seed: int = 0,
        batch_size: int = 16,
        times: Callable[[int, torch.Generator], Tensor] | None = None,
    ) -> None:
        """times: the density of t that the policy was trained at, as `Drawing` takes it; None for the path's own.

        Raises ValueError for no reference and no adapter, whose reward would be 0 everywhere."""
        if draws < 1 or beta <= 0:
            raise ValueError(f"an implicit reward needs draws >= 1 and beta > 0, got {draws} and {beta}")
        if reference is None and not adapters.has_adapter(policy):
            raise ValueError("an implicit reward needs a reference, or a policy with an adapter to switch off")
        self._policy, self._reference, self._beta = policy, reference, beta
        self._draws, self._batch_size = draws, batch_size
        self._drawing = Drawing(seed, policy.path, times=times)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], media: Sequence[Media]) -> dict[str, NDArray[np.float64]]:
        """The reward [n]. Raises ValueError for media that the model's codec cannot encode."""
        rewards = np.zeros(len(prompts))
        for prompt in dict.fromkeys(prompts):
            rows = [row for row, other in enumerate(prompts) if other == prompt]
            for start in range(0, len(rows), self._batch_size):
                some = rows[start : start + self._batch_size]
                rewards[some] = self._rewards(prompt, [media[row] for row in some])
        return {NAME: rewards}

    def _rewards(self, prompt: str, media: Sequence[Media]) -> NDArray[np.float64]:
        """Of media of one prompt [k]: as many draws a pass as the batch size allows."""
        x0, cond = self._policy.encode(media)[None], self._policy.condition([prompt])
        total = torch.zeros(len(media), dtype=torch.double)
        at_once = max(1, self._batch_size // len(media))
        for start in range(0, self._draws, at_once):
            visits = range(start, min(start + at_once, self._draws))
            draw = to_device(self._drawing([prompt] * len(visits), visits, x0.shape[1:]), x0.device)
            rows = x0.expand(len(visits), *x0.shape[1:]), cond[[0] * len(visits)], draw
            gap = likelihood.denoising(self._policy, *rows) - self._of_reference(*rows)
            total += gap.cpu().double().sum(0)
        reward: NDArray[np.float64] = (self._beta / self._draws * total).numpy()
        return reward

    def _of_reference(self, *rows: Any) -> Tensor:
        if self._reference is not None:
            return likelihood.denoising(self._reference, *rows)
        with adapters.without_adapter(self._policy):
            return likelihood.denoising(self._policy, *rows)
