"""Which of several workers tries the service first, and whether it answered: told by small objects in the output."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pipeline.storage import Store

FOLDER: Final = "trial"


def forget(store: Store, run: str) -> None:
    """Strike out all names: who waits for a worker that is gone has to find another one."""
    for name in store.names(FOLDER):
        if name.startswith(f"{run}-"):
            store.delete(f"{FOLDER}/{name}")


class Trial:
    """The start of one run, as one of its workers sees it.

    Each worker puts its name down; the first name is that of the one who tries. Where two put theirs down at the same
    moment both may think that it is they: then two try, and nothing is wrong.
    """

    def __init__(self, store: Store, run: str) -> None:
        self._store = store
        self._run = run
        self._name = ""

    @property
    def mine(self) -> bool:
        """Whether this worker is the one who tries; puts its name down."""
        if not self._name:
            self._name = f"{self._run}-{time.time_ns():020d}-{uuid.uuid4().hex[:12]}"
            self._store.write(f"{FOLDER}/{self._name}", b"")
        names = [name for name in self._store.names(FOLDER) if name.startswith(f"{self._run}-")]
        return min(names, default=self._name) == self._name

    @property
    def is_over(self) -> bool:
        """Whether the service has answered one of the workers."""
        return self._store.exists(f"{FOLDER}/{self._run}.open")

    def end(self) -> None:
        """Say that the service has answered."""
        self._store.write(f"{FOLDER}/{self._run}.open", b"")
