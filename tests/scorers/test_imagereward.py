"""ImageReward from weights in its published names, against a forward pass of BLIP written out here in float64."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import erf
from torch import Tensor
from transformers import BertTokenizer

from palate.models.pixels import CLIP_MEAN, CLIP_STD, Pixels
from palate.models.pretrained import PretrainedError
from palate.scorers import imagereward
from tests.scorers import parts

WIDTH, TEXT_WIDTH, PATCH, GRID, LAYERS = 48, 36, 7, 4, 2
HEAD = parts.head(TEXT_WIDTH)


def tokenizer() -> BertTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)


def weights(words: int) -> dict[str, Tensor]:
    maker = torch.Generator().manual_seed(6)
    state: dict[str, Tensor] = {}

    def random(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=maker)

    def linear(name: str, out: int, into: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = random(out, into), random(out)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + random(width), random(width)

    eye, text = "blip.visual_encoder", "blip.text_encoder"
    state[f"{eye}.cls_token"] = random(1, 1, WIDTH)
    state[f"{eye}.pos_embed"] = random(1, GRID**2 + 1, WIDTH)
    state[f"{eye}.patch_embed.proj.weight"] = random(WIDTH, 3, PATCH, PATCH)
    state[f"{eye}.patch_embed.proj.bias"] = random(WIDTH)
    norm(f"{eye}.norm", WIDTH)
    for layer in range(LAYERS):
        block = f"{eye}.blocks.{layer}"
        for part in ("norm1", "norm2"):
            norm(f"{block}.{part}", WIDTH)
        linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        linear(f"{block}.mlp.fc1", 64, WIDTH)
        linear(f"{block}.mlp.fc2", WIDTH, 64)
    state[f"{text}.embeddings.position_ids"] = torch.arange(40)[None]
    state[f"{text}.embeddings.word_embeddings.weight"] = random(words, TEXT_WIDTH)
    state[f"{text}.embeddings.position_embeddings.weight"] = random(40, TEXT_WIDTH)
    norm(f"{text}.embeddings.LayerNorm", TEXT_WIDTH)
    for layer in range(LAYERS):
        block = f"{text}.encoder.layer.{layer}"
        for part, into in (("attention", TEXT_WIDTH), ("crossattention", WIDTH)):
            linear(f"{block}.{part}.self.query", TEXT_WIDTH, TEXT_WIDTH)
            linear(f"{block}.{part}.self.key", TEXT_WIDTH, into)
            linear(f"{block}.{part}.self.value", TEXT_WIDTH, into)
            linear(f"{block}.{part}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            norm(f"{block}.{part}.output.LayerNorm", TEXT_WIDTH)
        linear(f"{block}.intermediate.dense", 40, TEXT_WIDTH)
        linear(f"{block}.output.dense", TEXT_WIDTH, 40)
        norm(f"{block}.output.LayerNorm", TEXT_WIDTH)
    linear("blip.vision_proj", 8, WIDTH)  # of BLIP's own training, unused
    linear("blip.text_proj", 8, TEXT_WIDTH)
    return state | {f"mlp.{name}": tensor for name, tensor in HEAD.items()}


# --- BLIP's forward pass, in numpy ------------------------------------------------------------------------------------


class Blip:
    def __init__(self, state: dict[str, Tensor]) -> None:
        self.w = {name: tensor.double().numpy() for name, tensor in state.items()}

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray, eps: float) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def see(self, pixels: np.ndarray) -> np.ndarray:
        """[3, H, W] -> [1 + patches, WIDTH]"""
        eye = "blip.visual_encoder"
        patches = pixels.reshape(3, GRID, PATCH, GRID, PATCH).transpose(1, 3, 0, 2, 4).reshape(GRID**2, -1)
        x = patches @ self.w[f"{eye}.patch_embed.proj.weight"].reshape(WIDTH, -1).T
        x = np.concatenate([self.w[f"{eye}.cls_token"][0], x + self.w[f"{eye}.patch_embed.proj.bias"]])
        x = x + self.w[f"{eye}.pos_embed"][0]
        for layer in range(LAYERS):
            block = f"{eye}.blocks.{layer}"
            q, k, v = np.split(self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)), 3, axis=-1)
            x = x + self.linear(f"{block}.attn.proj", attend(q, k, v, 16, len(k)))
            inner = gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + self.linear(f"{block}.mlp.fc2", inner)
        return self.norm(f"{eye}.norm", x, 1e-6)

    def read(self, tokens: list[int], seen: np.ndarray) -> np.ndarray:
        """The state of the first of 35 tokens, padding unseen -> [TEXT_WIDTH]"""
        text, padded = "blip.text_encoder", (tokens + [0] * 35)[:35]
        x = self.w[f"{text}.embeddings.word_embeddings.weight"][padded]
        x = x + self.w[f"{text}.embeddings.position_embeddings.weight"][:35]
        x = self.norm(f"{text}.embeddings.LayerNorm", x, 1e-12)
        for layer in range(LAYERS):
            block = f"{text}.encoder.layer.{layer}"
            for part, other, known in (("attention", None, len(tokens)), ("crossattention", seen, len(seen))):
                source = x if other is None else other
                name = f"{block}.{part}.self"
                q, k, v = (
                    self.linear(f"{name}.query", x),
                    *(self.linear(f"{name}.{n}", source) for n in ("key", "value")),
                )
                made = self.linear(f"{block}.{part}.output.dense", attend(q, k, v, 12, known))
                x = self.norm(f"{block}.{part}.output.LayerNorm", made + x, 1e-12)
            made = self.linear(f"{block}.output.dense", gelu(self.linear(f"{block}.intermediate.dense", x)))
            x = self.norm(f"{block}.output.LayerNorm", made + x, 1e-12)
        return x[0]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / np.sqrt(2))) / 2


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, known: int) -> np.ndarray:
    """Over the first `known` keys."""
    out, wide = np.zeros_like(q), q.shape[1] // heads
    for head in range(heads):
        part = slice(head * wide, (head + 1) * wide)
        scores = q[:, part] @ k[:known, part].T / np.sqrt(wide)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, part] = shares / shares.sum(-1, keepdims=True) @ v[:known, part]
    return out


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("imagereward")
    words = tokenizer()
    words.save_pretrained(path)
    state = weights(len(words))
    parts.saved(path / "imagereward.safetensors", state)
    return path, state


def expected(state: dict[str, Tensor], prompts: list[str], media: list) -> np.ndarray:
    blip, words = Blip(state), tokenizer()
    pixels = Pixels(28, 28, mean=CLIP_MEAN, std=CLIP_STD, half_even=True)(media).double().numpy()
    tokens = [words(prompt, truncation=True, max_length=35)["input_ids"] for prompt in prompts]
    states = np.stack([blip.read(t, blip.see(p)) for t, p in zip(tokens, pixels, strict=True)])
    return (parts.through_head(HEAD, states) - 0.16717362830052426) / 1.0333394966054072


def test_the_formula(folder):
    path, state = folder
    media = parts.pictures(3)
    wanted = expected(state, parts.PROMPTS, media)
    mismatched = expected(state, parts.PROMPTS[::-1], media)
    assert np.std(wanted) > 0.01 and np.abs(wanted - mismatched)[[0, 2]].min() > 1e-3
    for where in (path, path / "imagereward.safetensors"):
        for scorer in parts.each_size(imagereward.load, where):
            np.testing.assert_allclose(scorer(parts.PROMPTS, media)["imagereward"], wanted, rtol=0, atol=3e-5)
    np.testing.assert_allclose(scorer(parts.PROMPTS[::-1], media)["imagereward"], mismatched, rtol=0, atol=3e-5)


@pytest.mark.parametrize(("margin", "first"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (7, 4)])
def test_the_middle_is_the_one_that_torchvision_keeps(folder, margin, first):
    """CenterCrop of torchvision.transforms.functional, from which the published scores come: round half to even."""
    noise = np.random.default_rng(margin).integers(0, 255, (28 + margin, 28, 3), np.uint8)
    scorer = imagereward.load(str(folder[0]))
    for whole, middle in (
        (noise, noise[first : first + 28]),
        (noise.swapaxes(0, 1), noise[first:][:28].swapaxes(0, 1)),
    ):
        pair = [Image.fromarray(np.ascontiguousarray(array)) for array in (whole, middle)]
        scores = scorer([parts.PROMPTS[0]] * 2, pair)["imagereward"]
        assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_a_prompt_is_cut_at_35_tokens(folder, caplog):
    path, state = folder
    media, long = parts.pictures(1), "abc " * 30
    with caplog.at_level(logging.WARNING):
        given = imagereward.load(str(path))([long], media)["imagereward"]
    np.testing.assert_allclose(given, expected(state, [long], media), atol=3e-5)
    assert "imagereward reads 35 tokens of a prompt" in caplog.text


def test_half_precision_is_near(folder):
    path, state = folder
    media = parts.pictures(3)
    given = imagereward.load(str(path), dtype="bfloat16")(parts.PROMPTS, media)["imagereward"]
    assert 0 < np.abs(given - expected(state, parts.PROMPTS, media)).max() < 0.3


def test_a_missing_and_an_unknown_weight_are_named(folder, tmp_path):
    _, state = folder
    tokenizer().save_pretrained(tmp_path)
    query = "blip.text_encoder.encoder.layer.1.crossattention.self.query.bias"
    cases = {
        "lacks weight encoder.layer.1.crossattention.self.query.bias": {k: v for k, v in state.items() if k != query},
        "has an unknown weight extra": state | {"blip.visual_encoder.extra": torch.zeros(1)},
        "is no BLIP: it lacks weight patch_embed.proj.weight": HEAD,
        "has no head": {name: tensor for name, tensor in state.items() if not name.startswith("mlp.")},
    }
    for said, wrong in cases.items():
        parts.saved(tmp_path / "w.safetensors", wrong)
        with pytest.raises(PretrainedError, match=said):
            imagereward.load(str(tmp_path))


def test_the_published_pickle_is_refused_with_the_lines_that_convert_it_which_do(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(folder[1], "ImageReward.pt")
    with pytest.raises(PretrainedError, match=r"is a pickle.*convert it first: python -c") as caught:
        imagereward.load(str(tmp_path))
    assert imagereward.CONVERT in str(caught.value) and "\n" not in str(caught.value)
    exec(imagereward.CONVERT.removeprefix('python -c "').removesuffix('"'), {})
    media = parts.pictures(3)
    given = imagereward.load("imagereward.safetensors", tokenizer=str(folder[0]))(parts.PROMPTS, media)["imagereward"]
    np.testing.assert_array_equal(given, imagereward.load(str(folder[0]))(parts.PROMPTS, media)["imagereward"])


def test_no_place_is_one_line():
    with pytest.raises(PretrainedError, match="say where its weights are"):
        imagereward.load()
