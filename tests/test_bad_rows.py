"""What rows may have in them that a model server cannot take: refused with a reason, or sent so that it is right.

A table over the protocols of model servers: what a row is sent as, or why it is not. That real servers take what is
sent, and refuse alone what they do not take, is in the tests of each of them.
"""

from __future__ import annotations

import json
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pytest

from pipeline.errors import JobError
from pipeline.protocols import adapter_of
from schemas.job import Input, Service
from schemas.options import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

NUL = "TensorFlow Serving takes none"
NO_NULL = "OpenAI's protocols have no null there"
LISTS = pa.list_(pa.float64())
DEEP = pa.list_(pa.list_(pa.int64()))
TEMPLATES = {
    "openai-chat": {"model": "m", "messages": [{"role": "user", "content": {"$column": "x"}}]},
    "openai-embeddings": {"model": "m", "input": {"$column": "x"}},
}
ROWS = ("torchserve", "mlflow", "tensorflow")


class Case(NamedTuple):
    """A column of one value; `sent` is what a body has of it as text, or by protocol the `refused` row's reason."""

    name: str
    column: pa.Array
    sent: Any
    refused: Mapping[str, str] = MappingProxyType({})
    nan: str = "null"


def not_utf8():
    return pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xffa")]
    )


TABLE = [
    Case(
        "ragged",
        pa.array([[[1, 2], [3]]], DEEP),
        "[[1,2],[3]]",
        {"tensorflow": "is ragged, and TensorFlow Serving takes"},
    ),
    Case("empty list", pa.array([[]], LISTS), "[]"),
    Case("empty lists in a list", pa.array([[[], []]], DEEP), "[[],[]]"),
    Case("no list where lists of lists are", pa.array([[]], DEEP), "[]", {"tensorflow": "takes no empty list"}),
    Case("int and float mixed", pa.array([[1, 2.5]], LISTS), "[1.0,2.5]"),
    Case("null", pa.array([None], pa.float64()), "null", {"tensorflow": f"x is null, and {NUL}"}),
    Case("null text", pa.array([None], pa.string()), "null", {"tensorflow": f"x is null, and {NUL}"}),
    Case("null list", pa.array([None], LISTS), "null", {"tensorflow": f"x is null, and {NUL}"}),
    Case(
        "null in a list", pa.array([[1.0, None]], LISTS), "[1.0,null]", {"tensorflow": f"x has a null in it, and {NUL}"}
    ),
    Case("largest integers", pa.array([[2**64 - 1]], pa.list_(pa.uint64())), "[18446744073709551615]"),
    Case("smallest integer", pa.array([-(2**63)]), "-9223372036854775808"),
    Case("beyond any integer type", pa.array([Decimal(2**70)]), "1180591620717411303424"),
    Case("float32", pa.array([0.1], pa.float32()), "0.1"),
    Case("NaN", pa.array([float("nan")]), "null", {"tensorflow": "x is nan, and JSON has no such number"}),
    Case("infinity", pa.array([[1.0, float("-inf")]]), "[1.0,null]", {"tensorflow": "x has -inf, and JSON"}),
    Case(
        "NaN that the job rejects",
        pa.array([float("nan")]),
        None,
        dict.fromkeys(ROWS, "x is nan, and the job file says nan: reject"),
        "reject",
    ),
    Case("text that is not UTF-8", not_utf8(), None, dict.fromkeys((*ROWS, *TEMPLATES), "x is not UTF-8")),
    Case("text with anything in it", pa.array(['"\\\n\u2028\U0001f600\x00']), '"\\"\\\\\\n\u2028\U0001f600\\u0000"'),
]


def encoded(protocol, column, *, options=None, nan="null"):
    """Return the body that is sent for a column's one value, and the reason why it is not."""
    options = OPTIONS[protocol](**(options or TEMPLATES.get(protocol, {})))
    adapter = adapter_of(Service(url=["http://host"], protocol=protocol, options=options))
    batch = pa.record_batch({"x": column})
    found = adapter.encoder(Input(path="in/*.parquet", nan=nan), batch.schema, ["x"]).encode(batch)
    before, behind = adapter.frame("")
    return adapter.wire(before + found.lines.rstrip(b"\n") + behind).decode(), found.refused.get(0)


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.name)
@pytest.mark.parametrize("protocol", ROWS)
def test_a_row_is_refused_with_the_rule_or_sent_as_it_is_meant(protocol, case):
    """In every form that the protocol has."""
    wanted = case.refused.get(protocol)
    for key in {"tensorflow": ("instances", "inputs"), "mlflow": ("dataframe_records", "dataframe_split")}.get(
        protocol, (None,)
    ):
        body, refused = encoded(protocol, case.column, options={"key": key} if key else {}, nan=case.nan)
        assert wanted in refused if wanted else refused is None
        assert wanted or case.sent in body
        json.loads(body)


@pytest.mark.parametrize("protocol", list(TEMPLATES))
def test_a_text_is_refused_with_the_rule_or_sent_as_it_is(protocol):
    """By OpenAI's protocols, of which a template says what is sent."""
    for case in (one for one in TABLE if one.column.type == pa.string()):
        body, refused = encoded(protocol, case.column)
        wanted = case.refused.get(protocol, NO_NULL if case.sent == "null" else None)
        assert wanted in refused if wanted else refused is None
        assert wanted or case.sent in body


@pytest.mark.parametrize("protocol", ["tensorflow"])
@pytest.mark.parametrize("kind", [pa.struct({"a": pa.int64()}), pa.map_(pa.string(), pa.int64())])
def test_what_no_row_could_be_sent_of_is_told_of_its_column(protocol, kind):
    """Before anything is sent."""
    with pytest.raises(JobError, match=r"input.send: column 'x' has type .*TensorFlow Serving takes numbers"):
        encoded(protocol, pa.nulls(1, kind))
