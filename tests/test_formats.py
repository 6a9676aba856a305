"""The tables of README's "Input formats": every cell is a real file that a whole job scores, or that is refused."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import re
import tempfile
from datetime import date
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock
from uuid import UUID

import echo
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from anyarrow import build
from pyarrow import ipc, types

import jobs
from pipeline import lines, read_arrow
from pipeline.gather import draft
from pipeline.ledger import Planned
from pipeline.storage import Store

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("\n## Input formats\n")[2].partition("\n## ")[0]

DAY = date(2026, 11, 21).toordinal() - date(1970, 1, 1).toordinal()
AT = 10 * 3600 + 30 * 60  # 10:30:00
NOW = DAY * 86_400 + AT
SPAN = 93_600  # P1DT2H
KEY = UUID("00000000-0000-0000-0000-0000000000ff")
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
TENSOR = pa.fixed_shape_tensor(pa.int16(), [2, 2])


def integers(*kinds):
    return {kind: [(7, "7"), *((end, f"{end}") for end in _ends(kind))] for kind in kinds}


def _ends(kind):
    bits = kind.bit_width
    signed = types.is_signed_integer(kind)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def the_same(values, *kinds):
    return dict.fromkeys(kinds, values)


def ticks(text, seconds, kinds):
    """Instants of every unit: the table's one, and one with the least fraction that the unit has."""
    return {kind: [(seconds * TICKS[kind.unit], text), *_least(text, kind)] for kind in kinds}


def _least(text, kind):
    if types.is_duration(kind) or kind.unit == "s":
        return []
    digits = {"ms": 3, "us": 6, "ns": 9}[kind.unit]
    start = "" if types.is_time(kind) else "1970-01-01T"
    end = "Z" if text.endswith('Z"') else ""
    return [(1, f'"{start}00:00:00.{1:0{digits}}{end}"')]


BINARY = [(b"\x00\xff", '"AP8="'), (b"ab", '"YWI="')]
TEXT = [('a "ü",\n', r'"a \"ü\",\n"'), ("", '""'), ("00001", '"00001"')]
LIST = [([1, None], "[1,null]"), ([2, 3], "[2,3]")]

KINDS: dict[str, dict[pa.DataType, list[tuple[Any, str]]]] = {
    "`bool`": the_same([(True, "true"), (False, "false")], pa.bool_()),
    "`int64`": integers(pa.int64()),
    "other integers": integers(pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    "`double`": the_same([(0.1, "0.1"), (3.0, "3.0"), (-1e-300, "-1e-300")], pa.float64()),
    "`float`, `halffloat`": the_same([(0.1, "0.1"), (3.0, "3.0")], pa.float32(), pa.float16()),
    "`string`": the_same(TEXT, pa.string()),
    "`large_string`, `string_view`": the_same(TEXT, pa.large_string(), pa.string_view()),
    "decimals": the_same(
        [(Decimal("1.10"), "1.10"), (Decimal("-0.01"), "-0.01")],
        *(make(9, 2) for make in (pa.decimal32, pa.decimal64, pa.decimal128, pa.decimal256)),
    ),
    "dates": {
        pa.date32(): [(DAY, '"2026-11-21"'), (-719_162, '"0001-01-01"')],
        pa.date64(): [(DAY * 86_400_000, '"2026-11-21"')],
    },
    "times of day": ticks('"10:30:00"', AT, [pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")]),
    "timestamps": ticks('"2026-11-21T10:30:00"', NOW, map(pa.timestamp, TICKS)),
    "timestamps with a zone": ticks(
        '"2026-11-21T10:30:00Z"', NOW, [*(pa.timestamp(unit, "UTC") for unit in TICKS), pa.timestamp("us", "+05:30")]
    ),
    "durations": ticks('"P1DT2H"', SPAN, map(pa.duration, TICKS)),
    "`month_day_nano_interval`": the_same([((14, 3, 10**9), '"P1Y2M3DT1S"')], pa.month_day_nano_interval()),
    "binary": the_same(BINARY, pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)),
    "`list`, `large_list`, `fixed_size_list`": the_same(
        LIST, pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 2)
    ),
    "`list_view`, `large_list_view`": the_same(LIST, pa.list_view(pa.int64()), pa.large_list_view(pa.int64())),
    "`struct`": the_same(
        [({"a": 1, "b": [None]}, '{"a":1,"b":[null]}'), ({"a": None, "b": None}, '{"a":null,"b":null}')],
        pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]),
    ),
    "`map` with text keys": the_same(
        [([("k", 1)], '{"k":1}'), ([], "{}"), ([("b", None), ("a", 2)], '{"b":null,"a":2}')],
        pa.map_(pa.string(), pa.int64()),
    ),
    "`map` with other keys": the_same([([(1, "a")], '[[1,"a"]]'), ([], "[]")], pa.map_(pa.int64(), pa.string())),
    "`dictionary`": the_same([("a", '"a"'), ("b", '"b"')], pa.dictionary(pa.int32(), pa.string())),
    "`run_end_encoded`": the_same([("a", '"a"'), ("a", '"a"')], pa.run_end_encoded(pa.int32(), pa.string())),
    "`null`": {pa.null(): [(None, "null")]},
    "`uuid`": the_same([(KEY.bytes, f'"{KEY}"')], pa.uuid()),
    "`bool8`": the_same([(1, "true"), (0, "false")], pa.bool8()),
    "`fixed_shape_tensor`": the_same([([1, 2, 3, 4], "[[1,2],[3,4]]")], TENSOR),
    "other extension types": {
        pa.json_(): [("a", '"a"')],
        pa.opaque(pa.string(), "t", "v"): [("a", '"a"')],
    },
    "unions": {pa.dense_union([pa.field("a", pa.int64())]): [], pa.sparse_union([pa.field("a", pa.int64())]): []},
}
"""The rows of the first table: their types, and what is sent for some values; the first one stands in the table."""

NO_NULL_IN_PARQUET = {pa.list_(pa.int64(), 2), TENSOR}
"""Arrow writes a null among lists of one size into Parquet, and cannot read it back."""

TEXTS = {
    "inferred": lambda _value, sent: msgspec.json.decode(sent, type=str) if sent.startswith('"') else sent,
    "declared": lambda _value, sent: msgspec.json.decode(sent, type=str) if sent.startswith('"') else sent,
    "declared, as JSON text": lambda value, _sent: json.dumps(value),
    "declared, as base64": lambda value, _sent: base64.b64encode(value).decode(),
    "declared, as a number": lambda value, _sent: f"{value}",
}
"""What stands in a CSV file for a value."""

PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    ".lz4": lambda data: pa.compress(data, "lz4", asbytes=True),
}


class Column(NamedTuple):
    """A column of a test's file: how it gets there, its values, and what is sent for them."""

    kind: pa.DataType
    way: str
    values: list[Any]
    sent: list[str]

    @property
    def name(self):
        return str(self.kind)


def tables():
    """Read the section's tables: for each a list of rows, the heading first, each a list of cells."""
    found = re.findall(r"(?:^\|.*\n)+", SECTION, re.MULTILINE)
    return [[_cells(line) for line in table.splitlines() if not line.startswith("|---")] for table in found]


def _cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


TYPES, CODINGS, *_ = tables()
WAYS = {(row[0], form.lower()): cell for row in TYPES[1:] for form, cell in zip(TYPES[0][1:5], row[1:5], strict=True)}
"""(row of the first table, format) -> how it gets there."""

SUFFIXES = {
    "Parquet": ".parquet",
    "Arrow file": ".arrow",
    "Arrow stream": ".arrows",
    "CSV": ".csv",
    "JSONL": ".jsonl",
    "manifest": ".manifest",
    "files": ".bin",
}
FORM_OF = {"Parquet": "parquet", "Arrow file": "arrow", "Arrow stream": "arrow", "CSV": "csv", "JSONL": "jsonl"}


def codings():
    """Read the second table: (format, compression within, suffix of a compression around) -> how it is read."""
    found = {}
    for name, plain, within, around in CODINGS[1:]:
        found[name, "none", ""] = plain
        codecs, _, how = within.rpartition(": ")
        found |= {(name, codec, ""): how for codec in re.findall(r"`(\w+)`", codecs)}
        found |= {(name, "none", suffix): around for suffix in re.findall(r"`(\.\w+)`", CODINGS[0][3])}
    return found


# Files of all kinds


def columns_of(form):
    """Return the columns that a format can hold, with three values or so each and a null."""
    found = []
    for row, kinds in KINDS.items():
        way = WAYS[row, form]
        if way != "-":
            found += [Column(kind, way, *map(list, zip(*values, strict=True))) for kind, values in kinds.items()]
    most = max(len(column.values) for column in found) + 1
    return [_padded(column, most, form) for column in found]


def _padded(column, rows, form):
    """Fill up with nulls, or where none can be with the first value."""
    missing = rows - len(column.values)
    if form == "parquet" and column.kind in NO_NULL_IN_PARQUET:
        return column._replace(
            values=column.values + column.values[:1] * missing, sent=column.sent + column.sent[:1] * missing
        )
    return column._replace(values=column.values + [None] * missing, sent=column.sent + ["null"] * missing)


def write_arrow(path, arrays, codec):
    """Write a file or a stream, as the suffix says."""
    make = ipc.new_stream if path.suffix == ".arrows" else ipc.new_file
    options = ipc.IpcWriteOptions(compression=None if codec == "none" else codec)
    table = pa.table(arrays)
    with make(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=2)


def write_parquet(path, arrays, codec):
    table = pa.table({name: _storable(array) for name, array in arrays.items()})
    pq.write_table(table, path, compression=codec, row_group_size=2)
    for group in range(pq.read_metadata(path).num_row_groups):
        used = pq.read_metadata(path).row_group(group).column(0).compression
        assert used == ("UNCOMPRESSED" if codec == "none" else codec.upper())


def _storable(array):
    """Parquet takes nulls of a dictionary in its codes, not among its words."""
    return array.dictionary_decode().dictionary_encode() if types.is_dictionary(array.type) else array


def write_csv(path, columns, _codec):
    rows = zip(*(_fields(column) for column in columns), strict=True)
    header = [_quoted(column.name) for column in columns]
    path.write_text("".join(f"{','.join(row)}\n" for row in [header, *rows]), encoding="utf-8")


def _fields(column):
    texts = zip(column.values, column.sent, strict=True)
    return ["" if value is None else _quoted(TEXTS[column.way](value, sent)) for value, sent in texts]


def _quoted(text):
    return '"' + text.replace('"', '""') + '"'


def write_jsonl(path, columns, _codec):
    rows = zip(*(_members(column) for column in columns), strict=True)
    path.write_text("".join(f"{{{','.join(row)}}}\n" for row in rows), encoding="utf-8")


def _members(column):
    return [f"{json.dumps(column.name)}:{sent}" for sent in column.sent]


WRITERS = {"parquet": write_parquet, "arrow": write_arrow, "csv": write_csv, "jsonl": write_jsonl}


def write(folder, name, columns, codec="none", around=""):
    """Write a file of a kind of the second table; returns its path."""
    folder.mkdir(exist_ok=True)
    path = folder / f"a{SUFFIXES[name]}"
    if FORM_OF[name] in {"parquet", "arrow"}:
        columns = {column.name: build(column.values, column.kind) for column in columns}
    WRITERS[FORM_OF[name]](path, columns, codec)
    if around:
        packed = path.with_name(path.name + around)
        packed.write_bytes(PACK[around](path.read_bytes()))
        path.unlink()
        return packed
    return path


def declared(columns):
    return {column.name: column.name for column in columns if column.way.startswith("declared")}


# The tables are what is tested


def test_the_table_of_types_has_every_type_of_arrow():
    """Its rows are those that are run here, and there is no type in Arrow that is in none of them."""
    assert [row[0] for row in TYPES[1:]] == list(KINDS)
    assert TYPES[0] == ["type", "Parquet", "Arrow", "CSV", "JSONL", "sent as"]
    known = {kind.id for kinds in KINDS.values() for kind in kinds}
    named = {name: number for name, number in vars(pa.lib).items() if name.startswith("Type_")}
    without_python = {"Type_INTERVAL_MONTHS", "Type_INTERVAL_DAY_TIME"}
    assert {name for name, number in named.items() if number not in known} == without_python


def test_the_table_of_compressions_has_all_that_can_be_read():
    """Every format, every codec that its writer has here, and every suffix that is unpacked."""
    assert [row[0] for row in CODINGS[1:]] == list(SUFFIXES)
    assert sorted(re.findall(r"`(\.\w+)`", CODINGS[0][3])) == sorted(PACK)
    within = {(name, codec) for name, codec, _ in codings() if codec != "none"}
    parquet = {"snappy", "gzip", "zstd", "brotli", "lz4"}
    arrow = {"lz4", "zstd"}
    assert within == {("Parquet", codec) for codec in parquet} | set(product(["Arrow file", "Arrow stream"], arrow))


@pytest.mark.parametrize("row", TYPES[1:], ids=lambda row: row[0])
def test_the_example_of_a_type_is_what_is_sent(row):
    """It is the first value that is run below, for each of the row's types."""
    examples = {values[0][1] for values in KINDS[row[0]].values() if values}
    assert examples == set(re.findall(r"`([^`]+)`", row[5])[:1])
    assert all(cell in {"-", "as stored", *TEXTS} for cell in row[1:5])


# Every cell


@pytest.mark.parametrize(("name", "codec", "around"), [one for one in codings() if one[0] in FORM_OF], ids=str)
def test_every_type_in_every_compression_is_sent_as_the_table_says(tmp_path, name, codec, around):
    """A whole job: each value of each type to the letter, at its own row, and the output is proved."""
    columns = columns_of(FORM_OF[name])
    path = write(tmp_path / "in", name, columns, codec, around)
    with echo.desk(tmp_path) as desk:
        assert jobs.score(desk.job(f"in/{path.name}", columns=declared(columns))).exit_code == 0
    sent = desk.sent()
    assert sorted(sent) == list(range(len(columns[0].sent)))
    for row, text in sent.items():
        values = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        assert {name: bytes(one).decode() for name, one in values.items()} == {
            column.name: column.sent[row] for column in columns
        }
    assert jobs.proved(desk.out) == ()


REFUSED = [
    (name, kind)
    for name, form in FORM_OF.items()
    for row, kinds in KINDS.items()
    if WAYS[row, form] == "-"
    for kind in kinds
]


@pytest.mark.parametrize(("name", "kind"), REFUSED, ids=str)
def test_what_a_format_does_not_hold_is_refused(tmp_path, name, kind):
    """Nobody can write it, or one line names the column, and nothing is sent."""
    try:
        path, columns = write_refused(tmp_path, name, kind)
    except pa.ArrowNotImplementedError:
        assert name == "Parquet"
        return
    assert name != "Parquet"
    with echo.desk(tmp_path) as desk:
        done = desk.run(path.name, columns=columns)
    assert desk.seen.calls == []
    assert done.code in {2, 3}
    [line] = done.err.splitlines()
    told = line if done.code == 2 else jobs.letters(desk.out)[0]["message"]
    assert re.search(r"\bx\b", told)


def write_refused(folder, name, kind):
    """Write a file with a column x of a type that the format does not have; returns its path, and what is declared."""
    path = folder / f"a{SUFFIXES[name]}"
    if FORM_OF[name] in {"csv", "jsonl"}:
        path.write_text("x\na\n" if name == "CSV" else '{"x":"a"}\n')
        return path, {"x": str(kind)}
    array = UNIONS[kind]() if types.is_union(kind) else build([], kind)
    WRITERS[FORM_OF[name]](path, {"x": array}, "none")
    return path, {}


UNIONS = {
    pa.sparse_union([pa.field("a", pa.int64())]): lambda: pa.UnionArray.from_sparse(
        pa.array([0], pa.int8()), [pa.array([1])], ["a"]
    ),
    pa.dense_union([pa.field("a", pa.int64())]): lambda: pa.UnionArray.from_dense(
        pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])], ["a"]
    ),
}

ROWS = 60


@pytest.mark.parametrize(("name", "codec", "around"), codings(), ids=str)
def test_a_file_is_entered_as_the_table_says(tmp_path, monkeypatch, name, codec, around):
    """Cut small, it is many splits or one, with its rows known or not, unpacked or not; and every row has its place."""
    monkeypatch.setattr("pipeline.plan.MIN_SPLIT_ROWS", 10)
    monkeypatch.setattr(lines, "BLOCK", 64)
    monkeypatch.setattr(read_arrow, "BATCH_ROWS", 1)
    path, given, expected = MAKERS.get(name, rows_in_one_file)(tmp_path, name, codec, around)
    with echo.desk(tmp_path) as desk, mock.patch("tempfile.TemporaryFile", wraps=tempfile.TemporaryFile) as spooled:
        job = desk.job(path, **given)
        plan = draft(jobs.loaded(job), Store(str(desk.out)), Planned(()), "r").plan
        assert jobs.score(job).exit_code == 0
    how = codings()[name, codec, around].partition(";")[0]
    [source] = plan.sources
    assert (len(plan.splits) > 1, source.rows) == ((False, None) if how == "stream" else (True, ROWS))
    assert spooled.called == (how == "unpacked")
    assert desk.rows() == expected
    assert jobs.proved(desk.out) == ()


def rows_in_one_file(folder, name, codec, around):
    numbers = list(range(ROWS))
    column = Column(pa.int64(), "inferred", numbers, [f"{number}" for number in numbers])
    path = write(folder / "in", name, [column], codec, around)
    return f"in/{path.name}", {}, {(path.name, row): {"int64": row} for row in numbers}


def files_in_a_manifest(folder, _name, _codec, around):
    (folder / "in").mkdir()
    (folder / "in" / "one.bin").write_bytes(b"1")
    path = folder / f"all.manifest{around}"
    text = b"in/one.bin\n" * ROWS
    path.write_bytes(PACK[around](text) if around else text)
    return path.name, {"send": ["size"]}, {(path.name, row): {"size": 1} for row in range(ROWS)}


def files_as_rows(folder, _name, _codec, around):
    (folder / "in").mkdir()
    content = PACK[around](b"\x00") if around else b"\x00"
    names = [f"{number:02}.bin{around}" for number in range(ROWS)]
    for name in names:
        (folder / "in" / name).write_bytes(content)
    sent = base64.b64encode(content).decode()
    given = {"format": "files", "send": ["content"]}
    return f"in/*.bin{around}", given, {(name, 0): {"content": sent} for name in names}


MAKERS = {"manifest": files_in_a_manifest, "files": files_as_rows}


# The rules below the tables


def test_types_are_fixed_by_the_first_file_with_rows(tmp_path):
    """What comes later must fit, in the same run and in the next one; a file without rows has no say."""
    (tmp_path / "a.csv").write_text("x,y\n")
    (tmp_path / "b.csv").write_text("x,y\n1,00001\n2,\n")
    (tmp_path / "c.csv").write_text("x,y\n1.5,2\n3,4\n")
    with echo.desk(tmp_path) as desk:
        path = desk.job("*.csv", columns={"y": "string"}, keys={"errors": {"allow": 2}})
        assert jobs.score(path).exit_code == 0
        (tmp_path / "d.csv").write_text("x,y\ntwo,3\n4,5\n")
        assert jobs.score(path).exit_code == 0
    assert desk.rows() == {
        ("b.csv", 0): {"x": 1, "y": "00001"},
        ("b.csv", 1): {"x": 2, "y": None},
        ("c.csv", 1): {"x": 3, "y": "4"},
        ("d.csv", 1): {"x": 4, "y": "5"},
    }
    assert [letter["message"] for letter in jobs.letters(desk.out)] == [
        "x is '1.5', which is no int64",
        "x is 'two', which is no int64",
    ]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_types_are_those_of_the_first_mib(tmp_path, form):
    """A value behind it is a dead letter if it is of another type."""
    row, last = {"csv": ("1,%s\n", "1.5,\n"), "jsonl": ('{"x":1,"pad":"%s"}\n', '{"x":1.5,"pad":""}\n')}[form]
    text = (row % ("p" * 1000)) * 1100 + last
    (tmp_path / f"a.{form}").write_text("x,pad\n" * (form == "csv") + text)
    with echo.desk(tmp_path) as desk:
        jobs.score(desk.job(f"a.{form}", send=["x"], keys={"service__limits": {"rows": 1000}}))
    assert len(desk.rows()) == 1100
    [letter] = jobs.letters(desk.out)
    assert (letter["source_row"], letter["kind"]) == (1100, "unreadable")


def scored(folder, name, content, **given):
    """Score one file; return what was sent, read, by source row."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with echo.desk(folder) as desk:
        assert jobs.score(desk.job(name, **given)).exit_code == 0
    assert jobs.proved(desk.out) == ()
    return [json.loads(text) for _, text in sorted(desk.sent().items())]


def test_what_is_absent_in_jsonl_is_null_and_text_takes_all(tmp_path):
    """A mixed column is text; what is no text is its JSON, to the letter. Empty lines are no rows."""
    text = '{"x": {"a": 1.50}, "y": true}\n\n{"x": "t"}\r\n{"x": [1, 2]}\n'
    assert scored(tmp_path, "a.jsonl", text) == [
        {"x": '{"a": 1.50}', "y": True},
        {"x": "t", "y": None},
        {"x": "[1, 2]", "y": None},
    ]


def test_empty_fields_and_empty_texts_of_csv_differ(tmp_path):
    """An empty field is null; an empty text is one, in text and binary, and null elsewhere. Blank lines are no rows."""
    text = '\nn,t,b\r\n\r\n1,,\r\n"","",""\n\n'
    assert scored(tmp_path, "a.csv", text, columns={"b": "binary_view"}) == [
        {"n": 1, "t": None, "b": None},
        {"n": None, "t": "", "b": ""},
    ]


def test_names_without_a_header(tmp_path):
    """The declared ones in their order, then f and the position."""
    given = {"csv": {"header": False}, "columns": {"id": "string", "n": "double"}}
    assert scored(tmp_path, "a.csv", "01,2,3,x\n", **given) == [{"id": "01", "n": 2.0, "f2": 3, "f3": "x"}]


def test_a_key_that_comes_late_is_sent_only_if_it_is_declared(tmp_path):
    """Columns are those of the first MiB, like their types."""
    head = '{"x":1,"pad":"%s"}\n' % ("p" * 1000) * 1100
    given = {"send": ["x", "late"], "columns": {"late": "string"}}
    rows = scored(tmp_path / "declared", "a.jsonl", head + '{"x":2,"late":"y"}\n', **given)
    assert rows[0] == {"x": 1, "late": None}
    assert rows[-1] == {"x": 2, "late": "y"}
    rows = scored(tmp_path / "not", "a.jsonl", head + '{"x":2,"late":"y"}\n')
    assert rows[-1] == {"x": 2, "pad": None}


FILES = {
    "csv": "x\n1\n",
    "jsonl": '{"x":1}\n',
    "parquet": lambda path: pq.write_table(pa.table({"x": [1]}), path),
    "arrow": lambda path: write_arrow(path, {"x": pa.array([1])}, "none"),
}


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize(
    ("given", "row"),
    [
        ({}, {"x": 1}),
        ({"keep": ["dt"]}, {"x": 1}),
        ({"send": ["dt", "x"]}, {"dt": "2026-11-21", "x": 1}),
        ({"send": ["dt", "x"], "columns": {"dt": "timestamp[s]"}}, {"dt": "2026-11-21T00:00:00", "x": 1}),
    ],
    ids=str,
)
def test_folders_are_columns_only_when_they_are_named(tmp_path, form, given, row):
    """As text, or as declared; in every format."""
    path = tmp_path / "dt=2026-11-21" / f"a.{form}"
    path.parent.mkdir()
    make = FILES[form]
    path.write_text(make) if isinstance(make, str) else make(path)
    assert scored(tmp_path, f"dt=2026-11-21/a.{form}", path.read_bytes(), **given) == [row]
    if "keep" in given:
        assert jobs.results(tmp_path / "out")["dt"].to_pylist() == ["2026-11-21"]


def test_files_are_rows(tmp_path):
    """Content, URI, name and size."""
    place = (tmp_path / "a b.bin").as_uri()
    row = {"content": "AAE=", "uri": place, "name": "a b.bin", "size": 2}
    assert scored(tmp_path, "a b.bin", b"\x00\x01", format="files") == [row]


def test_lines_of_a_manifest_are_rows(tmp_path):
    """Paths, URIs and ModelArts' lines; a file that is named twice is two rows."""
    (tmp_path / "in").mkdir()
    place = tmp_path / "in" / "a.bin"
    place.write_bytes(b"\x00")
    text = f'in/a.bin\n{place}\n\n{place.as_uri()}\n{{"source": "{place.as_uri()}", "usage": "TEST"}}\nin/a.bin\n'
    assert (
        scored(tmp_path, "list.manifest", text, send=["uri", "content"])
        == [{"uri": place.as_uri(), "content": "AA=="}] * 5
    )


@pytest.mark.parametrize("kind", sorted(NO_NULL_IN_PARQUET, key=str), ids=str)
def test_a_null_among_lists_of_one_size_in_parquet_is_told(tmp_path, kind):
    """Arrow refuses it: exit 6 with the file's name, and nothing is sent."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": build([None], kind)}), path)
    with echo.desk(tmp_path) as desk:
        done = desk.run("a.parquet")
    assert (done.code, desk.seen.calls) == (6, [])
    assert f"ERROR cannot read {path.as_uri()}: Expected all lists to be of size=" in done.err


def test_undeclared_lists_of_jsonl_are_told(tmp_path, caplog):
    """They are text, as nobody said what they are, and a model that wants a list would be asked nonsense in silence."""
    text = '{"x": null, "y": 1}\n{"x": [1, 2], "y": 2}\n{"x": [3], "y": 3}\n'
    assert scored(tmp_path, "a.jsonl", text, send=["x", "y"])[1] == {"x": "[1, 2]", "y": 2}
    assert caplog.text.count("for input.columns has no type of them: ['x']") == 1
    caplog.clear()
    (tmp_path / "other").mkdir()
    declared = {"x": "list<int64>"}
    assert scored(tmp_path / "other", "a.jsonl", text, send=["x", "y"], columns=declared)[1] == {"x": [1, 2], "y": 2}
    assert "no type of them" not in caplog.text
