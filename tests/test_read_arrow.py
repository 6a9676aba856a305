"""Arrow IPC files and streams: any range as it is in the file, nothing decoded in vain, a clear line otherwise."""

from __future__ import annotations

import bz2
import gzip
import os

import anyarrow
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyarrow import feather, ipc

import jobs
from pipeline import read_arrow
from pipeline.errors import JobError
from pipeline.pieces import Mark, Wanted
from pipeline.read_arrow import BATCH_BYTES, look, pieces
from schemas.job import Input
from schemas.plan import Source

MAKERS = {"file": ipc.new_file, "stream": ipc.new_stream}
WRAPS = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True),
}


def packed(batches, *, form="file", coding=None, schema=None):
    """Return batches as the bytes of an Arrow file or stream."""
    sink = pa.BufferOutputStream()
    options = ipc.IpcWriteOptions(compression=coding, emit_dictionary_deltas=False)
    with MAKERS[form](sink, schema or batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def put(path, content):
    """Write bytes to a file and return its URI."""
    path.write_bytes(content)
    return path.as_uri()


def numbers(*counts):
    """Batches of so many rows: `n` is the row's number."""
    starts = [sum(counts[:index]) for index in range(len(counts))]
    return [
        pa.record_batch(
            {"n": pa.array(range(start, start + count), pa.int64()), "text": pa.array(["x" * 20] * count, pa.string())}
        )
        for start, count in zip(starts, counts, strict=True)
    ]


def found(uri):
    return look(uri, Input(path=(uri,)), {})


BEGIN = Mark(0, 0)


def read(uri, start=0, mark=BEGIN, columns=("n",)):
    source = Source(0, uri, "a", 0, "", None)
    return list(pieces(source, Wanted(Input(path=(uri,)), columns, {}), start, mark))


@settings(max_examples=80)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=6),
    st.sampled_from(list(MAKERS)),
    st.sampled_from([None, "lz4", "zstd"]),
    st.sampled_from(list(WRAPS)),
    st.integers(1, 15),
    st.integers(0, 70),
)
def test_any_range_is_read_as_it_is_in_the_file(tmp_path_factory, counts, form, coding, wrap, largest, start):
    """Whatever the batches, the coding and the place to begin: every row from there, once, at its own number."""
    content = WRAPS[wrap](packed(numbers(*counts), form=form, coding=coding))
    uri = put(tmp_path_factory.mktemp("in") / f"a.arrow{wrap}", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_arrow, "BATCH_ROWS", largest)
        patch.setattr(read_arrow, "BATCH_BYTES", 200)
        marks = found(uri).marks
        mark = max((one for one in marks if one.row <= start), default=Mark(0, 0))
        pieces_of = read(uri, start), read(uri, start, mark)
    for each in pieces_of:
        values = [(piece.first, piece.data["n"].to_pylist()) for piece in each]
        assert [row for first, rows in values for row in range(first, first + len(rows))] == [
            *range(start, sum(counts))
        ]
        assert [row for _, rows in values for row in rows] == [*range(start, sum(counts))]
        assert all(0 < len(rows) <= largest for _, rows in values)


@settings(max_examples=80)
@given(st.data(), anyarrow.KINDS, st.sampled_from(list(MAKERS)))
def test_every_type_passes_through(tmp_path_factory, data, kind, form):
    """Nested, dictionary, extension and view types are what they were, and so are their values."""
    values = data.draw(st.lists(anyarrow.values_of(kind), min_size=1, max_size=5))
    batch = pa.record_batch({"x": anyarrow.build(values, kind)})
    content = packed([batch], form=form)
    expected = as_arrow_reads(content, form)
    assume(expected is not None)
    uri = put(tmp_path_factory.mktemp("in") / "a.arrow", content)
    [piece] = read(uri, columns=("x",))
    assert found(uri).schema == piece.data.schema == batch.schema
    assert str(piece.data["x"]) == str(expected)


def as_arrow_reads(content, form):
    """Return the only column, None where Arrow does not read what it wrote, as dictionaries of extension types."""
    try:
        table = (ipc.open_file if form == "file" else ipc.open_stream)(content).read_all()
    except pa.ArrowInvalid:
        return None
    return table["x"].chunk(0)


def test_a_file_says_how_many_rows_it_has_and_where_its_batches_are(tmp_path):
    """Marks lie about a piece apart, at record batches."""
    uri = put(tmp_path / "a.arrow", packed(numbers(10_000, 1, 20_000, 5)))
    at = found(uri)
    assert (at.rows, at.empty, at.schema.names) == (30_006, False, ["n", "text"])
    assert [mark.row for mark in at.marks] == [0, 10_000, 30_001]
    assert at.size > 30_006 * 28


def test_a_stream_does_not_say_how_many_rows_it_has(tmp_path):
    """It has no footer; whether it has any rows at all is seen."""
    uri = put(tmp_path / "a.arrows", packed(numbers(0, 3), form="stream"))
    assert (found(uri).rows, found(uri).empty, found(uri).marks) == (None, False, ())
    assert found(uri).size == (tmp_path / "a.arrows").stat().st_size


@pytest.mark.parametrize("form", MAKERS)
@pytest.mark.parametrize("counts", [(), (0, 0)])
def test_a_file_without_rows_is_empty(tmp_path, form, counts):
    """With no record batches, or only empty ones."""
    uri = put(tmp_path / "a.arrow", packed(numbers(*counts), form=form, schema=numbers(1)[0].schema))
    assert (found(uri).rows, found(uri).empty) == (0, True)
    assert read(uri) == []


def test_batches_before_the_start_are_not_decoded(tmp_path, monkeypatch):
    """Random access by record batch, where a mark says which."""
    uri = put(tmp_path / "a.arrow", packed(numbers(*[10_000] * 5)))
    marks, decoded = found(uri).marks, []

    class Watched(ipc.RecordBatchFileReader):
        def get_batch(self, index):
            decoded.append(index)
            return super().get_batch(index)

    monkeypatch.setattr(read_arrow.ipc, "open_file", Watched)
    read(uri, 40_000, marks[3])
    assert decoded == [3, 4]


def test_planning_decodes_one_column(tmp_path):
    """The rows are those of the first column, so another one may be damaged: reading it will tell."""
    columns = {"n": pa.array([7], pa.int64()), "text": ["x" * 1000]}
    content = bytearray(packed([pa.record_batch(columns)], coding="zstd"))
    at = content.rindex(b"\x28\xb5\x2f\xfd")  # where zstd begins, for the last time
    content[at : at + 4] = b"junk"
    uri = put(tmp_path / "a.arrow", bytes(content))
    assert found(uri).rows == 1
    with pytest.raises((OSError, pa.ArrowException)):
        read(uri, columns=("text",))


@pytest.mark.parametrize("form", MAKERS)
def test_only_the_columns_that_are_needed_are_read(tmp_path, form):
    """In the order they are asked for; those the file does not have are left out."""
    uri = put(tmp_path / "a", packed(numbers(3), form=form))
    [piece] = read(uri, columns=("text", "absent", "n"))
    assert piece.data.schema.names == ["text", "n"]
    [piece] = read(uri, columns=("absent",))
    assert (piece.data.schema.names, piece.data.num_rows) == ([], 3)


@pytest.mark.parametrize("form", MAKERS)
def test_large_batches_come_in_pieces(tmp_path, form):
    """About four megabytes each, however large the record batch is."""
    batch = pa.record_batch({"blob": [os.urandom(BATCH_BYTES // 10)] * 25})
    uri = put(tmp_path / "a", packed([batch], form=form))
    assert [(piece.first, piece.data.num_rows) for piece in read(uri, columns=("blob",))] == [(0, 9), (9, 9), (18, 7)]
    wide = pa.record_batch({"blob": [b"x" * (BATCH_BYTES * 2)] * 3})
    uri = put(tmp_path / "b", packed([wide], form=form))
    assert [piece.data.num_rows for piece in read(uri, columns=("blob",))] == [1, 1, 1]


def test_feather_files_are_arrow_files(tmp_path):
    """Version 2, compressed as pyarrow does it by default."""
    feather.write_feather(pa.Table.from_batches(numbers(5)), tmp_path / "a.feather")
    uri = (tmp_path / "a.feather").as_uri()
    assert found(uri).rows == 5
    assert read(uri)[0].data["n"].to_pylist() == [0, 1, 2, 3, 4]


def test_dictionaries_that_change_within_a_stream_are_followed(tmp_path):
    """Each batch means what its own dictionary says."""
    batches = [pa.record_batch({"n": pa.array(one).dictionary_encode()}) for one in (["a", "b"], ["c", "b"])]
    [one, other] = read(put(tmp_path / "a.arrows", packed(batches, form="stream")))
    assert (one.data["n"].to_pylist(), other.data["n"].to_pylist()) == (["a", "b"], ["c", "b"])


def test_of_two_columns_with_the_same_name_the_first_is_read(tmp_path):
    """Whether that is allowed is not for this module to say."""
    batch = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], ["n", "n"])
    uri = put(tmp_path / "a.arrow", packed([batch]))
    assert found(uri).schema.names == ["n", "n"]
    assert read(uri)[0].data.to_pydict() == {"n": [1]}


def test_files_from_before_arrow_0_15_are_read(tmp_path):
    """Their messages begin with the length alone."""
    sink = pa.BufferOutputStream()
    options = ipc.IpcWriteOptions(use_legacy_format=True, metadata_version=ipc.MetadataVersion.V4)
    with ipc.new_file(sink, numbers(1)[0].schema, options=options) as writer:
        for batch in numbers(3, 4):
            writer.write_batch(batch)
    uri = put(tmp_path / "a.arrow", sink.getvalue().to_pybytes())
    assert found(uri).rows == 7
    assert [piece.data["n"].to_pylist() for piece in read(uri, 2)] == [[2], [3, 4, 5, 6]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nothing.arrow", b""),
        ("text.arrow", b"id,x\n1,2\n" * 100),
        ("short.arrow", b"ARROW1"),
        ("cut.arrow", packed(numbers(500))[:-200]),
        ("half.arrow.gz", gzip.compress(packed(numbers(500)))[:-100]),
        ("half.arrows.gz", gzip.compress(packed(numbers(500), form="stream"))[:200]),
        ("cut.arrows", packed(numbers(500), form="stream")[:-2000]),
        ("plain.arrow.zst", packed(numbers(5))),
    ],
)
def test_a_file_that_is_not_arrow_is_named(tmp_path, name, content):
    """One line that says which file, why, and what to do."""
    uri = put(tmp_path / name, content)
    with pytest.raises(JobError) as caught:
        found(uri)
    text = str(caught.value)
    assert text.startswith(f"input.path: {uri} is not a readable Arrow file: ")
    assert text.endswith("; replace it or leave it out")
    assert "\n" not in text


def test_a_file_that_is_not_there_is_named(tmp_path):
    """It may vanish between the listing and the look."""
    with pytest.raises(JobError, match=r"gone\.arrow is not a readable Arrow file"):
        found((tmp_path / "gone.arrow").as_uri())


@settings(max_examples=60)
@given(st.data(), st.sampled_from(list(MAKERS)))
def test_a_file_that_is_cut_anywhere_never_shows_rows_that_are_not_its_own(tmp_path_factory, data, form):
    """Its rows up to the cut, at most, and no others."""
    content = packed(numbers(3, 4, 5), form=form)
    uri = put(tmp_path_factory.mktemp("in") / "a", content[: data.draw(st.integers(0, len(content) - 1))])
    rows = []
    try:
        found(uri)
        for piece in read(uri):
            rows += piece.data["n"].to_pylist()
    except (JobError, OSError, pa.ArrowException):
        pass
    assert rows == [*range(12)][: len(rows)]
    assert form == "stream" or not rows


def test_the_source_of_a_plan_is_read(tmp_path):
    """As the listing names it."""
    put(tmp_path / "a file.arrow", packed(numbers(2)))
    [one] = jobs.listed(str(tmp_path / "*.arrow"))
    assert read(one.uri)[0].data["n"].to_pylist() == [0, 1]
