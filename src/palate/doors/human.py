"""`palate demo --human`: the loop with the person at the keyboard. Sixty votes, then pictures of their own taste."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palate import config
from palate.config import ConfigError, RoundsRecipe
from palate.doors import rounds
from palate.doors.crowd import WORLD
from palate.doors.demo import METHOD, PLANS
from palate.project import ProjectSettings, create

ROUNDS, PAIRS, VERDICT = 3, 20, 12  # votes: three times twenty, and twelve on the outcome
INSTRUCTIONS = """\
# Your taste

A small model draws shapes, and makes mistakes: melted edges, scratches of ink, things that were not asked for. You see
two of its pictures at a time. Say which you like better. Choose something to look for and keep to it, such as whole
shapes without scratches, or large things, or dark backgrounds: the model learns that from you.

After every twenty answers it learns for a minute or so and shows what it makes of them. The last twelve pairs are the
model before and after, and you are not told which is which.
"""


def recipe(out: Path, seed: int, port: int) -> dict[str, Any]:
    """The demo's method in rounds, a little of each for the sake of the person who waits."""
    plan = PLANS[METHOD]
    assert plan.lora
    return {
        "model": {"name": WORLD, "device": "cpu", "lora": plan.lora.model_dump(mode="json")},
        "algorithm": {"name": METHOD, **plan.options},
        "rounds": {
            "project": str(out / "project"), "prompts": f"{WORLD}:train", "n": ROUNDS, "prompts_per_round": PAIRS,
            "k": 2, "votes": 1, "people": "studio", "verdict": VERDICT, "batch_size": 32, "port": port,
        },
        "training": {
            "max_steps": 60, "batch_size": 16, "micro_batch_size": 16, "learning_rate": 4.0e-4, "warmup_steps": 6,
            "lr_schedule": "linear", "weight_decay": 0.0, "seed": seed, "checkpoint_every": 30,
        },
        "output": str(out / "run"),
    }  # fmt: skip


def run(method: str | None = None, out: str | Path = "demo-human", seed: int = 0, port: int = 8765) -> Path:
    """Opens the studio for one person and goes through the rounds with them; again, it goes on where it was left.

    Raises ConfigError for another method than the demo's own: only its settings are known to show a taste in 60 votes.
    """
    if method not in (None, METHOD):
        raise ConfigError(f"--human learns by {METHOD}; for {method}, write a recipe for `palate rounds`")
    out = Path(out)
    asked = RoundsRecipe.model_validate(recipe(out, seed, port))
    words = {"overall": "Which do you like better?"}
    settings = ProjectSettings(title="Your taste", questions=words, votes_per_comparison=1, repeat_share=0.0)
    if not (out / "project").is_dir():
        create(out / "project", settings)
        (out / "project" / "instructions.md").write_text(INSTRUCTIONS, encoding="utf-8")
    path = out / "recipe.yaml"
    config.dump(asked, path)
    return rounds.rounds(path)
