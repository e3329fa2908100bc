"""What may leave this machine in a text that others will read: no paths, no secrets, no names of its users.

private = Private.of(recipe)         # learns user names from the paths in it, and from this machine
private.scrub("by alice, hf_...")    # free text with what must stay taken out
private.name("runs/x", place=True)   # a public name, or None for what is not plainly one
"""

from __future__ import annotations

import contextlib
import getpass
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TOKENS = re.compile(
    r"""(?x)
    \b(?:hf|gh[pousr]|github_pat|glpat|xox[abprs]|sk|pk|rk|wandb)[_-][\w-]{8,}   # prefixes of well-known services
  | \bA[KS]IA[0-9A-Z]{12,} | \bAIza[\w-]{20,} | \beyJ[\w-]{8,}(?:\.[\w-]+)*      # AWS, Google, JSON web tokens
  | \b(?=[A-Za-z0-9]*[A-Za-z])(?=(?:[A-Za-z]*\d){3})[A-Za-z0-9]{20,}\b           # long runs of letters and digits
  | (?i:\b(?:token|secret|passw(?:or)?d|api[_-]?key|authorization|bearer)\b\s*[=:]?\s*(?=\S*\d)\S+)
    """
)
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]+@")
_ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
_PATH = re.compile(
    r"""(?x)
    file:\S+
  | (?<=')(?:~?/|[A-Za-z]:[\\/])[^'\n]*(?=')        # quoted, with spaces in it
  | (?<=")(?:~?/|[A-Za-z]:[\\/])[^"\n]*(?=")
  | (?<![\w/.)])/[^\s/'"`|]+(?:/[^\s'"`|]*)?      # /home/...
  | (?<!\w)~[\w.-]*(?:/[^\s'"`|]*)?                # ~, ~/..., ~user/...
  | (?<!\w)(?:\.\.?/)+[^\s'"`|]*                   # ./..., ../...
  | \b[A-Za-z]:[\\/][^\s'"`|]*                     # C:\...
  | \\\\[^\s'"`|]+                                 # \\server\share
  | (?:\$\{?\w+\}?|%\w+%)[\\/][^\s'"`|]*           # $HOME/..., %USERPROFILE%\...
    """
)
_USERS = re.compile(r"(?i)(?:/home/|/users/|\\users\\|~)([\w.-]+)")
_NOBODY = {"admin", "data", "home", "public", "root", "runner", "shared", "ubuntu", "user", "users", "work"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_NAME = re.compile(r"\w[\w.:+-]*(?:/[\w.-]+)?")


def strings(tree: Any) -> Iterator[str]:
    """All texts in nested mappings and lists, keys included."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from strings(key)
            yield from strings(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from strings(value)


@dataclass(frozen=True)
class Private:
    """What is private here. users: names that must not leave, in lower case."""

    users: frozenset[str]

    @classmethod
    def of(cls, tree: Any) -> Private:
        """The user of this machine, and every user that a path in the tree belongs to."""
        found = {Path.home().name, *(user for text in strings(tree) for user in _USERS.findall(text))}
        with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
            found.add(getpass.getuser())
        names = {user.strip(".").lower() for user in found}
        return cls(frozenset(name for name in names if len(name) > 2 and name not in _NOBODY))

    def scrub(self, text: str) -> str:
        """The text with secrets, addresses, paths and user names replaced by what they were."""
        for pattern, stand_in in (
            (_CREDENTIALS, ""),
            (_ADDRESS, "(address)"),
            (_TOKENS, "(secret)"),
            (_PATH, "(path)"),
        ):
            text = pattern.sub(stand_in, text)
        for user in sorted(self.users, key=len, reverse=True):
            text = re.sub(rf"(?i)(?<![a-z0-9]){re.escape(user)}(?![a-z0-9])", "(name)", text)
        return text

    def name(self, text: str, *, place: bool = False) -> str | None:
        """The text if it is a name that says nothing of this machine: of a layer, a scorer, `world:...`, a hub id.

        place: it may be a file or folder here, which has no name elsewhere.
        """
        if not _NAME.fullmatch(text) or self.scrub(text) != text or len(text) > 120:
            return None
        if text.startswith("world:"):
            return text
        run = text.partition(":")[2]  # of `implicit:<run>`
        if (place and not self._on_hub(text)) or (run and Path(run).exists()):
            return None
        return text

    def _on_hub(self, text: str) -> bool:
        here = Path(text).exists() or Path(text.partition("/")[0]).is_dir()
        return bool(_HUB_ID.fullmatch(text)) and not here
