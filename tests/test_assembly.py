"""The parts a run is put together from: prompts as files hold them, scorers asked before anything is drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from palate import sampling
from palate.algorithms import d3po
from palate.config import ConfigError, TrainingSettings
from palate.doors import assembly, encoding, lookup
from palate.models.contracts import Condition, State
from palate.records import Medium, Preference
from palate.training.sources import PreferenceRow
from palate.training.trainer import TrainingError
from tests.toys import SHAPE, ToyDenoiser, roll_out

# --- prompts ----------------------------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat\r\n\r\na dog\n".encode())
    assert lookup.read_prompts(path) == ["a cat", "a dog"]


def test_a_file_in_another_encoding_is_named_with_its_line(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("a cat\na café\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.txt line 2: not UTF-8 text; save it as UTF-8"):
        lookup.read_prompts(path)


# --- scorers ----------------------------------------------------------------------------------------------------------


def test_prompts_a_scorer_cannot_judge_are_refused_before_any_picture():
    scorer = lookup.weighted({"world:shapes/alignment": 1.0, "jpeg_size": 1.0})
    scorer.check(["a large red circle on white"])
    with pytest.raises(ConfigError, match=r"world:shapes cannot judge .*'a cat'"):
        scorer.check(["a large red circle on white", "a cat"])


def test_a_dimension_that_a_scorer_does_not_give_is_refused_before_any_picture():
    scorer = lookup.weighted({"world:shapes/alignmnt": 1.0})
    with pytest.raises(ConfigError, match=r"world:shapes gives no score 'alignmnt'; it gives alignment, .*wholeness"):
        scorer.check([])


# --- the first rollout ------------------------------------------------------------------------------------------------


class Toy(ToyDenoiser):
    """As far as a policy of a pipeline is asked here."""

    device, latent_shape = torch.device("cpu"), SHAPE


class Counting(Toy):
    """A toy that notes how many rows went through it at once."""

    def __init__(self):
        super().__init__()
        self.rows, self.off = [], set()

    def predict(self, x_t, t, cond, guidance_scale=None):
        self.rows.append(len(x_t))
        out = super().predict(x_t, t, cond, guidance_scale)
        return out + 1.0 if len(self.rows) in self.off else out


@pytest.fixture
def fresh():
    policy = Counting()
    made = roll_out(policy, ["a", "a", "b", "b"])
    config = d3po.Config()
    scores = {"r": torch.tensor([0.0, 1.0, 0.0, 1.0])}
    policy.rows.clear()
    return policy, d3po.prepare(made, scores, d3po.init(policy, config), config), config


@pytest.mark.parametrize(("micro", "most"), [(2, 2), (None, 4)])
def test_the_look_at_a_rollout_takes_no_more_rows_at_once_than_training(fresh, micro, most):
    policy, batch, config = fresh
    assert len(batch) > 4 and batch.candidate.shape[1] == 2
    settings = TrainingSettings(batch_size=4, micro_batch_size=micro)
    assert assembly.check_ratio(policy, batch, config, settings) <= 1e-5
    assert max(policy.rows) == 2 * most and len(policy.rows) > 1


def test_the_worst_part_of_a_rollout_decides(fresh):
    policy, batch, config = fresh
    policy.off = {2}
    with pytest.raises(TrainingError, match="log ratio"):
        assembly.check_ratio(policy, batch, config, TrainingSettings(batch_size=2))


# --- prompts of different lengths -------------------------------------------------------------------------------------


class Lengths(Toy):
    """A toy whose conditions are as long as their prompts."""

    def condition(self, prompts, *, guided=False):
        return Condition({"cond/tokens": torch.zeros(len(prompts), len(prompts[0]), 3)})


def row(policy, prompt):
    nan = torch.nan
    return PreferenceRow(
        prompt, prompt, torch.zeros(2, *SHAPE), policy.condition([prompt]), torch.tensor([[nan, 1.0], [0.0, nan]]),
        torch.ones(2, 2), torch.zeros(2, 0), torch.ones(2, dtype=torch.bool),
    )  # fmt: skip


def test_prompts_of_any_length_can_be_emptied():
    policy, dropping = Lengths(), d3po.Config()
    object.__setattr__(dropping, "prompt_dropout", 1.0)
    source = assembly.offline_source(
        policy, [row(policy, "abc"), row(policy, "ab")], d3po, dropping, TrainingSettings(batch_size=2), 0.0
    )
    for batch, draw in source.next(State()).micros():
        assert draw.drop.all() and len(batch.cond.where(draw.drop, batch.null)) == len(batch) == 1


def test_a_rollout_of_different_lengths_samples_one_length_at_a_time():
    policy, drawn = Lengths(), []
    policy.pads = False

    def generate(prompts, generators, **_):
        drawn.append(list(prompts))
        made = roll_out(Toy(), list(prompts))
        return made.media, replace(made, cond=policy.condition(prompts))

    policy.generate = generate
    made = sampling.rollout(
        policy, ["ab", "abc", "ab"], ["0", "1", "2"], seed=0, num_inference_steps=3, guidance_scale=None
    )
    assert drawn == [["ab", "ab"], ["abc"]]
    assert [made.cond[row].rows["cond/tokens"].shape[1] for row in range(3)] == [2, 3, 2]
    assert len(made.media) == len(made.x) == 3


# --- progress ---------------------------------------------------------------------------------------------------------


def test_encoding_says_how_far_it_is(capsys):
    policy = Toy()
    nan = float("nan")
    held = Preference("a cat", (Medium("image/png", b"0"), Medium("image/png", b"1")), ((nan, 1.0), (0.0, nan)))
    encoded = encoding.encode(policy, [(held, [torch.zeros(SHAPE), torch.ones(SHAPE)])] * 3)
    assert len(encoded) == 3
    assert "encoded 3/3" in capsys.readouterr().err
