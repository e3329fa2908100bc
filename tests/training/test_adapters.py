"""What is trained and what it is held to, on a real (tiny) pipeline and on a bare network."""

from __future__ import annotations

import copy
import json
import shutil
import struct

import pytest
import torch
from diffusers import StableDiffusionPipeline

from palate.config import LoraSettings
from palate.models.diffusion import DiffusionPolicy
from palate.training import adapters, census, export
from tests import zoo
from tests.training import tiny


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Loaded from a folder, as users do, so that its configuration knows a path."""
    folder = tmp_path_factory.mktemp("secret") / "base"
    zoo.build("sd15").save_pretrained(folder)
    return StableDiffusionPipeline.from_pretrained(folder)


@pytest.fixture
def policy(pipeline):
    return DiffusionPolicy(copy.deepcopy(pipeline))


def inputs(policy, n=2):
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(n, *policy.latent_shape, generator=generator)
    return x_t, torch.tensor([700, 20])[:n], policy.condition(["a red star", "a blue circle"][:n])


def shaken(parameters, scale=0.1):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return parameters


def test_a_fresh_adapter_changes_nothing_and_trains_only_itself(policy):
    at = inputs(policy)
    before, base = policy.predict(*at), adapters.copy_of(dict(policy.module.named_parameters()))
    weights = adapters.add_lora(policy, LoraSettings(rank=4), seed=3)
    assert torch.equal(policy.predict(*at), before)
    assert set(weights) == {name for name, _ in policy.module.named_parameters() if "lora_" in name}
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert {name.split(".lora_")[0].rsplit(".attn")[-1][2:] for name in weights} == {"to_q", "to_k", "to_v", "to_out.0"}
    policy.predict(*at).sum().backward()
    now = {n.replace(".base_layer", ""): p for n, p in policy.module.named_parameters() if "lora_" not in n}
    assert all(torch.equal(base[name], weight) and weight.grad is None for name, weight in now.items())


def test_the_seed_fixes_the_adapter(pipeline):
    one, same, other = (
        adapters.add_lora(DiffusionPolicy(copy.deepcopy(pipeline)), LoraSettings(rank=4), seed=seed)
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("init", ["pissa", "olora", "loftq", "pissa_niter_4", False])
def test_inits_that_change_the_base_are_refused(init):
    with pytest.raises(adapters.AdapterError, match="changes the base"):
        adapters.add_lora(tiny.TinyPolicy(), LoraSettings(), init=init)


def test_no_target_no_trainable_weight_and_a_second_adapter_are_refused():
    with pytest.raises(adapters.AdapterError, match="no layer of Network is called nowhere"):
        adapters.add_lora(tiny.TinyPolicy(), LoraSettings(targets=["nowhere"]))
    frozen = tiny.TinyPolicy()
    frozen.module.requires_grad_(False)
    with pytest.raises(adapters.AdapterError, match="nothing is trainable"):
        adapters.trainable(frozen)
    with pytest.raises(adapters.AdapterError, match="trained already; load the model anew"):
        adapters.add_lora(tiny.policy_with_adapter(), LoraSettings())


def test_what_is_trained_is_exactly_the_adapter(policy, monkeypatch):
    add = type(policy.module).add_adapter

    def careless(self, *args, **kwargs):
        add(self, *args, **kwargs)
        self.conv_in.requires_grad_(True)
        self.conv_out.requires_grad_(True)

    monkeypatch.setattr(type(policy.module), "add_adapter", careless)
    named = r"not the adapter's: conv_in\.weight, conv_in\.bias, conv_out\.weight \(and 1 more\); freeze them"
    with pytest.raises(adapters.AdapterError, match=named):
        adapters.add_lora(policy, LoraSettings(rank=4))


def test_the_rest_of_the_pipeline_is_not_trained(policy):
    adapters.add_lora(policy, LoraSettings(rank=4))
    adapters.check_trainable(policy)
    next(policy.pipeline.text_encoder.parameters()).requires_grad_(True)
    with pytest.raises(adapters.AdapterError, match=r"trainable and not the adapter's: text_encoder\."):
        adapters.check_trainable(policy)


def test_an_adapter_that_is_half_frozen_is_refused():
    policy = tiny.policy_with_adapter()
    policy.module.to_q.lora_B.requires_grad_(False)
    with pytest.raises(adapters.AdapterError, match=r"the adapter's weights .* frozen: to_q\.lora_B\.default\.weight$"):
        adapters.check_trainable(policy)


def test_full_fine_tuning_trains_exactly_the_denoiser(policy):
    assert set(adapters.train_all(policy)) == {name for name, _ in policy.module.named_parameters()}
    policy.module.conv_in.bias.requires_grad_(False)
    with pytest.raises(adapters.AdapterError, match=r"the denoiser's weights .* frozen: conv_in\.bias$"):
        adapters.check_trainable(policy)
    policy.module.conv_in.bias.requires_grad_(True)
    policy.pipeline.vae.requires_grad_(True)
    with pytest.raises(adapters.AdapterError, match=r"not the denoiser's: vae\..*more"):
        adapters.check_trainable(policy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_full_fine_tuning_of_half_precision_is_refused_with_the_mend(dtype):
    """Made float32, the denoiser would still be given half-precision inputs and fail in its first layer."""
    policy = tiny.TinyPolicy()
    policy.module.to(dtype)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(adapters.AdapterError, match=f"they are {name}: set model.dtype=float32"):
        adapters.train_all(policy)
    assert {weight.dtype for weight in policy.module.parameters()} == {dtype}


def test_a_base_in_half_precision_trains_in_full():
    policy = tiny.TinyPolicy()
    policy.module.to(torch.bfloat16)
    weights = adapters.add_lora(policy, LoraSettings(rank=2))
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    policy.module(torch.randn(3, 8, dtype=torch.bfloat16)).float().sum().backward()
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in weights.values())


# --- references -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grown", [False, True])
def test_the_base_reference_is_the_base_bit_for_bit(policy, grown):
    at = inputs(policy)
    before = policy.predict(*at)
    weights = adapters.add_lora(policy, LoraSettings(rank=4))
    reference = adapters.reference_of(policy, "base")
    if grown:
        shaken(weights)
        assert not torch.equal(policy.predict(*at), before)
    assert torch.equal(reference.predict(*at), before)
    assert set(adapters.trainable(policy)) == set(weights)  # the reference pass leaves what is trained alone


def test_a_reference_pass_leaves_the_policys_gradients_alone(policy):
    weights = shaken(adapters.add_lora(policy, LoraSettings(rank=4)))
    at = inputs(policy)
    policy.predict(*at).square().sum().backward()
    alone = {name: weight.grad.clone() for name, weight in weights.items()}
    for kind in ("base", "start"):
        policy.module.zero_grad()
        out = policy.predict(*at)
        reference = adapters.reference_of(policy, kind)
        shaken({name: torch.nn.Parameter(w) for name, w in (reference.weights or {}).items()})
        assert not reference.predict(*at).requires_grad
        out.square().sum().backward()
        assert all(torch.equal(weight.grad, alone[name]) for name, weight in weights.items())


def test_full_fine_tuning_is_held_to_a_copy_of_the_weights():
    policy = tiny.TinyPolicy()
    x_t, t, cond = torch.randn(2, 1, 2, 2), torch.tensor([5, 900]), policy.condition(["a", "b"])
    before = policy.predict(x_t, t, cond).detach()
    weights = adapters.train_all(policy)
    reference = adapters.reference_of(policy, "base")
    shaken(weights)
    assert torch.equal(reference.predict(x_t, t, cond), before)
    assert not torch.equal(policy.predict(x_t, t, cond), before)


def test_start_is_the_adapter_as_it_came_and_round_is_renewed():
    policy = tiny.policy_with_adapter()
    x_t, t, cond = torch.randn(2, 1, 2, 2), torch.tensor([5, 900]), policy.condition(["a", "b"])
    base = policy.predict(x_t, t, cond).detach()
    weights = shaken(adapters.trainable(policy))
    warm = policy.predict(x_t, t, cond).detach()
    start, rolling = adapters.reference_of(policy, "start"), adapters.reference_of(policy, "round:2")
    assert not torch.equal(warm, base)
    seen = []
    for index in range(4):
        shaken(weights)
        rolling.begin_round(index)
        seen.append(rolling.predict(x_t, t, cond))
    assert torch.equal(start.predict(x_t, t, cond), warm)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3]) and not torch.equal(seen[1], seen[2])
    again = adapters.reference_of(policy, "round:2")
    again.restore(rolling.state())
    assert torch.equal(again.predict(x_t, t, cond), seen[3])
    assert start.state() == {}


@pytest.mark.parametrize("kind", ["none", "sampling"])
def test_no_reference(kind):
    assert adapters.reference_of(tiny.policy_with_adapter(), kind) is None


@pytest.mark.parametrize("kind", ["first", "round:", "round:0", "round:x"])
def test_an_unknown_reference_is_refused(kind):
    with pytest.raises(adapters.AdapterError, match="known: base, start, round"):
        adapters.reference_of(tiny.policy_with_adapter(), kind)


def test_policy_and_reference_differ_under_autocast_too():
    """Autocast's cache would hand one's half-precision weights to the other."""
    from palate.training.optimisation import autocast

    policy = tiny.TinyPolicy()
    x_t, t, cond = torch.randn(2, 1, 2, 2), torch.tensor([5, 900]), policy.condition(["a", "b"])
    weights = adapters.train_all(policy)
    reference = adapters.reference_of(policy, "start")
    with autocast(tiny.settings(mixed_precision="bf16"), torch.device("cpu")):
        before = reference.predict(x_t, t, cond)
        shaken(weights)
        out = policy.predict(x_t, t, cond)
        assert torch.equal(reference.predict(x_t, t, cond), before) and not torch.equal(out, before)
    out.float().sum().backward()
    assert all(weight.grad is not None for weight in weights.values())


# --- two experts ------------------------------------------------------------------------------------------------------


class Experts(tiny.TinyPolicy):
    """Two networks, one for noisy and one for cleaner times."""

    def __init__(self):
        super().__init__("velocity")
        other = tiny.TinyPolicy("velocity", seed=1)
        self.modules = {"noisy": self.module, "clean": other.module}
        self._other = other

    def predict(self, x_t, t, cond, guidance_scale=None):
        early, late = (super().predict(x_t, t, cond, guidance_scale), self._other.predict(x_t, t, cond, guidance_scale))
        return torch.where((t > 0.5).view(-1, 1, 1, 1), early, late)


def both(policy):
    """x_t, t and conditions that call on both experts."""
    return (
        torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0.9, 0.1]),
        policy.condition(["a", "b"]),
    )


def test_both_experts_get_an_adapter_and_a_reference():
    policy = Experts()
    at = both(policy)
    before = policy.predict(*at).detach()
    weights = adapters.add_lora(policy, LoraSettings(rank=2), seed=3)
    assert {name.partition(".")[0] for name in weights} == {"noisy", "clean"}
    assert not torch.equal(weights["noisy.to_q.lora_A.default.weight"], weights["clean.to_q.lora_A.default.weight"])
    assert torch.equal(policy.predict(*at), before)
    base = adapters.reference_of(policy, "base")
    shaken(weights)
    start = adapters.reference_of(policy, "start")
    after = policy.predict(*at)
    assert (after != before).flatten(1).any(1).all()
    assert torch.equal(base.predict(*at), before) and torch.equal(start.predict(*at), after)
    after.square().sum().backward()
    assert all(weight.grad is not None for name, weight in weights.items() if "lora_B" in name)
    ema = adapters.Ema(weights, 0.9)
    shaken(weights)
    with ema.swapped_in():
        assert torch.equal(policy.predict(*at), after)
    with adapters.without_adapter(policy):
        assert torch.equal(policy.predict(*at), before)


def test_the_census_tells_two_experts_apart():
    policy = Experts()
    adapters.add_lora(policy, LoraSettings(rank=2))
    saved = census.take(policy)
    assert saved["count"] == 2 * (3 * (16 + 32) + 40)
    policy.modules = dict(reversed(policy.modules.items()))
    census.check(saved, census.take(policy))
    policy.modules = {"clean": policy.modules["noisy"], "noisy": policy.modules["clean"]}
    with pytest.raises(adapters.AdapterError, match="frozen weights"):
        census.check(saved, census.take(policy))


def test_all_weights_of_both_experts_are_trained():
    policy = Experts()
    weights = adapters.train_all(policy)
    assert len(weights) == 2 * len(list(policy.module.parameters()))
    policy.modules["clean"].to_q.bias.requires_grad_(False)
    with pytest.raises(adapters.AdapterError, match=r"these are frozen: clean\.to_q\.bias$"):
        adapters.check_trainable(policy)


def test_a_run_of_two_experts_is_resumed_and_exported(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    def experts():
        policy = Experts()
        adapters.add_lora(policy, LoraSettings(rank=2))
        return policy

    monkeypatch.setattr(tiny, "policy_with_adapter", experts)
    whole = tiny.offline(tmp_path, max_steps=4)
    whole.run()
    parts = [tmp_path / "adapter" / place / export.WEIGHTS for place in ("", "clean")]
    first, second = map(load_file, parts)
    assert first.keys() == second.keys() and not any("default" in name for name in first)
    assert not any(torch.equal(first[name], second[name]) for name in first)
    before = [path.read_bytes() for path in parts]
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000004")
    again = tiny.offline(tmp_path, max_steps=4)
    again.run()
    assert [path.read_bytes() for path in parts] == before
    assert all(torch.equal(whole.parameters[name], weight) for name, weight in again.parameters.items())


# --- averages and the census ------------------------------------------------------------------------------------------


def test_the_average_warms_up_by_its_updates_and_swaps_in():
    policy = tiny.TinyPolicy()
    weights = adapters.train_all(policy)
    ema = adapters.Ema(weights, 0.5)
    name = next(iter(weights))
    expected = weights[name].detach().clone()
    for decay in (0.1, 2 / 11, 3 / 12):  # (1 + n) / (10 + n)
        shaken(weights)
        ema.update()
        expected = decay * expected + (1 - decay) * weights[name].detach()
        torch.testing.assert_close(ema.weights[name], expected)
    raw = weights[name].detach().clone()
    with ema.swapped_in():
        assert torch.equal(weights[name], ema.weights[name])
    assert torch.equal(weights[name], raw)
    for _ in range(20):
        ema.update()
    other = adapters.Ema(weights, 0.5)
    other.restore(ema.state())
    assert other.updates == 23 and torch.equal(other.weights[name], ema.weights[name])


def test_the_census_sees_what_has_changed():
    policy = tiny.policy_with_adapter()
    saved = census.take(policy)
    assert saved["count"] == sum(p.numel() for p in adapters.trainable(policy).values()) == 3 * (16 + 32) + 40
    shaken(adapters.trainable(policy))
    census.check(saved, census.take(policy))  # training is no change
    wider = tiny.TinyPolicy()
    adapters.add_lora(wider, LoraSettings(rank=3))
    with pytest.raises(adapters.AdapterError, match=r"was \[2, 8\], is \[3, 8\]"):
        census.check(saved, census.take(wider))
    fewer = tiny.TinyPolicy()
    adapters.add_lora(fewer, LoraSettings(rank=2, targets=["to_q"]))
    with pytest.raises(adapters.AdapterError, match=r"to_k.* is no longer trained.*more"):
        census.check(saved, census.take(fewer))
    with torch.no_grad():
        policy.module.to_q.base_layer.weight[0, 0] += 1e-6
    with pytest.raises(adapters.AdapterError, match="frozen weights"):
        census.check(saved, census.take(policy))


# --- export -----------------------------------------------------------------------------------------------------------


def picture(pipeline):
    generator = torch.Generator().manual_seed(0)
    return pipeline("a red star", num_inference_steps=2, generator=generator, output_type="np").images


def test_plain_diffusers_loads_the_adapter(policy, pipeline, tmp_path):
    shaken(adapters.add_lora(policy, LoraSettings(rank=4, alpha=2.0)))
    trained = picture(policy.pipeline)
    folder = export.export(policy, tmp_path)
    first = (folder / export.WEIGHTS).read_bytes()
    plain = copy.deepcopy(pipeline)
    plain.set_progress_bar_config(disable=True)
    base = picture(plain)
    plain.load_lora_weights(folder)
    assert (picture(plain) == trained).all() and not (base == trained).all()
    header = json.loads(first[8 : 8 + struct.unpack("<Q", first[:8])[0]])
    assert "secret" not in json.dumps(header) and "name_or_path" not in json.dumps(header)
    export.export(policy, tmp_path)
    assert (folder / export.WEIGHTS).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_bare_network_loads_the_adapter(tmp_path):
    from safetensors.torch import load_file

    policy = tiny.policy_with_adapter()
    folder = export.export(policy, tmp_path)
    weights = load_file(folder / export.WEIGHTS)
    assert sorted(weights) == sorted(name.replace(".default", "") for name in adapters.trainable(policy))


def test_full_fine_tuning_exports_a_pipeline(policy, tmp_path):
    shaken(adapters.train_all(policy), 0.01)
    folder = export.export(policy, tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    assert (picture(loaded) == picture(policy.pipeline)).all()
    assert not any("secret" in path.read_text() for path in folder.rglob("*.json"))


def test_recomputed_activations_give_the_same_gradients(policy):
    weights = shaken(adapters.add_lora(policy, LoraSettings(rank=4)))
    at = inputs(policy)
    policy.predict(*at).square().sum().backward()
    kept = {name: weight.grad.clone() for name, weight in weights.items()}
    policy.module.zero_grad()
    adapters.recompute_activations(policy.module)
    reference = adapters.reference_of(policy, "base")
    out = policy.predict(*at)
    reference.predict(*at)
    out.square().sum().backward()
    for name, weight in weights.items():
        torch.testing.assert_close(weight.grad, kept[name], rtol=1e-5, atol=1e-7)
    assert not policy.module.training


def test_dropout_is_off_before_activations_are_recomputed():
    network = tiny.Network()
    network.gradient_checkpointing_enable = lambda: None  # as transformers' models have it
    adapters.recompute_activations(network)
    assert network.training and network.dropout.p == 0
    with pytest.raises(adapters.AdapterError, match="cannot recompute"):
        adapters.recompute_activations(tiny.Network())
