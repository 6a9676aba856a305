"""The MindSpore Serving protocol: `{"instances": [{input: value}, ...]}` to `/model/NAME[/version/V]:METHOD`.

Its status is always 200: success is told by the body. An instance whose model call failed has an `error_msg` in its
place; one at the top says that the request was not read, that all instances failed alike, or that the server itself
has trouble. 1.1.0 calls it `error_message`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pyarrow as pa
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.json import Decoder

from pipeline.adapter import Adapter
from pipeline.addresses import address
from pipeline.encode import column_form, encoded_lines, json_of, wire_names
from pipeline.errors import JobError
from pipeline.instances import instance_form
from pipeline.jsonform import row_of, rows_of
from pipeline.leaves import Converted
from pipeline.replies import UNREADABLE, Partly, misfit, texts
from pipeline.status import SUCCESS, Action, Fault, judge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.encode import Encoded
    from pipeline.leaves import Form
    from schemas.job import Input
    from schemas.servers import MindSporeOptions

PROTOCOL: Final = "mindspore"


class _Reply(Struct):
    instances: list[Raw] | UnsetType = UNSET
    error_msg: str | None = None
    error_message: str | None = None


class _Failed(Struct):
    error_msg: str | UnsetType = UNSET
    error_message: str | UnsetType = UNSET

    @property
    def text(self) -> str | None:
        """What the server says of the instance, if it failed."""
        text = self.error_msg if self.error_msg is not UNSET else self.error_message
        return None if text is UNSET else text


_REPLY: Final = Decoder(_Reply)
_FAILED: Final = Decoder(_Failed)
_OUTPUTS: Final = Decoder(dict[str, Raw])

_ADDRESS: Final = "service.url, or {} in service.options,"
_SERVABLE: Final = _ADDRESS.format("model or version")
_METHOD: Final = _ADDRESS.format("method")

_BY_TEXT: Final = tuple(
    (re.compile(text, re.IGNORECASE), action, mend)
    for text, action, mend in (
        (r"serving error: enqueued requests count exceeds", Action.SLOWER, ""),
        (r"request servable.*servable is not available", Action.ABSENT, _SERVABLE),  # or its worker has died
        (r"request servable.*method is not available", Action.STOP, _METHOD),
        (r"please check url", Action.STOP, _ADDRESS.format("model, version or method")),
        (r"http message only support post", Action.STOP, "service.url"),
        (r"cannot find input ", Action.STOP, "input.send or input.rename"),  # all rows have the same inputs
        (r"http message is bigger than \d+", Action.TOO_LARGE, ""),
        (r"time ?out\b", Action.TIMEOUT, ""),
    )
)
"""How texts begin; all others are about what was sent. 1.1 puts `Predict failed, ` in front of some."""

_OK: Final = 200  # what the server says to everything
_BIGGER: Final = re.compile(r"bigger than (\d+)")


class MindSpore(Adapter):
    """Frames rows as instances, and reads one JSON text a row out of the reply."""

    envelope = b'{"instances":[', b"]}"

    def __init__(self, options: MindSporeOptions) -> None:
        self._options = options

    def address(self, url: str) -> str:
        """Return the URL to call: the one that is given if it names a method, else what the options make of it."""
        return address(PROTOCOL, self._options, url)

    def named(self, given: Input) -> Mapping[str, Sequence[str]]:
        """Return the columns that the job file says are sent, or have a type."""
        return {"input.send": given.send or (), "service.options.types": tuple(self._options.types)}

    def encoder(self, given: Input, schema: pa.Schema, send: Sequence[str]) -> InstanceEncoder:
        """Return what encodes rows, each as one instance."""
        return InstanceEncoder(given, schema, send, self._options.types)

    def read(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        *,
        uuid: str,  # noqa: ARG002
        rows: int,
    ) -> pa.Array[Any] | Partly | Fault:
        """Return the rows' answers as JSON texts, in order; those that there are; or why there are none."""
        if status not in SUCCESS:
            return judge(status, headers, body)
        try:
            reply = _REPLY.decode(body)
            error = reply.error_msg if reply.error_msg is not None else reply.error_message
            if error is not None:
                return fault_of(error)
            if reply.instances is UNSET:
                return misfit(status, "the reply has neither instances nor error_msg")
            if len(reply.instances) != rows:
                return misfit(status, f"{rows} rows were sent, {len(reply.instances)} instances came back")
            return _answers(reply.instances, body)
        except UNREADABLE as error:
            return misfit(status, f"the reply cannot be read: {error}")


def _answers(instances: list[Raw], body: bytes) -> pa.Array[Any] | Partly | Fault:
    """Tell answers from failures: a request of which no row has an answer is a failure as a whole."""
    failed: dict[int, str] = {}
    if b'"error_m' in body:
        said = ((position, _FAILED.decode(one).text) for position, one in enumerate(instances))
        failed = {position: text for position, text in said if text is not None}
    if len(failed) == len(instances):
        return fault_of(failed[0])
    shown = [_plain(one) for one in instances] if b'"b64"' in body else instances
    answers = texts(_OK, shown)
    return answers if isinstance(answers, Fault) or not failed else Partly(answers, tuple(failed))


def _plain(instance: Raw) -> Raw | bytes:
    """Return an answer with bytes as all answers have them: as base64 text. All else stays as it stands."""
    outputs = _OUTPUTS.decode(instance)
    found = {name: _text_of(value) for name, value in outputs.items() if bytes(value).lstrip().startswith(b"{")}
    return json_of({**outputs, **{name: text for name, text in found.items() if text is not None}})


def _text_of(value: Raw) -> str | None:
    content = msgspec.json.decode(value)
    only = content.get("b64") if len(content) == 1 else None
    return only if isinstance(only, str) else None


def fault_of(text: str) -> Fault:
    """Say what a server's `error_msg` means."""
    told = " ".join(text.split())[:500] or "an empty error_msg"
    words = told.removeprefix("Predict failed, ")
    known = ((action, mend) for pattern, action, mend in _BY_TEXT if pattern.match(words))
    action, mend = next(known, (Action.REJECT, ""))
    bound = _BIGGER.search(words) if action is Action.TOO_LARGE else None
    return Fault(action, _OK, None, told, "model", int(bound[1]) if bound else None, mend)


class InstanceEncoder:
    """Encodes rows as instances. Raises JobError for columns that the server has no type for."""

    def __init__(self, given: Input, schema: pa.Schema, send: Sequence[str], declared: Mapping[str, str]) -> None:
        unsent = [name for name in declared if name not in send]
        if unsent:
            raise JobError(f"service.options.types: column {unsent[0]!r} is not sent; leave it out")
        self._send = tuple(send)
        reject = given.nan == "reject"
        self._forms = [instance_form(schema.field(name), declared.get(name), reject_nan=reject) for name in send]
        self._plain = [column_form(schema.field(name), "input.send", reject_nan=False) for name in send]
        self._row = row_of(wire_names(send, given.rename))

    def encode(self, batch: pa.RecordBatch, row_uuids: pa.Array[Any] | None = None) -> Encoded:  # noqa: ARG002
        """Encode all rows of the batch, in order; those that are refused as plain JSON, for their dead letters."""
        columns = [batch.column(name) for name in self._send]
        converted = [form(column) for column, form in zip(columns, self._forms, strict=True)]
        values, faults = rows_of(self._row, self._send, converted, batch.num_rows)
        refused = sorted(faults)
        plain = [_shown(column, form, refused) for column, form in zip(columns, self._plain, strict=True)]
        for row, *shown in zip(refused, *plain, strict=True):
            values[row] = self._row(*shown)
        return encoded_lines(Converted(values, faults))


def _shown(column: Any, form: Form, rows: Sequence[int]) -> list[Any]:
    """Return some rows' values as plain JSON has them."""
    if not rows:
        return []
    try:
        return form(column.take(pa.array(rows))).values
    except pa.ArrowNotImplementedError:  # Arrow cannot take single values out of all that it has
        return [form(column.slice(row, 1)).values[0] for row in rows]
