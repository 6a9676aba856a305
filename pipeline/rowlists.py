"""Protocols that list rows under a key of a JSON object, and answers under another: they differ in data alone.

KServe V1, TensorFlow Serving (row form), MLflow and TorchServe (with a JSON handler). One bad row fails its request,
and a reply has one answer a row, which nothing but its length tells: so it is checked every time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pipeline.adapter import Adapter
from pipeline.addresses import address
from pipeline.encode import RowEncoder
from pipeline.errors import JobError
from pipeline.replies import UNREADABLE, counted, misfit, texts
from pipeline.servers import around, decoded_list, decoded_object, finite, judged, without
from pipeline.status import SUCCESS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa

    from pipeline.status import Fault
    from schemas.job import Input


class Dialect(NamedTuple):
    """How a protocol differs: `key` and `beside` make the request, answers are under `answers`.

    `bare`: the answers may be the whole reply. `b64`: bytes are `{"b64": text}`, else text.
    """

    key: Callable[[Any], str] = lambda _: "instances"
    beside: Callable[[Any], Mapping[str, Any]] = lambda _: {}
    answers: str = "predictions"
    bare: bool = False
    b64: bool = False


DIALECTS: Final[Mapping[str, Dialect]] = {
    "kserve": Dialect(b64=True),
    "tensorflow": Dialect(
        beside=lambda options: {"signature_name": options.signature} if options.signature else {}, b64=True
    ),
    "mlflow": Dialect(
        key=lambda options: options.key, beside=lambda options: {"params": options.params} if options.params else {}
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
        self.envelope = around(self._dialect.key(options), self._dialect.beside(options))

    def address(self, url: str) -> str:
        """Return the URL to call."""
        return address(self._protocol, self._options, url)

    def encoder(self, given: Input, schema: pa.Schema, send: Sequence[str]) -> RowFormEncoder:
        """Return what encodes rows in the form that the options say."""
        return RowFormEncoder(schema, send, given, form=self._options.rows, b64=self._dialect.b64)

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
            answers = self._answers(finite(body))
        except UNREADABLE as error:
            return misfit(status, f"the reply cannot be read: {error}")
        if answers is None:
            return without(self._protocol, status, body, self._dialect.answers)
        return counted(status, answers, rows) or texts(status, answers)

    def _answers(self, body: bytes) -> Sequence[Any] | None:
        if self._dialect.bare and body.lstrip()[:1] == b"[":
            return decoded_list(body)
        found = decoded_object(body).get(self._dialect.answers)
        return None if found is None else decoded_list(found)


class RowFormEncoder(RowEncoder):
    """Encodes rows as objects, as lists of values, or as values. Raises JobError for columns that cannot be sent so."""

    def __init__(self, schema: pa.Schema, send: Sequence[str], given: Input, *, form: str, b64: bool) -> None:
        super().__init__(schema, send, rename=given.rename, reject_nan=given.nan == "reject", b64=b64)
        if form == "values" and len(send) != 1:
            raise JobError(
                f"service.options.rows: 'values' sends one column, and input.send has {len(send)}; allowed: lists"
            )
        if form != "objects":
            self._row = _value if form == "values" else _list


def _value(value: object) -> object:
    return value


def _list(*values: object) -> object:
    return values
