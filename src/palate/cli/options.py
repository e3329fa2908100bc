"""Options that several verbs share, and the command they hang on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

ORDER = (
    "demo",
    "sample",
    "score",
    "label",
    "project",
    "dataset",
    "train",
    "rounds",
    "compare",
    "report",
    "export",
    "doctor",
)


class InOrder(TyperGroup):
    """Verbs in the order in which one meets them; others after them."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    cls=InOrder,
    name="palate",
    help="Align generative models with what people prefer.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same results.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps of a sample [default: the model's own].")]
Guidance = Annotated[
    float | None, typer.Option(min=0, help="Scale of classifier-free guidance [default: the model's own].")
]
Eta = Annotated[
    float | None,
    typer.Option(min=0, help="Noise put back at each step; 0 is deterministic [default: the model's own]."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Candidates sampled at once; speed only.")]
Call = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Argument of each call of the model's pipeline, such as num_frames=33; repeatable. frame_rate=8 says how "
        "fast its videos run, also where the pipeline does not know it.",
    ),
]
Prompts = Annotated[Path, typer.Option("--prompts", help="Text file of prompts, one a line, or world:shapes:eval.")]


def group(name: str, about: str) -> typer.Typer:
    """Verbs under a verb: `palate NAME ...`."""
    made = typer.Typer(help=about, no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(made, name=name)
    return made


def drawn_with(
    seed: int, steps: int | None, guidance: float | None, eta: float | None, call: list[str] | None, batch_size: int
) -> dict[str, Any]:
    """How samples are drawn, as the doors take it."""
    from palate.doors import asked

    return {
        "seed": seed,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "eta": eta,
        "call": asked.arguments(call or ()),
        "batch_size": batch_size,
    }
