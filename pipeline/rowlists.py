"""Protocols that list rows under a key of a JSON object, and answers under another: they differ in data alone.

KServe V1, TensorFlow Serving, MLflow and TorchServe (with a JSON handler). One bad row fails its request, and a reply
has one answer a row, which nothing but its length tells: so it is checked every time.

Where the names of columns are said once (TensorFlow's column form, MLflow's split table), rows are packed as objects
nevertheless, and laid out when the body is sent, which is then never longer than the one that was packed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import Raw
from msgspec.json import Decoder

from pipeline.adapter import Adapter
from pipeline.addresses import address
from pipeline.encode import json_of
from pipeline.replies import UNREADABLE, counted, misfit, texts
from pipeline.rowforms import RowFormEncoder
from pipeline.servers import TEXT, decoded_list, decoded_object, finite, judged, without
from pipeline.status import SUCCESS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa

    from pipeline.rowforms import RowForm
    from pipeline.status import Fault
    from schemas.job import Input

    Rows = Sequence[Mapping[str, Raw]]

_HOLE: Final = Raw(b"[\n]")  # JSON has no raw newline
_ROWS: Final = Decoder(list[dict[str, Raw]])
_B64: Final = re.compile(rb'\{\s*"b64"\s*:\s*(%s)\s*\}|%s' % (TEXT, TEXT), re.DOTALL)
"""Bytes in an answer, which are base64 text in all answers; and other texts, in which nothing is looked for."""


class Layout(NamedTuple):
    """What stands for the rows in a framed body, around a hole for them, and in the one that is sent."""

    framed: Any
    form: RowForm
    sent: Callable[[Rows], Any]


def _split(rows: Rows) -> Any:
    return {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}


def _columns(rows: Rows) -> Any:
    """Join the columns, of which each row has lists of one value."""
    return {name: Raw(b"[%s]" % b",".join([bytes(row[name])[1:-1] for row in rows])) for name in rows[0]}


SPLIT: Final = Layout({"columns": [], "data": _HOLE}, "objects", _split)
COLUMNS: Final = Layout(_HOLE, "columns", _columns)


class Dialect(NamedTuple):
    """How a protocol differs: `key` and `beside` make the request, answers are under `answers`.

    `bare`: the answers may be the whole reply. `b64`: bytes are `{"b64": text}`, else text. `tensors` is the name of a
    server that reads values as tensors. `layout` says how rows are sent, if not as a list.
    """

    key: Callable[[Any], str] = lambda _: "instances"
    beside: Callable[[Any], Mapping[str, Any]] = lambda _: {}
    answers: Callable[[Any], str] = lambda _: "predictions"
    bare: bool = False
    b64: bool = False
    tensors: str | None = None
    layout: Callable[[Any], Layout | None] = lambda _: None


DIALECTS: Final[Mapping[str, Dialect]] = {
    "kserve": Dialect(b64=True),
    "tensorflow": Dialect(
        key=lambda options: options.key,
        beside=lambda options: {"signature_name": options.signature} if options.signature else {},
        answers=lambda options: "outputs" if options.key == "inputs" else "predictions",
        b64=True,
        tensors="TensorFlow Serving",
        layout=lambda options: COLUMNS if (options.key, options.rows) == ("inputs", "objects") else None,
    ),
    "mlflow": Dialect(
        key=lambda options: options.key,
        beside=lambda options: {"params": options.params} if options.params else {},
        layout=lambda options: SPLIT if options.key == "dataframe_split" else None,
    ),
    "torchserve": Dialect(bare=True),
}
"""By `service.protocol`."""


class RowLists(Adapter):
    """Frames rows as a request body and reads one JSON text a row out of the reply."""

    def __init__(self, protocol: str, options: Any) -> None:
        self._protocol = protocol
        self._options = options
        self._dialect = DIALECTS[protocol]
        self._layout = self._dialect.layout(options)
        before, behind = self._around(self._layout.framed if self._layout else _HOLE).split(b"\n")
        self.envelope = before, behind
        self._key = self._dialect.answers(options)

    def _around(self, rows: Any) -> bytes:
        return json_of({**self._dialect.beside(self._options), self._dialect.key(self._options): rows})

    def address(self, url: str) -> str:
        """Return the URL to call."""
        return address(self._protocol, self._options, url)

    def encoder(self, given: Input, schema: pa.Schema, send: Sequence[str]) -> RowFormEncoder:
        """Return what encodes rows in the form that the options say."""
        form = self._layout.form if self._layout else self._options.rows
        return RowFormEncoder(schema, send, given, form=form, b64=self._dialect.b64, tensors=self._dialect.tensors)

    def wire(self, body: bytes) -> bytes:
        """Return a body as it is sent: as it was framed, or laid out anew."""
        if self._layout is None:
            return body
        before, behind = self.envelope
        return self._around(self._layout.sent(_ROWS.decode(b"[%s]" % body[len(before) : len(body) - len(behind)])))

    def read(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        uuid: str,  # noqa: ARG002
        rows: int,
    ) -> pa.Array[Any] | Fault:
        """Return the rows' answers as JSON texts, in order, or why this reply is none."""
        if status not in SUCCESS:
            return judged(self._protocol, status, headers, body)
        try:
            answers = self._answers(finite(body), rows)
        except UNREADABLE as error:
            return misfit(status, f"the reply cannot be read: {error}")
        except ValueError as error:
            return misfit(status, str(error))
        if answers is None:
            return without(self._protocol, status, body, self._key)
        return counted(status, answers, rows) or texts(status, answers)

    def _answers(self, body: bytes, rows: int) -> Sequence[Raw | bytes] | None:
        if self._dialect.bare and body.lstrip()[:1] == b"[":
            return decoded_list(body)
        found = decoded_object(body).get(self._key)
        if found is None:
            return None
        answers = _by_columns(found, rows) if bytes(found).lstrip()[:1] == b"{" else decoded_list(found)
        if self._dialect.b64 and b'"b64"' in body:
            return [_B64.sub(lambda found: found[1] or found[0], bytes(one)) for one in answers]
        return answers


def _by_columns(found: Raw, rows: int) -> Sequence[bytes]:
    """Put together each row's answer of several outputs. Raises ValueError where one has not a value a row."""
    outputs = {name: decoded_list(values) for name, values in decoded_object(bytes(found)).items()}
    for name, values in outputs.items():
        if len(values) != rows:
            raise ValueError(f"{rows} rows were sent, and output {name!r} came back with {len(values)} values")
    return [json_of({name: values[row] for name, values in outputs.items()}) for row in range(rows if outputs else 0)]
