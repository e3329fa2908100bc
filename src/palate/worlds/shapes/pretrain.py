"""Train the shapes model from nothing: `python -m palate.worlds.shapes.pretrain [--stage ...] [--resume]`.

Stage `vae` fits the autoencoder to drawn pictures. Stage `text` teaches the text model, without pictures, to say what a
caption puts where. Stage `unet` encodes a fixed set of pictures once, fits the denoiser to those latents, with captions
of the training split only, and writes the moving average of its weights as a pipeline folder, now and then while it
trains and at the end. A stage ends after its steps or its minutes, whichever comes first; the learning rate follows
the nearer end. Batches are keyed by (seed, step), so a resumed run sees what an unbroken one would have seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from palate.worlds.shapes import build, data, language, oracle, weights_dir

KL_WEIGHT = 1e-4  # on the mean KL per latent dimension; tiny: it only keeps the latents from drifting
PROMPT_DROPOUT = 0.1
EMA = 0.999
EXPORT_MINUTES = 8
SAMPLING = {"num_inference_steps": 8, "eta": 1.0, "guidance_scale": 1.0}


@dataclass(frozen=True)
class Plan:
    """How long and how fast a stage trains."""

    steps: int
    minutes: float
    batch: int
    peak_rate: float
    pictures: int
    seed: int


VAE_PLAN = Plan(steps=7_000, minutes=20, batch=16, peak_rate=2e-3, pictures=24_000, seed=11)
TEXT_PLAN = Plan(steps=1_000, minutes=3, batch=128, peak_rate=1e-3, pictures=0, seed=13)
UNET_PLAN = Plan(steps=10_000, minutes=38, batch=64, peak_rate=1e-3, pictures=60_000, seed=12)


class Course:
    """A stage's clock and checkpoint: weights, optimiser state and progress, as safetensors and JSON."""

    def __init__(self, name: str, plan: Plan, modules: dict[str, nn.Module], folder: Path, weight_decay: float):
        self.name, self.plan, self.modules, self.folder = name, plan, modules, folder / name
        self.parameters = {f"{m}.{k}": p for m, module in modules.items() for k, p in module.named_parameters()}
        trained = [p for p in self.parameters.values() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=plan.peak_rate, weight_decay=weight_decay, fused=True)
        self.step, self.seconds, self.extra = 0, 0.0, dict[str, Tensor]()

    def progress(self) -> float:
        return max(self.step / self.plan.steps, self.seconds / (60 * self.plan.minutes))

    def steps(self) -> Iterator[np.random.Generator]:
        """One keyed generator per step, until the plan is done. Sets the learning rate and prints progress."""
        started, shown = time.monotonic() - self.seconds, -1e9
        while self.progress() < 1:
            rate = self.plan.peak_rate * min(1, (self.step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * self.progress()))
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            yield np.random.default_rng([self.plan.seed, self.step])
            self.step += 1
            self.seconds = time.monotonic() - started
            if self.seconds - shown > 20:
                shown = self.seconds
                left = self.seconds * (1 / self.progress() - 1)
                print(f"{self.name} step {self.step} {self.seconds / 60:.1f} min, {left / 60:.1f} left", flush=True)

    def update(self, loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()

    def save(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"weights/{k}": p.detach() for k, p in self.parameters.items()}
        for name, p in self.parameters.items():
            tensors |= {f"optimiser/{k}/{name}": v for k, v in self.optimiser.state.get(p, {}).items()}
        tensors |= {f"extra/{k}": v for k, v in self.extra.items()}
        note = {"step": str(self.step), "seconds": str(self.seconds)}
        aside = self.folder / "checkpoint.partial"
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, aside, {"progress": json.dumps(note)})
        aside.replace(self.folder / "checkpoint.safetensors")

    def resume(self) -> bool:
        """Take up the stored checkpoint, if there is one."""
        file = self.folder / "checkpoint.safetensors"
        if not file.exists():
            return False
        with safe_open(file, "pt") as opened:
            note = json.loads(opened.metadata()["progress"])
        self.step, self.seconds = int(note["step"]), float(note["seconds"])
        state: dict[str, dict[str, Tensor]] = {}
        for key, value in load_file(file).items():
            kind, _, rest = key.partition("/")
            if kind == "weights":
                self.parameters[rest].data.copy_(value)
            elif kind == "optimiser":
                slot, _, name = rest.partition("/")
                state.setdefault(name, {})[slot] = value
            else:
                self.extra[rest] = value
        for name, slots in state.items():  # in the memory layout of the parameter, as the fused optimiser expects
            p = self.parameters[name]
            alike = {k: v for k, v in slots.items() if v.shape == p.shape}
            self.optimiser.state[p] = slots | {k: torch.empty_like(p).copy_(v) for k, v in alike.items()}
        print(f"{self.name}: resumed at step {self.step}", flush=True)
        return True


def to_tensor(pictures: np.ndarray) -> Tensor:
    """`uint8 [n, 64, 64, 3]` to floats in -1..1, `[n, 3, 64, 64]`."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(tensors: Tensor) -> np.ndarray:
    """The inverse of `to_tensor`."""
    return ((tensors + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()


def history(work: Path) -> dict[str, dict[str, int]]:
    """How many steps and seconds each stage has trained, by the checkpoints in `work`."""
    found = {}
    for file in sorted(work.glob("*/checkpoint.safetensors")):
        with safe_open(file, "pt") as opened:
            note = json.loads(opened.metadata()["progress"])
        found[file.parent.name] = {"steps": int(note["step"]), "seconds": round(float(note["seconds"]))}
    return found


# --- stage 1: the autoencoder ---------------------------------------------------------------------------------------


def reconstruction_loss(output: Tensor, picture: Tensor) -> Tensor:
    """Absolute error, weighted up to sevenfold at edges and in the ink and paint that a mean would neglect."""
    background = picture.flatten(2).median(dim=2).values[..., None, None]
    drawn = ((picture - background).abs().amax(1, keepdim=True) > 0.1).float()
    edge = F.max_pool2d(picture, 3, 1, 1) + F.max_pool2d(-picture, 3, 1, 1)
    weight = 1 + 2 * drawn + 4 * edge.amax(1, keepdim=True).clamp(0, 1)
    return ((output - picture).abs() * weight).mean() + 2 * ((output - picture).square() * weight).mean()


def train_vae(plan: Plan, work: Path, resume: bool) -> build.AutoencoderKL:
    torch.manual_seed(plan.seed)
    vae = build.build_vae()
    course = Course("vae", plan, {"vae": vae}, work, weight_decay=0.0)
    if resume:
        course.resume()
    _, pictures = data.dataset(plan.pictures, plan.seed)
    for rng in course.steps():
        picture = to_tensor(pictures[rng.integers(len(pictures), size=plan.batch)])
        torch.manual_seed(int(rng.integers(2**31)))
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(picture).latent_dist
            output = vae.decode(posterior.sample()).sample
        error = reconstruction_loss(output.float(), picture)
        course.update(error + KL_WEIGHT * posterior.kl().float().mean() / posterior.mean[0].numel())
        if course.step % 100 == 0:
            print(f"vae step {course.step} error {error.item():.4f} std {posterior.mean.std().item():.2f}", flush=True)
        if course.step % 300 == 299:
            course.save()
    course.save()
    standardise(vae, to_tensor(pictures[:2048]))
    return vae


@torch.no_grad()
def standardise(vae: build.AutoencoderKL, pictures: Tensor) -> None:
    """Give each latent channel mean 0 and deviation 1, by folding the shift and scale into the 1 x 1 convolutions."""
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(64)])
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    inward, outward = vae.quant_conv, vae.post_quant_conv
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight *= deviation[None, :, None, None]
    inward.bias[: len(mean)] -= mean
    inward.weight[: len(mean)] /= deviation[:, None, None, None]
    inward.bias[: len(mean)] /= deviation
    inward.bias[len(mean) :] -= 2 * deviation.log()


# --- stage 2: the text model ----------------------------------------------------------------------------------------


class Layout(nn.Module):
    """What stands left, right, above and below, read off the states of a caption's last four (padding) tokens.

    Left to the denoising loss a text model this small does not learn the relation words: what they change is decided in
    the noisiest steps, by the meeting of many words. Told so directly, it learns them within a minute, and the denoiser
    finds at one token what belongs at one side.
    """

    def __init__(self, text: build.CLIPTextModel):
        super().__init__()
        self.text = text
        self.choices = [len(language.SIZES) + 1, len(language.COLOURS) + 1, len(language.SHAPES) + 1]  # the last: none
        self.things = nn.ModuleList(nn.Linear(build.TEXT_WIDTH, sum(self.choices)) for _ in language.RELATIONS)
        self.background = nn.Linear(build.TEXT_WIDTH, len(language.BACKGROUNDS))

    def forward(self, ids: Tensor) -> tuple[list[Tensor], Tensor]:
        """Logits of size, colour and shape, `[n, 4, choices]` each, and of the background, `[n, 3]`."""
        states = self.text(ids).last_hidden_state
        sides = len(self.things)
        said = torch.stack([read(states[:, k - sides]) for k, read in enumerate(self.things)], dim=1)
        return list(said.split(self.choices, dim=-1)), self.background(states[:, -sides - 1])

    def loss(self, ids: Tensor, wanted: Tensor) -> Tensor:
        """Summed cross-entropies; `wanted [n, 4 * 3 + 1]` as of `layout`."""
        said, background = self(ids)
        sides = wanted[:, :-1].unflatten(1, (len(self.things), 3))
        errors = [F.cross_entropy(s.flatten(0, 1), sides[..., k].flatten()) for k, s in enumerate(said)]
        return sum(errors, F.cross_entropy(background, wanted[:, -1]))


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


def train_text(plan: Plan, work: Path, resume: bool) -> build.CLIPTextModel:
    torch.manual_seed(plan.seed)
    reader = Layout(build.build_text_encoder(build.build_tokenizer()))
    course = Course("text", plan, {"reader": reader}, work, weight_decay=1e-2)
    if resume:
        course.resume()
    lone, pairs = (language.requests("train", things) for things in (1, 2))
    for rng in course.steps():
        alone = rng.binomial(plan.batch, data.SINGLE_SHARE)
        asked = [lone[i] for i in rng.integers(len(lone), size=alone)]
        asked += [pairs[i] for i in rng.integers(len(pairs), size=plan.batch - alone)]
        loss = reader.loss(tokenise([str(r) for r in asked]), torch.tensor([layout(r) for r in asked]))
        course.update(loss)
        if course.step % 100 == 99:
            print(f"text step {course.step} loss {loss.item():.4f}", flush=True)
    course.save()
    return reader.text


# --- stage 3: the denoiser ------------------------------------------------------------------------------------------


@torch.no_grad()
def encode_dataset(vae: build.AutoencoderKL, plan: Plan, work: Path) -> dict[str, Tensor]:
    """Latent means and deviations `fp16 [n, 16, 8, 8]` and token ids `[n, 24]` of the training pictures, cached."""
    file = work / "latents.safetensors"
    if file.exists():
        return load_file(file)
    scenes, pictures = data.dataset(plan.pictures, plan.seed)
    vae.eval()
    means, deviations = [], []
    for start in range(0, len(pictures), 64):
        posterior = vae.encode(to_tensor(pictures[start : start + 64])).latent_dist
        means.append(posterior.mean.half().contiguous())
        deviations.append(posterior.std.half().contiguous())
    ids = tokenise([data.caption(scene) for scene in scenes])
    cached = {"mean": torch.cat(means), "deviation": torch.cat(deviations), "ids": ids}
    save_file(cached, file)
    return cached


def tokenise(texts: list[str]) -> Tensor:
    tokenizer = build.build_tokenizer()
    padded = tokenizer(texts, padding="max_length", max_length=build.MAX_TOKENS, truncation=True, return_tensors="pt")
    return padded.input_ids


def noise_loss(predicted: Tensor, noise: Tensor, alphas: Tensor, most: float = 5.0, boost: float = 8.0) -> Tensor:
    """Mean squared error of the noise, weighted so that no range of noise levels drowns the others.

    At little noise by min-SNR (SNR at most `most`); at much noise, where the places of things are decided, by the
    error of v, 1 / alpha-bar, up to `boost`.
    """
    snr = alphas / (1 - alphas)
    weights = snr.clamp(max=most) / snr * (1 / alphas).clamp(max=boost)
    return ((predicted - noise).square().mean((1, 2, 3)) * weights).mean()


def train_unet(
    vae: build.AutoencoderKL, text: build.CLIPTextModel, plan: Plan, work: Path, out: Path, resume: bool
) -> None:
    torch.manual_seed(plan.seed)
    text.eval().requires_grad_(False)
    unet = build.build_unet().to(memory_format=torch.channels_last)
    course = Course("unet", plan, {"unet": unet}, work, weight_decay=1e-2)
    if not (resume and course.resume()):
        course.extra = {k: p.detach().clone() for k, p in course.parameters.items()}
    cached = encode_dataset(vae, plan, work)
    scale = 1 / cached["mean"].float().std().item()
    vae.register_to_config(scaling_factor=scale)
    alphas = build.build_scheduler().alphas_cumprod
    silence = tokenise([""])
    saved, running = course.seconds, 0.0
    for rng in course.steps():
        rows = torch.from_numpy(rng.integers(len(cached["ids"]), size=plan.batch))
        torch.manual_seed(int(rng.integers(2**31)))
        mean, deviation = (cached[k][rows].float() for k in ("mean", "deviation"))
        latents = (scale * (mean + deviation * torch.randn_like(mean))).to(memory_format=torch.channels_last)
        ids = torch.where(torch.rand(plan.batch, 1) < PROMPT_DROPOUT, silence, cached["ids"][rows])
        t, noise = torch.randint(len(alphas), (plan.batch,)), torch.randn_like(latents)
        level = alphas[t][:, None, None, None]
        noisy = level.sqrt() * latents + (1 - level).sqrt() * noise
        predicted = unet(noisy, t, text(ids).last_hidden_state).sample
        loss = noise_loss(predicted, noise, alphas[t])
        course.update(loss)
        average(course.extra, course.parameters, min(EMA, (1 + course.step) / (10 + course.step)))
        running += 0.01 * (loss.item() - running)
        if course.step % 100 == 99:
            print(f"unet step {course.step} loss {running:.4f}", flush=True)
        if course.seconds - saved > 60 * EXPORT_MINUTES:
            saved = course.seconds
            course.save()
            export(vae, text, course, out)
    course.save()
    export(vae, text, course, out)


@torch.no_grad()
def average(mean: dict[str, Tensor], parameters: dict[str, nn.Parameter], decay: float) -> None:
    torch._foreach_lerp_([mean[k] for k in parameters], list(parameters.values()), 1 - decay)


def export(vae: build.AutoencoderKL, text: build.CLIPTextModel, course: Course, out: Path) -> None:
    """Write the averaged weights as an fp16 pipeline folder, aside first, then in place of the old one."""
    tokenizer, unet = build.build_tokenizer(), build.build_unet()
    with torch.no_grad():
        for key, parameter in unet.named_parameters():
            parameter.copy_(course.extra[f"unet.{key}"])
    decoder, reader = build.build_vae(), build.build_text_encoder(tokenizer)
    decoder.load_state_dict(vae.state_dict())
    decoder.register_to_config(scaling_factor=vae.config.scaling_factor)
    reader.load_state_dict(text.state_dict())
    pipeline = build.build_pipeline(decoder.half().eval(), unet.half().eval(), reader.half().eval(), tokenizer)
    aside = out.with_name(out.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    pipeline.save_pretrained(aside)
    config = aside / "text_encoder" / "config.json"  # transformers loads in the dtype named here
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")
    world = {"sampling": SAMPLING, "training": history(course.folder.parent)}
    (aside / "world.json").write_text(json.dumps(world, indent=2) + "\n")
    old = out.with_name(out.name + ".old")
    if out.exists():
        out.rename(old)
    aside.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    print(f"unet step {course.step}: wrote {out}", flush=True)


# --- the judgement of the base, and the command ---------------------------------------------------------------------


def measure(out: Path, work: Path, n: int = 1024, seed: int = 0) -> dict[str, float | str]:
    """Sample `n` held-out captions with the shipped settings, read the pictures, and note the figures in world.json."""
    pipeline = build.load_pipeline(out)
    world = json.loads((out / "world.json").read_text()) | {"sampling": SAMPLING}
    world["training"] |= history(work)
    prompts = data.captions(n, seed, "eval")
    pictures = sample(pipeline, prompts, seed, **world["sampling"])
    scores = oracle.score(prompts, list(pictures))
    deformed = [any(o.deformed for o in oracle.read(p).objects) for p in pictures]
    world["base"] = {
        "weights": digest(out),
        "captions": n,
        **{name: round(float(values.mean()), 3) for name, values in scores.items()},
        "marked": round(float((scores["safety"] < 0.5).mean()), 3),
        "deformed": round(float(np.mean(deformed)), 3),
        "related": round(related(prompts, pictures), 3),
    }
    (out / "world.json").write_text(json.dumps(world, indent=2) + "\n")
    return world["base"]


def digest(folder: Path) -> str:
    """SHA-256 of a pipeline folder's weights, so that figures can be held to the weights they were measured on."""
    read = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        read.update(file.read_bytes())
    return read.hexdigest()


def related(prompts: list[str], pictures: np.ndarray) -> float:
    """Share of pictures in which the two things asked for, told by shape and colour, lie as asked; chance is 1/4."""
    right = []
    for text, picture in zip(prompts, pictures, strict=True):
        asked, seen = data.parse_caption(text), oracle.read(picture).objects
        found = [[o for o in seen if (o.shape, o.colour) == (thing.shape, thing.colour)] for thing in asked.things]
        if asked.relation and all(len(same) == 1 for same in found) and found[0] != found[1]:
            right.append(oracle.relation(found[0][0], found[1][0]) == asked.relation)
    return float(np.mean(right))


def sample(
    pipeline: build.StableDiffusionPipeline, prompts: list[str], seed: int, batch: int = 64, **settings: float
) -> np.ndarray:
    """Pictures `uint8 [n, 64, 64, 3]` of the prompts."""
    generator = torch.Generator().manual_seed(seed)
    done = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        images = pipeline(part, generator=generator, output_type="np", **settings).images
        done.append(np.rint(255 * images).astype(np.uint8))
    return np.concatenate(done)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m palate.worlds.shapes.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, default=weights_dir(), help="the pipeline folder to write")
    parser.add_argument("--work", type=Path, help="checkpoints and cached latents (default: beside the system's temp)")
    parser.add_argument("--stage", choices=("vae", "text", "unet", "measure", "all"), default="all")
    parser.add_argument("--resume", action="store_true", help="take up the checkpoints in --work")
    args = parser.parse_args(argv)
    work = args.work or Path(tempfile.gettempdir()) / "palate-shapes-pretrain"
    torch.set_num_threads(min(os.cpu_count() or 1, 8))
    earlier = args.resume or args.stage == "unet"
    if args.stage in ("vae", "unet", "all"):
        vae = train_vae(VAE_PLAN, work, resume=earlier)
    if args.stage in ("text", "unet", "all"):
        text = train_text(TEXT_PLAN, work, resume=earlier)
    if args.stage in ("unet", "all"):
        train_unet(vae, text, UNET_PLAN, work, args.out, args.resume)
    if args.stage in ("measure", "all"):
        print(json.dumps(measure(args.out, work), indent=2))


if __name__ == "__main__":
    main()
