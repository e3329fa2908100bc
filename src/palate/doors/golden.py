"""The golden check: before a scorer rewards or judges anything, it must tell things apart.

Two prompts and two media that plainly belong to them one to one, all four pairs at once. Refused is a scorer that says
the same of everything, of different media, or (if it says that it reads them) of different prompts; and one whose
scores hang on what else is in the batch. A few media, so that a start stays quick.

A scorer may say of itself: `reads_prompts`, true or false; `judges`, kinds of media, pictures if not told; `golden =
None`: it is not to be checked (it costs money, or rightly says the same of these). One that cannot judge them, or says
NaN, is not checked further: it may be for other media or prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from palate.strict import ConfigError

PICTURE_PROMPTS = ("a red circle on a white background", "a blue square on a black background")
SOUND_PROMPTS = ("a single steady high tone", "loud white noise")
SIZE, RATE, SECONDS = 224, 48_000, 1
NEAR = 0.02  # of the range of the four scores: how far a score alone may be from the same score in a batch
ROUNDING = 1e-4  # ... plus this share of the greatest, for rounding in single precision
COARSE = 1e-2  # ... in half precision
NOTHING = 1e-7  # share of the greatest score under which two scores are one


def check(name: str, scorer: Any, *, coarse: bool = False) -> None:
    """Raises ConfigError, one line that says what the scorer cannot tell apart. coarse: it runs in half precision."""
    if getattr(scorer, "golden", True) is None:
        return
    judged = getattr(scorer, "judges", ())
    sounds = "sounds" in judged and "pictures" not in judged
    prompts, media = (SOUND_PROMPTS, _sounds()) if sounds else (PICTURE_PROMPTS, _pictures())
    rows = [(prompt, medium) for prompt in prompts for medium in media]
    try:
        together = _scores(name, scorer, rows)
    except ConfigError:
        raise
    except Exception:
        if hasattr(scorer, "reads_prompts"):  # it says that it judges these, so what it raised is its own fault
            raise
        return
    known = {dimension: values for dimension, values in together.items() if np.isfinite(values).all()}
    for dimension, values in known.items():
        _apart(f"{name}, {dimension}" if len(together) > 1 else name, values.reshape(2, 2), scorer, sounds)
    if known:
        _alone(name, scorer, rows, known, COARSE if coarse else ROUNDING)


def _scores(name: str, scorer: Any, rows: Sequence[tuple[str, Any]]) -> dict[str, np.ndarray]:
    given: Mapping[str, Any] = scorer([prompt for prompt, _ in rows], [medium for _, medium in rows])
    scores = {dimension: np.asarray(values, np.float64) for dimension, values in given.items()}
    for dimension, values in scores.items():
        if values.shape != (len(rows),):
            raise ConfigError(f"scorer {name} gave scores of shape {values.shape} of {dimension} for {len(rows)} media")
    return scores


def _apart(name: str, scores: np.ndarray, scorer: Any, sounds: bool) -> None:
    """scores: [prompts, media]"""
    least = NOTHING * max(1e-12, float(np.abs(scores).max()))
    what = "sound" if sounds else "picture"
    if np.ptp(scores) <= least:
        problem = (
            f"gives {scores[0, 0]:g} to everything: {what}s as unlike as can be, and prompts that fit them or do not"
        )
    elif np.ptp(scores, axis=1).max() <= least:
        problem = f"gives two {what}s as unlike as can be the same score: it judges the prompt alone"
    elif getattr(scorer, "reads_prompts", False) and np.ptp(scores, axis=0).max() <= least:
        problem = f"gives a {what} the same score whatever its prompt"
    else:
        return
    mend = "are its weights the right ones? A scorer that rightly does so says `golden = None`"
    raise ConfigError(f"scorer {name} {problem}; {mend}")


def _alone(
    name: str, scorer: Any, rows: Sequence[tuple[str, Any]], together: Mapping[str, np.ndarray], rounding: float
) -> None:
    """The first and the last pair once more, each alone."""
    for place in (len(rows) - 1, 0):
        alone = _scores(name, scorer, [rows[place]])
        for dimension, values in together.items():
            allowed = NEAR * float(np.ptp(values)) + rounding * float(np.abs(values).max())
            one = float(alone[dimension][0]) if dimension in alone else np.nan
            if not abs(one - values[place]) <= allowed:
                again = _scores(name, scorer, rows).get(dimension, values)
                if not np.abs(again - values).max() <= allowed:
                    return  # it says another thing every time, whatever the batch: a noisy judge
                raise ConfigError(
                    f"scorer {name} gives {one:.6g} of {dimension} to a sample alone and {values[place]:.6g} to it "
                    "among others: its scores depend on the batch (a softmax over it?), and cannot be compared"
                )


def _pictures() -> list[Image.Image]:
    circle, square = Image.new("RGB", (SIZE, SIZE), "white"), Image.new("RGB", (SIZE, SIZE), "black")
    inside = (SIZE // 4, SIZE // 4, 3 * SIZE // 4, 3 * SIZE // 4)
    ImageDraw.Draw(circle).ellipse(inside, fill="red")
    ImageDraw.Draw(square).rectangle(inside, fill="blue")
    return [circle, square]


def _sounds() -> list[tuple[np.ndarray, int]]:
    """(waveform [1, L], rate)"""
    times = np.arange(SECONDS * RATE) / RATE
    tone, noise = 0.3 * np.sin(2 * np.pi * 880 * times), 0.3 * np.random.default_rng(0).normal(size=len(times))
    return [(wave[None].astype(np.float32), RATE) for wave in (tone, noise)]
