"""The hub is asked once: what is on this disk is used without it, and what is not is said to be nowhere."""

from __future__ import annotations

from typing import Any

import huggingface_hub
import pytest

from palate.models import hub


def fails(*_: Any, **__: Any) -> None:
    raise ConnectionError("Name or service not known")


@pytest.mark.parametrize("here", [True, False])
def test_out_of_reach_only_what_is_here_is_loaded(monkeypatch: pytest.MonkeyPatch, here: bool) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fails)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "/a/file" if here else None)
    if here:
        assert not hub.reached("owner/name")
        return
    with pytest.raises(
        FileNotFoundError, match=r"owner/name: .* the hub cannot be reached \(Name or service not known\)"
    ):
        hub.reached("owner/name")


def test_one_call_is_made_and_not_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda _, name, timeout: asked.append((name, timeout)))
    assert hub.reached("owner/name")
    assert asked == [("owner/name", hub.TIMEOUT)]
