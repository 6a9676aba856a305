from __future__ import annotations

import json
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encode import Encoded, RowEncoder
from pipeline.ids import request_uuid, row_namer
from pipeline.modelarts import ModelArts
from pipeline.pack import MAX_REFUSED_BYTES, MAX_ROWS, Block, Limits, pack
from schemas.options import ModelArtsOptions

FIRST = 1000
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("double", pa.float64()),
        ("single", pa.float32()),
        ("integer", pa.int64()),
        ("flag", pa.bool_()),
        ("price", pa.decimal128(20, 3)),
        ("bytes", pa.binary()),
        ("id", pa.int64()),
    ]
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.none() | st.text(),
            "double": st.none() | st.floats(),
            "single": st.none() | st.floats(width=32),
            "integer": st.none() | st.integers(-(2**63), 2**63 - 1),
            "flag": st.none() | st.booleans(),
            "price": st.none() | st.decimals(-(10**15), 10**15, places=3),
            "bytes": st.none() | st.binary(),
        }
    ),
    max_size=12,
)
FRAMES = [
    ModelArts(ModelArtsOptions(meta=meta, wrapper=wrapper)).frame
    for meta in (True, False)
    for wrapper in ("data", "none")
]
NAMES = row_namer("job", "path")


@dataclass
class Input:
    """Rows on their way into `pack`: their JSON, who is refused, and how they are cut into batches."""

    lines: list[bytes]
    refused: dict[int, str] = field(default_factory=dict)
    borders: tuple[int, ...] = ()

    def blocks(self):
        edges = [0, *sorted({min(border, len(self.lines)) for border in self.borders}), len(self.lines)]
        for start, stop in pairwise(edges):
            lines = self.lines[start:stop]
            ends = np.cumsum([len(line) + 1 for line in lines], dtype=np.int64)
            refused = {row - start: why for row, why in self.refused.items() if start <= row < stop}
            encoded = Encoded(b"".join(line + b"\n" for line in lines), ends, refused)
            keep = pa.record_batch({"id": pa.array(range(FIRST + start, FIRST + stop), pa.int64())})
            yield Block(FIRST + start, encoded, NAMES(FIRST + start, FIRST + stop), keep)

    def pack(self, limits, frame):
        return list(pack(self.blocks(), limits, frame))


def lines_of(rows):
    batch = pa.RecordBatch.from_pylist([row | {"id": None} for row in rows], SCHEMA)
    return RowEncoder(SCHEMA, SCHEMA.names[:-1], rename={}).encode(batch).lines.split(b"\n")[:-1]


@st.composite
def inputs(draw):
    rows = draw(ROWS)
    refused = draw(st.dictionaries(st.integers(0, max(0, len(rows) - 1)), st.just("why"), max_size=len(rows) and 3))
    return Input(lines_of(rows), refused, tuple(draw(st.lists(st.integers(0, 12), max_size=4))))


@st.composite
def cases(draw):
    """An input, limits near the sizes that matter, and a frame."""
    given_rows, frame = draw(inputs()), draw(st.sampled_from(FRAMES))
    overhead = body_of([], frame)
    interesting = sorted({overhead, *(overhead + len(line) for line in given_rows.lines)})
    body = draw(st.sampled_from(interesting)) + draw(st.integers(-1, 1) | st.integers(0, 700))
    return given_rows, Limits(max(1, body), draw(st.integers(1, 6) | st.just(MAX_ROWS))), frame


def body_of(lines, frame):
    """Bytes of a body with these rows."""
    return sum(map(len, frame("0" * 36))) + sum(map(len, lines)) + max(0, len(lines) - 1)


def oracle(given_rows, limits, frame):
    """Pack one row after the other: (rows of the chunk, rows refused in it), as slowly and obviously as can be."""
    chunks, sent, refused = [], [], []
    for row, line in enumerate(given_rows.lines):
        if row in given_rows.refused or body_of([line], frame) > limits.body:
            refused.append(row)
            continue
        together = [given_rows.lines[other] for other in sent] + [line]
        if len(together) > limits.rows or body_of(together, frame) > limits.body:
            chunks.append((sent, refused))
            sent, refused = [], []
        sent.append(row)
    return [*chunks, (sent, refused)] if sent or refused else chunks


def rows_in(body):
    """Return the request's rows as the service reads them."""
    read = json.loads(body, parse_float=Decimal)
    return read.get("data", read)["req_data"]


@given(cases())
def test_packing_agrees_with_a_slow_obvious_oracle(case):
    """Any rows, batch borders, limits and frames: nothing lost, order kept, bounds held, as full as can be."""
    given_rows, limits, frame = case
    chunks = given_rows.pack(limits, frame)
    got = [
        ((chunk.source_rows - FIRST).tolist(), [refusal.source_row - FIRST for refusal in chunk.refused])
        for chunk in chunks
    ]
    assert got == oracle(given_rows, limits, frame)


@given(cases())
def test_every_body_is_what_the_service_expects_and_within_its_limits(case):
    """A service reads each body as exactly its rows, under both limits; `spans` and `line` cut each row."""
    given_rows, limits, frame = case
    for chunk in given_rows.pack(limits, frame):
        sent = [given_rows.lines[row - FIRST] for row in chunk.source_rows]
        assert [chunk.line(position) for position in range(len(chunk))] == sent
        assert [chunk.body[start:stop] for start, stop in chunk.spans.tolist()] == sent
        assert rows_in(chunk.body) == [json.loads(line, parse_float=Decimal) for line in sent]
        assert len(chunk) <= limits.rows
        assert not sent or len(chunk.body) == body_of(sent, frame) <= limits.body


@given(cases())
def test_chunks_cover_the_range_without_gap_or_overlap(case):
    """`[first, stop)` of the chunks follow each other from the first row to the last; no chunk is empty."""
    given_rows, limits, frame = case
    position = FIRST
    for chunk in given_rows.pack(limits, frame):
        assert chunk.first == position < chunk.stop
        rows = sorted([*chunk.source_rows.tolist(), *(refusal.source_row for refusal in chunk.refused)])
        assert rows == list(range(chunk.first, chunk.stop))
        position = chunk.stop
    assert position == FIRST + len(given_rows.lines)


@given(cases())
def test_everything_that_belongs_to_a_row_goes_with_it(case):
    """row_uuids and kept columns stand at their row's position; the chunk's uuid is that of its rows, and is sent."""
    given_rows, limits, frame = case
    for chunk in given_rows.pack(limits, frame):
        assert_consistent(chunk, frame)
        for refusal in chunk.refused:
            row = refusal.source_row
            assert refusal.line == given_rows.lines[row - FIRST]
            assert refusal.row_uuid == NAMES(row, row + 1)[0].as_py()
            assert refusal.keep.to_pydict() == {"id": [row]}


def assert_consistent(chunk, frame):
    rows = chunk.source_rows.tolist()
    assert chunk.keep.to_pydict() == {"id": rows}
    assert chunk.row_uuids.to_pylist() == [NAMES(row, row + 1)[0].as_py() for row in rows]
    assert chunk.uuid == request_uuid(chunk.row_uuids)
    prefix, suffix = frame(chunk.uuid)
    assert chunk.body.startswith(prefix)
    assert chunk.body.endswith(suffix)


@given(cases(), st.data())
def test_a_part_of_a_chunk_is_a_request_of_its_own(case, data):
    """Its body, rows, ids and kept columns are those of its rows, its uuid its own; a part of a part is the same."""
    given_rows, limits, frame = case
    for chunk in given_rows.pack(limits, frame):
        if len(chunk) < 2:
            continue
        start = data.draw(st.integers(0, len(chunk) - 1))
        stop = data.draw(st.integers(start + 1, len(chunk)))
        part = chunk.part(start, stop, frame)
        assert part.source_rows.tolist() == chunk.source_rows[start:stop].tolist()
        assert (part.first, part.stop) == (part.source_rows[0], part.source_rows[-1] + 1)
        assert [part.line(row) for row in range(len(part))] == [chunk.line(row) for row in range(start, stop)]
        assert rows_in(part.body) == rows_in(chunk.body)[start:stop]
        assert len(part.body) == body_of([part.line(row) for row in range(len(part))], frame)
        assert part.refused == ()
        assert_consistent(part, frame)
        last = part.part(len(part) - 1, len(part), frame)
        assert last.body == chunk.part(stop - 1, stop, frame).body
        assert last.uuid == chunk.part(stop - 1, stop, frame).uuid


@given(cases(), st.lists(st.integers(0, 12), max_size=4))
def test_packing_does_not_depend_on_batch_borders(case, borders):
    """The same rows make the same bodies and ids, however they are batched, and every time."""
    given_rows, limits, frame = case
    other = Input(given_rows.lines, given_rows.refused, tuple(borders))
    assert [(chunk.uuid, chunk.body) for chunk in given_rows.pack(limits, frame)] == [
        (chunk.uuid, chunk.body) for chunk in other.pack(limits, frame)
    ]


@given(cases(), st.lists(st.tuples(st.integers(1, 900), st.integers(1, 6)), min_size=1, max_size=6))
def test_bounds_that_are_learned_hold_from_the_next_chunk_on(case, learned):
    """Asked once for each chunk that sends rows: a chunk exceeds them only with a single row, and no row is lost."""
    given_rows, limits, frame = case
    asked = []

    def bounds():
        body, rows = learned[len(asked) % len(learned)]
        asked.append(Limits(min(body, limits.body), min(rows, limits.rows)))
        return asked[-1]

    chunks = list(pack(given_rows.blocks(), limits, frame, bounds))
    sent = [chunk for chunk in chunks if len(chunk)]
    assert len(asked) == len(sent)
    for chunk, bound in zip(sent, asked, strict=True):
        assert len(chunk) <= bound.rows
        assert len(chunk.body) <= (bound.body if len(chunk) > 1 else limits.body)
    whole = given_rows.pack(limits, frame)
    rows = [int(row) for chunk in whole for row in chunk.source_rows]
    assert [int(row) for chunk in chunks for row in chunk.source_rows] == rows
    dead = [one.source_row for chunk in whole for one in chunk.refused]
    assert [one.source_row for chunk in chunks for one in chunk.refused] == dead


@given(cases(), st.integers(1, 900), st.integers(1, 6))
def test_a_chunk_is_cut_to_any_bounds(case, body, rows):
    """Parts in order, within the bounds unless they are single rows; cut by rows, none is half as large as another."""
    given_rows, limits, frame = case
    for chunk in given_rows.pack(limits, frame):
        if not len(chunk):
            continue
        parts = chunk.cut(Limits(body, rows), frame)
        assert [row for part in parts for row in rows_in(part.body)] == rows_in(chunk.body)
        assert all(len(part) <= rows for part in parts)
        assert all(len(part.body) <= body for part in parts if len(part) > 1)
        even = [len(part) for part in chunk.cut(Limits(10**9, rows), frame)]
        assert len(even) == -(-len(chunk) // rows)
        assert 2 * even[0] >= max(even)


def test_no_part_is_a_byte_over_the_bound():
    """Rows of many widths, and every bound in turn: what is cut once need not be cut again."""
    lines = [b'{"x":"%s"}' % (b"a" * (number * 7 % 23)) for number in range(200)]
    [chunk] = Input(lines).pack(Limits(12_000_000), FRAMES[0])
    for body in range(200, 1200):
        assert all(len(part.body) <= body for part in chunk.cut(Limits(body, 10_000), FRAMES[0]) if len(part) > 1)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("limit", [200, 12_000_000])
def test_a_body_of_exactly_the_limit_is_sent_and_one_byte_more_is_too_large(frame, limit):
    """The limit is inclusive, to the byte, and the message names both sizes."""
    fits = b'{"x":"' + b"a" * (limit - body_of([b'{"x":""}'], frame)) + b'"}'
    (chunk,) = Input([fits]).pack(Limits(limit), frame)
    assert len(chunk.body) == limit
    assert chunk.refused == ()
    (chunk,) = Input([fits.replace(b'"}', b'a"}')]).pack(Limits(limit), frame)
    assert len(chunk) == 0
    (refusal,) = chunk.refused
    assert refusal.kind == "too_large"
    assert refusal.message == f"alone it makes a body of {limit + 1} bytes; the limit is {limit}"


@pytest.mark.parametrize("spare", [0, -1])
def test_two_rows_share_a_body_of_exactly_the_limit(spare):
    """The comma counts: one byte less, and the second row goes into a body of its own."""
    lines = [b'{"x":1}', b'{"x":22}']
    limit = body_of(lines, FRAMES[0]) + spare
    assert [len(chunk) for chunk in Input(lines).pack(Limits(limit), FRAMES[0])] == ([2] if spare == 0 else [1, 1])


def test_a_row_the_encoder_refused_is_unreadable_in_its_words():
    """It is not sent, and says why."""
    (chunk,) = Input([b'{"x":1}', b'{"x":null}'], {1: "x is nan"}).pack(Limits(10_000), FRAMES[0])
    assert len(chunk) == 1
    assert [(one.kind, one.message) for one in chunk.refused] == [("unreadable", "x is nan")]


@pytest.mark.parametrize("borders", [(), (0, 0, 0)])
def test_no_rows_make_no_chunk(borders):
    """Neither an input without batches nor one of empty batches makes an empty request."""
    assert Input([], borders=borders).pack(Limits(10_000), FRAMES[0]) == []
    assert list(pack([], Limits(10_000), FRAMES[0])) == []


def test_rows_that_keep_no_columns_are_packed_too():
    """`keep` without columns still counts its rows."""
    blocks = [block._replace(keep=block.keep.select([])) for block in Input([b"{}"] * 5, borders=(2,)).blocks()]
    (chunk,) = pack(blocks, Limits(10_000), FRAMES[0])
    assert (len(chunk), chunk.keep.num_rows, chunk.keep.num_columns) == (5, 5, 0)


def test_many_refused_rows_do_not_pile_up_in_one_chunk():
    """A chunk is closed when it holds MAX_ROWS refused rows, or many bytes of them."""
    count = MAX_ROWS + 1
    few = Input([b"{}"] * count, dict.fromkeys(range(count), "why")).pack(Limits(10_000), FRAMES[0])
    assert [len(chunk.refused) for chunk in few] == [MAX_ROWS, 1]
    assert [(chunk.first - FIRST, chunk.stop - FIRST) for chunk in few] == [(0, MAX_ROWS), (MAX_ROWS, count)]
    large = b'{"x":"' + b"a" * (MAX_REFUSED_BYTES // 2) + b'"}'
    assert [len(chunk.refused) for chunk in Input([large] * 3).pack(Limits(10_000), FRAMES[0])] == [2, 1]
