"""Which of several workers tries the service first, and whether it answered: told by small objects in the output."""

from __future__ import annotations

import uuid
from functools import cached_property
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pipeline.storage import Store

FOLDER: Final = "trial"


class Trial:
    """The start of one run, as one of its workers sees it.

    The one that puts its name down first is the one who tries. On an object store two that do so at the same moment may
    both think that it is they: then two try, and nothing is wrong.
    """

    def __init__(self, store: Store, run: str) -> None:
        self._store = store
        self._run = run

    @cached_property
    def mine(self) -> bool:
        """Whether this worker is the one who tries."""
        if self._store.local:
            return self._store.write_new(f"{FOLDER}/{self._run}.first", b"")
        if any(name.startswith(f"{self._run}.") for name in self._store.names(FOLDER)):
            return False
        self._store.write(f"{FOLDER}/{self._run}.{uuid.uuid4().hex}", b"")
        return True

    @property
    def is_over(self) -> bool:
        """Whether the service has answered one of the workers."""
        return self._store.exists(f"{FOLDER}/{self._run}.open")

    def end(self) -> None:
        """Say that the service has answered."""
        self._store.write(f"{FOLDER}/{self._run}.open", b"")
