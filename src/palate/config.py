"""The recipe of a run: what its sections hold, with the field's names and units.

    recipe = load("recipes/shapes_diffusion_dpo.yaml", ["training.learning_rate=1e-4"], Recipe)
    options = section(recipe.algorithm.options, diffusion_dpo.Config, "algorithm")
    dump(recipe, run_folder / "config.yaml")

How files are read, checked and compared is `palate.strict`, whose names are offered here too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from palate.strict import ConfigError, Strict, difference, dump, load, section, to_yaml

__all__ = [
    "AlgorithmSettings",
    "CardSettings",
    "ConfigError",
    "DataSettings",
    "EvaluationSettings",
    "LoraSettings",
    "ModelSettings",
    "Recipe",
    "RolloutSettings",
    "RoundsRecipe",
    "RoundsSettings",
    "Strict",
    "TrainingSettings",
    "difference",
    "dump",
    "load",
    "section",
    "to_yaml",
]


def _yaml_no(value: Any) -> Any:
    """YAML 1.1 reads a bare `no` as false; here it is the word."""
    return "no" if value is False else value


Scorers = dict[str, float]
Prompts = str | list[str]


class LoraSettings(Strict):
    """Low-rank adapters: what is trained instead of the whole model."""

    rank: int = Field(16, ge=1, description="Rank of the update of each adapted matrix.")
    alpha: float = Field(16.0, gt=0, description="The update is scaled by alpha / rank.")
    targets: list[str] | None = Field(None, description="Names of adapted layers; null for the attention projections.")


class ModelSettings(Strict):
    """Which model is tuned, and which part of it."""

    name: str = Field(min_length=1, description="A hub id, a local folder, or `world:shapes`.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Type of the frozen weights.")
    device: str = Field("auto", min_length=1, description="`auto`, `cpu`, `cuda`, `cuda:1`, `mps`.")
    call: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="Arguments of every call of the pipeline: `height`, `width`, `num_frames`."
    )
    adapter: str | None = Field(
        None, min_length=1, description="A LoRA of your own, part of the base: hub id, file, folder, or a run's folder."
    )
    lora: LoraSettings | None = Field(default_factory=LoraSettings, description="Null trains all of the denoiser.")
    check_kind: bool = Field(
        True, description="Refuse a stated kind of prediction that pictures plainly contradict; a world's is known."
    )


class AlgorithmSettings(Strict):
    """The name of a file in `palate.algorithms`, or a dotted path; all other keys are that algorithm's own."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1, description="File name in `palate.algorithms`, or a dotted path.")

    @property
    def options(self) -> dict[str, Any]:
        """What is to be checked against the algorithm's own Config."""
        return dict(self.model_extra or {})


class DataSettings(Strict):
    """Preference data for offline training, and the cache of what the model makes of it."""

    path: str = Field(min_length=1, description="A folder or file of preference data, or a hub id.")
    format: str | None = Field(None, description="Name of a format in `palate.datasets`; null to find out.")
    split: str | None = Field(None, description="Which split, where there are several; null for `train`.")
    dimension: str = Field("overall", min_length=1, description="Which of several judgements of a pair is learnt.")
    relabel: Scorers | None = Field(
        None, min_length=1, description="Judge all anew by the sum of these scorers, by name and weight (AI feedback)."
    )
    relabel_temperature: float | None = Field(
        None, gt=0, description="Of soft labels, in units of that sum; null prefers the greater outright."
    )
    held_out: float = Field(0.05, ge=0, lt=1, description="Share of the prompts kept aside for validation.")
    max_bad_fraction: float = Field(0.01, ge=0, le=1, description="Share of unreadable rows beyond which to stop.")
    buckets: Literal["auto"] | list[Annotated[list[int], Field(min_length=2, max_length=2)]] | None = Field(
        None,
        description="Sizes [height, width] that pictures are brought to, by their aspect ratio; `auto` for many of the "
        "area that the model draws; null for the one size that it draws.",
    )
    reference_draws: int = Field(
        0, ge=0, description="Draws a row has, at which the reference is asked once, before training; 0 asks it live."
    )
    cache: str | None = Field(None, description="Folder of latents and prompt embeddings; null for the user's own.")
    cache_gb: float = Field(100.0, gt=0, description="GiB beyond which what was not used the longest is evicted.")


class RolloutSettings(Strict):
    """How an online run samples and scores its own candidates."""

    prompts: Prompts = Field(description="A text file of prompts, one a line, or a list of them.")
    scorers: Scorers = Field(min_length=1, description="What is rewarded: scorer name or dotted path, and its weight.")
    prompts_per_round: int = Field(8, ge=1, description="Prompts drawn for a round.")
    k: int = Field(4, ge=1, description="Candidates of each prompt.")
    rounds: int | None = Field(None, ge=1, description="Rounds of sampling and training; null ends by max_steps.")
    inner_epochs: int = Field(1, ge=1, description="Passes over a round's samples before new ones are drawn.")
    batch_size: int = Field(8, ge=1, description="Candidates sampled at once; speed only, never the outcome.")
    num_inference_steps: int | None = Field(None, ge=1, description="Denoising steps; null for the model's own.")
    guidance_scale: float | None = Field(None, ge=0, description="Classifier-free guidance; null for the model's own.")
    eta: float = Field(1.0, ge=0, description="Noise put back at each step; 0 leaves no likelihood to train on.")


class TrainingSettings(Strict):
    """The one training loop, the same for every algorithm."""

    max_steps: int = Field(1000, ge=1, description="Optimiser steps.")
    batch_size: int = Field(16, ge=1, description="Rows behind one optimiser step, over all processes.")
    micro_batch_size: int | None = Field(None, ge=1, description="Rows in memory at once; null for all of them.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate.")
    optimiser: Literal["adamw", "adamw_8bit"] = Field(
        "adamw", description="AdamW, or with its averages in 8 bits: a quarter of their memory (extra `bnb`)."
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's memory of the gradient.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's memory of its square.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's floor under the root.")
    weight_decay: float = Field(1e-2, ge=0, description="AdamW's decoupled decay.")
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises to its peak.")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="What follows the warm-up.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Gradients are scaled down to it; null for never.")
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(_yaml_no)] = Field(
        "no", description="Autocast of the model's passes."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations: slower, with less memory.")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="Moving average of the weights; null for none.")
    checkpoint_every: int = Field(100, ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(2, ge=1, description="How many of the latest to keep.")
    evaluate_every: int | None = Field(
        None, ge=1, description="Steps between evaluations; null is a tenth of the run where any can be made."
    )
    early_stopping: int | None = Field(
        None, ge=0, description="Stop after so many evaluations without a gain; 0 never; null is 3 in an offline run."
    )
    seed: int = Field(0, ge=0, description="Of order, draws and adapters: the same seed gives the same run.")

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSettings:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch_size")
        return self


class EvaluationSettings(Strict):
    """How the tuned model is compared with the base: same prompts, same seeds."""

    prompts: Prompts = Field(description="A text file of held-out prompts, one a line, or a list of them.")
    scorers: Scorers = Field(min_length=1, description="What judges, with its weight; best not what was rewarded.")
    guard: Literal["report", "stop"] = Field(
        "report", description="Rewards up while other judges or diversity fall: tell in the end, or stop at the best."
    )
    max_prompts: int | None = Field(None, ge=1, description="Judge on so many of the prompts; null for all.")
    n: int = Field(2, ge=1, description="Pairs of pictures of each prompt.")
    seed: int = Field(0, ge=0, description="The first seed; each pair shares one.")
    batch_size: int = Field(8, ge=1, description="Pictures sampled at once; speed and memory only.")
    num_inference_steps: int | None = Field(None, ge=1, description="Denoising steps; null for the model's own.")
    guidance_scale: float | None = Field(None, ge=0, description="Classifier-free guidance; null for the model's own.")
    eta: float | None = Field(None, ge=0, description="Noise put back at each step; null for the model's own.")


class CardSettings(Strict):
    """What the model card says beyond what the run knows; secrets, paths and names of users are taken out of it."""

    license: str | None = Field(None, description="Licence of the result, as a hub knows it: `apache-2.0`, `other`.")
    license_link: str | None = Field(None, description="Where its text is.")
    description: str | None = Field(None, description="What the model is for, and what it is not for.")
    data: str | None = Field(None, description="What the data are, where from, and on what terms.")


class Recipe(Strict):
    """One run: a model, an algorithm, what it learns from, and how it is judged."""

    model: ModelSettings = Field(description="Which model is tuned.")
    algorithm: AlgorithmSettings = Field(description="Which method, with its own options.")
    data: DataSettings | None = Field(None, description="Preference data, for offline methods.")
    rollout: RolloutSettings | None = Field(None, description="Own samples and rewards, for online methods.")
    training: TrainingSettings = Field(default_factory=TrainingSettings, description="The training loop.")
    evaluation: EvaluationSettings | None = Field(None, description="Comparison with the base; null for none.")
    card: CardSettings | None = Field(None, description="Licence and words of the model card; null for none.")
    output: str = Field(min_length=1, description="The run's folder.")

    @model_validator(mode="after")
    def _one_source(self) -> Recipe:
        if (self.data is None) == (self.rollout is None):
            raise ValueError("give either 'data' (offline methods) or 'rollout' (online methods), and not both")
        return self

    @model_validator(mode="after")
    def _a_judge_held_out(self) -> Recipe:
        trained = {*(self.rollout.scorers if self.rollout else ()), *((self.data and self.data.relabel) or ())}
        if self.evaluation and self.evaluation.guard == "stop" and set(self.evaluation.scorers) <= trained:
            raise ValueError("evaluation.guard: stop needs a judge held out: one in evaluation.scorers not trained on")
        return self

    @model_validator(mode="after")
    def _look_on_the_way(self) -> Recipe:
        """What can be judged is judged ten times a run. A fixed set of pairs is soon learnt by heart: an offline run
        stops where its held-out loss no longer falls, unless told not to."""
        held_out = self.data is not None and self.data.held_out > 0
        if self.training.early_stopping and not held_out:
            raise ValueError("training.early_stopping needs preferences kept aside: data.held_out above 0")
        update = {name: value for name, value in self.usual().items() if getattr(self.training, name) is None}
        object.__setattr__(self, "training", self.training.model_copy(update=update))
        return self

    def usual(self) -> dict[str, int | None]:
        """Of `training`, what is filled in by the rest of the recipe where nothing is written."""
        held_out = self.data is not None and self.data.held_out > 0
        every = max(1, self.training.max_steps // 10) if held_out or self.evaluation else None
        return {"evaluate_every": every, "early_stopping": 3 if held_out else None}

    def changes(self, other: Recipe) -> list[str]:
        """As `difference`, without what only follows from another change."""
        usual = [
            f"training.{name}:"
            for name, value in self.usual().items()
            if getattr(self.training, name) == value and getattr(other.training, name) == other.usual()[name]
        ]
        return [line for line in difference(self, other) if not line.startswith(tuple(usual))]


class RoundsSettings(Strict):
    """Rounds with people: in each the model draws, people compare what it drew, and it learns from what they said."""

    project: str = Field(min_length=1, description="Folder of the project that keeps samples and votes; made if new.")
    prompts: Prompts = Field(description="A text file of prompts, one a line, or a list of them.")
    n: int = Field(5, ge=1, description="How many rounds.")
    prompts_per_round: int = Field(50, ge=1, description="Prompts drawn for a round; none comes twice until all have.")
    k: int = Field(2, ge=2, le=16, description="Candidates of each prompt.")
    pairs: int | None = Field(None, ge=1, description="Pairs of a prompt that are shown; null for all.")
    votes: int = Field(1, ge=1, description="Different people who judge each pair.")
    people: Literal["studio", "simulated", "scorers"] = Field(
        "studio", description="Who votes: people in the studio, simulated ones whose taste are the scorers, or scorers."
    )
    scorers: Scorers | None = Field(None, min_length=1, description="Of `simulated` and `scorers`: name and weight.")
    temperature: float = Field(0.15, ge=0, description="Noise of simulated people, in units of the scorers' sum.")
    port: int = Field(8765, ge=0, le=65535, description="Where the studio listens, on this machine alone; 0 for any.")
    learn_from: Literal["all", "last"] = Field("all", description="Votes of all rounds so far, or of the last alone.")
    reference: Literal["base", "previous"] = Field(
        "base", description="What the policy is held to: the base, or the policy that drew the round."
    )
    verdict: int = Field(
        0, ge=0, description="Prompts kept aside, on which the same people compare base and tuned in the end, blind."
    )
    batch_size: int = Field(8, ge=1, description="Candidates sampled at once; speed only.")
    num_inference_steps: int | None = Field(None, ge=1, description="Denoising steps; null for the model's own.")
    guidance_scale: float | None = Field(None, ge=0, description="Classifier-free guidance; null for the model's own.")
    eta: float | None = Field(None, ge=0, description="Noise put back at each step; null for the model's own, or 1.")

    @model_validator(mode="after")
    def _judges(self) -> RoundsSettings:
        if (self.people == "studio") != (self.scorers is None):
            raise ValueError("give 'scorers' where people are 'simulated' or 'scorers', and nowhere else")
        if self.people == "scorers" and self.votes > 1:
            raise ValueError("scorers vote as one: leave 'votes' at 1")
        return self


class RoundsRecipe(Strict):
    """Rounds of drawing, asking and learning, with one method."""

    model: ModelSettings = Field(description="Which model is tuned.")
    algorithm: AlgorithmSettings = Field(description="Which method, with its own options.")
    rounds: RoundsSettings = Field(description="What is drawn, who is asked, how often.")
    training: TrainingSettings = Field(default_factory=TrainingSettings, description="The training of each round.")
    evaluation: EvaluationSettings | None = Field(None, description="Comparison with the base; null for none.")
    card: CardSettings | None = Field(None, description="Licence and words of the model card; null for none.")
    output: str = Field(min_length=1, description="The folder of all rounds.")

    @model_validator(mode="after")
    def _no_guard(self) -> RoundsRecipe:
        if self.evaluation and self.evaluation.guard == "stop":
            raise ValueError("evaluation.guard: rounds end when they are over; leave it at 'report'")
        return self
