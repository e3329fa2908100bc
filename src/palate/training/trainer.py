"""The one training loop, blind to what is learned and how: it adds up losses, divides once, steps, and survives.

    result = Trainer(policy, algorithm, config, source, settings, folder, reference=reference).run()

A step: the source gives micro-batches; each loss is a sum with a weight; gradients, losses and weights are added over
micro-batches and processes, divided once, clipped, and given to AdamW. So 8 x 1 = 1 x 8, whatever the algorithm's
normalisation. Running it again on the same folder continues; on the CPU to the same bits.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palate import durable
from palate.config import TrainingSettings, difference
from palate.models.contracts import Draw, LossOutput, State, select
from palate.remote import RemoteError
from palate.training import adapters, census, checkpoint, hooks, optimisation, randoms
from palate.training.export import export
from palate.training.held_out import HeldOut, due, judgement
from palate.training.logs import Logs, Progress
from palate.training.outcome import Result as Result
from palate.training.outcome import TrainingError as TrainingError
from palate.training.processes import Processes, join
from palate.training.signals import EXIT_INTERRUPTED, StopRequest, listening
from palate.training.sources import Feed, Micro, Source
from palate.training.totals import Totals, finite, means

Evaluate = Callable[[int], Mapping[str, float]]
BAD_STEPS = 5  # steps in a row without a finite gradient before a run gives up


class Trainer:
    """One run in one folder. `step`, `state`, `ema` and `parameters` are for looking at."""

    def __init__(
        self,
        policy: Any,
        algorithm: Any,
        config: Any,
        source: Source,
        settings: TrainingSettings,
        folder: str | Path,
        *,
        reference: adapters.Reference | None = None,
        state: State | None = None,
        evaluate: Evaluate | None = None,
        starts_at_reference: bool = True,
        resume: str | Path | None = None,
        processes: Processes | None = None,
        tensorboard: bool = True,
        progress: bool = True,
        locked: bool = False,
    ) -> None:
        """algorithm: a module (or object) with NEEDS, init and step. evaluate(step): named numbers, and whatever it
        draws. starts_at_reference: False for a warm start, whose first loss is not known. resume: a checkpoint to
        continue from, instead of the newest. locked: whoever calls holds the folder's lock already.
        """
        self.policy, self.reference, self.source, self.settings = policy, reference, source, settings
        self._algorithm, self._config, self._evaluate = algorithm, config, evaluate
        self.folder, self._resume = Path(folder), Path(resume) if resume else None
        self._tensorboard, self._progress, self._locked = tensorboard, progress, locked
        self.device = next(iter(adapters.weights_of(policy).values())).device
        self.processes = processes or join(self.device)
        if settings.gradient_checkpointing:
            for module in adapters.modules_of(policy).values():
                adapters.recompute_activations(module)
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.state = state or algorithm.init(policy, config)
        self.parameters = adapters.trainable(policy)
        for name, module in self.state.modules.items():
            self.parameters |= {f"state.{name}.{n}": p for n, p in module.named_parameters() if p.requires_grad}
        self._optimiser = optimisation.optimiser_of(self.parameters, settings)
        self._scale = optimisation.LossScale(settings)
        self.ema = adapters.Ema(self.parameters, settings.ema_decay) if settings.ema_decay else None
        self._start_loss = hooks.start_loss(algorithm, config) if starts_at_reference else None
        self.step, self._updates, self._bad_in_a_row = 0, 0, 0
        self._held_out = HeldOut(settings.early_stopping, judged=getattr(evaluate, "keeps_best", False))
        self._warnings: list[str] = []
        self._reason, self._saved_at = "", -1
        self._last: dict[str, float] = {}
        self._owed: dict[str, float] | None = {}  # of the step just taken, while it is not yet evaluated and logged

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Trains to the end, from the newest checkpoint if there is one, and exports the result.

        Raises SystemExit(75), after saving, if a signal asked to stop, and RemoteError, after saving, if a service that
        judges fails; TrainingError, StorageError, CheckpointError, AdapterError with one line each.
        """
        with contextlib.ExitStack() as stack:
            if self.processes.first and not self._locked:
                stack.enter_context(durable.locked(self.folder))
            stop = stack.enter_context(listening())
            self._begin()
            stack.callback(self._progress_bar.close)
            if self._logs:
                stack.callback(self._logs.close)
            try:
                if self._owed is not None:
                    self._settle(time.perf_counter())
                while not self._reason:
                    self._advance(stop)
            except RemoteError:
                self.save()
                self._progress_bar.say(f"stopped after step {self.step}, all is saved; the same command continues")
                raise
            self.save()
            return self._finish()

    def _advance(self, stop: StopRequest) -> None:
        """One optimiser step and what is due after it."""
        began = time.perf_counter()
        feed = self.source.next(self.state) if self.step < self.settings.max_steps else None
        if feed is None:
            self._reason = "max_steps" if self.step >= self.settings.max_steps else "source exhausted"
            return
        self._owed, asked = self._optimise(feed, stop)
        self.step += 1
        self._settle(began, asked)

    def _settle(self, began: float, asked: bool = False) -> None:
        """Evaluates the step just taken, if that is due, logs it, and saves, if that is due or a stop was asked for."""
        assert self._owed is not None
        if not (asked and due(self.step, self.settings)):  # a stop does not wait for one: the next start owes it
            self._record(self._owed | self._evaluation(), time.perf_counter() - began)
            self._owed = None
        if self._bad_in_a_row >= BAD_STEPS:
            self.save()
            raise TrainingError(
                f"{BAD_STEPS} steps in a row had no finite gradient, up to step {self.step}; the run is saved. "
                "Lower training.learning_rate, or train in float32 (training.mixed_precision: no), or look at the data"
            )
        if asked or (self.step > 0 and self.step % self.settings.checkpoint_every == 0):
            self.save()
        if asked and not self._reason:
            self._progress_bar.say(f"stopped after step {self.step}, all is saved; the same command continues")
            raise SystemExit(EXIT_INTERRUPTED)

    def _optimise(self, feed: Feed, stop: StopRequest) -> tuple[dict[str, float], bool]:
        """Gradients of all rows, divided once by their weight, clipped and applied. Returns whether to stop, too."""
        totals = self._backward(feed.micros())
        gradients = optimisation.fill_missing(self.parameters)
        if self._scale.value == 1 and not finite(gradients, totals.loss_sum):
            self._optimiser.zero_grad()
            totals = self._backward_by_row(feed)
            gradients = optimisation.fill_missing(self.parameters)
        totals.numbers[3] = float(stop.asked)
        self.processes.add_up([*gradients, totals.numbers])
        loss_sum, weight, left_out, asked = totals.numbers.tolist()
        metrics = means(self.processes.sums(totals.sums()) | feed.metrics)
        metrics |= {"rows/not_finite": left_out} if left_out else {}
        if weight > 0:
            self._check_start(loss_sum / weight)
            metrics |= {"loss": loss_sum / weight, **self._apply(gradients, weight)}
            hooks.observe(self._algorithm, metrics, self.state, self._config)
        self._optimiser.zero_grad()
        bad = weight <= 0 < left_out or "step/skipped" in metrics
        self._bad_in_a_row = self._bad_in_a_row + 1 if bad else 0
        return metrics, asked > 0

    def _apply(self, gradients: list[Tensor], weight: float) -> dict[str, float]:
        """The optimiser's step on gradients summed over rows of a total weight; left out if they are not finite."""
        torch._foreach_div_(gradients, weight * self._scale.value)
        norm = torch.nn.utils.get_total_norm(gradients)
        size = float(norm)
        if not math.isfinite(size):
            explained = self._scale.update(False)
            return {"step/rescaled": 1.0} if explained else {"step/skipped": 1.0}
        if self.settings.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.settings.max_grad_norm, norm)
        rate = optimisation.learning_rate(self.settings, self.step + 1)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()
        self._scale.update(True)
        self._updates += 1
        if self.ema:
            self.ema.update()
        return {"grad_norm": size, "learning_rate": rate}

    def _losses(self, batch: Any, draw: Draw | None) -> LossOutput:
        with optimisation.autocast(self.settings, self.device):
            out: LossOutput = self._algorithm.step(self.policy, self.reference, batch, draw, self.state, self._config)
        return out

    def _backward(self, micros: Iterator[Micro]) -> Totals:
        totals = Totals.zeros(self.device)
        for batch, draw in micros:
            out = self._losses(batch, draw)
            (out.loss_sum * self._scale.value).backward()
            totals.add(out)
        return totals

    def _backward_by_row(self, feed: Feed) -> Totals:
        """As `_backward` without the rows whose loss or gradient is not finite; they are counted."""
        totals = Totals.zeros(self.device)
        weights = list(self.parameters.values())
        for out in self._losses_by_row(feed):
            gradients = torch.autograd.grad(out.loss_sum, weights, allow_unused=True)
            if not finite([g for g in gradients if g is not None], out.loss_sum):
                totals.numbers[2] += 1
                continue
            totals.add(out)
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    weight.grad = gradient if weight.grad is None else weight.grad + gradient
        return totals

    def _losses_by_row(self, feed: Feed) -> Iterator[LossOutput]:
        for batch, draw in feed.micros():
            for row in torch.arange(len(batch), device=self.device).split(1):
                one = Draw(draw.t[row], draw.noise[row], draw.drop[row]) if draw is not None else None
                yield self._losses(select(batch, row), one)  # type: ignore[type-var]

    def _check_start(self, loss: float) -> None:
        """While the policy is its reference the loss is known; if it is off, nothing that follows means anything."""
        if self._start_loss is None or self._updates > 0:
            return
        exact = self.settings.mixed_precision == "no" and all(
            weight.dtype == torch.float32 for weight in adapters.weights_of(self.policy).values()
        )
        if abs(loss - self._start_loss) > (1e-6 if exact else 2e-3) * abs(self._start_loss):
            raise TrainingError(
                f"the first loss is {loss:.7f} and should be {self._start_loss:.7f} while the policy is its reference: "
                "their passes differ (precision, dropout, guidance or conditioning). For a warm start say so"
            )

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def _evaluation(self) -> dict[str, float]:
        """Held-out loss and the caller's evaluation, of the averaged weights if there are any, when they are due."""
        if not due(step := self.step, self.settings):
            return {}
        with torch.no_grad(), self.ema.swapped_in() if self.ema else contextlib.nullcontext():
            metrics = self._validate()
            with self.processes.together():
                if self._evaluate and self.processes.first:
                    metrics |= self._evaluate(step)
        weights = self.ema.weights if self.ema else self.parameters
        loss, alarm = judgement(metrics, self.processes, judged=self._held_out.judged)
        if self._held_out.see(step, loss, weights) or alarm:
            self._reason = "guard" if alarm else "early stopping"
        return metrics

    def _validate(self) -> dict[str, float]:
        """The held-out losses; rows whose loss is not finite are left out and counted."""
        feed = self.source.validation()
        if feed is None:
            return {}
        totals = Totals.of((self._losses(*micro) for micro in feed.micros()), self.device)
        if totals.left_out:
            totals = Totals.of(self._losses_by_row(feed), self.device)
        self.processes.add_up([totals.numbers])
        loss_sum, weight, left_out, _ = totals.numbers.tolist()
        sums = self.processes.sums(totals.sums()) | {"loss": (loss_sum, weight)}
        return means(sums | ({"rows/not_finite": (left_out, 1.0)} if left_out else {}), "validation/")

    def _record(self, metrics: dict[str, float], seconds: float) -> None:
        if self.step > 0 or metrics:
            self._last = metrics
            if self._logs:
                self._logs.write(self.step, metrics, seconds)
            self._progress_bar.update(self.step, metrics)

    # --- beginning, saving, ending ------------------------------------------------------------------------------------

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _begin(self) -> None:
        """Restores the newest checkpoint, or the one asked for, and opens the logs where it left them."""
        self._census = census.take(self.policy)
        adapters.check_trainable(self.policy)
        self._warnings = self._look_at_source()
        self._logs: Logs | None = None
        notes = [f"warning: {warning}" for warning in self._warnings]
        offset, found = 0, None
        if self.processes.first:
            durable.sweep(self.folder)
            durable.sweep(self._checkpoints)
            found = self._resume or checkpoint.newest(self._checkpoints, notes.append)
        path = self.processes.tell(str(found) if found else None)
        if path:
            offset = self._restore(checkpoint.load(Path(path)))
            notes.append(f"continuing after step {self.step}")
        else:
            randoms.seed(self.settings.seed)
            with optimisation.autocast(self.settings, self.device):
                hooks.measure(self._algorithm, self.policy, self.reference, self.source, self.state, self._config)
        first = self.processes.first
        self._progress_bar = Progress(self.settings.max_steps, self.step, shown=self._progress and first)
        self.source.note = self._progress_bar.note
        for note in notes:
            self._progress_bar.say(note)
        if first:
            checkpoint.set_aside(self._checkpoints, after=self.step if path else -1)
            checkpoint.retain(self._checkpoints, self.settings.keep_checkpoints)
            copies = 3 + bool(self.ema) + self._held_out.keeps
            once = copies * sum(parameter.nbytes for parameter in self.parameters.values())
            durable.require_space(self.folder, 2 * once)
            self._logs = Logs(self.folder, step=self.step, offset=offset, tensorboard=self._tensorboard)

    def _look_at_source(self) -> list[str]:
        """Refuses rows of which none teaches anything; warns of held-out ones if they are to judge."""
        lacking = getattr(self._algorithm, "lacking", None)
        warnings = self.source.check(lambda batch: lacking(batch, self._config) if lacking else "")
        return warnings if self.settings.evaluate_every else []

    def save(self) -> None:
        """Writes a checkpoint of everything, unless this step has one already."""
        if self._saved_at == self.step or not self.processes.first:
            return
        assert self._logs is not None
        parts = {
            "weights": dict(self.parameters),
            "optimiser": optimisation.optimiser_state(self._optimiser, self.parameters),
            "ema": self.ema.state() if self.ema else None,
            "held_out": self._held_out.state(),
            "algorithm": {
                "tensors": self.state.tensors,
                "values": self.state.values,
                "modules": {name: dict(module.state_dict()) for name, module in self.state.modules.items()},
            },
            "reference": self.reference.state() if self.reference else None,
            "source": self.source.state(),
            "random": randoms.state(),
            "trainer": {
                "settings": self.settings.model_dump(mode="json"),
                "census": self._census,
                "metrics_offset": self._logs.sync(),
                "updates": self._updates,
                "bad_in_a_row": self._bad_in_a_row,
                "reason": self._reason,
                "scale": self._scale.state(),
                "last": self._last,
                "owed": self._owed,
            },
        }
        checkpoint.save(self._checkpoints, self.step, parts, keep=self.settings.keep_checkpoints)
        self._saved_at = self.step

    def _restore(self, saved: checkpoint.Checkpoint) -> int:
        """Puts everything back. Returns how much of the metrics is of this course of training."""
        parts, own = saved.parts, saved.parts["trainer"]
        changes = difference(TrainingSettings.model_validate(own["settings"]), self.settings)
        if changes:
            raise TrainingError(f"{self.folder} was begun with other settings: {'; '.join(changes)}")
        census.check(own["census"], self._census)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(parts["weights"][name])
            optimisation.restore_optimiser(self._optimiser, self.parameters, parts["optimiser"])
            if self.ema:
                self.ema.restore(parts["ema"])
        kept = parts["algorithm"]
        self.state.tensors = {name: tensor.to(self.device) for name, tensor in kept["tensors"].items()}
        self.state.values = kept["values"]
        for name, module in self.state.modules.items():
            module.load_state_dict(kept["modules"][name])
        if self.reference:
            self.reference.restore(parts["reference"])
        self.source.restore(parts["source"])
        randoms.restore(parts["random"])
        self._scale.restore(own["scale"])
        self._held_out.restore(parts["held_out"])
        self._updates, self._bad_in_a_row = own["updates"], own["bad_in_a_row"]
        self._reason, self._last, self._owed = own["reason"], own["last"], own.get("owed")
        self.step, self._saved_at = saved.step, saved.step if self._owed is None else -1
        return int(own["metrics_offset"])

    def _finish(self) -> Result:
        """Puts the weights to be exported into the model: the best judged, else the average, else the last."""
        kind, step, weights = "last", self.step, None
        if (best := self._held_out.best) is not None:
            kind, step, weights = "best", best["step"], best["weights"]
        elif self.ema is not None:
            kind, weights = "ema", self.ema.weights
        if weights is not None:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(weights[name])
        out = export(self.policy, self.folder) if self.processes.first else self.folder
        for warning in (verdict := self._held_out.warnings()):
            self._progress_bar.say(f"warning: {warning}")
        loss = best["loss"] if best else None
        return Result(self.step, self._reason, kind, step, out, self._last, (*self._warnings, *verdict), loss)
