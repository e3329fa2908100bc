"""A LoRA of the user's own is part of the base: loaded, held to, trained on top of, and found again in the export."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from palate.config import LoraSettings, ModelSettings
from palate.doors import lookup
from palate.models.diffusion import DiffusionPolicy
from palate.training import adapters, export, loras
from tests import pipelines, zoo


def shaken(weights, seed=1, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in weights:
            weight.add_(scale * torch.randn(weight.shape, generator=generator))


def make_lora(pipeline, folder, parts, seed):
    """A LoRA as another tool would leave it: other layers and another rank, with a secret in its metadata."""
    kept, told = {}, {}
    for part, targets in parts.items():
        module = getattr(pipeline, part)
        ranks = {"r": 3, "lora_alpha": 6, "rank_pattern": {targets[-1]: 5}, "alpha_pattern": {targets[0]: 2}}
        module.add_adapter(peft.LoraConfig(**ranks, target_modules=targets))
        shaken([weight for name, weight in module.named_parameters() if "lora_" in name], seed)
        kept[f"{part}_lora_layers"] = peft.utils.get_peft_model_state_dict(module)
        told[f"{part}_lora_adapter_metadata"] = {**ranks, "target_modules": targets, "task_type": None}
    pipeline.save_lora_weights(folder, **kept, **told)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "sd15"
    zoo.build("sd15").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own(model, tmp_path_factory):
    parts = {"unet": ["to_q", "proj_in", "conv1"], "text_encoder": ["q_proj"]}
    pipeline = StableDiffusionPipeline.from_pretrained(model)
    return make_lora(pipeline, tmp_path_factory.mktemp("lora"), parts, seed=5)


def plain(model, *loras_by_name):
    """The picture of plain diffusers, with LoRAs loaded one by one and switched on together."""
    pipeline = DiffusionPipeline.from_pretrained(model)
    for name, folder in loras_by_name:
        with adapters.several_adapters():
            pipeline.load_lora_weights(folder, adapter_name=name, weight_name=export.WEIGHTS)
    if loras_by_name:
        pipeline.set_adapters([name for name, _ in loras_by_name])
    return picture(pipeline)


def picture(pipeline, prompt="a large red circle on white"):
    """Weights laid out in memory as they are loaded: a policy's convolutions are not, which rounds in another way."""
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.to(memory_format=torch.contiguous_format)
    generator = torch.Generator().manual_seed(0)
    return pipeline(prompt, num_inference_steps=2, generator=generator, output_type="np").images


def trained(settings, seed=2):
    policy = lookup.load_policy(settings)
    shaken(adapters.trainable(policy).values(), seed)
    return policy


def test_the_policy_begins_as_the_base_with_the_lora_and_is_held_to_it(model, own):
    policy = lookup.load_policy(ModelSettings(name=str(model), adapter=str(own), lora=LoraSettings(rank=2)))
    with_lora = plain(model, ("own", own))
    assert (picture(policy.pipeline) == with_lora).all() and not (with_lora == plain(model)).all()
    adapters.check_trainable(policy)
    weights = adapters.trainable(policy)
    assert all(".default." in name for name in weights) and adapters.base_adapters(policy.module) == ["base"]
    at = torch.randn(1, *policy.latent_shape), torch.tensor([500]), policy.condition(["a hat"])
    before = policy.predict(*at).detach()
    reference = adapters.reference_of(policy, "base")
    shaken(weights.values())
    assert not torch.equal(policy.predict(*at), before) and torch.equal(reference.predict(*at), before)
    with adapters.without_adapter(policy):
        assert (picture(policy.pipeline) == with_lora).all()
    policy.predict(*at).square().sum().backward()
    assert {name for name, weight in policy.module.named_parameters() if weight.grad is not None} == set(weights)


def test_plain_diffusers_draws_the_same_from_base_and_adapter(model, own, tmp_path):
    policy = trained(ModelSettings(name=str(model), adapter=str(own), lora=LoraSettings(rank=2)))
    folder = export.export(policy, tmp_path)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == [f"base/{export.WEIGHTS}", export.WEIGHTS]
    assert (plain(model, ("base", folder / "base"), ("aligned", folder)) == picture(policy.pipeline)).all()
    first = [(folder / name).read_bytes() for name in files]
    export.export(policy, tmp_path)
    assert [(folder / name).read_bytes() for name in files] == first


@pytest.mark.slow
def test_a_run_begins_from_a_run_and_that_from_another(model, own, tmp_path):
    source, policies = str(own), []
    for seed, name in enumerate(("first", "second")):
        settings = ModelSettings(name=str(model), adapter=source, lora=LoraSettings(rank=2 + seed))
        policies.append(trained(settings, seed=seed))
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(json.dumps({"model": settings.model_dump()}))
        export.export(policies[-1], tmp_path / name)
        source = str(tmp_path / name)
    assert adapters.base_adapters(policies[1].module) == ["base", "base_2"]
    with adapters.without_adapter(policies[1]):
        assert (picture(policies[1].pipeline) == picture(policies[0].pipeline)).all()
    arm = lookup.load_arm(source)
    assert (picture(arm.pipeline) == picture(policies[1].pipeline)).all()
    with adapters.without_adapter(arm):
        assert (picture(arm.pipeline) == picture(policies[0].pipeline)).all()


def test_all_weights_are_trained_on_top_of_the_lora(model, own, tmp_path):
    policy = lookup.load_policy(ModelSettings(name=str(model), adapter=str(own), lora=None))
    assert abs(picture(policy.pipeline) - plain(model, ("own", own))).max() < 1e-4
    assert not adapters.has_adapter(policy) and not loras.layers(policy.module)
    drawn = picture(policy.pipeline)
    policy.settle([])  # the text encoder, which holds a part of the LoRA, must not be read again from its files
    assert policy.residency.away == {"vae"}
    folder = export.export(policy, tmp_path)
    assert (plain(folder) == drawn).all()
    assert str(model) not in "".join(path.read_text() for path in folder.rglob("*.json"))


@pytest.mark.slow
def test_the_world_is_trained_on_top_of_a_lora(tmp_path):
    base = lookup.load_base("world:shapes").pipeline
    own = make_lora(base, tmp_path / "own", {"unet": ["to_v"]}, seed=3)
    policy = trained(ModelSettings(name="world:shapes", adapter=str(own), device="cpu"))
    folder = export.export(policy, tmp_path)
    world = lookup.world("shapes").weights_dir()
    assert (plain(world, ("base", folder / "base"), ("aligned", folder)) == picture(policy.pipeline)).all()


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ("tests/nowhere", r"there is no such file or folder; mend the path"),
        ("other", r"a run on elsewhere, and model.name is .*sd15: they must agree"),
        ("full", r"is a run without adapter/: set model.name to .*full/model"),
        ("pickled", r"cannot be read as a LoRA of StableDiffusionPipeline"),
        ("foreign", r"holds no layer of StableDiffusionPipeline: is it a LoRA of another model"),
    ],
)
def test_what_cannot_be_the_base_is_refused(model, tmp_path, monkeypatch, adapter, said):
    for name, base in (("other", "elsewhere"), ("full", str(model))):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(json.dumps({"model": {"name": base}}))
    for name in ("pickled", "foreign"):
        (tmp_path / name).mkdir()
    torch.save({"unet.to_q.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "pickled" / "pytorch_lora_weights.bin")
    layer = {f"transformer.to_q.lora_{x}.weight": torch.zeros(2, 2) for x in "AB"}
    loras._write(tmp_path / "foreign" / export.WEIGHTS, layer, "", {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    source = adapter if "/" in adapter else str(tmp_path / adapter)
    with pytest.raises(ValueError, match=said):
        lookup.load_policy(ModelSettings(name=str(model), adapter=source))


@pytest.mark.slow
def test_a_lora_of_the_hub_brings_what_it_was_trained_on_top_of(model, own, tmp_path, monkeypatch):
    settings = ModelSettings(name=str(model), adapter=str(own), lora=LoraSettings(rank=2))
    first = trained(settings)
    folder = export.export(first, tmp_path)
    asked = []

    def snapshot_download(name, allow_patterns, local_files_only):
        assert not local_files_only  # the hub was reached
        asked.append((name, allow_patterns))
        return str(folder if name == "me/mine" else tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr(loras.hub, "reached", lambda *where: True)
    policy = lookup.load_policy(settings.model_copy(update={"adapter": "me/mine"}))
    assert adapters.base_adapters(policy.module) == ["base", "base_2"]
    assert (picture(policy.pipeline) == picture(first.pipeline)).all()
    assert asked == [("me/mine", [export.WEIGHTS, f"*/{export.WEIGHTS}"])]
    assert loras.lineage("other/files") == ["other/files"]  # diffusers finds them


def test_a_lora_that_is_nowhere_is_said_to_be(model):
    with pytest.raises(ValueError, match=r"nobody/nothing: no LoRA here, nor to be had from the hub"):
        lookup.load_policy(ModelSettings(name=str(model), adapter="nobody/nothing"))


# --- two experts ------------------------------------------------------------------------------------------------------


def test_both_experts_of_wan_are_found_again_by_plain_diffusers(tmp_path):
    built = "WanPipeline (two experts)"
    pipeline, call = pipelines.build(built)
    policy = DiffusionPolicy(pipeline, call=call)
    assert list(policy.modules) == ["transformer", "transformer_2"]
    shaken(adapters.add_lora(policy, LoraSettings(rank=2)).values(), scale=0.3)
    folder = export.export(policy, tmp_path)

    def frames(pipeline):
        how = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
        return pipeline("a cat", **how, **call).frames

    drawn = frames(pipeline)
    plain, _ = pipelines.build(built)
    plain.set_progress_bar_config(disable=True)
    base = frames(plain)
    plain.load_lora_weights(folder, adapter_name="aligned", weight_name=export.WEIGHTS)
    half = frames(plain)
    plain.load_lora_weights(folder / "transformer_2", adapter_name="aligned", load_into_transformer_2=True)
    assert (frames(plain) == drawn).all() and not (base == half).all() and not (half == drawn).all()
    ours, _ = pipelines.build(built)
    ours.set_progress_bar_config(disable=True)
    loras.load(ours, loras.lineage(folder))
    assert (frames(ours) == drawn).all()
    loras.fuse(ours)
    assert abs(frames(ours) - drawn).max() < 1e-4 and not loras.layers(ours.transformer_2)
