"""Train a shipped model from nothing: `python -m palate.worlds.shapes.pretrain [--world shapes-flow] [--resume]`.

Stage `vae` fits the autoencoder to drawn pictures (the flow model takes the first model's). Stage `text` teaches the
text model, without pictures, to say what a caption puts where. Stage `denoiser` encodes a fixed set of pictures once,
fits the denoiser to those latents, with captions of the training split only, and writes the moving average of its
weights as a pipeline folder, now and then while it trains and at the end. Stage `measure` notes in the folder how the
model draws; stage `table` prints the same for other settings; stage `pictures` shows it:

    python -m palate.worlds.shapes.pretrain --stage table -n 256 --settings 8:1:1 8:1:1.25 12:1:1.5
    python -m palate.worlds.shapes.pretrain --stage pictures -n 24 --to docs/images/base.png
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from palate.worlds import shapes
from palate.worlds.shapes import build, flow
from palate.worlds.shapes.pretrain import denoiser, measure, text, transformer, unet, vae

WORLDS = {"shapes": (shapes, unet.KIND), "shapes-flow": (flow, transformer.KIND)}
STAGES = ("vae", "text", "denoiser", "measure", "table", "pictures", "all")


def main(argv: list[str] | None = None) -> None:
    args = options().parse_args(argv)
    world, kind = WORLDS[args.world]
    out = args.out or world.weights_dir()
    work = args.work or Path(tempfile.gettempdir()) / f"palate-{args.world}-pretrain"
    torch.set_num_threads(args.threads)
    if args.minutes:
        kind = replace(kind, plan=replace(kind.plan, minutes=args.minutes))
    earlier = args.resume or args.stage == "denoiser"
    if args.stage in ("vae", "denoiser", "all"):
        autoencoder = vae.train(vae.PLAN, work, earlier) if world is shapes else shipped_vae()
    if args.stage in ("text", "denoiser", "all"):
        reader = text.train(kind.reader(), kind.tokens, kind.text_plan, work, earlier)
    if args.stage in ("denoiser", "all"):
        denoiser.train(kind, autoencoder, reader, work, out, resume=args.resume, fast=args.fast)
    if args.stage in ("measure", "all"):
        print(json.dumps(measure.measure(kind, out, work, args.n), indent=2))
    if args.stage == "table":
        measure.table(kind, out, args.n, args.settings)
    if args.stage == "pictures":
        measure.pictures(kind, out, args.n, args.to)


def shipped_vae() -> build.AutoencoderKL:
    """The first model's autoencoder."""
    return build.load_pipeline(shapes.weights_dir()).vae


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m palate.worlds.shapes.pretrain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--world", choices=tuple(WORLDS), default="shapes")
    parser.add_argument("--stage", choices=STAGES, default="all")
    parser.add_argument("--out", type=Path, help="the pipeline folder to write (default: the one that is shipped)")
    parser.add_argument("--work", type=Path, help="checkpoints and cached latents (default: beside the system's temp)")
    parser.add_argument("--resume", action="store_true", help="take up the checkpoints in --work")
    parser.add_argument("--minutes", type=float, help="how long the denoiser trains, what is resumed counted in")
    parser.add_argument("--fast", action="store_true", help="compile the denoiser: minutes, then half the time a step")
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("-n", type=int, default=1024, help="captions to measure on")
    parser.add_argument("--to", type=Path, default=Path("base.png"), help="of `pictures`: the file to write")
    parser.add_argument("--settings", nargs="+", default=["8:1:1"], help="of `table`: steps:eta:guidance")
    return parser


if __name__ == "__main__":
    main()
