"""Stage `text`: the text model is taught, without pictures, to say what a caption puts where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palate.worlds.shapes import build, data, language
from palate.worlds.shapes.pretrain.course import Course, Plan

# A text model and token ids [n, tokens] to what the denoiser is given: states [n, tokens, width] and, of some models,
# a pooled vector [n, width].
Read = Callable[[nn.Module, Tensor], tuple[Tensor, ...]]

CHOICES = [len(language.SIZES) + 1, len(language.COLOURS) + 1, len(language.SHAPES) + 1]  # the last of each: none
SIDES = len(language.RELATIONS)
GROUNDS = len(language.BACKGROUNDS)


class Layout(nn.Module):
    """What stands left, right, above and below, read off the states of a caption's last four (padding) tokens.

    Left to the denoising loss a text model this small does not learn the relation words: what they change is decided in
    the noisiest steps, by the meeting of many words. Told so directly, it learns them within a minute, and the denoiser
    finds at one token what belongs at one side. A model that gives a pooled vector is to say all of it there as well.
    """

    def __init__(self, text: nn.Module, width: int, read: Read, pooled: bool = False):
        super().__init__()
        self.text, self.read = text, read
        self.things = nn.ModuleList(nn.Linear(width, sum(CHOICES)) for _ in range(SIDES))
        self.background = nn.Linear(width, GROUNDS)
        self.pooled = nn.Linear(width, SIDES * sum(CHOICES) + GROUNDS) if pooled else None

    def forward(self, ids: Tensor) -> list[tuple[list[Tensor], Tensor]]:
        """Logits of size, colour and shape, `[n, 4, choices]` each, and of the background, `[n, 3]`.

        Once by the states and, if there is one, once by the pooled vector.
        """
        states, *pooled = self.read(self.text, ids)
        said = torch.stack([read(states[:, k - SIDES]) for k, read in enumerate(self.things)], dim=1)
        answers = [(list(said.split(CHOICES, dim=-1)), self.background(states[:, -SIDES - 1]))]
        if self.pooled is not None:
            things, background = self.pooled(pooled[0]).split([SIDES * sum(CHOICES), GROUNDS], dim=-1)
            answers.append((list(things.unflatten(1, (SIDES, -1)).split(CHOICES, dim=-1)), background))
        return answers

    def loss(self, ids: Tensor, wanted: Tensor) -> Tensor:
        """Summed cross-entropies; `wanted [n, 4 * 3 + 1]` as of `layout`."""
        sides = wanted[:, :-1].unflatten(1, (SIDES, 3))
        errors = []
        for said, background in self(ids):
            errors += [F.cross_entropy(s.flatten(0, 1), sides[..., k].flatten()) for k, s in enumerate(said)]
            errors.append(F.cross_entropy(background, wanted[:, -1]))
        return sum(errors[:-1], errors[-1])


def layout(request: language.Request) -> list[int]:
    """Class numbers of size, colour and shape at the four sides, then of the background. A lone thing is anywhere."""
    numbers = [
        [language.SIZES.index(t.size), language.COLOURS.index(t.colour), language.SHAPES.index(t.shape)]
        for t in request.things
    ]
    nothing = [len(language.SIZES), len(language.COLOURS), len(language.SHAPES)]
    if request.relation is None:
        sides = [numbers[0]] * len(language.RELATIONS)
    else:
        opposite = language.OPPOSITE[request.relation]
        stands = {request.relation: numbers[0], opposite: numbers[1]}
        sides = [stands.get(relation, nothing) for relation in language.RELATIONS]
    return [*(n for side in sides for n in side), language.BACKGROUNDS.index(request.background)]


def train(reader: Layout, tokens: int, plan: Plan, work: Path, resume: bool) -> nn.Module:
    """The text model inside `reader` after this stage."""
    course = Course("text", plan, {"reader": reader}, work, weight_decay=1e-2)
    if resume:
        course.resume()
    lone, pairs = (language.requests("train", things) for things in (1, 2))
    for rng in course.steps():
        alone = rng.binomial(plan.batch, data.SINGLE_SHARE)
        asked = [lone[i] for i in rng.integers(len(lone), size=alone)]
        asked += [pairs[i] for i in rng.integers(len(pairs), size=plan.batch - alone)]
        ids = build.tokenise([str(r) for r in asked], tokens)
        loss = reader.loss(ids, torch.tensor([layout(r) for r in asked]))
        course.update(loss)
        if course.step % 100 == 99:
            print(f"text step {course.step} loss {loss.item():.4f}", flush=True)
    course.save()
    return reader.text
