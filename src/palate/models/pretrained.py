"""Weights that judges are made of: from a folder or the hub, safetensors only, and none of it left to chance.

A class loaded from another model's folder would be filled up with random numbers and judge all the same: what is
missing is an error here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from palate.models.loading import quietly

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")  # one of which every tokenizer here has
_WEIGHTS = "model.safetensors"


class PretrainedError(ValueError):
    """Weights that cannot be used: one line that names the folder, file or hub id, and the mend."""


def resolve(where: str | Path, judge: str) -> str:
    """A file or folder that exists, or a hub id. Raises PretrainedError for neither: a slip stays off the network."""
    text = str(where)
    path = Path(text).expanduser()
    if path.exists():
        return str(path)
    owner, slash, name = text.partition("/")
    if not slash or not name or "/" in name or owner.startswith((".", "~")) or not owner or Path(owner).is_dir():
        raise PretrainedError(f"{judge}: there is no folder {text}; give a folder, or a hub id such as owner/name")
    return text


def model(kind: Any, where: str | Path, judge: str) -> Any:
    """A model of a transformers class from a folder or hub id, whole, in float32 and eval mode.

    judge: who asks, for the error. Raises PretrainedError where there is none, or where any weight of it is missing.
    """
    source = resolve(where, judge)
    if Path(source).is_file():
        raise PretrainedError(f"{judge}: {source} is a file; give the folder with its config.json and {_WEIGHTS}")
    try:
        with quietly():
            loaded, info = kind.from_pretrained(
                source, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, SafetensorError) as error:
        raise PretrainedError(f"{judge}: {source} holds no {kind.__name__} in safetensors ({_first(error)})") from None
    lacking = sorted([*info["missing_keys"], *(entry[0] for entry in info.get("mismatched_keys", ()))])
    if lacking:
        held = f"{len(lacking)} of its weights are missing, {lacking[0]} first"
        raise PretrainedError(f"{judge}: {source} holds no {kind.__name__}: {held}; give the folder of the right model")
    return loaded.eval().requires_grad_(False)


def tokenizer(where: str | Path, judge: str) -> Any:
    """The tokenizer of a folder or hub id. Raises PretrainedError where there is none."""
    import transformers
    from transformers.utils import cached_file

    source = resolve(where, judge)
    missing = {"_raise_exceptions_for_missing_entries": False}
    try:
        # Without its files transformers makes up a tokenizer that knows no word, and says nothing.
        if not any(cached_file(source, name, **missing) for name in VOCABULARIES):
            raise OSError(f"it has none of {', '.join(VOCABULARIES)}")
        with quietly():
            return transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise PretrainedError(
            f"{judge}: {source} holds no tokenizer ({_first(error)}); copy the model's own there"
        ) from None


def check_words(judge: str, tokenizer: Any, config: Any) -> None:
    """Raises PretrainedError for a tokenizer that is another model's than the text encoder of this config.

    A CLIP pools at the end of text, and a token that it does not know there would pool at random.
    """
    if len(tokenizer) > config.vocab_size:
        raise PretrainedError(
            f"{judge}: the tokenizer has {len(tokenizer)} tokens and the model knows {config.vocab_size}: "
            "it is another model's; give the model's own"
        )
    ends = tokenizer.eos_token_id if getattr(config, "model_type", "") == "clip_text_model" else None
    if ends is not None and config.eos_token_id not in (2, ends):  # 2: in old configs, and read as the greatest token
        raise PretrainedError(
            f"{judge}: the tokenizer ends a text with token {ends} and the model's end is {config.eos_token_id}: "
            "it is another model's; give the model's own"
        )


def tensors(where: str | Path, judge: str, convert: str) -> dict[str, Tensor]:
    """All tensors of one safetensors file, in float32: the file itself, the only one of a folder, or a hub id's.

    convert: how weights come out of the pickle they were published in, told to whoever gives that pickle. Raises
    PretrainedError.
    """
    source = resolve(where, judge)
    path = Path(source)
    if path.is_dir():
        path = _only_file(path, judge, convert)
    elif not path.exists():
        path = _from_hub(source, judge)
    if path.suffix in PICKLES:
        raise PretrainedError(
            f"{judge}: {path} is a pickle, which can run anything it likes; convert it first: {convert}"
        )
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PretrainedError(f"{judge}: {path} is no safetensors file ({_first(error)})") from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in VOCABULARIES)


def build(kind: Any, config: Any, state: dict[str, Tensor], judge: str, source: str | Path, **how: Any) -> Any:
    """A model of a transformers class with exactly these weights, in float32 and eval mode.

    how: further arguments of the class. Raises PretrainedError naming a weight that is missing, misshapen or too many.
    """
    with torch.device("meta"):
        expected = kind(config, **how).state_dict()
    _check(expected, state, judge, source)
    with quietly():  # not built and then filled: random numbers for a billion weights take most of a minute
        made, info = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True, **how
        )
    assert not info["missing_keys"], info["missing_keys"]
    return made.eval().requires_grad_(False)


def fill(module: torch.nn.Module, state: dict[str, Tensor], judge: str, source: str | Path) -> None:
    """Loads every weight of a module. Raises PretrainedError naming one missing, misshapen or too many."""
    _check(module.state_dict(), state, judge, source)
    module.load_state_dict(state)
    module.eval().requires_grad_(False)


def _check(expected: dict[str, Tensor], state: dict[str, Tensor], judge: str, source: str | Path) -> None:
    for name in [*expected, *state]:
        if name not in state or name not in expected:
            what = "has an unknown" if name in state else "lacks"
            raise PretrainedError(f"{judge}: {source} {what} weight {name}; is it another model's?")
        if expected[name].shape != state[name].shape:
            shapes = f"{tuple(state[name].shape)}, not {tuple(expected[name].shape)}"
            raise PretrainedError(f"{judge}: {source}: weight {name} is {shapes}; is it another model's?")


def _only_file(folder: Path, judge: str, convert: str) -> Path:
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise PretrainedError(f"{judge}: {folder} has {len(found)} safetensors files; give the path of one")
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        return pickles[0]  # which is then refused, with the mend
    raise PretrainedError(f"{judge}: {folder} has no safetensors file; put the weights there ({convert})")


def _from_hub(name: str, judge: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, _WEIGHTS))
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{judge}: there is no {name}/{_WEIGHTS} to be had ({_first(error)})") from None


def _first(error: BaseException) -> str:
    """An error's first line, within bounds."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].strip()[:200]
