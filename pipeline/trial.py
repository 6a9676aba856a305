"""Which of several workers tries the service first, and whether it answered: told by small objects in the output."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pipeline.storage import Store

FOLDER: Final = "trial"


def forget(store: Store, run: str) -> None:
    """Strike out who tries: those who wait for a worker that is gone find another one among them."""
    for name in store.names(FOLDER):
        if name.startswith(f"{run}.") and not name.endswith(".open"):
            store.delete(f"{FOLDER}/{name}")


class Trial:
    """The start of one run, as one of its workers sees it.

    The one that puts its name down first is the one who tries. On an object store two that do so at the same moment may
    both think that it is they: then two try, and nothing is wrong.
    """

    def __init__(self, store: Store, run: str) -> None:
        self._store = store
        self._run = run
        self._mine = False

    @property
    def mine(self) -> bool:
        """Whether this worker is the one who tries; puts its name down where there is none."""
        self._mine = self._mine or self._put_down()
        return self._mine

    def _put_down(self) -> bool:
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
