"""How fast a pipeline's videos and sounds run, as far as it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palate.models.probe import call_parameters
from palate.wire import FRAME_RATE

ASKED = "frame_rate"  # the argument of a model's call that says it, also where the pipeline's own call knows none
_OF_CALLS = (ASKED, "fps")
_OF_PARTS = ("output_sampling_rate", "sampling_rate", "sample_rate")


def frame_rate(pipeline: Any, call: Mapping[str, Any]) -> float:
    """Frames a second: what the call is given, else what it takes by default, else FRAME_RATE."""
    known = call_parameters(pipeline)
    given = [call[name] for name in _OF_CALLS if name in call]
    usual = [known[name].default for name in _OF_CALLS if name in known]
    return next((float(rate) for rate in (*given, *usual) if isinstance(rate, int | float)), FRAME_RATE)


def sample_rate(pipeline: Any) -> int:
    """Samples of a sound a second, as the part that makes it says, or the pipeline itself; 0 if neither does."""
    for part in ("vocoder", "vae", "audio_vae"):
        config = getattr(getattr(pipeline, part, None), "config", None)
        for name in _OF_PARTS:
            if isinstance(rate := getattr(config, name, None), int) and rate > 0:
                return rate
    rate = getattr(pipeline, "sample_rate", 0)
    return rate if isinstance(rate, int) else 0


def without_rate(pipeline: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call that the pipeline takes: without a rate that it does not know."""
    known = call_parameters(pipeline)
    return {name: value for name, value in call.items() if name != ASKED or name in known}
