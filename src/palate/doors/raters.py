"""Raters of a project: who they are and how they fare, shut out, or forgotten on their request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from palate import agreement
from palate.config import ConfigError
from palate.doors.hands import hand, reading
from palate.store import Rater, Store, StoreError


def table(folder: Path) -> None:
    """Prints a line for each rater: judgements, known pairs, repeats, and flags with their reasons."""
    with reading(folder) as store:
        found, raters = _work(store), store.raters()
        if not raters:
            print(f"{folder} has no raters yet; palate label --project {folder} makes links for the first")
        rows = [("id", "name", "role", "judged", "known right", "repeats alike", "seconds", "")]
        for rater in raters:
            work = found.get(rater.id)
            said = _told(work) if work else ("0", "-", "-", "-")
            rows.append((rater.id, rater.name, rater.role, *said, "revoked" if rater.revoked else ""))
        others = sorted(set(found) - {rater.id for rater in raters})
        rows += [(name, "", "", *_told(found[name]), "no rater of the studio, or erased") for name in others]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows if len(rows) > 1 else []:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
            for flag in found[row[0]].flags if row[0] in found else ():
                print(f"    flag: {flag}")


def revoke(folder: Path, who: str) -> None:
    """Their link lets nobody in any more; what they said stays. who: an id, or a name that one rater has."""
    with hand(folder) as held:
        rater = _found(folder, held.store, who)
        held.revoke(rater.id)
    print(f"{rater.name} ({rater.id}) cannot come in any more; what they said stays")


def erase(folder: Path, who: str, *, votes: bool, yes: bool) -> bool:
    """Forgets who a rater was and, with `votes`, deletes all they said; whether it was done.

    yes: without asking. Raises ConfigError for nobody, or several, of that name.
    """
    with hand(folder) as held:
        rater = _found(folder, held.store, who)
        said = _said(held.store, rater.id)
        print(f"{rater.name} ({rater.id}): the name and the link are deleted, also from {folder / 'tokens'}")
        if votes:
            print(f"{said} are deleted, and their places are free for others; snapshots that hold them are refused")
        else:
            print(f"{said} stay, under {rater.id}, which says nothing of who that was; --votes deletes them, too")
        print("data that was exported before is not touched. That it was done, and when, is noted in the project")
        if not yes and not _agreed():
            print("nothing was changed")
            return False
        removed = held.erase(rater.id, votes)
    print(f"{rater.id} is forgotten; {removed} facts were deleted")
    return True


def on_known_pairs(folder: Path) -> Iterator[str]:
    """Lines of how raters did on known pairs; none where there are none, or nothing was added yet."""
    try:
        store = reading(folder)
    except StoreError:
        return
    with closing(store):
        pairs = sum(1 for made in store.comparisons() if made.expected)
        if not pairs:
            return
        found, names = _work(store), {rater.id: rater.name for rater in store.raters()}
    shares = [work.known for work in found.values()]
    total = agreement.share(sum(one.k for one in shares), sum(one.n for one in shares))
    of = f", {_share(total)} of the answers right" if total.n else ", not answered yet"
    yield f"{pairs} known pairs{of}"
    for name, work in found.items():
        if work.known.n:
            yield f"  {names.get(name, name)}: {_share(work.known)}" + "".join(f"; {flag}" for flag in work.flags)


def _work(store: Store) -> dict[str, agreement.Rater]:
    """How each who judged fares in the first question, and in all known pairs."""
    first = next(iter(store.settings.questions))
    found = agreement.raters(store.votes(), store.comparisons(), first, rankings=store.rankings())
    return {rater.id: rater for rater in found}


def _told(work: agreement.Rater) -> tuple[str, str, str, str]:
    seconds = "-" if work.seconds is None else f"{work.seconds:.1f}"
    return str(work.votes), _share(work.known), _share(work.repeats), seconds


def _share(share: agreement.Share) -> str:
    return f"{share.k} of {share.n} ({share.share:.0%})" if share.n else "-"


def _said(store: Store, rater: str) -> str:
    votes = sum(vote.source == rater for vote in store.votes(retracted=True))
    rankings = sum(ranking.source == rater for ranking in store.rankings(retracted=True))
    return f"{votes} votes and {rankings} rankings (those taken back among them)"


def _found(folder: Path, store: Store, who: str) -> Rater:
    raters = store.raters()
    found = [rater for rater in raters if rater.id == who] or [rater for rater in raters if rater.name == who]
    if not found:
        raise ConfigError(f"{folder} has no rater {who!r}; palate project raters {folder} lists them")
    if len(found) > 1:
        raise ConfigError(f"{len(found)} raters are called {who!r}: give one's id, {', '.join(r.id for r in found)}")
    return found[0]


def _agreed() -> bool:
    try:
        return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False
