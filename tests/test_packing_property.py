"""Any table, any limits: what the service reads is the table's rows, in order, each once. The oracle is `slowjson`."""

from __future__ import annotations

import io
import itertools
import json
from decimal import Decimal
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import service
from anyarrow import KINDS, build
from engine import engine, examples, one_by_one, place
from hypothesis import assume, given
from hypothesis import strategies as st
from pyarrow import types
from slowjson import as_said, batch_of, same, tables

import jobs
from pipeline import encode, plan
from pipeline.encode import LONG, RowEncoder
from pipeline.ids import row_namer
from pipeline.modelarts import ModelArts
from pipeline.pack import MAX_ROWS, Block, Limits, pack
from schemas.options import ModelArtsOptions

FIRST = 1000
FORMS = [{"meta": meta, "wrapper": wrapper} for meta in (True, False) for wrapper in ("data", "none")]
UUID = "0" * 36
ROWS = st.integers(1, 6) | st.just(MAX_ROWS)
CUTS = st.lists(st.integers(0, 12), max_size=4)
EDGES = st.tuples(st.integers(0, 12), st.integers(1, 4), st.sampled_from([0, -1, 1, 40]))


def encoded(batch, reject_nan):
    """Encode all rows of a batch."""
    return RowEncoder(batch.schema, batch.schema.names, rename={}, reject_nan=reject_nan).encode(batch)


def sizes(batch, frame, reject_nan):
    """Return the bytes of the body that each row makes alone."""
    lines = (encoded(batch.slice(row, 1), reject_nan).lines for row in range(batch.num_rows))
    return [sum(map(len, frame(UUID))) + len(line) - 1 for line in lines]


def body_limit(alone, frame, edge):
    """Return a limit to the byte: one at which some neighbours just fit together, or just do not."""
    start, count, spare = edge
    envelope = sum(map(len, frame(UUID)))
    together = alone[start : start + count]
    return max(1, envelope + sum(size - envelope for size in together) + max(0, len(together) - 1) + spare)


def blocks(batch, cuts, reject_nan):
    """Cut a batch where told, and encode the pieces."""
    keep = pa.record_batch({"row": pa.array(range(batch.num_rows), pa.int64())})
    borders = [0, *sorted({min(cut, batch.num_rows) for cut in cuts}), batch.num_rows]
    for start, stop in itertools.pairwise(borders):
        uuids = row_namer("job", "path")(FIRST + start, FIRST + stop)
        piece = encoded(batch.slice(start, stop - start), reject_nan)
        yield Block(FIRST + start, piece, uuids, keep.slice(start, stop - start))


def rows_in(body):
    """Return the rows of a request as a service reads them, every digit kept."""
    read = json.loads(body, parse_float=Decimal)
    return read.get("data", read)["req_data"]


@examples(1.5)
@given(tables(max_rows=12), st.booleans(), st.sampled_from(FORMS), CUTS, ROWS, EDGES, st.sampled_from([0, LONG]))
def test_requests_are_read_back_as_the_rows_in_order(table, reject_nan, form, cuts, most_rows, edge, long):
    """Of any types: a row is refused for its size if and only if it is too large alone, and no body is over a limit.

    However long rows are that are handled one by one.
    """
    with mock.patch.object(encode, "LONG", long):
        _see_requests(table, reject_nan, form, cuts, most_rows, edge)


def _see_requests(table, reject_nan, form, cuts, most_rows, edge):
    schema, rows = table
    batch, frame = batch_of(schema, rows), ModelArts(ModelArtsOptions(**form)).frame
    alone, said = sizes(batch, frame, reject_nan), as_said(schema, rows, reject_nan=reject_nan)
    limit = body_limit(alone, frame, edge)
    chunks = list(pack(blocks(batch, cuts, reject_nan), Limits(limit, most_rows), frame))
    sent = [
        (int(row) - FIRST, read)
        for chunk in chunks
        for row, read in zip(chunk.source_rows, rows_in(chunk.body), strict=True)
    ]
    assert [row for row, _ in sent] == [
        row for row, value in enumerate(said) if value is not None and alone[row] <= limit
    ]
    assert all(same(read, said[row]) for row, read in sent)
    assert all(len(chunk.body) <= limit and len(chunk) <= most_rows for chunk in chunks if len(chunk))
    refused = [(refusal.source_row - FIRST, refusal.kind) for chunk in chunks for refusal in chunk.refused]
    assert sorted(row for row, _ in sent + refused) == list(range(len(rows)))
    assert {row for row, kind in refused if kind == "too_large"} == {
        row for row, size in enumerate(alone) if size > limit
    }


class Echo:
    """Answers each row with a number of its own, and remembers which row that was."""

    def __init__(self):
        self.bodies, self.rows = [], []

    def __call__(self, call):
        meta = json.loads(call.body).get("meta", {"uuid": ""})
        rows = rows_in(call.body)
        answers = [{"number": number} for number in range(len(self.rows), len(self.rows) + len(rows))]
        self.bodies.append((call.body, len(rows)))
        self.rows += rows
        reply = {"resp_data": answers}
        wrapped = {"data": reply} if "data" in json.loads(call.body) else reply
        return 200, {}, json.dumps({"meta": meta, **wrapped}).encode()


@pytest.fixture(scope="module")
def recorded():
    """One service for all examples; its `answer` changes with them."""
    with service.recording() as found:
        yield found


def comes_back(array):
    """Whether Parquet gives an array back with its meaning: it has no intervals and no runs, and forgets some types."""
    try:
        pq.write_table(pa.table({"x": array}), buffer := io.BytesIO())
        return meaning(pq.read_table(buffer).schema.field("x").type) == meaning(array.type)
    except (pa.ArrowException, OSError):
        return False


def meaning(kind):
    """Return what is left of a type without what Parquet may change: encodings, names of items, coarse units."""
    if types.is_dictionary(kind):
        return meaning(kind.value_type)
    if types.is_map(kind):
        return "map", meaning(kind.key_type), meaning(kind.item_type)
    if types.is_struct(kind):
        return [(field.name, meaning(field.type)) for field in kind]
    if types.is_nested(kind):
        return "list", meaning(kind.value_type)
    if types.is_timestamp(kind):
        return "timestamp", kind.tz is None
    return {pa.date64(): pa.date32(), pa.time32("s"): pa.time32("ms"), pa.string_view(): pa.string()}.get(kind, kind)


PARQUET = KINDS.filter(lambda kind: comes_back(build([], kind)))


@examples(0.6)
@given(
    tables(PARQUET, max_rows=12),
    st.booleans(),
    st.sampled_from(FORMS),
    st.integers(1, 12),
    st.integers(1, 12),
    ROWS,
    EDGES,
)
def test_a_run_asks_for_the_rows_of_a_file_and_keeps_their_answers(
    recorded, table, reject_nan, form, group, split, most_rows, edge
):
    """Through a Parquet file, however it and the work are cut: each row comes out once, with the answer to it alone."""
    schema, rows = table
    batch = batch_of(schema, rows)
    assume(all(map(comes_back, batch.columns)))  # some values are beyond it, too
    frame = ModelArts(ModelArtsOptions(**form)).frame
    alone = sizes(batch, frame, reject_nan)
    limit = body_limit(alone, frame, edge)
    recorded.calls.clear()
    recorded.answer = echo = Echo()
    with place() as folder, engine(one_by_one), mock.patch.object(plan, "MIN_SPLIT_ROWS", split):
        jobs.put(folder / "in" / "any.parquet", pa.Table.from_batches([batch]), row_group_size=group)
        summary = jobs.score(job(folder, recorded.url, form, reject_nan, {"body": limit, "rows": most_rows}))
        assert (summary.planned, summary.left, jobs.proved(folder / "out")) == (len(rows), 0, ())
        refused = {one["source_row"]: one["kind"] for one in letters(folder / "out")}
        found = jobs.results(folder / "out")
    answers = (
        {}
        if found is None
        else dict(zip(*found.select(["source_row", "prediction"]).to_pydict().values(), strict=True))
    )
    assert sorted([*answers, *refused]) == list(range(len(rows)))
    assert {row for row, kind in refused.items() if kind == "too_large"} == {
        row for row, size in enumerate(alone) if size > limit
    }
    said = as_said(schema, rows, reject_nan=reject_nan)
    assert all(said[row] is None for row, kind in refused.items() if kind == "unreadable")
    assert all(same(echo.rows[json.loads(answer)["number"]], said[row]) for row, answer in answers.items())
    assert len(echo.rows) == len(answers)
    assert all(len(body) <= limit and count <= most_rows for body, count in echo.bodies)


def letters(out):
    """Read all dead letters; their lines end with a newline, whatever else ends lines in Unicode."""
    lines = b"".join(path.read_bytes() for path in (out / "errors").glob("*.jsonl")).split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def job(folder, url, form, reject_nan, limits):
    """Write a job that sends all columns; dead letters are no failure of it."""
    return jobs.job_file(
        folder,
        "",
        input={"path": "in/*.parquet", "nan": "reject" if reject_nan else "null"},
        service={"url": url, "auth": {"type": "none"}, "tls": {"verify": False}, "options": form, "limits": limits},
        errors={"allow": "100%"},
    )
