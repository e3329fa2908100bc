"""What a pipeline must do to be served, stage by stage, on a tiny build: the proof behind docs/pipelines.md.

    found = examine("FluxPipeline")          # {"load": Held(True, "..."), "replay off": ..., ...}

Every stage is checked from outside: against what the pipeline's own call hands its scheduler and gives its
autoencoder, against its own picture, against the bytes of its weights. A stage that cannot hold says why.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from palate import sampling
from palate.algorithms import ddpo, diffusion_dpo
from palate.config import LoraSettings, RolloutSettings, TrainingSettings
from palate.doors import assembly, encoding
from palate.models.codecs import media_of
from palate.models.diffusion import DiffusionPolicy
from palate.models.probe import call as own_call
from palate.models.probe import record, swapped
from palate.records import Medium, Preference
from palate.training import adapters
from palate.training.export import WEIGHTS, export
from palate.transitions import gaussian_log_prob, has_likelihood
from tests import pipelines

PROMPTS = ["a fat goat", "a wet frog"]  # not those the probe learns and proves itself on; of one length
SCALE = 4.2
STAGES = ("load", "replay off", "replay on", "rollout", "online", "codec", "offline", "adapter")


@dataclass(frozen=True)
class Held:
    """Whether a stage holds; else the reason. note: what is worth knowing of how it does."""

    holds: bool
    note: str = ""


@dataclass
class Examined:
    """A build under examination."""

    name: str
    policy: DiffusionPolicy | None = None
    found: dict[str, Held] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class Broken(AssertionError):
    """Something was served that does not hold: worse than a refusal."""


def check(held: bool, otherwise: str) -> None:
    if not held:
        raise Broken(otherwise)


def examine(name: str, stages: tuple[str, ...] = STAGES) -> Examined:
    """All stages on a build, each on the same policy; a stage that raises is not held, with the reason."""
    began, made = time.perf_counter(), Examined(name)
    pipeline, call = pipelines.build(name)
    try:
        made.policy = policy = DiffusionPolicy(pipeline, call=call)
    except Exception as error:
        crashed = "" if isinstance(error, ValueError) else f"BROKEN: {type(error).__name__}: "
        made.found["load"] = Held(False, crashed + first_line(error))
        made.seconds = time.perf_counter() - began
        return made
    made.found["load"] = Held(True)
    made.facts = facts(policy)
    jobs: dict[str, Callable[[], str]] = {
        "replay off": partial(replay, policy, None),
        "replay on": partial(replay, policy, SCALE),
        "rollout": partial(rollout, policy, made.facts),
        "codec": partial(codec, policy),
        "online": partial(online, policy),
        "offline": partial(offline, policy),
        "adapter": partial(adapter, policy, name),
    }
    for stage, job in jobs.items():
        if stage in stages:
            made.found[stage] = attempt(job)
    made.seconds = time.perf_counter() - began
    return made


def attempt(job: Callable[[], str]) -> Held:
    try:
        return Held(True, job())
    except Broken as error:
        return Held(False, f"BROKEN: {first_line(error)}")
    except Exception as error:
        return Held(False, first_line(error))


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def facts(policy: DiffusionPolicy) -> dict[str, Any]:
    """What kind of pipeline it is."""
    capture = policy.capture
    clocks = {c.form for slot in capture.single.slots for c in slot.clocks.values()}
    return {
        "prediction": policy.path.kind,
        "latent": list(policy.latent_shape),
        "modules": list(policy.modules),
        "clock": ", ".join(sorted(clocks)),
        "guidance": capture.guided.combination if capture.guided else None,
    }


# --- replay -----------------------------------------------------------------------------------------------------------


def scale_or_off(policy: DiffusionPolicy) -> float | None:
    """The scale the other stages work at: guided where that is served, else off."""
    return SCALE if policy.capture.guided is not None else None


@torch.no_grad()
def replay(policy: DiffusionPolicy, scale: float | None, steps: int = 4) -> str:
    """Predictions are what the pipeline's own call hands its scheduler, bit for bit, and say something."""
    if scale is None:
        policy.capture.check_off()
    cond = policy.condition(PROMPTS, guided=scale is not None)
    schedule = policy.schedule
    handed = []
    for row, prompt in enumerate(PROMPTS):
        settings = policy.capture.call | policy.capture.settings(scale, 1)
        settings |= {"num_inference_steps": steps}
        with policy.capture.in_place(scale):
            asked = policy.capture.asked([prompt])
            trace = record(policy.pipeline, schedule.scheduler(), asked, seed=7, steps=steps, **settings)
        times = schedule.times(trace.scheduler)
        check(len(trace.steps) == steps, f"{len(trace.steps)} steps were made where {steps} were asked for")
        for step, t in zip(trace.steps, times, strict=False):
            own = policy.capture.sign * step.model_output.float()
            predicted = policy.predict(step.sample, t[None], cond[row], scale)
            worst = float((predicted - own).abs().max())
            check(worst == 0, f"a prediction at t = {float(t):g} differs by {worst:.3g} from the pipeline's own")
            check(bool(own.any()), "the prediction is zero")
        handed.append(trace.steps[0].model_output)
    check(not torch.equal(handed[0], handed[1]), "the prompt does not matter")
    if scale is not None:
        x = trace.steps[0].sample
        off = policy.predict(x, times[:1], cond[1])
        check(not torch.allclose(off, policy.predict(x, times[:1], cond[1], scale)), "guidance does not matter")
    return ""


# --- rollouts ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def rollout(policy: DiffusionPolicy, told: dict[str, Any], steps: int = 4) -> str:
    """The pipeline's own call with our scheduler; recomputed log-densities give a ratio of exactly 1."""
    scale = scale_or_off(policy)
    generators = [torch.Generator().manual_seed(row) for row in range(2)]
    media, made = policy.generate(PROMPTS, generators, num_inference_steps=steps, guidance_scale=scale, eta=0.7)
    told["media"] = kind_of(media[0])
    check(len(media) == 2, f"{len(media)} media for 2 prompts")
    arrays = [array(medium) for medium in media]
    check(arrays[0].shape == arrays[1].shape and not np.array_equal(*arrays), "two prompts give the same medium")
    moving = has_likelihood(made.std).nonzero()[:, 0].tolist()
    check(len(moving) >= steps - 1, f"only {len(moving)} of {steps} steps have a likelihood")
    for i in moving:
        x, t, t_prev = made.x[:, i], made.t[i].expand(2), made.t[i + 1].expand(2)
        mean, std = made.kernel.mean_std(policy.predict(x, t, made.cond, scale), x, t, t_prev)
        ratio = float((gaussian_log_prob(made.x[:, i + 1], mean, std) - made.logps[:, i]).abs().max())
        check(ratio == 0, f"the log ratio of a fresh rollout is {ratio:.3g}")
    again = policy.decode(made.x[:, -1])
    if not all(np.array_equal(array(mine), array(theirs)) for mine, theirs in zip(again, media, strict=True)):
        check(draws_to_decode(policy, made.x[:, -1]), "the record does not end in the medium")
        return "yes, but decoding draws noise"
    return ""


def draws_to_decode(policy: DiffusionPolicy, x0: Tensor) -> bool:
    """Whether the autoencoder is given something else where the pipeline's generators are at another place."""
    coder, given = policy.autoencoder, list[Tensor]()
    decode = coder.decode

    def decoding(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(z)
        return decode(z, *args, **kwargs)

    generators = [torch.Generator().manual_seed(row) for row in range(len(x0))]
    with swapped(coder, decode=decoding):
        policy.decode(x0)
        how = {"num_inference_steps": 2, "guidance_scale": scale_or_off(policy), "eta": 0.0}
        _, made = policy.generate(PROMPTS, generators, **how)
        policy.decode(made.x[:, -1])
    first, last = (
        torch.cat(part) for part in (given[-2 * len(given) // 3 : -len(given) // 3], given[-len(given) // 3 :])
    )
    return first.shape != last.shape or not torch.equal(first, last)


def kind_of(medium: Any) -> str:
    if isinstance(medium, Image.Image):
        return "pictures"
    return "video" if isinstance(medium, list) or array(medium).ndim == 4 else "sound"


def array(medium: Any) -> np.ndarray:
    """A medium as numbers: a picture, a list of frames, a waveform."""
    if isinstance(medium, Tensor):
        return medium.float().cpu().numpy()
    if isinstance(medium, list | tuple):
        return np.stack([array(frame) for frame in medium])
    return np.asarray(medium, np.float32)


# --- the codec --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def codec(policy: DiffusionPolicy) -> str:
    """encode undoes the pipeline's own decoding: of latents to rounding, of media as far as their files hold them."""
    generator = torch.Generator().manual_seed(3)
    x0 = torch.randn(2, *policy.latent_shape, generator=generator)
    coder, given, made = policy.autoencoder, list[Tensor](), list[Tensor]()
    decode, encode = coder.decode, coder.encode

    def decoding(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(z)
        return decode(z, *args, **kwargs)

    def encoding(pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
        encoded = encode(pixels, *args, **kwargs)
        made.append(encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded[0])
        return encoded

    with swapped(coder, decode=decoding):
        media = policy.decode(x0)
    policy.encode(media)  # learns the way, in which pipelines may encode on their own account
    with swapped(coder, encode=encoding):
        again = policy.encode(media)
    check(again.shape == x0.shape, f"latents are {tuple(again.shape)} where {tuple(x0.shape)} were decoded")
    check(bool(again.isfinite().all()), "latents are not finite")
    given.clear()
    with swapped(coder, decode=decoding):
        policy.decode(again)
    z, own = torch.cat(given), torch.cat(made)
    check(z.shape == own.shape, f"z is {tuple(own.shape)}, and decoded as {tuple(z.shape)}")
    check(torch.allclose(z, own, rtol=1e-4, atol=1e-4), f"z comes back off by {float((z - own).abs().max()):.3g}")
    return lossless(policy, x0)


def lossless(policy: DiffusionPolicy, x0: Tensor) -> str:
    """With an autoencoder that loses nothing, what was decoded is what is encoded."""
    coder, shown, seen = policy.autoencoder, list[Tensor](), list[Tensor]()
    decode, encode = coder.decode, coder.encode
    generator = torch.Generator().manual_seed(4)

    def decoding(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = decode(z, *args, **kwargs)
        pixels = out[0] if isinstance(out, tuple) else out.sample
        drawn = (2 * torch.rand(pixels.shape, generator=generator) - 1).to(pixels)
        shown.append(drawn)
        pixels.copy_(drawn)
        return out

    def encoding(pixels: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(pixels)
        return encode(pixels, *args, **kwargs)

    with swapped(coder, decode=decoding):
        media = policy.decode(x0)
    with swapped(coder, encode=encoding):
        policy.encode(media)
    before, after = torch.cat(shown).float(), torch.cat(seen).float()
    if before.shape != after.shape and before.shape == after.transpose(1, 2).shape:
        after = after.transpose(1, 2)  # frames first, as some autoencoders decode
    check(before.shape == after.shape, f"{tuple(before.shape)} was decoded, and {tuple(after.shape)} encoded")
    worst = float((before - after).abs().max())
    check(worst <= 2 / 255 + 1e-3, f"what is encoded differs by {worst:.3g} from what was decoded")
    return ""


# --- training ---------------------------------------------------------------------------------------------------------


def adapted(policy: DiffusionPolicy) -> DiffusionPolicy:
    """The policy over copies of its denoisers with an adapter."""
    other = policy.with_modules({name: copy.deepcopy(module) for name, module in policy.modules.items()})
    adapters.add_lora(other, lora_settings(other))
    return other


def lora_settings(policy: DiffusionPolicy) -> LoraSettings:
    """The usual attention layers; where none is called so, the linear layers of what calls itself attention."""
    names = [name for module in policy.modules.values() for name, _ in module.named_modules()]
    if any(name.endswith(adapters.ATTENTION) for name in names):
        return LoraSettings(rank=2, alpha=2.0)
    found = {
        f"{name}.{inner}"
        for module in policy.modules.values()
        for name, layer in module.named_modules()
        if "attention" in type(layer).__name__.lower()
        for inner, part in layer.named_children()
        if isinstance(part, torch.nn.Linear)
    }
    return LoraSettings(rank=2, alpha=2.0, targets=sorted(found))


def digests(policy: DiffusionPolicy) -> dict[str, str]:
    """A hash of every weight and buffer of every part of the pipeline, the denoisers as they are trained included."""
    parts = {k: v for k, v in policy.pipeline.components.items() if isinstance(v, torch.nn.Module)}
    found = {}
    for part, module in {**parts, **policy.modules}.items():
        for name, tensor in module.state_dict().items():
            raw = tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes()
            found[f"{part}.{name}"] = hashlib.blake2b(raw, digest_size=8).hexdigest()
    return found


def check_only_the_adapter_changed(before: dict[str, str], after: dict[str, str]) -> None:
    changed = {name for name in after if before.get(name) != after[name]}
    strays = sorted(name for name in changed if "lora_" not in name)
    check(before.keys() == after.keys() and not strays, f"training changed {strays[:3]}")
    check(bool(changed), "training changed nothing")


def brightness(prompts: list[str], media: list[Any]) -> dict[str, np.ndarray]:
    return {"brightness": np.array([float(array(medium).mean()) for medium in media])}


def train(policy: DiffusionPolicy, algorithm: Any, options: Any, make_source: Callable[..., Any]) -> None:
    """One optimiser step by the real parts."""
    before = digests(policy)
    reference = assembly.reference_for(policy, algorithm, options)
    settings = TrainingSettings(max_steps=1, batch_size=2, learning_rate=1e-2)
    with tempfile.TemporaryDirectory() as folder:
        assembly.fit(
            policy, algorithm, options, make_source(reference, settings), settings, folder,
            reference=reference, progress=False, tensorboard=False,
        )  # fmt: skip
    check_only_the_adapter_changed(before, digests(policy))


def online(policy: DiffusionPolicy) -> str:
    """One step of DDPO on the policy's own samples changes the adapter and nothing else."""
    trained, options = adapted(policy), ddpo.Config()
    how = {"num_inference_steps": 3, "guidance_scale": scale_or_off(policy), "eta": 0.7}
    rounds = RolloutSettings(prompts=PROMPTS, scorers={"x": 1.0}, prompts_per_round=2, k=2, batch_size=4)

    def source(reference: Any, settings: TrainingSettings) -> Any:
        return assembly.online_source(
            trained, ddpo, options, PROMPTS, brightness, rounds, settings, how, reference=reference
        )

    train(trained, ddpo, options, source)
    return ""


def offline(policy: DiffusionPolicy) -> str:
    """One step of Diffusion-DPO on two of the policy's own media, encoded, changes the adapter and nothing else."""
    trained, options = adapted(policy), diffusion_dpo.Config(prompt_dropout=0.0)
    how = {"num_inference_steps": 2, "guidance_scale": scale_or_off(policy), "eta": 0.7}
    pairs = []
    for prompt in PROMPTS:
        media = sampling.sample(policy, [prompt] * 2, [f"{prompt}/0", f"{prompt}/1"], seed=0, **how)
        prefer = ((0.5, 1.0), (0.0, 0.5))
        files = tuple(Medium(type="image/png", path=f"{i}.png") for i in range(2))
        pairs.append((Preference(id=prompt, prompt=prompt, media=files, mask=(True, True), prefer=prefer), media))
    rows = encoding.encode(trained, pairs)

    def source(reference: Any, settings: TrainingSettings) -> Any:
        return assembly.offline_source(trained, rows, diffusion_dpo, options, settings, held_out=0.0)

    train(trained, diffusion_dpo, options, source)
    return ""


# --- the adapter ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def adapter(policy: DiffusionPolicy, name: str) -> str:
    """A trained adapter, exported, is loaded by plain diffusers into a fresh pipeline and gives the same picture."""
    trained = adapted(policy)
    generator = torch.Generator().manual_seed(5)
    for weight in adapters.trainable(trained).values():
        weight.data = 0.5 * torch.randn(weight.shape, generator=generator)
    plain, call = pipelines.build(name)
    plain.set_progress_bar_config(disable=True)
    for part in plain.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)  # PyTorch may round in another way where gradients are possible
    call = {**call, **policy.capture.settings(scale_or_off(policy), 1)}
    prompt = policy.capture.asked(PROMPTS[:1])
    base = picture(plain, prompt, call)
    if not np.array_equal(base, picture(plain, prompt, call)):
        raise ValueError("its own call, plain and at one seed, gives another medium each time")
    with swapped(policy.pipeline, **trained.modules):
        own = picture(policy.pipeline, prompt, call)
    check(not np.array_equal(own, base), "the adapter does not show in the picture")
    with tempfile.TemporaryDirectory() as folder:
        how = load_adapter(plain, export(trained, Path(folder)), list(trained.modules))
    check(np.array_equal(picture(plain, prompt, call), own), "a reloaded adapter gives another picture")
    return how


def picture(pipeline: Any, prompt: Any, call: dict[str, Any]) -> np.ndarray:
    """One medium by the pipeline's own call, its own scheduler and its own settings."""
    generators = [torch.Generator().manual_seed(11)]
    return array(media_of(own_call(pipeline, prompt, generators, **call, num_inference_steps=4))[0])


def load_adapter(pipeline: Any, folder: Path, parts: list[str]) -> str:
    """As a user would, without Palate; what it took."""
    first, *experts = parts
    module, whole = getattr(pipeline, first), callable(getattr(pipeline, "load_lora_weights", None))
    try:
        if whole:
            pipeline.load_lora_weights(folder)
            for expert in experts:
                pipeline.load_lora_weights(folder / expert, load_into_transformer_2=True)
            return "load_lora_weights"
    except AttributeError:  # a loader that looks for a part which this pipeline does not have
        pass
    if callable(getattr(module, "load_lora_adapter", None)):
        module.load_lora_adapter(folder, prefix=first if whole else None, use_safetensors=True)
        return "load_lora_adapter"
    with safe_open(folder / WEIGHTS, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    weights, metadata = (
        {k.removeprefix("transformer.").removeprefix(f"{first}."): v for k, v in some.items()}
        for some in (weights, metadata)
    )
    peft.inject_adapter_in_model(peft.LoraConfig(**metadata), module)
    loaded = peft.set_peft_model_state_dict(module, weights)
    check(not loaded.unexpected_keys, f"peft does not know {loaded.unexpected_keys[:3]}")
    return "peft"
