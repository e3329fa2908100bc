"""A model is known by what it is made of, not by where it lies."""

from __future__ import annotations

import copy

from palate.models import identity
from palate.models.diffusion import DiffusionPolicy
from tests import zoo


def test_a_model_that_was_saved_and_read_again_is_the_same(tmp_path):
    made = DiffusionPolicy(copy.deepcopy(zoo.build("sd15")))
    codec, prompts = identity.codec_identity(made), identity.prompt_identity(made)
    made.pipeline.save_pretrained(tmp_path)
    for policy in (made, DiffusionPolicy.load(tmp_path)):
        assert (identity.codec_identity(policy), identity.prompt_identity(policy)) == (codec, prompts)


def test_other_weights_are_another_model():
    made = DiffusionPolicy(copy.deepcopy(zoo.build("sd15")))
    codec, prompts = identity.codec_identity(made), identity.prompt_identity(made)
    next(made.pipeline.text_encoder.parameters()).data[0] += 1
    assert identity.codec_identity(made) == codec and identity.prompt_identity(made) != prompts


def test_another_switch_or_library_makes_other_conditions(monkeypatch):
    made = DiffusionPolicy(copy.deepcopy(zoo.build("sd15")))
    codec, prompts = identity.codec_identity(made), identity.prompt_identity(made)
    made.pipeline.register_to_config(requires_safety_checker=not made.pipeline.config.requires_safety_checker)
    switched = identity.prompt_identity(made)
    monkeypatch.setattr(identity, "version", lambda library: "99.0")
    assert len({prompts, switched, identity.prompt_identity(made)}) == 3 and identity.codec_identity(made) == codec
