"""Receipts: the ledger of what is done. Written last, in one piece, and never overwritten."""

from __future__ import annotations

from msgspec import Struct, field


class StoredObject(Struct, frozen=True):
    """One object as it was really written: name relative to the output, bytes, SHA-256 in hex."""

    name: str
    size: int
    sha256: str


class Receipt(Struct, frozen=True, omit_defaults=True):
    """Rows `[start, stop)` of one source are done: `scored` results and `dead` dead letters, in the named objects.

    `end` marks the last rows of a source, so that `stop` is how many it has; a source that turned out to end behind
    rows that were already done, or to be empty, ends with a receipt of no rows. `version` is the source's version that
    was read; `seconds` is the time from the first request to the writing of the receipt.
    """

    source: int
    start: int = field(name="from")
    stop: int = field(name="to")
    generation: int
    attempt: str
    version: str
    scored: int
    dead: int
    run: str
    results: StoredObject | None = None
    errors: StoredObject | None = None
    end: bool = False
    requests: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    started_at: str = ""
    finished_at: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """The object name all parts of this range share, without folder and suffix."""
        return object_name(self.source, self.start, self.stop, self.generation, self.attempt)


def object_name(source: int, start: int, stop: int, generation: int, attempt: str) -> str:
    """`<source>-<from>-<to>-<generation>-<attempt>`, zero-padded so that names sort in input order."""
    return f"{source:06d}-{start:012d}-{stop:012d}-{generation}-{attempt}"


class Stop(Struct, frozen=True):
    """Why the whole job stands still: the run that met it, the exit code, and the line for the user.

    `unanswered` is whether the service refused it before a row had an answer.
    """

    run: str
    exit_code: int
    message: str
    unanswered: bool = False
