"""The base of all protocols, as whoever writes one of their own finds it; and the example of one."""

from __future__ import annotations

import csv
import io
import json

import pyarrow as pa
import pytest
from example_protocol.bulkscore_csv import Csv, CsvOptions
from hypothesis import given
from hypothesis import strategies as st

from pipeline.adapter import Action, Adapter, Fault, Partly
from pipeline.encode import RowEncoder
from pipeline.protocols import ADAPTERS
from schemas.options import OPTIONS

UUID = "0" * 36
FAILED = Fault(Action.REJECT, 200, None, "no", by="model")


class Wrapped(Adapter):
    """The smallest one: rows and answers stand under keys."""

    envelope = b'{"rows":[', b"]}"

    def answers(self, body):
        return json.loads(body)["answers"]


class Failing(Adapter):
    """What is negative has failed."""

    def answers(self, body):
        return [FAILED if one < 0 else one for one in json.loads(body)]


def read(adapter, body, rows, status=200):
    found = adapter.read(
        status, {}, body if isinstance(body, bytes) else json.dumps(body).encode(), uuid=UUID, rows=rows
    )
    return found.to_pylist() if isinstance(found, pa.Array) else found


def test_rows_and_answers_are_json_lists_unless_a_protocol_says_otherwise():
    """With nothing overridden there is a whole protocol."""
    least = Adapter()
    assert least.address("http://h/x") == "http://h/x"
    assert (least.content_type, least.method, least.most_rows) == ("application/json", "POST", 10_000)
    assert b"1,2".join(least.frame(UUID)) == b"[1,2]"
    assert least.wire(b"[1,2]") == b"[1,2]"
    assert read(least, b'[{"a": 1.0}, null, "x"]', 3) == ['{"a": 1.0}', "null", '"x"']


def test_the_smallest_protocol_says_where_rows_and_answers_stand():
    """Answers that are no JSON yet are written as JSON."""
    assert b"1".join(Wrapped().frame(UUID)) == b'{"rows":[1]}'
    assert read(Wrapped(), {"answers": [1, None, {"a": "ä"}]}, 3) == ["1", "null", '{"a":"ä"}']


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "JSONDecodeError"),
        (b"\xff", "the reply cannot be read: 'utf-8' codec"),
        (b"[]", "TypeError"),
        (b"{}", "KeyError: 'answers'"),
        (b'{"answers": [1]}', "2 rows were sent, 1 answers came back"),
        (b'{"answers": 5}', "the answers in the reply are a int; allowed: a list"),
        (b'{"answers": {"a": 1, "b": 2}}', "are a dict; allowed: a list"),
        (b'{"answers": "ab"}', "are a str; allowed: a list"),
    ],
)
def test_a_reply_that_is_not_what_was_agreed_is_never_an_answer(body, told):
    """Whatever the adapter makes of it, the request is sent again and then split."""
    fault = read(Wrapped(), body, 2)
    assert isinstance(fault, Fault)
    assert fault.action is Action.MISFIT
    assert told in fault.message


def test_a_row_may_fail_alone():
    """The others have their answers; alone, or where all fail, it is the fault of the request."""
    partly = read(Failing(), [1, -1, 2, -1], 4)
    assert isinstance(partly, Partly)
    assert (partly.failed, [partly.answers[0].as_py(), partly.answers[2].as_py()]) == ((1, 3), ["1", "2"])
    assert read(Failing(), [-1], 1) == read(Failing(), [-1, -1], 2) == FAILED


@pytest.mark.parametrize(("status", "action"), [(400, Action.REJECT), (429, Action.SLOWER), (403, Action.STOP)])
def test_what_is_no_success_is_judged_by_its_status(status, action):
    """With the server's own words."""
    fault = read(Wrapped(), {"error": "no"}, 2, status)
    assert (fault.action, fault.status, fault.message) == (action, status, "no")


LEAST = {"file": {"field": "f"}, "json": {"body": {"$rows": {"$column": "a"}}}}
CHAT = {"model": "m", "messages": {"$column": "a"}, "input": {"$column": "a"}}


@pytest.mark.parametrize("protocol", ADAPTERS)
def test_every_protocol_keeps_what_the_base_promises(protocol):
    """Frames are as long for every uuid; what is sent is never longer than what was framed."""
    options = OPTIONS[protocol]
    given = LEAST.get(protocol, {name: CHAT[name] for name in CHAT if name in options.model_fields})
    adapter = ADAPTERS[protocol](options(**given), UUID)
    assert isinstance(adapter, Adapter)
    frames = [adapter.frame(uuid) for uuid in (UUID, "f" * 36)]
    assert [len(part) for part in frames[0]] == [len(part) for part in frames[1]]
    assert adapter.content_type
    assert adapter.method in {"POST", "PUT"}
    assert 1 <= adapter.most_rows <= 10_000


TABLES = st.lists(st.tuples(st.floats(allow_nan=False), st.integers(-(2**63), 2**63 - 1), st.text()), min_size=1)


@given(TABLES, st.sampled_from([",", ";", "\t", "|"]))
def test_rows_stay_themselves_in_the_example(rows, delimiter):
    """What a server reads of its lines is what went in, and it is never longer than the JSON that was packed."""
    adapter = Csv(CsvOptions(answer=["a"], delimiter=delimiter))
    table = pa.table({name: [row[at] for row in rows] for at, name in enumerate("xyz")})
    lines = RowEncoder(table.schema, "xyz", rename={}).encode(table.to_batches()[0]).lines
    before, behind = adapter.frame(UUID)
    framed = before + lines[:-1].replace(b"\n", b",") + behind
    sent = adapter.wire(framed)
    assert len(sent) <= len(framed)
    found = list(csv.reader(io.StringIO(sent.decode(), newline=""), delimiter=delimiter))
    assert [[float(x) if x else None, int(y), z] for x, y, z in found] == [
        [x if abs(x) != float("inf") else None, y, z] for x, y, z in rows
    ]
