"""What a protocol is: how rows become the body of a request, and how a reply becomes one answer a row.

`Adapter` has a default for all of it: rows are the objects of a JSON list, and so are the answers. A protocol says by
overriding where it differs. Packages other than this one give theirs by an entry point (`Plugin`), and find here by one
import all that an adapter is made with; schemas/PROTOCOLS.md shows one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from pipeline.encode import Encoded, Encoder, RowEncoder, data_columns, json_of
from pipeline.errors import JobError
from pipeline.pack import MAX_ROWS
from pipeline.replies import UNREADABLE, Partly, counted, misfit, sifted
from pipeline.status import SUCCESS, Action, Fault, judge
from schemas.fields import Character, Count, Flag, Text, Texts, marked
from schemas.plugins import Plugin
from schemas.transported import Options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from schemas.job import Input

__all__ = [
    "MAX_ROWS", "Action", "Adapter", "Character", "Count", "Encoded", "Encoder", "Fault", "Flag", "JobError", "Options",
    "Partly", "Plugin", "RowEncoder", "Text", "Texts", "json_of", "judge", "marked", "misfit",
]  # fmt: skip

_TOLD: Final = 300


class Adapter:
    """How one protocol is spoken. A worker process makes one, of `service.options`, and all its threads share it.

    So it is pure: it does no I/O, keeps nothing of one request for the next, and answers the same to the same. It is
    made anew wherever it is needed, and never pickled: what travels to workers is the protocol's name and the options'
    values.

    An exception that its methods do not announce ends the run, as does a value of another kind than they announce: with
    a traceback (exit 1) in one of ours, for it is a defect of bulkscore, and for one of another package in a line that
    names it (exit 2).
    """

    content_type: str = "application/json"
    """The body's media type."""

    method: str = "POST"
    """The HTTP method: POST or PUT."""

    most_rows: int = MAX_ROWS
    """How many rows a request may have at the most: 1 to MAX_ROWS (10,000); with 1, a row is a whole body."""

    envelope: tuple[bytes, bytes] = (b"[", b"]")
    """What stands before and behind the comma-separated rows of a body."""

    def address(self, url: str) -> str:
        """Return the URL to call, where `service.url` has this one: itself, or a base with the protocol's path."""
        return url

    def named(self, given: Input) -> Mapping[str, Sequence[str]]:
        """Return the columns that every input file must have to be sent, by the key of the job file that names them."""
        return {"input.send": given.send or ()}

    def columns(self, given: Input, names: Sequence[str]) -> tuple[str, ...]:
        """Return the columns that are sent, in order, where the input's files have columns with these names."""
        return data_columns(given, names)

    def encoder(self, given: Input, schema: pa.Schema, send: Sequence[str]) -> Encoder:
        """Return what encodes rows, of which the columns `send` are sent: here one JSON object a row.

        It is made once for each range of rows, of the columns' types in `schema`, and used by one thread; see
        `Encoder` and `Encoded`. Raises JobError, one line that begins with a key of the job file, for a column that
        cannot be sent.
        """
        return RowEncoder(schema, send, rename=given.rename, reject_nan=given.nan == "reject")

    def frame(self, uuid: str) -> tuple[bytes, bytes]:  # noqa: ARG002 - for protocols that send it
        """Return what stands before and behind the comma-separated rows; the same lengths for every uuid (36 letters).

        The uuid is the request's: it stays over all attempts, and the halves of a request have their own.
        """
        return self.envelope

    def wire(self, body: bytes) -> bytes:
        """Return a framed body as it is sent: itself, or in the protocol's own order, and then never longer.

        Limits are judged on the framed body. Called anew for each attempt.
        """
        return body

    def headers(self, body: bytes) -> Mapping[str, str]:  # noqa: ARG002 - for protocols that tell of it
        """Return the headers that say something of this one body, as it is sent; a signature is over them too.

        Called anew for each attempt. Those of a job file do not replace them. A websocket has none.
        """
        return {}

    def shown(self, row: bytes) -> bytes:
        """Return the JSON that a dead letter shows of a row that was sent: as it was packed, or as it says more."""
        return row

    def read(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        uuid: str,  # noqa: ARG002 - for protocols that send it back
        rows: int,
    ) -> pa.Array[Any] | Partly | Fault:
        """Return what a reply to a request of so many `rows` (1 or more) says; never raise for what is in it.

        Either a string array of JSON texts: exactly `rows` of them, valid UTF-8, the i-th for the i-th row that was
        sent. Or `Partly`, where some rows have an answer: the others are asked once more, each alone. Or a `Fault`,
        whose `action` says what follows: see `Action`. A lone row that fails has a Fault.

        `headers` are case-insensitive. This one leaves to `fault` what is no success, and to `answers` what is, and
        sees that there is one answer a row.
        """
        if status not in SUCCESS:
            return self.fault(status, headers, body)
        try:
            found: Any = self.answers(body)
            if not isinstance(found, list | tuple):  # a text or a mapping may be as long as the rows, too
                return misfit(status, f"the answers in the reply are a {type(found).__name__}; allowed: a list")
            return counted(status, found, rows) or sifted(status, found)
        except UNREADABLE as error:
            return misfit(status, f"the reply cannot be read: {error}")
        except Exception as error:  # noqa: BLE001 - what it was not written for is never an answer
            told = " ".join(f"{type(error).__name__}: {error}".split())[:_TOLD]
            return misfit(status, f"the reply is not what was agreed: {told}")

    def fault(self, status: int, headers: Mapping[str, str], body: bytes) -> Fault:
        """Say what a reply means whose status is neither 200 nor 201: here what `judge` says of it."""
        return judge(status, headers, body)

    def answers(self, body: bytes) -> list[Any] | tuple[Any, ...]:
        """Return the answers in a successful reply, one a row, in the order of the rows; here it is a JSON list.

        Bytes and `msgspec.Raw` are taken as JSON that stands as it is, a `Fault` as the failure of its row alone, and
        anything else is written as JSON. It may raise whatever it likes for a reply that is not what was agreed: the
        request is sent again, split when that repeats, and a lone row is a dead letter, `mismatch`, that says so.
        """
        return msgspec.json.decode(body, type=list[msgspec.Raw])
