"""Parquet rows: any range of any file, streamed, cast as declared, and an error with the file's name otherwise."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from itertools import count

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jobs
from pipeline import read_csv, read_parquet
from pipeline.arrowtypes import types_of
from pipeline.errors import JobError, StorageFailed
from pipeline.pieces import Broken, Wanted
from pipeline.read import Reader
from pipeline.read_parquet import look
from pipeline.storage import Store
from schemas.job import Input
from schemas.plan import NO_END, Source, Work


def source_of(path):
    """Return a file as a plan has it."""
    [one] = jobs.listed(str(path))
    return Source(0, one.uri, one.path, one.size, one.version, pq.read_metadata(path).num_rows)


def reading(columns, types=None):
    """Open a reader of Parquet files."""
    given = Input(path="in/*.parquet", format="parquet")
    return closing(Reader(Wanted(given, tuple(columns), types or {}), Store("out")))


def numbers(path, ranges, *, columns=("n",), types=None):
    """Read ranges with one reader; return all batches as (first, values)."""
    with reading(columns, types) as reader:
        found = source_of(path)
        return [
            (batch.first, batch.data.column(0).to_pylist())
            for start, stop in ranges
            for batch in reader.read(Work(found, 0, found.rows), start, stop)
        ]


def whole(path):
    """Return a file as one piece of work."""
    source = source_of(path)
    return Work(source, 0, source.rows)


def table(rows):
    return pa.table({"n": pa.array(range(rows), pa.int64()), "other": ["x" * 20] * rows})


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 60),
    st.integers(1, 25),
    st.integers(1, 25),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=6),
)
def test_any_range_is_read_as_it_is_in_the_file(tmp_path_factory, rows, group, batch, edges):
    """Whatever the row groups, the batches and the order of ranges: each row once, in order, at its own number."""
    path = jobs.put(tmp_path_factory.mktemp("in") / "a.parquet", table(rows), row_group_size=group)
    ranges = [(min(one), min(max(one), rows)) for one in edges]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_parquet, "BATCH_ROWS", batch)
        found = numbers(path, ranges)
    assert [row for first, values in found for row in range(first, first + len(values))] == [
        row for _, values in found for row in values
    ]
    assert [row for _, values in found for row in values] == [row for one in ranges for row in range(*one)]
    assert all(0 < len(values) <= batch for _, values in found)


def test_only_the_columns_that_are_needed_are_read(tmp_path):
    """In the order they are asked for, not in the file's."""
    path = jobs.put(tmp_path / "a.parquet", jobs.flowers(3))
    with reading(["petal_width", "id"]) as reader:
        [batch] = reader.read(whole(path), 0, 3)
    assert batch.data.schema.names == ["petal_width", "id"]


def test_a_file_stays_open_for_the_range_that_follows(tmp_path, monkeypatch):
    """A range behind the last one costs no second look; one before it opens the file again."""
    path = jobs.put(tmp_path / "a.parquet", table(30), row_group_size=30)
    opened = []
    parquet_file = pq.ParquetFile

    def counted(*args, **keys):
        opened.append(1)
        return parquet_file(*args, **keys)

    monkeypatch.setattr(read_parquet.pq, "ParquetFile", counted)
    found = numbers(path, [(0, 10), (10, 20), (25, 30)])
    assert ([row for _, values in found for row in values], len(opened)) == ([*range(20), *range(25, 30)], 1)
    numbers(path, [(10, 20), (0, 10)])
    assert len(opened) == 3


def test_declared_types_are_cast(tmp_path):
    """Text becomes numbers where it can, and the position of what cannot is told with the value."""
    path = jobs.put(tmp_path / "a.parquet", pa.table({"n": ["1", "2", "two", None, "4.5"]}))
    with reading(["n"], types_of({"n": "int64"})) as reader:
        [batch] = reader.read(whole(path), 0, 5)
    assert batch.data.column(0).to_pylist() == [1, 2, None, None, None]
    assert batch.data.schema.field("n").type == pa.int64()
    assert batch.broken == {
        2: Broken("unreadable", "n is 'two', which is no int64", b'{"n":"two"}'),
        4: Broken("unreadable", "n is '4.5', which is no int64", b'{"n":"4.5"}'),
    }


def test_a_batch_that_fits_is_cast_at_once(tmp_path):
    """Nothing is unreadable where everything fits."""
    path = jobs.put(tmp_path / "a.parquet", pa.table({"n": pa.array([1, 2], pa.int32())}))
    with reading(["n"], types_of({"n": "double"})) as reader:
        [batch] = reader.read(whole(path), 0, 2)
    assert (batch.data.column(0).to_pylist(), batch.broken) == ([1.0, 2.0], {})


def test_a_footer_tells_schema_and_rows(tmp_path):
    """Also of a file without rows, or without row groups."""
    path = jobs.put(tmp_path / "a.parquet", table(0))
    assert (look_at(path.as_uri()).rows, look_at(path.as_uri()).schema.names) == (0, ["n", "other"])
    assert look_at(jobs.put(path, table(7), row_group_size=2).as_uri()).rows == 7


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 3, b"id,x\n1,2\n" * 100])
def test_what_is_no_parquet_is_named(tmp_path, content):
    """One line with the file and the mend, however little is in it."""
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(JobError) as caught:
        look_at(path.as_uri())
    line = str(caught.value)
    assert line.startswith(f"input.path: {path.as_uri()} is not a readable Parquet file: ")
    assert line.endswith("; replace it or leave it out")
    assert "\n" not in line


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path, share):
    """The footer is at the end: a cut file has none, wherever it was cut."""
    path = jobs.put(tmp_path / "a.parquet", table(1000))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(JobError, match="is not a readable Parquet file"):
        look_at(path.as_uri())


def look_at(uri):
    """Look at a Parquet file as planning does."""
    return look(uri, Input(path="in/*.parquet", format="parquet"), {})


def replace(path):
    jobs.put(path, table(31))


def touch(path):
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [replace, touch, os.remove, lambda path: path.write_bytes(b"x")])
def test_a_file_that_is_not_the_planned_one_is_never_read(tmp_path, change):
    """Replaced, touched, gone or cut after planning: the error has its name and is exit 6."""
    path = jobs.put(tmp_path / "a.parquet", table(30))
    planned = whole(path)
    change(path)
    with reading(["n"]) as reader, pytest.raises(StorageFailed) as caught:
        list(reader.read(planned, 0, 30))
    assert path.as_uri() in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_page_that_cannot_be_decoded_is_named(tmp_path):
    """Right size, right footer, wrong bytes between them."""
    path = jobs.put(tmp_path / "a.parquet", table(3000), compression="zstd")
    content = bytearray(path.read_bytes())
    content[40:200] = b"\xff" * 160
    path.write_bytes(content)
    with (
        reading(["n", "other"]) as reader,
        pytest.raises(StorageFailed, match=r"^cannot read file://") as caught,
    ):
        list(reader.read(whole(path), 0, 3000))
    assert path.as_uri() in str(caught.value)


def test_a_copy_of_a_file_is_another_version(tmp_path):
    """A version is size and time of change, so that a file that was written again is known."""
    path = jobs.put(tmp_path / "a.parquet", table(3))
    os.utime(path, ns=(1, 1))
    copy = shutil.copy(path, tmp_path / "b.parquet")
    assert source_of(path).version != source_of(copy).version
    assert source_of(path).version == f"{path.stat().st_size}-1"


def test_a_read_that_failed_is_no_end(tmp_path, monkeypatch):
    """Whoever goes on behind it gets the rows that are there: the file is opened anew."""
    monkeypatch.setattr("pipeline.records.BLOCK", 100)
    path = tmp_path / "a.csv"
    path.write_text("n\n" + "".join(f"{row}\n" for row in range(100)))
    real, reads = read_csv.open_stream, count()

    class Failing:
        def __init__(self, uri):
            self.stream = real(uri)

        def read(self, size):
            if next(reads) == 3:
                raise OSError(5, "Input/output error")
            return self.stream.read(size)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

    monkeypatch.setattr(read_csv, "open_stream", Failing)
    [one] = jobs.listed(str(path))
    work = Work(Source(0, one.uri, one.path, one.size, one.version, None), 0, NO_END)
    with closing(Reader(Wanted(Input(path="in/*.csv", format="csv"), ("n",), {}), Store("out"))) as reader:
        with pytest.raises(StorageFailed, match="Input/output error"):
            list(reader.read(work, 0, 90))
        assert [text for batch in reader.read(work, 90, NO_END) for text in batch.data["n"].to_pylist()] == [
            f"{row}" for row in range(90, 100)
        ]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_rows_without_any_column_are_rows(tmp_path, form):
    """However many there are: an Arrow batch made of no columns would have none."""
    path = tmp_path / f"a.{form}"
    if form == "jsonl":
        path.write_text("{}\n" * 3)
    else:
        jobs.put(path, table(3))
    [one] = jobs.listed(str(path))
    work = Work(Source(0, one.uri, one.path, one.size, one.version, 3), 0, 3)
    with closing(Reader(Wanted(Input(path="in/*", format=form), (), {}), Store("out"))) as reader:
        found = [(batch.first, batch.data.num_rows, batch.data.schema.names) for batch in reader.read(work, 1, 3)]
    assert found == [(1, 2, [])]
