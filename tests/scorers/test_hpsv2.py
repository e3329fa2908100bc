"""HPSv2 from weights in open_clip's names, against a forward pass of that layout written out here in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from palate.models import pretrained
from palate.models.clip import from_open_clip
from palate.models.pretrained import PretrainedError
from palate.scorers import hpsv2
from tests.scorers import parts

WIDTH, TEXT_WIDTH, HEADS, JOINT, PATCH, GRID, LAYERS, LIMIT = 48, 32, 16, 20, 7, 4, 2, 24


def weights(words: int) -> dict[str, Tensor]:
    """As open_clip's CLIP with two transformers names them."""
    maker = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, generator=maker)

    return named(random, words)


def named(random, words, *, width=WIDTH, text_width=TEXT_WIDTH, joint=JOINT, patch=PATCH, grid=GRID,
          layers=(LAYERS, LAYERS), inner=(64, 64), limit=LIMIT) -> dict[str, Tensor]:  # fmt: skip
    """random: shape -> tensor."""
    state = {
        "positional_embedding": random(limit, text_width),
        "text_projection": random(text_width, joint),
        "logit_scale": torch.tensor(4.6),
        "visual.class_embedding": random(width),
        "visual.positional_embedding": random(grid**2 + 1, width),
        "visual.proj": random(width, joint),
        "visual.conv1.weight": random(width, 3, patch, patch),
        "token_embedding.weight": random(words, text_width),
    }
    norms = [("visual.ln_pre", width), ("visual.ln_post", width), ("ln_final", text_width)]
    for tower, w, count, i in (("visual.", width, layers[0], inner[0]), ("", text_width, layers[1], inner[1])):
        for layer in range(count):
            block = f"{tower}transformer.resblocks.{layer}"
            norms += [(f"{block}.ln_1", w), (f"{block}.ln_2", w)]
            state[f"{block}.attn.in_proj_weight"], state[f"{block}.attn.in_proj_bias"] = random(3 * w, w), random(3 * w)
            state[f"{block}.attn.out_proj.weight"], state[f"{block}.attn.out_proj.bias"] = random(w, w), random(w)
            state[f"{block}.mlp.c_fc.weight"], state[f"{block}.mlp.c_fc.bias"] = random(i, w), random(i)
            state[f"{block}.mlp.c_proj.weight"], state[f"{block}.mlp.c_proj.bias"] = random(w, i), random(w)
    for name, w in norms:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + random(w), random(w)
    return state


# --- open_clip's forward pass, in numpy -------------------------------------------------------------------------------


def layer_norm(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return x * (1 + erf(x / np.sqrt(2))) / 2


def attend(w: dict[str, np.ndarray], name: str, x: np.ndarray, causal: bool) -> np.ndarray:
    length, width = x.shape
    q, k, v = np.split(x @ w[f"{name}.in_proj_weight"].T + w[f"{name}.in_proj_bias"], 3, axis=-1)
    out = np.zeros_like(x)
    for head in range(HEADS):
        part = slice(head * width // HEADS, (head + 1) * width // HEADS)
        scores = q[:, part] @ k[:, part].T / np.sqrt(width // HEADS)
        if causal:
            scores = np.where(np.tri(length) > 0, scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, part] = shares / shares.sum(-1, keepdims=True) @ v[:, part]
    return out @ w[f"{name}.out_proj.weight"].T + w[f"{name}.out_proj.bias"]


def blocks(w: dict[str, np.ndarray], tower: str, x: np.ndarray, causal: bool) -> np.ndarray:
    for layer in range(LAYERS):
        name = f"{tower}transformer.resblocks.{layer}"
        x = x + attend(w, f"{name}.attn", layer_norm(w, f"{name}.ln_1", x), causal)
        inner = gelu(layer_norm(w, f"{name}.ln_2", x) @ w[f"{name}.mlp.c_fc.weight"].T + w[f"{name}.mlp.c_fc.bias"])
        x = x + inner @ w[f"{name}.mlp.c_proj.weight"].T + w[f"{name}.mlp.c_proj.bias"]
    return x


def picture_embedding(w: dict[str, np.ndarray], pixels: np.ndarray) -> np.ndarray:
    """pixels: [3, H, W], normalised."""
    grid = pixels.reshape(3, GRID, PATCH, GRID, PATCH).transpose(1, 3, 0, 2, 4).reshape(GRID**2, -1)
    x = np.concatenate([w["visual.class_embedding"][None], grid @ w["visual.conv1.weight"].reshape(WIDTH, -1).T])
    x = blocks(w, "visual.", layer_norm(w, "visual.ln_pre", x + w["visual.positional_embedding"]), causal=False)
    return parts.normal(layer_norm(w, "visual.ln_post", x[0]) @ w["visual.proj"])


def text_embedding(w: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """tokens: padded with zeros after the end of text, as open_clip's tokenizer does; pooled at the greatest."""
    padded = (tokens + [0] * LIMIT)[:LIMIT]
    x = blocks(w, "", w["token_embedding.weight"][padded] + w["positional_embedding"], causal=True)
    return parts.normal(layer_norm(w, "ln_final", x)[int(np.argmax(padded))] @ w["text_projection"])


def padded_pixels(picture) -> np.ndarray:
    """The longer side made to fit, black around, normalised as CLIP is."""
    scale = GRID * PATCH / max(picture.size)
    small = np.asarray(picture.resize([round(edge * scale) for edge in picture.size], 3), np.float64)
    canvas = np.zeros((GRID * PATCH, GRID * PATCH, 3))
    top, left = ((GRID * PATCH - edge) // 2 for edge in small.shape[:2])
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    return ((canvas / 255 - mean) / std).transpose(2, 0, 1)


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the converted file and a tokenizer; and the weights."""
    path = tmp_path_factory.mktemp("hpsv2")
    tokenizer = parts.clip_tokenizer(LIMIT)
    tokenizer.save_pretrained(path)
    state = weights(len(tokenizer))
    parts.saved(path / "hpsv2.safetensors", state)
    return path, state


@pytest.mark.parametrize("size", [(40, 33), (21, 64)])
def test_the_formula(folder, size):
    path, state = folder
    w = {name: tensor.double().numpy() for name, tensor in state.items()}
    media, tokenizer = parts.pictures(3, size), parts.clip_tokenizer(LIMIT)
    texts = [text_embedding(w, tokenizer(prompt)["input_ids"]) for prompt in parts.PROMPTS]
    wanted = [float(t @ picture_embedding(w, padded_pixels(p))) for t, p in zip(texts, media, strict=True)]
    assert np.std(wanted) > 0.01
    for where in (path, path / "hpsv2.safetensors"):
        for scorer in parts.each_size(hpsv2.load, where):
            np.testing.assert_allclose(scorer(parts.PROMPTS, media)["hpsv2"], wanted, rtol=0, atol=3e-6)


def test_a_clip_model_of_transformers_is_taken_as_it_is(folder, tmp_path):
    path, state = folder
    from_open_clip(state, "hpsv2", "here").save_pretrained(tmp_path)
    media = parts.pictures(3)
    there = hpsv2.load(str(path))(parts.PROMPTS, media)["hpsv2"]
    given = hpsv2.load(str(tmp_path), tokenizer=str(path))(parts.PROMPTS, media)["hpsv2"]
    np.testing.assert_allclose(given, there, atol=1e-6)


def test_the_real_size_is_read_off_its_tensors(monkeypatch):
    """ViT-H-14 as open_clip describes it (model_configs/ViT-H-14.json), without its gigabytes."""

    def nothing(*shape):
        return torch.empty(*shape, device="meta")

    state = named(nothing, 49408, width=1280, text_width=1024, joint=1024, patch=14, grid=16, layers=(32, 24),
                  inner=(5120, 4096), limit=77)  # fmt: skip
    assert sum(tensor.numel() for tensor in state.values()) == 986_109_441
    built = []
    monkeypatch.setattr(pretrained, "build", lambda kind, config, state, *rest: built.append((kind, config, state)))
    from_open_clip(state, "hpsv2", "here")
    kind, config, renamed = built[0]
    with torch.device("meta"):
        pretrained._check(kind(config).state_dict(), renamed, "hpsv2", "here")
    seen, read = config.vision_config, config.text_config
    assert (seen.image_size, seen.patch_size, seen.num_hidden_layers, seen.num_attention_heads) == (224, 14, 32, 16)
    assert (read.num_hidden_layers, read.num_attention_heads, read.max_position_embeddings) == (24, 16, 77)
    assert (read.eos_token_id, seen.hidden_act, read.hidden_act) == (49407, "gelu", "gelu")


def test_weights_are_taken_with_the_prefix_and_mask_of_a_distributed_run(folder):
    _, state = folder
    odd = {f"module.{name}": tensor for name, tensor in state.items()} | {"module.attn_mask": torch.zeros(LIMIT, LIMIT)}
    made, known = from_open_clip(odd, "hpsv2", "here"), from_open_clip(state, "hpsv2", "here")
    for name, tensor in known.state_dict().items():
        assert torch.equal(tensor, made.state_dict()[name]), name


def test_published_pickles_are_refused_with_the_lines_that_convert_them(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "HPS_v2.1_compressed.pt")
    for where in (tmp_path, tmp_path / "HPS_v2.1_compressed.pt"):
        with pytest.raises(PretrainedError, match=r"is a pickle.*convert it first: python -c") as caught:
            hpsv2.load(str(where))
        assert "\n" not in str(caught.value)


def test_the_lines_that_convert_it_do(folder, tmp_path, monkeypatch):
    path, state = folder
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": 1, "state_dict": state}, "HPS_v2.1_compressed.pt")
    run(hpsv2.CONVERT)
    parts.clip_tokenizer(LIMIT).save_pretrained(tmp_path)
    media = parts.pictures(3)
    given = hpsv2.load(str(tmp_path / "hpsv2.1.safetensors"))(parts.PROMPTS, media)["hpsv2"]
    np.testing.assert_array_equal(given, hpsv2.load(str(path))(parts.PROMPTS, media)["hpsv2"])


def run(command: str) -> None:
    """The Python of a `python -c "..."` line, here."""
    program = command.removeprefix('python -c "').removesuffix('"')
    assert '"' not in program
    exec(compile(program, "convert", "exec"), {})


def test_a_missing_an_unknown_and_a_wrong_weight_are_named(folder, tmp_path):
    _, state = folder
    parts.clip_tokenizer(LIMIT).save_pretrained(tmp_path)
    block = "visual.transformer.resblocks.1.mlp.c_fc.bias"
    cases = {
        "lacks weight vision_model.encoder.layers.1.mlp.fc1.bias": {k: v for k, v in state.items() if k != block},
        "has an unknown weight visual.extra": state | {"visual.extra": torch.zeros(1)},
        r"ln_post.*|post_layernorm.bias is \(3,\), not \(48,\)": state | {"visual.ln_post.bias": torch.zeros(3)},
        "is no CLIP as open_clip writes it: it lacks visual.conv1.weight": {"layers.0.weight": torch.zeros(1)},
    }
    for said, wrong in cases.items():
        parts.saved(tmp_path / "w.safetensors", wrong)
        with pytest.raises(PretrainedError, match=said):
            hpsv2.load(str(tmp_path))


def test_no_place_and_no_file_are_one_line(tmp_path):
    with pytest.raises(PretrainedError, match="say where its weights are"):
        hpsv2.load()
    with pytest.raises(PretrainedError, match="has no safetensors file"):
        hpsv2.load(str(tmp_path))
    (tmp_path / "a.safetensors").write_bytes(b"not so")
    with pytest.raises(PretrainedError, match="is no safetensors file"):
        hpsv2.load(str(tmp_path))
    (tmp_path / "b.safetensors").write_bytes(b"not so")
    with pytest.raises(PretrainedError, match="has 2 safetensors files; give the path of one"):
        hpsv2.load(str(tmp_path))
