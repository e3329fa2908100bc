"""CLAP score against its formula in float64, on a tiny CLAP read from its folder; and nothing in it is random."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizer

from palate.doors import serving
from palate.models.pretrained import PretrainedError
from palate.scorers import clap, http
from tests import zoo
from tests.scorers import parts, servers

RATE, SECONDS = 8000, 1


def tokenizer() -> RobertaTokenizer:
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *zoo._bytes()]
    return RobertaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def build(folder, fused: bool):
    words = tokenizer()
    text = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 90,
        "projection_dim": 12,
        "pad_token_id": 1,
    }
    audio = {
        "num_mel_bins": 16,
        "spec_size": 64,
        "window_size": 4,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "patch_embeds_hidden_size": 8,
        "hidden_size": 32,
        "depths": [1, 1, 1],
        "num_attention_heads": [2, 2, 2],
        "projection_dim": 12,
        "enable_fusion": fused,
        "fusion_type": "aff_2d" if fused else None,
        "aff_block_r": 2,
    }
    torch.manual_seed(0)
    model = parts.scatter(ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=12)))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    extract = ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=RATE,
        hop_length=80,
        max_length_s=SECONDS,
        fft_window_size=256,
        frequency_max=4000,
        truncation="fusion" if fused else "rand_trunc",
    )
    extract.save_pretrained(folder)
    return folder, model, extract


@pytest.fixture(scope="module", params=[False, True], ids=["unfused", "fused"])
def tiny(request, tmp_path_factory):
    return build(tmp_path_factory.mktemp("clap") / "model", request.param)


def sounds(n: int = 3, seconds: float = 0.6, rate: int = RATE) -> list[np.ndarray]:
    """[2, L], unlike one another."""
    times = np.arange(int(seconds * rate)) / rate
    made = []
    for i in range(n):
        noise = 0.1 * np.random.default_rng(i).normal(size=(2, len(times)))
        made.append((np.sin(2 * np.pi * 300 * (i + 1) * times) + noise).astype(np.float32))
    return made


def expected(tiny, prompts, waves) -> np.ndarray:
    """The cosine, each sound at most a window long and at the model's rate."""
    _, model, extract = tiny
    double, words = copy.deepcopy(model).double(), tokenizer()
    out = []
    for prompt, wave in zip(prompts, waves, strict=True):
        heard = extract(wave.mean(0), sampling_rate=RATE, return_tensors="pt")["input_features"].double()
        with torch.no_grad():
            whole = double(
                **words(prompt, return_tensors="pt"),
                input_features=heard,
                is_longer=torch.zeros(1, 1, dtype=torch.bool),
            )
        text, sound = whole.text_embeds.numpy()[0], whole.audio_embeds.numpy()[0]
        out.append(float(parts.normal(text) @ parts.normal(sound)))
    return np.array(out)


def test_the_formula(tiny):
    wanted = expected(tiny, parts.PROMPTS, sounds())
    assert wanted.std() > 1e-3
    media = [(wave, RATE) for wave in sounds()]
    for scorer in parts.each_size(clap.load, tiny[0]):
        np.testing.assert_allclose(scorer(parts.PROMPTS, media)["clap"], wanted, rtol=0, atol=1e-5)
    turned = scorer(parts.PROMPTS, media[::-1])["clap"]
    np.testing.assert_allclose(turned, expected(tiny, parts.PROMPTS, sounds()[::-1]), rtol=0, atol=1e-5)


def test_a_waveform_has_the_rate_it_is_said_to_have(tiny):
    wanted = expected(tiny, parts.PROMPTS, sounds())
    scorer = clap.load(str(tiny[0]), rate=RATE)
    np.testing.assert_allclose(scorer(parts.PROMPTS, sounds())["clap"], wanted, atol=1e-5)
    mono = [torch.from_numpy(wave.mean(0)) for wave in sounds()]
    np.testing.assert_allclose(scorer(parts.PROMPTS, mono)["clap"], wanted, atol=1e-5)
    with pytest.raises(ValueError, match=r"row 0 does not say its rate: give \(waveform, rate\), or say clap,rate"):
        clap.load(str(tiny[0]))(parts.PROMPTS, sounds())


def test_over_http_a_sound_scores_as_it_does_here(tiny, monkeypatch, tmp_path):
    """By the name that `palate serve-scorer` is given and the name that it prints; the wire's rate is the sound's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("PALATE_SCORER_TOKEN", raising=False)
    name = f"clap:{tiny[0]},device:cpu,rate:{RATE}"
    app = serving.create(serving.find(name), name, serving.token_of(serving.default_token_file()))
    twice = [(np.repeat(wave, 2, axis=1), 2 * RATE) for wave in sounds()]
    here = clap.load(str(tiny[0]))(parts.PROMPTS, twice)["clap"]
    with servers.served(app) as url:
        there = http.load(f"{url}#{app.state.fingerprint}")
        np.testing.assert_allclose(there(parts.PROMPTS, twice)["clap"], here, atol=1e-6)
        bare = there(parts.PROMPTS, sounds())["clap"]  # at the server's own option
    np.testing.assert_allclose(bare, expected(tiny, parts.PROMPTS, sounds()), atol=1e-5)
    assert np.abs(bare - here).max() > 1e-4


def test_another_rate_is_the_same_sound():
    pure = np.sin(2 * np.pi * 300 * np.arange(48000) / 48000).astype(np.float32)
    same = np.sin(2 * np.pi * 300 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(clap.resample(pure, 48000, RATE)[100:-100], same[100:-100], atol=2e-3)
    np.testing.assert_array_equal(clap.resample(pure, 48000, 48000), pure)
    assert len(clap.resample(pure[:44101], 44100, 48000)) == int(np.ceil(44101 * 480 / 441))


def test_a_long_sound_is_the_mean_of_its_windows_and_the_same_every_time(tiny):
    scorer = clap.load(str(tiny[0]), rate=RATE)
    long = sounds(1, 2.4)[0]
    windows = [long[:, :8000], long[:, 8000:16000], long[:, -8000:]]
    each = scorer(["rain"] * 3, windows)["clap"]
    given = [scorer(["rain"], [long])["clap"][0] for _ in range(3)]
    assert given[0] == given[1] == given[2]
    assert given[0] == pytest.approx(each.mean(), abs=1e-6)
    exact = scorer(["rain"], [long[:, :16000]])["clap"]
    assert exact[0] == pytest.approx(each[:2].mean(), abs=1e-6)


def test_what_is_no_sound_is_refused(tiny):
    scorer = clap.load(str(tiny[0]), rate=RATE)
    for wrong in ("rain", np.zeros((2, 0)), np.zeros((1, 2, 3)), parts.pictures(1)[0]):
        with pytest.raises(ValueError, match=r"clap judges sounds.*row 1"):
            scorer(["a", "b"], [sounds(1)[0], wrong])


def test_a_preprocessor_of_another_kind_is_refused(tiny, tmp_path):
    _, model, _ = tiny
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match=r"lacks a usable preprocessor_config.json") as caught:
        clap.load(str(tmp_path))
    assert "\n" not in str(caught.value)
    fused = model.config.audio_config.enable_fusion
    ClapFeatureExtractor(truncation="rand_trunc" if fused else "fusion").save_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match=r"fused model and its preprocessor_config.json says truncation"):
        clap.load(str(tmp_path))
