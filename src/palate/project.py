"""A project folder: what raters are asked, how often, and where the facts are.

project/
  project.yaml      ProjectSettings
  instructions.md   shown to raters
  palate.db         SQLite, unless `database` names a PostgreSQL
  media/ab/abcd...  by content hash
  tokens            of raters, mode 0600; the store holds hashes only
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from palate import durable, strict
from palate.records import OVERALL
from palate.strict import ConfigError, Strict

SETTINGS = "project.yaml"
INSTRUCTIONS = "instructions.md"
DATABASE = "PALATE_DATABASE"  # the environment variable that names another database, with a password if need be

WELCOME = """\
# What to do

Look at what is shown, read the prompt, and say which is better. There is no right answer: it is your taste that counts.

- If both are equally good, say so: a tie is an answer.
- If both are bad, say that.
- Skip what is broken, what you would rather not look at, and what you cannot judge.
"""


class ChoiceSettings(Strict):
    """Answers beyond left and right."""

    tie: bool = Field(True, description="Equally good.")
    both_bad: bool = Field(True, description="Neither is any good.")
    skip: bool = Field(True, description="No judgement, with a reason. What is broken may always be skipped.")


class ProjectSettings(Strict):
    """What raters are asked, and how."""

    id: str = Field("", description="By which the project's database is known; made with the folder.")
    title: str = Field("Which do you prefer?", min_length=1, max_length=200, description="Shown to raters.")
    questions: dict[str, str] = Field(
        default_factory=lambda: {OVERALL: "Which is better?"},
        min_length=1,
        max_length=8,
        description="Dimension and the words it is asked in, in this order.",
    )
    kind: Literal["pair", "ranking"] = Field("pair", description="Two at a time, or several to be put in order.")
    show: int = Field(2, ge=2, le=8, description="How many are shown at once; 2 for pairs.")
    votes_per_comparison: int = Field(3, ge=1, description="Distinct raters that judge each comparison.")
    choices: ChoiceSettings = Field(default_factory=ChoiceSettings, description="Answers beyond left and right.")
    known_share: float = Field(0.05, ge=0, le=0.5, description="Share of known pairs mixed in, where there are any.")
    repeat_share: float = Field(0.05, ge=0, le=0.5, description="Share of a rater's own comparisons shown again.")
    lease_minutes: float = Field(10, gt=0, description="How long a comparison waits for the rater it was given to.")
    blur: bool = Field(False, description="Blur sensitive media until the rater looks.")
    locked_until_loaded: bool = Field(True, description="No answer before everything that is compared was loaded.")
    database: str | None = Field(
        None, description="URL of a PostgreSQL, without a password; null for SQLite in the folder."
    )

    @field_validator("questions")
    @classmethod
    def _words(cls, questions: dict[str, str]) -> dict[str, str]:
        for dimension, words in questions.items():
            if not dimension.strip() or not words.strip():
                raise ValueError(f"question {dimension!r} must have a name and words")
        return questions

    @field_validator("database")
    @classmethod
    def _no_password(cls, url: str | None) -> str | None:
        if url is not None and urlsplit(url).password is not None:
            # The value itself must not be in the message, which is printed.
            raise ValueError(f"holds a password: leave it out and give it by PGPASSWORD, ~/.pgpass or {DATABASE}")
        return url


def create(folder: str | Path, settings: ProjectSettings | None = None) -> ProjectSettings:
    """Makes the folder with its settings and instructions; one that is there already keeps its own.

    Raises ConfigError if the folder holds other files but no project.
    """
    folder = Path(folder)
    if (folder / SETTINGS).is_file():
        return read(folder)
    known = {INSTRUCTIONS, "tokens", "media", durable.LOCK}
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    # What a kill left of writing a file here is no reason to refuse.
    if others := [name for name in found if name not in known and not name.startswith(durable.ASIDE)]:
        raise ConfigError(f"{folder} holds {others[0]} and is no project: choose an empty or a new folder")
    settings = settings or ProjectSettings()
    if not settings.id:
        settings = settings.model_copy(update={"id": secrets.token_hex(8)})
    durable.make_folder(folder)
    if not (folder / INSTRUCTIONS).exists():
        (folder / INSTRUCTIONS).write_text(WELCOME, encoding="utf-8")
    durable.write_bytes(folder / SETTINGS, strict.to_yaml(settings).encode())
    return settings


def read(folder: str | Path) -> ProjectSettings:
    """Raises ConfigError if the folder is no project, or its settings cannot be."""
    path = Path(folder) / SETTINGS
    if not path.is_file():
        raise ConfigError(f"{folder} is no project: it has no {SETTINGS}; make one by palate sample ... --project")
    return strict.load(path, (), ProjectSettings)


def instructions(folder: str | Path) -> str:
    """What raters are to read; the words that come with a new project where there are none."""
    path = Path(folder) / INSTRUCTIONS
    return path.read_text(encoding="utf-8") if path.is_file() else WELCOME


def database_url(folder: str | Path, settings: ProjectSettings) -> str | None:
    """The PostgreSQL of the project, None for SQLite. The environment comes before the settings."""
    return os.environ.get(DATABASE) or settings.database
