"""Files that others wrote: pyarrow, DuckDB, polars and Excel; what is sent is what their tables held."""

from __future__ import annotations

import base64
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from urllib.parse import unquote

import duckdb
import echo
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv, dataset

import jobs

ROWS = 2500
FIRST = datetime(2026, 11, 21, 22, 30, tzinfo=UTC)


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Have jobs whose files are cut small, so that row groups are entered in their middle."""
    monkeypatch.setattr("pipeline.plan.MIN_SPLIT_ROWS", 300)
    with echo.desk(tmp_path) as opened:
        yield opened


def record(n):
    """Return a row of a table, with a null here and there, other ones in each column."""
    values = {
        "n": n * 10**14,
        "small": n % 100,
        "f": n / 8,
        "single": n / 16,
        "b": n % 2 == 0,
        "t": f'té"{n % 5},\n',
        "dec": Decimal(n) / 100,
        "wide": Decimal(n) / 10**5 * 10**20,
        "day": date(2026, 11, 21) + timedelta(n),
        "tm": time(10, n % 60, 0, n),
        "ts": FIRST.replace(tzinfo=None) + timedelta(microseconds=n * 500_000),
        "tz": FIRST + timedelta(seconds=n),
        "blob": b"\x00\xff" * (n % 4),
        "list": [n, None][: n % 3],
        "deep": {"a": n, "b": [{"c": f"{n}"}]},
    }
    return {name: None if n % 7 == at % 7 else value for at, (name, value) in enumerate(values.items())}


SCHEMA = pa.schema(
    {
        "n": pa.int64(),
        "small": pa.int8(),
        "f": pa.float64(),
        "single": pa.float32(),
        "b": pa.bool_(),
        "t": pa.string(),
        "dec": pa.decimal128(9, 2),
        "wide": pa.decimal128(38, 5),
        "day": pa.date32(),
        "tm": pa.time64("us"),
        "ts": pa.timestamp("us"),
        "tz": pa.timestamp("us", "UTC"),
        "blob": pa.binary(),
        "list": pa.list_(pa.int64()),
        "deep": pa.struct([("a", pa.int64()), ("b", pa.list_(pa.struct([("c", pa.string())])))]),
    }
)
FLAT = [name for name in SCHEMA.names if name not in {"blob", "list", "deep"}]
TYPED = {name: str(SCHEMA.field(name).type) for name in ("small", "single", "dec", "wide", "day", "tm", "ts", "tz")}
"""What CSV and JSONL do not tell."""
NANOS = {"tm": "time64[ns]"}
"""Polars writes times of day with nine digits, which Arrow reads as no fewer."""


def table(rows=ROWS, columns=SCHEMA.names):
    return pa.Table.from_pylist([record(n) for n in range(rows)], SCHEMA).select(columns)


def meant(value):
    """Return what JSON should read for a value of Python."""
    if isinstance(value, dict):
        return {name: meant(one) for name, one in value.items()}
    if isinstance(value, list):
        return [meant(one) for one in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime | time):
        text = value.isoformat().replace("+00:00", "Z")
        return text if "." not in text else text.rstrip("0")
    return value.isoformat() if isinstance(value, date) else value


def oracle(name, rows=ROWS, columns=SCHEMA.names):
    records = [record(n) for n in range(rows)]
    return {(name, n): {column: meant(row[column]) for column in columns} for n, row in enumerate(records)}


def judge(desk, path, expected, **given):
    """Run a job over a file; what was sent must be what is expected, each row in its place, and nothing else."""
    summary = jobs.score(desk.job(path, **given))
    assert (summary.exit_code, summary.message) == (0, "")
    assert desk.rows() == expected
    assert jobs.proved(desk.out) == ()


# Parquet

PLAIN = {"use_dictionary": False}
ENCODINGS = {
    "n": "DELTA_BINARY_PACKED",
    "small": "DELTA_BINARY_PACKED",
    "f": "BYTE_STREAM_SPLIT",
    "single": "BYTE_STREAM_SPLIT",
    "t": "DELTA_BYTE_ARRAY",
    "blob": "DELTA_LENGTH_BYTE_ARRAY",
    "dec": "BYTE_STREAM_SPLIT",
}
PYARROW = {
    "default": {},
    "page v2": {"data_page_version": "2.0", "compression": "zstd"},
    "page v2, plain": {"data_page_version": "2.0", **PLAIN},
    "format 1.0": {"version": "1.0"},
    "many row groups": {"row_group_size": 37},
    "small pages": {"data_page_size": 64, "write_page_index": True, "write_page_checksum": True},
    "no statistics": {"write_statistics": False, "store_schema": False},
    "encodings": {"column_encoding": ENCODINGS, **PLAIN},
    "encodings, page v2": {"column_encoding": ENCODINGS, "data_page_version": "2.0", **PLAIN},
    "decimals as integers": {"store_decimal_as_integer": True},
}


@pytest.mark.parametrize("options", PYARROW.values(), ids=PYARROW)
def test_parquet_by_pyarrow(desk, options):
    """Encodings, pages and row groups of all kinds."""
    path = jobs.put(desk.folder / "a.parquet", table(), **options)
    for at, name in enumerate(SCHEMA.names):
        if "column_encoding" in options and name in ENCODINGS:
            assert ENCODINGS[name] in pq.read_metadata(path).row_group(0).column(at).encodings
    judge(desk, path.name, oracle(path.name))


def test_timestamps_as_spark_once_wrote_them(desk):
    """Of 96 bits, and without a zone."""
    path = jobs.put(desk.folder / "a.parquet", table(columns=["n", "ts"]), use_deprecated_int96_timestamps=True)
    assert pq.read_metadata(path).schema.column(1).physical_type == "INT96"
    judge(desk, path.name, oracle(path.name, columns=["n", "ts"]))


DUCKDB = {
    "default": "",
    "v2": ", PARQUET_VERSION v2",
    "row groups": ", ROW_GROUP_SIZE 2048, COMPRESSION zstd",
    "dictionary": ", PARQUET_VERSION v2, STRING_DICTIONARY_PAGE_SIZE_LIMIT 100000, COMPRESSION gzip",
    "plain": ", DICTIONARY_SIZE_LIMIT 1, COMPRESSION uncompressed",
}


def by_duckdb(source, statement):
    """Let DuckDB write from a table that it sees as `source`."""
    with duckdb.connect() as base:
        base.execute("SET TimeZone = 'Europe/Berlin'")
        base.register("source", source)
        base.execute(statement)


@pytest.mark.parametrize("options", DUCKDB.values(), ids=DUCKDB)
def test_parquet_by_duckdb(desk, options):
    """Both of its versions, with and without dictionaries, and its own row groups."""
    path = desk.folder / "a.parquet"
    by_duckdb(table(), f"COPY source TO '{path}' (FORMAT parquet{options})")
    judge(desk, path.name, oracle(path.name))


def test_types_of_duckdbs_own_in_parquet(desk):
    """Enums are text, huge integers doubles, bits text; uuids and JSON have types that Arrow knows."""
    path = desk.folder / "a.parquet"
    columns = {
        "uu": "'00000000-0000-0000-0000-0000000000ff'::UUID",
        "en": "'b'::ENUM('a', 'b')",
        "huge": "7::HUGEINT",
        "bits": "'101'::BIT",
        "js": "'{\"a\": 1}'::JSON",
        "map": "MAP {'k': 1}",
        "none": "NULL",
        "ns": "'2026-11-21 10:30:00.000000001'::TIMESTAMP_NS",
        "array": "[1, NULL]::FLOAT[2]",
        "u64": "18446744073709551615::UBIGINT",
    }
    by_duckdb(
        table(), f"COPY (SELECT {', '.join(f'{value} AS {name}' for name, value in columns.items())}) TO '{path}'"
    )
    expected = {
        "uu": "00000000-0000-0000-0000-0000000000ff",
        "en": "b",
        "huge": 7,
        "bits": "101",
        "js": '{"a": 1}',
        "map": {"k": 1},
        "none": None,
        "ns": "2026-11-21T10:30:00.000000001",
        "array": [1, None],
        "u64": 2**64 - 1,
    }
    judge(desk, path.name, {(path.name, 0): expected})


POLARS = {
    "default": {},
    "row groups": {"row_group_size": 700, "compression": "snappy"},
    "full statistics": {"statistics": "full", "compression": "lz4"},
    "small pages": {"data_page_size": 100, "compression": "uncompressed", "statistics": False},
}


@pytest.mark.parametrize("options", POLARS.values(), ids=POLARS)
def test_parquet_by_polars(desk, options):
    """Its own writer, with large types throughout."""
    path = desk.folder / "a.parquet"
    pl.from_arrow(table()).write_parquet(path, **options)
    judge(desk, path.name, oracle(path.name))


def test_types_of_polars_own_in_parquet(desk):
    """Categories are their words, durations spans, arrays lists."""
    path = desk.folder / "a.parquet"
    frame = pl.DataFrame(
        {
            "cat": pl.Series(["a", None, "b"], dtype=pl.Categorical),
            "enum": pl.Series(["a", "b", None], dtype=pl.Enum(["a", "b"])),
            "span": pl.Series([timedelta(hours=26), None, timedelta(microseconds=-1)]),
            "array": pl.Series([[1, 2], [3, None], [5, 6]], dtype=pl.Array(pl.Int64, 2)),
            "none": pl.Series([None, None, None]),
            "zone": pl.Series([FIRST, None, FIRST]).dt.convert_time_zone("Asia/Shanghai"),
        }
    )
    frame.write_parquet(path)
    rows = [
        {"cat": "a", "enum": "a", "span": "P1DT2H", "array": [1, 2], "none": None, "zone": "2026-11-21T22:30:00Z"},
        {"cat": None, "enum": "b", "span": None, "array": [3, None], "none": None, "zone": None},
        {
            "cat": "b",
            "enum": None,
            "span": "-PT0.000001S",
            "array": [5, 6],
            "none": None,
            "zone": "2026-11-21T22:30:00Z",
        },
    ]
    judge(desk, path.name, {(path.name, n): row for n, row in enumerate(rows)})


def test_files_of_all_three_are_one_input(desk):
    """Where their types differ in name only, the job file says which it is to be."""
    columns = ["n", "t", "dec", "ts"]
    small = table(50, columns)
    jobs.put(desk.folder / "in" / "a.parquet", small)
    by_duckdb(small, f"COPY source TO '{desk.folder}/in/b.parquet' (FORMAT parquet)")
    pl.from_arrow(small).write_parquet(desk.folder / "in" / "c.parquet")
    names = ("a.parquet", "b.parquet", "c.parquet")
    expected = {place: row for name in names for place, row in oracle(name, 50, columns).items()}
    judge(desk, "in/*.parquet", expected, columns={"t": "string", "dec": "decimal128(9, 2)"})


# CSV

EXCEL = (
    'id;name;"unit price";note\r\n'
    '00017;"Müller; Söhne";"1,50";"she said ""no"""\r\n'
    '00018;;"2,00";"two\r\nlines"\r\n'
    '00019;"";"";" spaces stay "\r\n'
)


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (b"\xef\xbb\xbf" + EXCEL.encode(), "utf-8"),
        (b"\xef\xbb\xbf" + EXCEL.removesuffix("\r\n").encode(), "utf-8"),
        (EXCEL.encode("cp1252"), "cp1252"),
        (b"\xff\xfe" + EXCEL.encode("utf-16-le"), "utf-16"),
    ],
    ids=["utf-8 with a mark", "without the last newline", "ansi", "unicode text"],
)
def test_csv_by_excel(desk, content, encoding):
    """CRLF, semicolons, doubled quotes, newlines in quotes, and the zeros of an identifier that is declared text."""
    (desk.folder / "a.csv").write_bytes(content)
    rows = [
        {"id": "00017", "name": "Müller; Söhne", "unit price": "1,50", "note": 'she said "no"'},
        {"id": "00018", "name": None, "unit price": "2,00", "note": "two\r\nlines"},
        {"id": "00019", "name": "", "unit price": "", "note": " spaces stay "},
    ]
    expected = {("a.csv", n): row for n, row in enumerate(rows)}
    judge(desk, "a.csv", expected, columns={"id": "string"}, csv={"delimiter": ";", "encoding": encoding})


def csv_by_duckdb(source, path, delimiter):
    by_duckdb(source, f"COPY source TO '{path}' (FORMAT csv, HEADER, DELIMITER '{delimiter}')")


def csv_by_polars(source, path, delimiter):
    pl.from_arrow(source).write_csv(path, separator=delimiter)


def csv_by_polars_for_excel(source, path, delimiter):
    pl.from_arrow(source).write_csv(path, separator=delimiter, include_bom=True, line_terminator="\r\n")


def csv_by_pyarrow(source, path, delimiter):
    csv.write_csv(source, path, csv.WriteOptions(delimiter=delimiter))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("write", [csv_by_duckdb, csv_by_polars, csv_by_polars_for_excel, csv_by_pyarrow])
def test_csv_by_other_writers(desk, write, delimiter):
    """What they wrote as text comes out as the values that it was, in the types that are declared or inferred."""
    write(table(1000, FLAT), desk.folder / "a.csv", delimiter)
    types = TYPED | NANOS if "polars" in write.__name__ else TYPED
    judge(desk, "a.csv", oracle("a.csv", 1000, FLAT), columns=types, csv={"delimiter": delimiter})


# JSONL


def jsonl_by_duckdb(source, path):
    by_duckdb(source, f"COPY source TO '{path}' (FORMAT json)")


def jsonl_by_polars(source, path):
    pl.from_arrow(source).write_ndjson(path)


@pytest.mark.parametrize("write", [jsonl_by_duckdb, jsonl_by_polars])
def test_jsonl_by_other_writers(desk, write):
    """Nested columns are declared, or they would be JSON text."""
    columns = [name for name in SCHEMA.names if name not in {"blob", "wide"}]
    write(table(1000, columns), desk.folder / "a.jsonl")
    nested = {name: str(SCHEMA.field(name).type) for name in ("list", "deep")}
    types = {name: kind for name, kind in (TYPED | nested).items() if name in columns}
    judge(desk, "a.jsonl", oracle("a.jsonl", 1000, columns), columns=types)


# Partitions

KEYS = ["plain", "b c/d", "ü=1%", None, "2026-11-21"]
PARTED = pa.table({"x": range(10), "k": KEYS * 2, "y": [2026] * 10})


def parted_by_duckdb(folder, form):
    by_duckdb(PARTED, f"COPY source TO '{folder}' (FORMAT {form}, PARTITION_BY (y, k))")


def parted_by_pyarrow(folder, form):
    kinds = dataset.partitioning(pa.schema([("y", pa.int64()), ("k", pa.string())]), flavor="hive")
    dataset.write_dataset(PARTED, folder, format=form, partitioning=kinds)


@pytest.mark.parametrize(
    ("write", "form", "suffix"),
    [
        (parted_by_duckdb, "parquet", "parquet"),
        (parted_by_duckdb, "csv", "csv"),
        (parted_by_pyarrow, "parquet", "parquet"),
        (parted_by_pyarrow, "csv", "csv"),
        (parted_by_pyarrow, "ipc", "arrow"),
    ],
)
def test_partitions_are_columns(desk, write, form, suffix):
    """Text as it was before it became a folder's name, null too, or of the type that is declared."""
    write(desk.folder / "in", form)
    path = f"in/**/*.{suffix}" if suffix != "arrow" else "in/**/*.*"
    given = {"send": ["x", "k", "y"], "keep": ["k"], "columns": {"y": "int32"}, "format": suffix}
    assert jobs.score(desk.job(path, **given)).exit_code == 0
    results = jobs.results(desk.out)
    rows = [echo.read(one) for one in results["prediction"].to_pylist()]
    assert sorted(rows, key=lambda row: row["x"]) == PARTED.select(["x", "k", "y"]).to_pylist()
    assert results["k"].to_pylist() == [row["k"] for row in rows]
    assert all("k=" in unquote(source) for source in results["source"].to_pylist())
    assert jobs.proved(desk.out) == ()
