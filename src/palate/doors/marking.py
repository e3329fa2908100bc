"""Which comparisons of a project are known pairs, to test raters by, and which are sensitive.

A file of known pairs, JSONL or CSV, one a row:

    {"comparison": "4f1c...", "expected": "<sample id>"}
    {"prompt": "a red cat", "a": "good.png", "b": "noise.png", "expected": "a", "dimension": "overall"}

a, b: ids of samples, hashes of media of the project, or files beside the table, which come into the project with it:
videos as Palate writes them, so that their make tells raters nothing, unless the project's own are of the file's type
and by others.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from palate import kinds, media, prompts, tables, webm
from palate.config import ConfigError
from palate.doors.hands import KNOWN, Hand, hand, reading
from palate.doors.shown import comparison_id
from palate.media import MediaError
from palate.records import Comparison, Medium, Ranking, Sample, Vote, now
from palate.store import Amendment
from palate.store.medium import checked
from palate.views import folded

COLUMNS = ("comparison", "prompt", "a", "b", "expected", "dimension")
LISTED = ("samples", "media", "sources", "batch", "sensitive", "judged")  # what `listing` tells beside them


def listing(folder: Path) -> None:
    """Prints every comparison as a line of JSON: its id, what it shows, whether it is known or sensitive, and how many
    judged it. With `expected` filled in, such lines are a table of known pairs."""
    with reading(folder) as store:
        samples = {made.id: made for made in store.samples()}
        judged: dict[str, set[str]] = {}
        judgements: list[Vote | Ranking] = [*store.votes(), *store.rankings()]
        for said in judgements:
            if not said.repeat and not (isinstance(said, Vote) and said.choice == "skip"):
                judged.setdefault(said.comparison, set()).add(said.source)
        for made in store.comparisons():
            shown = [samples[name] for name in made.samples]
            row = {
                "comparison": made.id,
                "prompt": made.prompt,
                "samples": made.samples,
                "media": [sample.medium.path for sample in shown],
                "sources": [sample.source for sample in shown],
                "batch": made.batch,
                "expected": made.expected,
                "dimension": made.dimension if made.expected else "",
                "sensitive": made.sensitive,
                "judged": len(judged.get(made.id, ())),
            }
            print(json.dumps(row, ensure_ascii=False))


@dataclass(frozen=True)
class Row:
    """A row of a table of known pairs, with where it stands; "" for what it does not say."""

    where: str
    comparison: str = ""
    prompt: str = ""
    a: str = ""
    b: str = ""
    expected: str = ""
    dimension: str = ""

    def refused(self, why: str) -> ConfigError:
        return ConfigError(f"{self.where}: {why}")


def known(
    folder: Path,
    file: Path | None = None,
    *,
    comparison: str = "",
    expected: str = "",
    dimension: str = "",
    unmark: bool = False,
) -> None:
    """Says which comparisons have an answer that is plain, by the rows of a file or by one comparison's id.

    expected: the sample that wins it. dimension: the question it answers, of rows that name none; "" the first.
    unmark: they are ordinary again. Again: nothing. Raises ConfigError naming the file, the row and the mend, before
    anything is changed.
    """
    rows = list(read(file)) if file is not None else [Row(f"--comparison {comparison}", comparison, expected=expected)]
    with hand(folder) as held, TemporaryDirectory(prefix="palate-") as aside:
        finder = _Finder(held, file.parent if file is not None else Path(), Path(aside))
        questions = held.store.settings.questions
        for row in rows:
            asked = row.dimension or dimension or next(iter(questions))
            if asked not in questions:
                raise row.refused(f"question {asked!r} is none of the project's, {', '.join(questions)}")
            finder.take(row, asked, unmark)
        if finder.new and held.studio is not None:
            raise finder.new[0].row.refused(
                f"the project does not hold this pair yet, and the studio at {held.studio.base} has it open: stop that "
                "by Ctrl-C, run this again, and start it again"
            )
        held.store.add_samples(finder.samples()) if finder.new else None
        added = held.store.add_comparisons(new.comparison for new in finder.new) if finder.new else 0
        changed = held.amend(list(finder.amendments.values()))
        total = sum(1 for made in held.store.comparisons() if made.expected)
    print(f"{total} known pairs in {folder} ({added} new, {changed} changed)")


def sensitive(
    folder: Path,
    *,
    comparisons: Iterable[str] = (),
    samples: Iterable[str] = (),
    prompt_file: Path | None = None,
    like: Iterable[str] = (),
    matching: Iterable[str] = (),
    unmark: bool = False,
) -> None:
    """Says which comparisons are sensitive: by id, by a sample that they show, by their prompt.

    prompt_file: of prompts. like: globs, and matching: regular expressions, of prompts, whatever the case. Raises
    ConfigError for an id that is not there, or where nothing is found.
    """
    tests = [_glob(pattern) for pattern in like] + [_expression(pattern) for pattern in matching]
    texts = {folded(made.text) for made in prompts.read(prompt_file)} if prompt_file is not None else set()
    ids, shows = set(comparisons), set(samples)
    with hand(folder) as held:
        everything = list(held.store.comparisons())
        _require(folder, "comparison", ids, (made.id for made in everything))
        _require(folder, "sample", shows, (made.id for made in held.store.samples()))
        found = [
            made
            for made in everything
            if made.id in ids
            or shows.intersection(made.samples)
            or folded(made.prompt) in texts
            or any(test(made.prompt) for test in tests)
        ]
        if not found:
            raise ConfigError(f"no comparison of {folder} is meant: {len(everything)} were looked at")
        changed = held.amend([Amendment(made.id, sensitive=not unmark) for made in found])
        blur = held.store.settings.blur
    what = "not sensitive any more" if unmark else "sensitive"
    print(f"{len(found)} comparisons of {len({made.prompt for made in found})} prompts are {what} ({changed} changed)")
    if not unmark:
        seen = "blurred until asked for" if blur else "not blurred (blur: true in project.yaml would)"
        print(f"they are {seen}, and not shown to raters who ask to be spared")


def _glob(pattern: str) -> Callable[[str], bool]:
    return lambda prompt: fnmatch.fnmatchcase(prompt.casefold(), pattern.casefold())


def _expression(pattern: str) -> Callable[[str], bool]:
    try:
        found = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ConfigError(f"--matching {pattern!r} is no regular expression ({error}); --like takes * and ?") from None
    return lambda prompt: found.search(prompt) is not None


def _require(folder: Path, what: str, wanted: set[str], there: Iterable[str]) -> None:
    if missing := sorted(wanted - set(there)):
        raise ConfigError(f"{folder} holds no {what} {missing[0]!r}; palate project comparisons {folder} tells all ids")


def read(file: Path) -> Iterator[Row]:
    """The rows of a table. Raises ConfigError naming the row and the mend, DatasetError for a file that is no table."""
    if not file.is_file():
        raise ConfigError(f"{file} does not exist: a table of known pairs, .jsonl or .csv, is wanted")
    empty = True
    for where, raw in tables.table_rows(file):
        empty = False
        if isinstance(raw, tables.Flaw):
            raise ConfigError(f"{where} {raw.reason}")
        yield _row(where, raw)
    if empty:
        raise ConfigError(f"{file} holds no rows: one for each known pair")


def _row(where: str, raw: Mapping[str, Any]) -> Row:
    said = {name: value for name, value in raw.items() if value not in (None, "") and name not in LISTED}
    if unknown := [name for name in said if name not in COLUMNS]:
        raise ConfigError(f"{where}: {unknown[0]!r} is not known; a row may have {', '.join(COLUMNS)}")
    for name, value in said.items():
        if not isinstance(value, str):
            raise ConfigError(f"{where}: {name} must be a text, got {tables.short(value)}")
    row = Row(where, **said)
    if bool(row.comparison) == bool(row.a or row.b):
        raise row.refused("name either the comparison, or the two samples as a and b")
    if bool(row.a) != bool(row.b):
        raise row.refused("name both a and b")
    return row


@dataclass(frozen=True)
class _New:
    """A pair that the project does not hold. files: of its samples that come with it, by their ids."""

    row: Row
    comparison: Comparison
    files: Mapping[str, Path] = field(default_factory=dict)


class _Finder:
    """What rows are about: amendments of comparisons that are there, and pairs that are new."""

    def __init__(self, held: Hand, beside: Path, aside: Path) -> None:
        self.amendments: dict[str, Amendment] = {}
        self.new: list[_New] = []
        self._beside, self._wanted = beside, held.store.settings.votes_per_comparison
        self._folder = held.store.folder
        self._comparisons = {made.id: made for made in held.store.comparisons()}
        self._showing = {frozenset(made.samples): made for made in self._comparisons.values()}
        self._samples = {made.id: made for made in held.store.samples()}
        paths = ((Path(made.medium.path or "").stem, made) for made in self._samples.values())
        self._by_medium: dict[tuple[str, str], Sample] = {(sha256, made.prompt): made for sha256, made in paths}
        self._aside = aside  # for videos that are encoded anew, which are large
        self._encoded: dict[Path, Path] = {}

    def take(self, row: Row, dimension: str, unmark: bool) -> None:
        files: dict[str, Path] = {}
        prompt = row.prompt or self._prompt(row)
        if row.comparison:
            comparison = self._comparisons.get(row.comparison)
            if comparison is None:
                raise row.refused(
                    f"the project holds no comparison {row.comparison!r}; palate project comparisons tells all ids"
                )
            names: Sequence[str] = comparison.samples
        else:
            names = [self._sample(row, side, prompt, files, unmark) for side in (row.a, row.b)]
            if names[0] == names[1]:
                raise row.refused("a and b are the same sample: a pair takes two")
            comparison = self._showing.get(frozenset(names))
        if unmark:
            if comparison is None:
                raise row.refused("the project holds no such comparison, so that there is nothing to unmark")
            self.amendments[comparison.id] = Amendment(comparison.id, expected="")
            return
        expected = self._expected(row, names)
        if comparison is None:
            name = comparison_id("", names)
            made = Comparison(name, prompt, tuple(names), self._wanted, expected=expected, dimension=dimension)
            self.new.append(_New(row, made, files))
            self._showing[frozenset(names)] = made
        elif comparison.id in self._comparisons:
            self.amendments[comparison.id] = Amendment(comparison.id, expected=expected, dimension=dimension)
        elif (comparison.expected, comparison.dimension) != (expected, dimension):
            raise row.refused("an earlier row says another thing of the same pair; leave one of them out")

    def _prompt(self, row: Row) -> str:
        for side in (row.a, row.b):
            if side in self._samples:
                return self._samples[side].prompt
        if row.comparison:
            return ""
        raise row.refused("no prompt: it may be left out where a or b is the id of a sample")

    def _sample(self, row: Row, name: str, prompt: str, files: dict[str, Path], unmark: bool) -> str:
        """The id of a sample by its id, its medium's hash, or a file, which becomes one."""
        if (sample := self._samples.get(name)) is not None:
            if sample.prompt != prompt:
                raise row.refused(f"sample {name!r} is of the prompt {sample.prompt!r}, not {prompt!r}")
            return name
        if (sample := self._by_medium.get((name.rpartition("/")[2].partition(".")[0], prompt))) is not None:
            return sample.id
        try:
            path = media.inside(self._beside, name)
            if not path.is_file():
                raise row.refused(f"{name!r} is no sample of the project, no hash of a medium of it, and no file")
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            if (sample := self._by_medium.get((sha256, prompt))) is not None:
                return sample.id
            # By what the file holds, however it is encoded: the same file is the same sample ever after.
            made = hashlib.blake2b("\x1f".join((KNOWN, prompt, sha256)).encode(), digest_size=12).hexdigest()
            if made not in self._samples and not unmark:
                files[made] = path
                self._medium(path)
        except MediaError as error:
            raise row.refused(f"{name!r} cannot be shown: {error}") from None
        return made

    def _expected(self, row: Row, names: Sequence[str]) -> str:
        sides = {"a": names[0], "b": names[1], row.a: names[0], row.b: names[1]} if row.a else {}
        given = sides | {name: name for name in names}
        if not row.expected:
            raise row.refused("no expected: say which sample wins" + (", a or b" if row.a else ""))
        if row.expected not in given:
            raise row.refused(f"expected {row.expected!r} is none of the samples, {', '.join(names)}")
        return given[row.expected]

    def _medium(self, path: Path) -> Medium:
        """A file as it comes into the project. Raises MediaError if it cannot be shown, or encoded as it must be."""
        if path in self._encoded:
            return Medium("video/webm", self._encoded[path].read_bytes())
        content, kind = _content(path)
        if not kind.startswith("video/") or kind == self._foreign or _is_own(content):
            return checked(content, kind)
        video = kinds.read(Medium(kind, content))
        self._encoded[path] = kinds.keep(self._aside, str(len(self._encoded)), video)
        return self._medium(path)

    @cached_property
    def _foreign(self) -> str:
        """The type of the project's videos where others made them; of earlier known pairs nothing follows."""
        for made in self._samples.values():
            if made.medium.type.startswith("video/") and made.source != KNOWN:
                content = media.medium_bytes(made.medium, self._folder)
                return "" if made.medium.type == "video/webm" and _is_own(content) else made.medium.type
        return ""

    def samples(self) -> Iterator[Sample]:
        """Those that come in as files."""
        at = now()
        for new in self.new:
            for name, path in new.files.items():
                yield Sample(name, new.comparison.prompt, self._medium(path), KNOWN, at)


def _is_own(content: bytes) -> bool:
    """Whether a WebM is as Palate writes it."""
    try:
        return bool(webm.measure(content))
    except MediaError:
        return False


def _content(path: Path) -> tuple[bytes, str]:
    """Bytes and type of a file; of a text, which no first bytes show, its name tells."""
    content = path.read_bytes()
    shown = media.type_of_bytes(content)
    return content, media.type_of_path(path.name) if shown == media.UNKNOWN else shown
