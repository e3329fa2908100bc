"""What a store refuses."""

from __future__ import annotations


class StoreError(ValueError):
    """A store cannot do what is asked; the message names what it is about and the mend."""


class StoreFull(StoreError):
    """The disk of the database has no room; nothing of what was asked was stored."""
