"""A scorer that runs elsewhere, behind the small JSON protocol of `docs/http_scorers.md`.

    http:127.0.0.1:8765                    what `palate serve-scorer NAME --port 8765` serves
    http:https://judge.example#1f2e3d4c    by its address, and only while it says this fingerprint

For scorers whose packages need an environment of their own. The token is PALATE_SCORER_TOKEN, or the file that
PALATE_SCORER_TOKEN_FILE names; for a server on this machine, else the one that the server made.

Scores come back by the samples' ids. A reply that lacks one, holds another, or holds what is no number is refused as a
whole: no score is ever made up or moved. `null` (or NaN) is a sample that could not be judged, NaN here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from palate import remote, wire
from palate.models.contracts import Media
from palate.prompts import rows_by_prompt
from palate.remote import RemoteError, Service

PROTOCOL = "palate-scorer/1"
CHECK_EVERY = 100  # calls between two looks at who is answering
_BYTES_AT_ONCE = 32 * 2**20  # of media in a call


class HttpScorer:
    """`{dimension: [n]}` as the server gives them. unknown: samples so far that it could not judge in some dimension.

    Nothing is asked before the first call, or before `dimensions` or `check` is.
    """

    golden = None  # what it judges is known to its server alone, which makes the check for what it serves

    def __init__(self, service: Service, fingerprint: str = "") -> None:
        """fingerprint: the one that the server must say, "" for whichever it says first."""
        self._service, self._pinned = service, fingerprint
        self._health: dict[str, Any] | None = None
        self._calls = 0
        self.unknown = 0

    @property
    def dimensions(self) -> tuple[str, ...]:
        """What the server says it gives; empty if it says nothing."""
        return tuple(self._known()["dimensions"])

    @property
    def groupwise(self) -> bool:
        """Whether the server says that its scores compare candidates of one call only."""
        return bool(self._known()["groupwise"])

    @property
    def judges(self) -> tuple[str, ...]:
        """Which kinds of media the server says it judges; empty if it says nothing."""
        return tuple(self._known()["judges"])

    @property
    def fingerprint(self) -> str:
        return str(self._known()["fingerprint"])

    def check(self, prompts: Sequence[str]) -> None:
        """Raises Unavailable or RemoteError, before anything is sampled, for a server that is not the right one."""
        self._known()

    def __call__(self, prompts: Sequence[str], media: Sequence[Media]) -> dict[str, np.ndarray]:
        if len(prompts) != len(media):
            raise ValueError(f"{len(prompts)} prompts for {len(media)} media")
        parts: list[dict[str, np.ndarray]] = []
        order: list[int] = []
        for rows, entries in _portions(self._groups(prompts), media, self._known()["max_items"]):
            parts.append(self._ask([prompts[row] for row in rows], entries))
            order += rows
        if not parts:
            return {name: np.zeros(0) for name in self.dimensions}
        names = list(parts[0])
        for part in parts[1:]:
            if list(part) != names:
                raise self._refused(f"gave {', '.join(part)} after {', '.join(names)}")
        back = np.argsort(order)
        scores = {name: np.concatenate([part[name] for part in parts])[back] for name in names}
        self.unknown += int(np.any([np.isnan(values) for values in scores.values()], axis=0).sum())
        return scores

    def _groups(self, prompts: Sequence[str]) -> list[list[int]]:
        """Rows that stay in one request: each by itself, or all of a prompt where scores compare its candidates.

        Raises RemoteError for a prompt with more of them than a request may hold.
        """
        if not self.groupwise:
            return [[row] for row in range(len(prompts))]
        groups = rows_by_prompt(prompts)
        most = self._known()["max_items"]
        for prompt, rows in groups.items():
            if len(rows) > most:
                raise self._refused(
                    f"takes {most} samples at once (max_items), and compares {len(rows)} candidates of {prompt!r:.60} "
                    "only in one call: give it fewer of a prompt"
                )
        return list(groups.values())

    def _ask(self, prompts: Sequence[str], media: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        self._calls += 1
        if self._calls % CHECK_EVERY == 0:
            self._look()
        ids = [f"{self._calls}-{place}" for place in range(len(prompts))]
        asked = {"protocol": PROTOCOL, "ids": ids, "prompts": list(prompts), "media": list(media)}
        reply = self._service.call("POST", "/score", asked)
        if not isinstance(reply, dict):
            raise self._refused("replied with something else than an object")
        if "fingerprint" in reply:
            self._same(reply["fingerprint"])
        order = self._order(ids, reply.get("ids"))
        scores = reply.get("scores")
        if not isinstance(scores, dict) or not scores or not all(isinstance(name, str) and name for name in scores):
            raise self._refused("replied without `scores`, an object of lists by dimension")
        expected = set(self.dimensions)
        if expected and set(scores) != expected:
            raise self._refused(f"gave {', '.join(sorted(scores))}; it had said {', '.join(sorted(expected))}")
        return {name: self._numbers(name, scores[name], len(ids))[order] for name in sorted(scores)}

    def _order(self, asked: Sequence[str], echoed: Any) -> list[int]:
        """Where in the reply each sample's numbers stand."""
        if not isinstance(echoed, list) or not all(isinstance(name, str) for name in echoed):
            raise self._refused("did not send the `ids` back")
        place = {name: i for i, name in enumerate(echoed)}
        if len(echoed) != len(asked) or set(place) != set(asked):
            raise self._refused(f"sent {len(echoed)} ids back for {len(asked)} samples, not the same ones")
        return [place[name] for name in asked]

    def _numbers(self, name: str, values: Any, n: int) -> np.ndarray:
        if not isinstance(values, list) or len(values) != n:
            held = f"{len(values)} values" if isinstance(values, list) else "no list"
            raise self._refused(f"gave {held} of {name!r} for {n} samples")
        for value in values:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise self._refused(f"gave {value!r:.40} as a score of {name!r}, which is no number")
        try:
            numbers = np.array([math.nan if value is None else float(value) for value in values], np.float64)
        except OverflowError:
            raise self._refused(f"gave a score of {name!r} that no float holds") from None
        return np.where(np.isfinite(numbers), numbers, np.nan)

    # --- who is there -------------------------------------------------------------------------------------------------

    def _known(self) -> dict[str, Any]:
        """What the server said of itself, asked once."""
        if self._health is None:
            self._look()
        assert self._health is not None
        return self._health

    def _look(self) -> None:
        """Asks who is there. Raises RemoteError for another protocol, or another scorer than before."""
        said = self._service.call("GET", "/health")
        if not isinstance(said, dict) or said.get("protocol") != PROTOCOL:
            raise self._refused(f"does not speak {PROTOCOL}: is it the right address?")
        named, most = said.get("dimensions", []), said.get("max_items", 256)
        if not isinstance(named, list) or not all(isinstance(name, str) and name for name in named):
            raise self._refused("says `dimensions` that are no list of names")
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            raise self._refused("says `max_items` that is no number of samples")
        judged = said.get("judges", [])
        if not isinstance(judged, list) or not all(isinstance(kind, str) for kind in judged):
            raise self._refused("says `judges` that are no list of kinds of media")
        self._same(said.get("fingerprint"))
        self._health = {
            "dimensions": named,
            "max_items": most,
            "fingerprint": said["fingerprint"],
            "groupwise": said.get("groupwise") is True,
            "judges": judged,
        }

    def _same(self, fingerprint: Any) -> None:
        if not isinstance(fingerprint, str) or not fingerprint:
            raise self._refused("says no fingerprint")
        known = self._health["fingerprint"] if self._health else self._pinned
        if known and not wire.same_scorer(known, fingerprint):
            raise self._refused(
                f"is another scorer than before (fingerprint {fingerprint:.80}, not {known}): scores of two scorers do "
                "not mix. Serve the former one again"
            )

    def _refused(self, what: str) -> RemoteError:
        return RemoteError(f"{self._service.name} at {self._service.url.netloc} {what}")


def _portions(
    groups: Sequence[Sequence[int]], media: Sequence[Media], most: int
) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """Rows and encoded media of one call after the other: at most so many samples, bytes and pixels.

    No group of rows is in two calls; one with more bytes or pixels goes by itself, for the server to take or refuse.
    """
    rows: list[int] = []
    entries: list[dict[str, Any]] = []
    size = shown = 0
    for group in groups:
        made = [wire.encode(media[row]) for row in group]
        more, wide = sum(map(_length, made)), sum(wire.pixels(media[row]) for row in group)
        full = size + more > _BYTES_AT_ONCE or shown + wide > wire.MAX_PIXELS_AT_ONCE
        if rows and (full or len(rows) + len(group) > most):
            yield rows, entries
            rows, entries, size, shown = [], [], 0, 0
        rows, entries, size, shown = [*rows, *group], [*entries, *made], size + more, shown + wide
    if rows:
        yield rows, entries


def _length(entry: Mapping[str, Any]) -> int:
    return sum(len(part) for part in (entry.get("data", ""), entry.get("text", ""), *entry.get("frames", ())))


def load(address: str = "") -> HttpScorer:
    """The scorer at `host:port`, or at an http or https address; behind a # the fingerprint it must have.

    Raises RemoteError for what is no address, or a token that cannot be read or would travel unencrypted.
    """
    place, _, fingerprint = address.partition("#")
    if not place:
        raise RemoteError("the scorer http needs an address: http:127.0.0.1:8765, as palate serve-scorer prints it")
    url = _url(place)
    here = remote.is_local(remote.host_of(url))
    token = remote.read_token("PALATE_SCORER_TOKEN", remote.config_folder() / "scorer.token" if here else None)
    return HttpScorer(Service(url, "the scorer", token=token), fingerprint)


def canonical(address: str) -> str:
    """The server that an address names, however it is written and pinned."""
    return _url(address.partition("#")[0]).rstrip("/").lower()


def _url(place: str) -> str:
    return place if "://" in place else f"http://{place.lstrip('/')}"
