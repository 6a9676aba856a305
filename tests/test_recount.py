"""`verify` over outputs written by hand: rows that are files, sources of unknown rows, pieces, and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jobs
from pipeline import forms, identity
from pipeline.converse import Dead, Scored
from pipeline.forms import FORMS, PLACE
from pipeline.identity import rows_of
from pipeline.ids import file_names, row_namer
from pipeline.ledger import Receipts
from pipeline.pack import Chunk
from pipeline.plan import Range
from pipeline.recount import _Count, recount
from pipeline.status import Action, Fault
from pipeline.storage import Store
from pipeline.write import RangeWriter
from schemas.plan import NO_END, Plan, Source, Split, Work
from schemas.receipt import Receipt
from schemas.tables import Attempt

AT = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
OPEN = Source(0, "file:///data/a.csv", "a.csv", 1, "v1", None)
CLOSED = Source(0, "file:///data/a.parquet", "a.parquet", 1, "v1", 40)
LISTING = Source(0, "plan/000000.parquet", "", 1, "v1", 40, listing=True)
PATHS = pa.array([f"{row:02d}/{row}.jpg" for row in range(40)])
URIS = pa.array([f"file:///images/{path}" for path in PATHS.to_pylist()])
NO_KEEP = pa.record_batch([pa.array([None] * 10)], ["id"])


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Read objects of each form in pieces so small that every object has several."""
    monkeypatch.setattr(forms, "_PIECE", 700)
    monkeypatch.setattr(forms, "_ROWS", 3)
    monkeypatch.setattr(identity, "_ROWS", 7)
    return request.param


def planned(folder, source):
    """Plan one source; returns the output."""
    store = Store(str(folder / "out"))
    store.write("job.json", b'{"name": "iris", "errors": {"allow": "100%"}}')
    plan = Plan("r1", {"id": "null"}, (source,), (Split(0, 0, source.rows),))
    store.write("plan/000000.json", msgspec.json.encode(plan))
    pq.write_table(pa.table({"uri": URIS, "path": PATHS}), folder / "out" / "plan" / "000000.parquet")
    store.write("_SUCCESS", b"")
    return store


def chunk_of(source, start, **changes):
    """Return ten rows from `start` as a request."""
    rows = slice(start, start + 10)
    own = file_names("iris", PATHS[rows]) if source.listing else row_namer("iris", source.path)(start, start + 10)
    uris = URIS[rows] if source.listing else None
    values = {
        "first": start, "stop": start + 10, "uuid": own[0].as_py(), "body": b"1," * 10, "offset": 0,
        "costs": np.full(10, 2), "source_rows": np.arange(start, start + 10), "row_uuids": own, "keep": NO_KEEP,
        "uris": uris, **changes,
    }  # fmt: skip
    return Chunk(**values)


def writer(store, source, start, **form):
    """Open a writer at a row."""
    rows = Range(start, source.rows or NO_END)
    work, schema = Work(source, *rows), NO_KEEP.schema
    return RangeWriter(store, work, rows, schema, run="r1", clock=lambda: 0.0, now=lambda: AT, **form)


def score(store, source, *chunks, form="parquet", end=False):
    """Write chunks under one receipt, the third row of ten as a dead letter; returns the range's name."""
    writing = writer(store, source, chunks[0].first, form=form)
    for chunk in chunks:
        parts = [chunk.part(low, high, lambda _: (b"", b"")) for low, high in ((0, 2), (2, 3), (3, 10))]
        good = [Scored(one, pa.array(["1"] * len(one)), 1, 0.1, AT) for one in (parts[0], parts[2])]
        attempt = Attempt(AT.isoformat(), "reject", 400)
        dead = Dead(parts[1], "rejected", Fault(Action.REJECT, 400, None, "no"), (attempt,))
        writing.add(chunk, [good[0], dead, good[1]])
    return writing.close(end=end).name


def breaches(store):
    """Return what `verify` names, without what it says of `_SUCCESS`."""
    found = jobs.proved(store.local)
    if found:
        assert found[-1] == "_SUCCESS stands without right"
    return list(found[:-1])


@pytest.mark.parametrize("source", [OPEN, CLOSED, LISTING], ids=["open", "closed", "listing"])
def test_what_was_written_is_verified(tmp_path, form, source):
    """Sources of known and of unknown rows, and rows that are files; several receipts, several pieces."""
    store = planned(tmp_path, source)
    score(store, source, *(chunk_of(source, start) for start in (0, 10)), form=form)
    score(store, source, *(chunk_of(source, start) for start in (20, 30)), form=form, end=True)
    assert breaches(store) == []
    assert jobs.call("verify", tmp_path / "out").out.endswith(": 40 rows = 36 results + 4 dead letters: verified\n")


def test_a_source_of_unknown_rows_is_complete_when_its_end_was_seen(tmp_path):
    """Until then nobody knows how many rows are missing."""
    store = planned(tmp_path, OPEN)
    assert breaches(store) == [f"missing: rows from 0 on of {OPEN.uri}"]
    score(store, OPEN, chunk_of(OPEN, 10))
    assert breaches(store) == [f"missing: rows {rows} of {OPEN.uri}" for rows in ("0 to 9", "from 20 on")]
    score(store, OPEN, chunk_of(OPEN, 0))
    score(store, OPEN, chunk_of(OPEN, 20), end=True)
    assert breaches(store) == []


def test_an_empty_source_of_unknown_rows_is_complete_by_a_receipt_of_none(tmp_path):
    """It was read, and there was nothing in it."""
    store = planned(tmp_path, OPEN)
    writer(store, OPEN, 0).close(end=True)
    assert breaches(store) == []


def test_an_output_without_a_plan_is_incomplete(tmp_path):
    """The run ended before it had looked at its input."""
    store = planned(tmp_path, CLOSED)
    store.delete("plan/000000.json")
    assert breaches(store) == ["nothing is planned yet: the run ended before it began"]


def test_an_object_that_goes_while_it_is_verified_is_named(tmp_path):
    """Another run may sweep: what was listed need not be there when it is read."""
    store = planned(tmp_path, CLOSED)
    score(store, CLOSED, chunk_of(CLOSED, 0))
    [receipt] = Receipts(store).all()
    store.delete(receipt.results.name)
    with rows_of(store, "iris", CLOSED) as between:
        assert list(recount(store, receipt, between(0, 10))) == [f"receipt without object: {receipt.results.name}"]


def test_rows_behind_an_end_are_foreign(tmp_path):
    """Two receipts that contradict each other: one saw the end, the other has rows behind it."""
    store = planned(tmp_path, OPEN)
    score(store, OPEN, chunk_of(OPEN, 0), end=True)
    name = score(store, OPEN, chunk_of(OPEN, 10))
    assert breaches(store) == [f"foreign: {name} goes on behind the end of {OPEN.uri}, which has 10 rows"]


def test_a_result_of_another_file_is_foreign(tmp_path, form):
    """Rows that are files are told by their URI: one that is not in the range is nobody's, and its row is missing."""
    store = planned(tmp_path, LISTING)
    uris = pa.array([*URIS[:4].to_pylist(), "file:///x.jpg", *URIS[5:10].to_pylist()])
    name = score(store, LISTING, *(chunk_of(LISTING, 0, uris=uris), chunk_of(LISTING, 10)), form=form)
    score(store, LISTING, *(chunk_of(LISTING, start) for start in (20, 30)), form=form)
    assert breaches(store) == [
        f"foreign: 1 rows from elsewhere, such as row 0 of file:///x.jpg, in {name}",
        f"missing: 1 rows, such as {URIS[4]}, of {name}",
    ]


def test_a_receipt_of_files_that_are_not_listed_is_named(tmp_path):
    """It claims rows behind the listing's last: nobody knows which files those should be."""
    store = planned(tmp_path, LISTING)
    score(store, LISTING, *(chunk_of(LISTING, start) for start in (0, 10, 20)))
    name = score(store, LISTING, chunk_of(LISTING, 30, stop=45))
    assert breaches(store) == [
        f"foreign: {name} goes on behind the end of {LISTING.uri}, which has 40 rows",
    ]


def test_files_that_moved_as_a_whole_are_no_other_files(tmp_path, form):
    """What was scored before has the old URIs, the plan the new ones; row_uuids are of what lies below the folder."""
    store = planned(tmp_path, LISTING)
    old = pa.array([f"s3://old/{path}" for path in PATHS.to_pylist()])
    score(store, LISTING, *(chunk_of(LISTING, start, uris=old[start : start + 10]) for start in (0, 10)), form=form)
    score(store, LISTING, *(chunk_of(LISTING, start) for start in (20, 30)), form=form)
    assert breaches(store) == []


def test_a_file_that_moved_has_its_own_row_uuid(tmp_path, form):
    """Two that changed places are at neither."""
    store = planned(tmp_path, LISTING)
    old = [f"s3://old/{path}" for path in PATHS.to_pylist()]
    old[0:2] = old[1::-1]
    chunks = [chunk_of(LISTING, start, uris=pa.array(old[start : start + 10])) for start in range(0, 40, 10)]
    name = score(store, LISTING, *chunks, form=form)
    assert breaches(store) == [
        f"foreign: 2 rows from elsewhere, such as row 0 of {old[0]}, row 0 of {old[1]}, in {name}",
        f"missing: 2 rows, such as {URIS[0]}, {URIS[1]}, of {name}",
    ]


def test_a_file_that_comes_out_twice_is_doubled(tmp_path, form):
    """In place of another one, as result or dead letter, however far apart."""
    store = planned(tmp_path, LISTING)
    score(store, LISTING, *(chunk_of(LISTING, start) for start in (0, 10)), form=form)
    uris = pa.array([*URIS[20:28].to_pylist(), *URIS[30:32].to_pylist()])
    name = score(store, LISTING, *(chunk_of(LISTING, 20, uris=uris), chunk_of(LISTING, 30)), form=form)
    assert breaches(store) == [
        f"foreign: 2 row_uuids, such as that of row {URIS[30]}, {URIS[31]}, in {name}",
        f"missing: 2 rows, such as {URIS[28]}, {URIS[29]}, of {name}",
        f"doubled: 2 rows, such as {URIS[30]}, {URIS[31]}, of {name}",
    ]


def test_a_file_has_one_row(tmp_path):
    """Row 1 of a file that is a row is no row."""
    store = planned(tmp_path, LISTING)
    name = score(store, LISTING, *(chunk_of(LISTING, start) for start in range(0, 40, 10)))
    [path] = (tmp_path / "out" / "results").iterdir()
    table = pq.read_table(path)
    rows = table["source_row"].to_pylist()
    rows[5] = 1
    pq.write_table(table.set_column(3, table.schema.field("source_row"), pa.array(rows)), path)
    receipt = tmp_path / "out" / "receipts" / f"{name}.json"
    values = json.loads(receipt.read_bytes())
    with store.create("results") as draft:
        draft.write(path.read_bytes())
        values["results"] = msgspec.to_builtins(draft.keep(f"results/{path.name}"))
    receipt.write_text(json.dumps(values))
    assert f"foreign: 1 rows from elsewhere, such as row 1 of {table['source'][5]}, in {name}" in breaches(store)


def test_a_breach_is_one_line_however_many_pieces_and_rows(tmp_path, form):
    """So many, and the first few of them."""
    store = planned(tmp_path, CLOSED)
    foreign = pa.array(["00000000-0000-5000-8000-000000000000"] * 10)
    chunks = [chunk_of(CLOSED, start, row_uuids=foreign) for start in range(0, 40, 10)]
    name = score(store, CLOSED, *chunks, form=form)
    assert breaches(store) == [f"foreign: 40 row_uuids, such as that of row 0, 1, 3, 4, 5, in {name}"]


@given(st.lists(st.integers(0, 10**9) | st.integers(0, 60), max_size=50))
def test_row_uuids_are_those_of_their_rows_however_far_apart(numbers):
    """Dead letters may be few in a large range: only their own row_uuids are worked out, in any order."""
    with rows_of(None, "iris", CLOSED) as between:
        found = between(0, 10**9).uuids(np.array(numbers, np.int64))
    names = row_namer("iris", CLOSED.path)
    assert found.to_pylist() == [names(number, number + 1)[0].as_py() for number in numbers]


@given(st.lists(st.lists(st.tuples(st.integers(-2, 14), st.booleans()), max_size=8), max_size=5))
def test_rows_are_counted_as_an_obvious_count_does(pieces):
    """Whatever rows come in whatever pieces, with right row_uuids or wrong ones."""
    receipt = Receipt(0, 2, 12, 0, "a", "v1", 10, 0, "r1")
    names = row_namer("iris", CLOSED.path)
    with rows_of(None, "iris", CLOSED) as between:
        count = _Count(receipt, between(2, 12))
    for piece in pieces:
        uuids = [names(row, row + 1)[0].as_py() if right else None for row, right in piece]
        columns = {"source": [CLOSED.uri] * len(piece), "source_row": [row for row, _ in piece], "row_uuid": uuids}
        count.add(pa.RecordBatch.from_pydict(columns, PLACE))
    rows = [one for piece in pieces for one in piece]
    times = Counter(row for row, _ in rows)
    expected = {
        "foreign: {} rows,": sum(not 2 <= row < 12 for row, _ in rows),
        "foreign: {} row_uuids,": sum(2 <= row < 12 and not right for row, right in rows),
        "missing: {} rows,": sum(row not in times for row in range(2, 12)),
        "doubled: {} rows,": sum(times[row] > 1 for row in range(2, 12)),
    }
    told = [" ".join(line.split(" ")[:3]) for line in count.breaches() if not line.startswith("wrong count")]
    assert told == [what.format(number) for what, number in expected.items() if number]
    assert any(line.startswith("wrong count") for line in count.breaches()) == (len(rows) != 10)


MEMORY = """
import sys
from pathlib import Path
from pipeline.storage import Store
from pipeline.verify import verify

before = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
assert verify(Store(sys.argv[1])).breaches == ()
print(int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) - int(before))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_memory_does_not_grow_with_the_objects(tmp_path):
    """300,000 rows in one object, in one row group, and 100 MB of dead letters: a fraction of their size."""
    rows, dead = 300_000, 30_000
    source = Source(0, CLOSED.uri, CLOSED.path, 1, "v1", rows + dead)
    store = planned(tmp_path, source)
    uuids = row_namer("iris", source.path)(0, rows + dead)
    name = "000000-000000000000-000000330000-0-aaaaaaaaaaaa"
    with store.create("results") as draft:
        columns = {"source": pa.repeat(source.uri, rows), "source_row": np.arange(rows), "row_uuid": uuids[:rows]}
        pq.write_table(pa.table({**columns, "prediction": uuids[:rows]}), draft, row_group_size=rows)
        results = draft.keep(f"results/{name}.parquet")
    with store.create("errors") as draft:
        for row in range(rows, rows + dead):
            letter = f'{{"source":"{source.uri}","source_row":{row},"row_uuid":"{uuids[row]}","row":"{"x" * 3000}"}}\n'
            draft.write(letter.encode())
        errors = draft.keep(f"errors/{name}.jsonl")
    receipt = Receipt(0, 0, rows + dead, 0, "a" * 12, "v1", rows, dead, "r1", results, errors, end=True)
    store.write(f"receipts/{name}.json", msgspec.json.encode(receipt))
    assert results.size + errors.size > 100_000_000
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / "out"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) < 100_000, "KB"
