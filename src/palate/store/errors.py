"""What a store refuses."""

from __future__ import annotations


class StoreError(ValueError):
    """A store cannot do what is asked; the message names what it is about and the mend."""


class StoreUnavailable(StoreError):
    """The database cannot be used at this moment: locked, its disk failing, its server gone.

    It says nothing about what was asked, of which nothing may be lost: the same call is to be made again.
    """


class StoreFull(StoreUnavailable):
    """The disk of the database has no room; nothing of what was asked was stored."""
