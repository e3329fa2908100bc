"""What is trained, and what it is held to: LoRA or all weights, references, moving averages, the census.

There is one copy of the model's weights under LoRA. A reference is the policy seen with other values in its trainable
weights: the adapter switched off, or a stored snapshot put in their place for the length of a pass.

A policy trains one module or several (`policy.modules`, the experts of a mixture over time): each of them gets an
adapter, and where there are several, the names of weights begin with the module's. LoRAs that were loaded with the
model are part of the base: frozen and switched on, for the policy as for its reference.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from palate.config import LoraSettings

Parameters = dict[str, nn.Parameter]
Tensors = dict[str, Tensor]

ADAPTER = "default"  # the name that diffusers' own export looks for
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_KEEPS_BASE = (True, "gaussian")  # adapter inits under which the adapted model starts as the base, weights untouched


class AdapterError(ValueError):
    """Nothing sensible can be trained; the message says why and what to do."""


# --- what is trained --------------------------------------------------------------------------------------------------


def modules_of(policy: Any) -> dict[str, nn.Module]:
    """What a policy trains, by the pipeline's names for it; one module without a name has the name ``."""
    return dict(getattr(policy, "modules", None) or {"": policy.module})


def weights_of(policy: Any) -> Parameters:
    """All weights of all modules; where there are several, a name begins with its module's."""
    modules = modules_of(policy)
    if len(modules) == 1:
        return dict(next(iter(modules.values())).named_parameters())
    return {f"{part}.{name}": weight for part, module in modules.items() for name, weight in module.named_parameters()}


def add_lora(policy: Any, settings: LoraSettings, *, seed: int = 0, init: bool | str = True) -> Parameters:
    """Freezes the policy's modules, adds a LoRA adapter to each in place and returns the adapters' weights, in float32.

    Raises AdapterError if no layer matches, if there is such an adapter already, or for an init that changes the base.
    """
    import peft

    if init not in _KEEPS_BASE:
        raise AdapterError(
            f"adapter init {init!r} changes the base weights, so that the base could no longer serve as a reference; "
            "use the default or 'gaussian'"
        )
    if has_adapter(policy):
        raise AdapterError("the model has the adapter that is to be trained already; load the model anew")
    targets = list(settings.targets or ATTENTION)
    modules = modules_of(policy).values()
    for module in modules:
        if not any(_ends_with(name, targets) for name, _ in module.named_modules()):
            kind = type(module).__name__
            raise AdapterError(f"no layer of {kind} is called {', '.join(targets)}: set model.lora.targets")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in modules:
            config = peft.LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,
                target_modules=targets,
                init_lora_weights=init,
                lora_dropout=0.0,
            )
            _add(module, config)
    check_trainable(policy)
    return _float32(policy)


def _add(module: nn.Module, config: Any) -> None:
    """Adds the adapter to a frozen module; adapters it came with stay switched on beside it, before it in order."""
    import peft

    base = base_adapters(module)
    module.requires_grad_(False)
    with several_adapters():
        if isinstance(getattr(module, "add_adapter", None), Callable):  # type: ignore[arg-type]
            module.add_adapter(config, adapter_name=ADAPTER)  # type: ignore[operator]
        else:
            peft.inject_adapter_in_model(config, module, ADAPTER)
    if base:
        for layer in _layers(module):
            layer.set_adapter([*base, ADAPTER], inference_mode=True)
        own = _adapter_names(module)
        for name, weight in module.named_parameters():
            weight.requires_grad_(name in own)


def train_all(policy: Any) -> Parameters:
    """Makes every weight of the policy's modules trainable and returns them.

    Raises AdapterError if they are not float32: updates would be lost in rounding, and made float32 here the weights
    would no longer fit what the rest of the pipeline gives them.
    """
    narrow = {str(weight.dtype).removeprefix("torch.") for weight in weights_of(policy).values()} - {"float32"}
    if narrow:
        raise AdapterError(
            f"all weights are to be trained, and they are {', '.join(sorted(narrow))}: set model.dtype=float32, with "
            "training.mixed_precision=bf16 for passes in half precision, or train an adapter (model.lora)"
        )
    for module in modules_of(policy).values():
        module.requires_grad_(True).eval()
    check_trainable(policy)
    return trainable(policy)


def trainable(policy: Any) -> Parameters:
    """The weights that training will change, by name. Raises AdapterError if there are none."""
    found = {name: parameter for name, parameter in weights_of(policy).items() if parameter.requires_grad}
    if not found:
        raise AdapterError("nothing is trainable: add an adapter (model.lora) or train all weights (model.lora: null)")
    return found


def check_trainable(policy: Any) -> None:
    """Raises AdapterError, naming some, unless exactly the adapter is trainable, or, without one, the denoiser."""
    own = weights_of(policy)
    wanted = _trained_names(policy) or set(own)
    whose = "the adapter's" if has_adapter(policy) else "the denoiser's"
    strays = [name for name, weight in own.items() if weight.requires_grad and name not in wanted]
    frozen = [name for name, weight in own.items() if not weight.requires_grad and name in wanted]
    known = {id(weight) for weight in own.values()}
    for part, component in getattr(getattr(policy, "pipeline", None), "components", {}).items():
        if isinstance(component, nn.Module):
            rest = [(name, weight) for name, weight in component.named_parameters() if id(weight) not in known]
            strays += [f"{part}.{name}" for name, weight in rest if weight.requires_grad]
    if strays:
        raise AdapterError(f"trainable and not {whose}: {some(strays)}; freeze them with requires_grad_(False)")
    if frozen:
        raise AdapterError(f"{whose} weights are to be trained, and these are frozen: {some(frozen)}")


def has_adapter(policy: Any) -> bool:
    """Whether what is trained is an adapter beside frozen weights."""
    return bool(_trained_names(policy))


def base_adapters(module: nn.Module) -> list[str]:
    """The adapters that a module came with, in the order in which they add to its layers."""
    names = dict.fromkeys(name for layer in _layers(module) for name in layer.active_adapters)
    return [name for name in names if name != ADAPTER]


def recompute_activations(module: nn.Module) -> None:
    """Gradient checkpointing: activations are computed again in the backward pass instead of being kept.

    Dropout is set to 0 first, because some libraries recompute only in train() mode; nothing else may be random.
    """
    for layer in module.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = 0.0
    for method in ("enable_gradient_checkpointing", "gradient_checkpointing_enable"):
        if callable(getattr(module, method, None)):
            getattr(module, method)()
            if method == "gradient_checkpointing_enable":  # transformers recomputes in train() only
                module.train()
            return
    kind = type(module).__name__
    raise AdapterError(f"{kind} cannot recompute activations: set training.gradient_checkpointing=false")


@contextlib.contextmanager
def several_adapters() -> Iterator[None]:
    """Without peft's warning that a model has more than one adapter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        yield


def _float32(policy: Any) -> Parameters:
    for parameter in trainable(policy).values():
        parameter.data = parameter.data.float()
    for module in modules_of(policy).values():
        module.eval()
    return trainable(policy)


def _trained_names(policy: Any) -> set[str]:
    """As in `weights_of`, of the weights that the trained adapter brought; empty without one."""
    modules = modules_of(policy)
    return {
        name if len(modules) == 1 else f"{part}.{name}"
        for part, module in modules.items()
        for name in _adapter_names(module)
    }


def _adapter_names(module: nn.Module) -> set[str]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)}
    kinds = [f"{name}.{kind}.{ADAPTER}" for name, layer in layers.items() for kind in layer.adapter_layer_names]
    starts = (*(f"{kind}." for kind in kinds), *kinds)
    return {name for name, _ in module.named_parameters() if name.startswith(starts)} if kinds else set()


def some(names: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    return ", ".join(names[:3]) + (f" (and {len(names) - 3} more)" if len(names) > 3 else "")


def _ends_with(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _layers(module: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


def _all_layers(policy: Any) -> list[Any]:
    return [layer for module in modules_of(policy).values() for layer in _layers(module)]


# --- the same model with other weights --------------------------------------------------------------------------------


@contextlib.contextmanager
def swapped(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the block the parameters hold `tensors`. Nothing is copied, and graphs made outside stay valid."""
    held = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = tensors[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = held[name]


@contextlib.contextmanager
def adapter_off(layers: Sequence[Any]) -> Iterator[None]:
    """Within the block the adapted layers compute exactly what they did before the trained adapter was added."""
    held = [layer._active_adapter for layer in layers]
    try:
        for layer in layers:  # not by set_adapter(), which would also switch requires_grad off and on
            layer._active_adapter = [name for name in layer.active_adapters if name != ADAPTER]
        yield
    finally:
        for layer, active in zip(layers, held, strict=True):
            layer._active_adapter = active


def without_adapter(policy: Any) -> AbstractContextManager[None]:
    """Within the block the policy is the model as it was before the trained adapter was added."""
    return adapter_off(_all_layers(policy))


def copy_of(parameters: Mapping[str, nn.Parameter]) -> Tensors:
    """Detached copies of the weights."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


class Reference:
    """What the policy is held to: its own network, without gradients, with other weights."""

    def __init__(self, policy: Any, weights: Tensors | None = None, every: int | None = None) -> None:
        """weights: put in the place of the policy's; None switches the adapter off. every: rounds until renewal."""
        self._policy, self._every, self.weights = policy, every, weights
        self._parameters, self._layers = trainable(policy), _all_layers(policy)

    @property
    def path(self) -> Any:
        return self._policy.path

    @property
    def module(self) -> nn.Module:
        return next(iter(modules_of(self._policy).values()))

    def _seen(self) -> AbstractContextManager[None]:
        if self.weights is None:
            return adapter_off(self._layers)
        return swapped(self._parameters, self.weights)

    @torch.no_grad()
    def predict(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the policy's."""
        with self._seen():
            return self._policy.predict(*args, **kwargs)

    @torch.no_grad()
    def logits(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the policy's."""
        with self._seen():
            return self._policy.logits(*args, **kwargs)

    def begin_round(self, index: int) -> None:
        """Takes the policy's present weights where the kind is `round:<n>` and n divides the round's index."""
        if self._every and index % self._every == 0:
            self.weights = copy_of(self._parameters)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold: the weights only if they cannot be had from the start of the run."""
        return {"weights": self.weights} if self._every else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state:
            saved: Tensors = state["weights"]
            self.weights = {name: torch.empty_like(p).copy_(saved[name]) for name, p in self._parameters.items()}


def reference_of(policy: Any, kind: str) -> Reference | None:
    """The reference called `base`, `start` or `round:<n>`; None for `none` and for `sampling` (stored log-densities).

    base: the model before training; start: the weights as they are now (an adapter trained earlier included);
    round:<n>: renewed from the policy every n rounds. Without an adapter `base` is a copy of the weights, kept beside.
    """
    if kind in ("none", "sampling"):
        return None
    name, _, number = kind.partition(":")
    if kind == "base" and has_adapter(policy):
        return Reference(policy)
    if kind in ("base", "start"):
        return Reference(policy, copy_of(trainable(policy)))
    if name == "round" and number.isdecimal() and int(number) > 0:
        return Reference(policy, copy_of(trainable(policy)), every=int(number))
    raise AdapterError(f"unknown reference {kind!r}; known: base, start, round:<n>, sampling, none")


class Ema:
    """An exponential moving average of weights; its decay warms up as (1 + n) / (10 + n) with n updates so far."""

    def __init__(self, parameters: Parameters, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights, self._parameters = copy_of(parameters), parameters

    @torch.no_grad()
    def update(self) -> None:
        """One step towards the present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.weights.values()), list(self._parameters.values()), 1 - decay)
        self.updates += 1

    def swapped_in(self) -> AbstractContextManager[None]:
        """Within the block the model holds the average."""
        return swapped(self._parameters, self.weights)

    def state(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": self.weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.updates = state["updates"]
        for name, weight in self.weights.items():
            weight.copy_(state["weights"][name])
