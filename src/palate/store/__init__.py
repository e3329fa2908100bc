"""A project folder's facts and the work of its raters, in SQLite or PostgreSQL: see `palate.store.core`."""

from palate.store.amending import Amendment
from palate.store.answers import Receipt
from palate.store.core import Progress, Store
from palate.store.errors import StoreError, StoreFull, StoreUnavailable
from palate.store.leases import Lease
from palate.store.raters import Rater
from palate.store.snapshots import Snapshot

__all__ = [
    "Amendment",
    "Lease",
    "Progress",
    "Rater",
    "Receipt",
    "Snapshot",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
]
