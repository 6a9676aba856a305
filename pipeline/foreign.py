"""Adapters of other packages: an error in one, or a value that is none, ends the run in a line that names the package.

Whatever one gives is looked at here, where it is known whose it is, and not where it would do harm.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.adapter import Adapter
from pipeline.encode import Encoded
from pipeline.errors import BulkscoreError, JobError
from pipeline.pack import MAX_ROWS
from pipeline.replies import Partly
from pipeline.status import Action, Fault
from schemas import plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.encode import Encoder
    from schemas.job import Input


_SHORT: Final = Repr()
_SHORT.maxother = 60


class _Kind(NamedTuple):
    """What a method may give: whether a value, of so many rows, is such a one, and in words."""

    fits: Callable[[Any, int], bool]
    allowed: str


def _is_pair(found: Any, _: int) -> bool:
    return isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(one, bytes) for one in found)  # noqa: PLR2004


def _is_text(found: Any, _: int) -> bool:
    return isinstance(found, str)


def _is_names(found: Any, _: int = 0) -> bool:
    return isinstance(found, tuple | list) and all(isinstance(one, str) for one in found)


def _is_named(found: Any, _: int) -> bool:
    return _is_mapping(found) and _is_names(list(found)) and all(map(_is_names, found.values()))


def _is_encoded(found: Any, rows: int) -> bool:
    if not isinstance(found, Encoded):
        return False
    lines: Any
    ends: Any
    lines, ends, refused, shown = found
    if not (isinstance(ends, np.ndarray) and ends.dtype.kind == "i" and ends.shape == (rows,)):
        return False
    whole = isinstance(lines, bytes) and len(lines) == (ends[-1] if rows else 0)
    return whole and _is_mapping(refused) and (shown is None or (_is_texts(shown) and len(shown) == rows))


def _is_mapping(found: Any) -> bool:
    return isinstance(found, Mapping)


def _is_headers(found: Any, _: int) -> bool:
    return _is_mapping(found) and all(
        isinstance(one, str) and one.isascii() and one.isprintable() for pair in found.items() for one in pair
    )


def _is_texts(found: Any) -> bool:
    return isinstance(found, pa.Array) and pa.types.is_string(found.type) and not found.null_count


def _is_verdict(found: Any, rows: int) -> bool:
    if isinstance(found, Fault):
        action: Any
        action, _, _, message, *_ = found
        return isinstance(action, Action) and _is_text(message, rows)
    if isinstance(found, Partly):
        failed: Any
        answers, failed = found
        places = isinstance(failed, tuple) and all(type(one) is int and 0 <= one < rows for one in failed)
        return places and _is_texts(answers) and list(failed) == sorted(set(failed))
    return _is_texts(found)


_KINDS: Final[Mapping[str, _Kind]] = {
    "content_type": _Kind(_is_text, "text"),
    "method": _Kind(lambda found, _: found in ("POST", "PUT"), "POST, PUT"),
    "most_rows": _Kind(
        lambda found, _: type(found) is int and 1 <= found <= MAX_ROWS, f"a whole number from 1 to {MAX_ROWS}"
    ),
    "envelope": _Kind(_is_pair, "two bytes objects"),
    "address": _Kind(_is_text, "text"),
    "named": _Kind(_is_named, "a mapping of keys to lists of columns' names"),
    "columns": _Kind(_is_names, "a tuple of columns' names"),
    "encoder": _Kind(lambda found, _: callable(getattr(found, "encode", None)), "an Encoder"),
    "encode": _Kind(_is_encoded, "an Encoded with an end for each row, the last one that of its lines"),
    "frame": _Kind(_is_pair, "two bytes objects"),
    "wire": _Kind(lambda found, _: isinstance(found, bytes), "bytes"),
    "headers": _Kind(_is_headers, "a mapping of headers' names to ASCII text on one line"),
    "shown": _Kind(lambda found, _: isinstance(found, bytes), "bytes"),
    "read": _Kind(_is_verdict, "an array of strings without nulls, a Partly, or a Fault with an Action and a message"),
}


class Foreign(Adapter):
    """An adapter of another package, which speaks `protocol`.

    Its methods raise JobError, which names the package and the method, for all that goes wrong in it but for errors of
    bulkscore's own, which it may raise.
    """

    def __init__(self, protocol: str, adapter: Adapter) -> None:
        self._protocol = protocol
        self._adapter = adapter
        self.content_type = self._held("content_type")
        self.method = self._held("method")
        self.most_rows = self._held("most_rows")
        self.envelope = self._held("envelope")

    def address(self, url: str) -> str:
        """Return the URL to call."""
        return str(self._call(self._adapter, "address", url))

    def named(self, given: Input) -> Mapping[str, Sequence[str]]:
        """Return the columns that there must be, by key."""
        named: Mapping[str, Sequence[str]] = self._call(self._adapter, "named", given)
        return named

    def columns(self, given: Input, names: Sequence[str]) -> tuple[str, ...]:
        """Return the columns that are sent."""
        return tuple(self._call(self._adapter, "columns", given, names))

    def encoder(self, given: Input, schema: pa.Schema, send: Sequence[str]) -> Encoder:
        """Return its encoder, of which the same holds."""
        return _ForeignEncoder(self._call, self._call(self._adapter, "encoder", given, schema, send))

    def frame(self, uuid: str) -> tuple[bytes, bytes]:
        """Return what stands around the rows."""
        before, behind = self._call(self._adapter, "frame", uuid)
        return before, behind

    def wire(self, body: bytes) -> bytes:
        """Return a body as it is sent."""
        return bytes(self._call(self._adapter, "wire", body))

    def headers(self, body: bytes) -> Mapping[str, str]:
        """Return what is said of a body."""
        return dict(self._call(self._adapter, "headers", body))

    def shown(self, row: bytes) -> bytes:
        """Return what a dead letter shows of a row."""
        return bytes(self._call(self._adapter, "shown", row))

    def read(
        self, status: int, headers: Mapping[str, str], body: bytes, *, uuid: str, rows: int
    ) -> pa.Array[Any] | Partly | Fault:
        """Return what a reply says; its `fault` and `answers` are called by it."""
        adapter = self._adapter
        verdict: pa.Array[Any] | Partly | Fault
        verdict = self._call(adapter, "read", status, headers, body, of_rows=rows, uuid=uuid, rows=rows)
        return verdict

    def _held(self, name: str) -> Any:
        return self._called(lambda: getattr(self._adapter, name), name, 0)

    def _call(self, of: object, method: str, *given: Any, of_rows: int = 0, **named: Any) -> Any:
        return self._called(lambda: getattr(of, method)(*given, **named), method, of_rows)

    def _called(self, call: Callable[[], Any], name: str, rows: int) -> Any:
        kind = _KINDS[name]
        try:
            found = call()
            fits = kind.fits(found, rows)
        except BulkscoreError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever foreign code does
            raise self._failed(f"failed in {name} ({plugins.told(error)}, {self._place(error)})") from None
        if not fits:
            given = " ".join(_SHORT.repr(found).split())
            raise self._failed(f"gives {given} in {name}; allowed: {kind.allowed}")
        return found

    def _failed(self, why: str) -> JobError:
        return JobError(f"service.protocol: {plugins.unusable(self._protocol, why, 'adapter')}")

    def _place(self, error: BaseException) -> str:
        """Name the last line of the package itself that an error came through."""
        home = type(self._adapter).__module__.partition(".")[0]
        found = list(traceback.walk_tb(error.__traceback__))
        own = [one for one in found if one[0].f_globals.get("__name__", "").partition(".")[0] == home]
        frame, line = (own or found)[-1]
        return f"{Path(frame.f_code.co_filename).name} line {line}"


class _ForeignEncoder:
    """An encoder of another package."""

    def __init__(self, call: Callable[..., Any], encoder: object) -> None:
        self._call = call
        self._encoder = encoder

    def encode(self, batch: pa.RecordBatch, row_uuids: pa.Array[Any] | None = None) -> Encoded:
        encoded: Encoded = self._call(self._encoder, "encode", batch, row_uuids, of_rows=batch.num_rows)
        return encoded
