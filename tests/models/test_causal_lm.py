"""The language model: masks that hold completions only, likelihoods that do not depend on padding, sampling by seed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from palate.models.causal_lm import CausalLM
from tests import zoo

PROMPTS = ["one and one is", "hi"]
ANSWERS = [" two", " there, you"]


@pytest.fixture(scope="module")
def model() -> CausalLM:
    module, tokenizer = zoo.causal_lm()
    return CausalLM(copy.deepcopy(module), tokenizer)


def token_logps(model: CausalLM, prompts: list[str], answers: list[str]) -> torch.Tensor:
    tokens, mask, completed = model.encode(prompts, answers)
    logps = model.logits(tokens, mask).log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return (logps * completed[:, 1:]).sum(-1)


def test_completion_mask_holds_the_answer_and_its_end(model: CausalLM) -> None:
    tokens, mask, completed = model.encode(PROMPTS, ANSWERS)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        kept = tokens[row][completed[row]].tolist()
        assert model.tokenizer.decode(kept[:-1]) == answer
        assert kept[-1] == model.end
        assert model.tokenizer.decode(tokens[row][mask[row] & ~completed[row]]) == prompt
    assert not bool((completed & ~mask).any())


def test_likelihoods_do_not_depend_on_the_batch(model: CausalLM) -> None:
    together = token_logps(model, PROMPTS, ANSWERS)
    alone = torch.cat([token_logps(model, [p], [a]) for p, a in zip(PROMPTS, ANSWERS, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert bool((together < 0).all())


def test_generation_follows_its_seed_and_not_its_batch(model: CausalLM) -> None:
    both = model.generate(PROMPTS, seed=3, max_new_tokens=12)
    assert both == model.generate(PROMPTS, seed=3, max_new_tokens=12)
    assert both != model.generate(PROMPTS, seed=4, max_new_tokens=12)
    assert both[0] == model.generate(PROMPTS[:1], seed=3, max_new_tokens=12)[0]
    assert both[1] == model.generate(PROMPTS[1:], seed=4, max_new_tokens=12)[0]


def test_near_zero_temperature_is_greedy(model: CausalLM) -> None:
    (made,) = model.generate(PROMPTS[:1], seed=0, max_new_tokens=3, temperature=1e-6)
    tokens = torch.tensor([model.tokenizer(PROMPTS[0]).input_ids])
    for _ in range(3):
        following = model.logits(tokens, torch.ones_like(tokens))[:, -1].argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, following], 1)
    assert made == model.tokenizer.decode(tokens[0, -3:])


def test_saved_and_loaded(model: CausalLM, tmp_path: Path) -> None:
    model.module.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    loaded = CausalLM.load(tmp_path)
    assert torch.equal(token_logps(loaded, PROMPTS, ANSWERS), token_logps(model, PROMPTS, ANSWERS))
    assert not any(p.requires_grad for p in loaded.module.parameters())


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing-here.*save_pretrained"):
        CausalLM.load(tmp_path / "nothing-here")
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        CausalLM.load(tmp_path)
