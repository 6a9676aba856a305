"""Files that are not what they should be: one line that names the file and the mend, or a dead letter for each bad row.

What could be read is scored, and nothing is lost.
"""

from __future__ import annotations

import bz2
import gzip
import os
import re

import echo
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from engine import engine, one_by_one
from pyarrow import ipc

import jobs

TABLE = pa.table({"x": [1, 2], "y": ["a", "b"]})
BAD = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture
def desk(tmp_path):
    """Have a service that answers with what it is asked."""
    with echo.desk(tmp_path) as opened:
        yield opened


def parquet(table=TABLE):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def arrow(table=TABLE, make=ipc.new_file):
    sink = pa.BufferOutputStream()
    with make(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def put(desk, **files):
    """Write input files; a double underscore in a name is the dot."""
    (desk.folder / "in").mkdir(exist_ok=True)
    for name, content in files.items():
        (desk.folder / "in" / name.replace("__", ".")).write_bytes(content)


def line_of(done, code):
    """Return the one line of a command that failed, without its first word."""
    assert done.code == code, done
    [line] = done.err.splitlines()
    assert "Traceback" not in done.err
    assert line.startswith("ERROR ")
    return line.removeprefix("ERROR ")


def refused(desk, path, **given):
    """Plan and run a job that is not to begin; return their one line, the same for both."""
    job = desk.job(path, **given)
    told = line_of(jobs.call("plan", job), 2)
    assert line_of(jobs.call("run", job), 2) == told
    assert desk.seen.calls == []
    assert [name for name in jobs.files(desk.folder) if name.startswith(("out/results", "out/plan", "out/_S"))] == []
    return told.replace((desk.folder / "in").as_uri(), "IN")


def letters(desk):
    """Return what each dead letter says; all of them are of rows that cannot be read."""
    found = jobs.letters(desk.out)
    assert {(letter["kind"], letter["request_uuid"], len(letter["history"])) for letter in found} <= {
        ("unreadable", None, 0)
    }
    return {letter["source_row"]: (letter["message"], letter["row"]) for letter in found}


# Rows

SCHEMES = "file://, s3://, obs://, gs://, gcs://, abfs://, abfss://, hdfs://"
ROWS = {
    "ragged rows": (
        "csv",
        b'x,y\n1,a\n2\n3,c,"d\ne"\n4,d\n',
        {},
        {
            1: ("row has 1 field, the header has 2", "2"),
            2: ("row has 3 fields, the header has 2", '3,c,"d\ne"'),
        },
        {0: {"x": 1, "y": "a"}, 3: {"x": 4, "y": "d"}},
    ),
    "ragged rows without a header": (
        "csv",
        b"1,a\n2\n3,c\n",
        {"csv": {"header": False}},
        {1: ("row has 1 field, the first row has 2", "2")},
        {0: {"f0": 1, "f1": "a"}, 2: {"f0": 3, "f1": "c"}},
    ),
    "latin-1 in a CSV file": (
        "csv",
        b"x,y\n1,a\n2,M\xfcller\n3,c\n",
        {},
        {1: ("y is not text in utf-8", {"x": "2", "y": f"M{BAD}ller"})},
        {0: {"x": 1, "y": "a"}, 2: {"x": 3, "y": "c"}},
    ),
    "a CSV value of another type": (
        "csv",
        b"x,y\n1,a\ntwo,b\n1.5,c\n4,d\n",
        {"columns": {"x": "int8"}},
        {
            1: ("x is 'two', which is no int8", {"x": "two", "y": "b"}),
            2: ("x is '1.5', which is no int8", {"x": "1.5", "y": "c"}),
        },
        {0: {"x": 1, "y": "a"}, 3: {"x": 4, "y": "d"}},
    ),
    "a JSONL value of another type": (
        "jsonl",
        b'{"x":1}\n{"x":"2"}\n{"x":300}\n{"x":4.0}\n',
        {"columns": {"x": "int8"}},
        {
            1: ('x is "2", which is no int8', '{"x":"2"}'),
            2: ("x is 300, which is no int8", '{"x":300}'),
        },
        {0: {"x": 1}, 3: {"x": 4}},
    ),
    "broken JSONL lines": (
        "jsonl",
        b'{"x":1}\n{"x":2\n[3]\n{"x":NaN}\n{"x":5}',
        {},
        {
            1: ("the line is not JSON: Input data was truncated", '{"x":2'),
            2: ("[3] is not an object", "[3]"),
            3: ("the line is not JSON: invalid character (byte 5)", '{"x":NaN}'),
        },
        {0: {"x": 1}, 4: {"x": 5}},
    ),
    "latin-1 in a JSONL file": (
        "jsonl",
        b'{"x":"a"}\n{"x":"\xfc"}\n{"x":"c"}\n',
        {},
        {
            1: (
                "the line is not JSON: 'utf-8' codec can't decode byte 0xfc in position 6: invalid start byte",
                f'{{"x":"{BAD}"}}',
            )
        },
        {0: {"x": "a"}, 2: {"x": "c"}},
    ),
    "lines that name no file": (
        "manifest",
        b"a.manifest\n\x00\n{}\nftp://host/x\n",
        {"send": ["name"]},
        {
            1: ("the line names no file", "\x00"),
            2: ("the line names no file", "{}"),
            3: (f"ftp://host/x is on no storage that can be read; allowed: paths, {SCHEMES}", "ftp://host/x"),
        },
        {0: {"name": "a.manifest"}},
    ),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("form", "content", "given", "dead", "scored"), ROWS.values(), ids=ROWS)
def test_a_bad_row_costs_itself(desk, form, content, given, dead, scored, packed):
    """It is a dead letter with its place, the reason and its text; all others are scored, and every row is there."""
    name = f"a.{form}{'.gz' * packed}"
    put(desk, **{name: gzip.compress(content) if packed else content})
    told = line_of(desk.run(f"in/{name}", **given), 3)
    rows = len(dead) + len(scored)
    assert told.startswith(f"{len(dead)} of {rows} rows are dead letters, more than errors.allow (0); ")
    assert " unreadable" in told
    assert letters(desk) == dead
    assert desk.rows() == {(name, row): value for row, value in scored.items()}
    assert jobs.proved(desk.out) == ()


def test_dead_letters_of_bad_rows_may_be_allowed(desk):
    """They have what is kept where it could be read, and with errors.allow the job is a success."""
    put(desk, a__csv=b"x,y\n1,a\ntwo,b\n3\n")
    done = desk.run("in/a.csv", keep=["y"], columns={"x": "int64"}, keys={"errors": {"allow": "90%"}})
    assert (done.code, done.err) == (0, "")
    assert [letter["keep"] for letter in jobs.letters(desk.out)] == [{"y": "b"}, {"y": None}]
    assert (desk.out / "_SUCCESS").exists()


# Whole files

NO_TEXT = "it does not begin with text in this encoding; give the encoding that it has, or leave the file out"
NO_JSON = r"is not JSONL: its lines are no JSON objects, the first begins with '.*'; give its form by input\.format, .*"
NO_PARQUET = "is not a readable Parquet file: .*; replace it or leave it out"
NO_ARROW = "is not a readable Arrow file: .*; replace it or leave it out"
NO_CSV = "is not readable as CSV: .*; replace it or leave it out"
UNENDED = "is over 16 MB, or a quote in it is never closed; mend the file, or say how it is quoted: input.csv.quote"
JUNK = b"\xff" * 1000
CSV = b"x,y\n1,a\n2,b\n"

WHOLE = {
    "latin-1 in the header": ("a.csv", b"x,M\xfcller\n1,a\n", f"is not readable as utf-8: {NO_TEXT}"),
    "UTF-16 that nobody declared": ("a.csv", CSV.decode().encode("utf-16"), f"is not readable as utf-8: {NO_TEXT}"),
    "UTF-16 without a mark": ("a.csv", CSV.decode().encode("utf-16-le"), f"is not readable as utf-8: {NO_TEXT}"),
    "UTF-16 in JSONL": ("a.jsonl", '{"x":1}\n'.encode("utf-16"), NO_JSON),
    "one array": ("a.jsonl", b'[{"x":1},\n{"x":2}]\n', NO_JSON),
    "a quote in the header": ("a.csv", b'x,"y\n1,a\n', f"its first row {UNENDED}"),
    "a name twice": ("a.csv", b"x,x\n1,2\n", "has more than one column 'x'; give each a name of its own"),
    "no bytes of Parquet": ("a.parquet", b"", NO_PARQUET),
    "no bytes of Arrow": ("a.arrow", b"", NO_ARROW),
    "no bytes of packed Parquet": ("a.parquet.gz", b"", NO_PARQUET),
    "CSV that is not packed": ("a.csv.gz", CSV, NO_CSV),
    "CSV that is not packed by zstd": ("a.csv.zst", CSV, NO_CSV),
    "CSV that is not packed by bzip2": ("a.csv.bz2", CSV, NO_CSV),
    "CSV that is not packed by lz4": ("a.csv.lz4", CSV, NO_CSV),
    "JSONL that is not packed": (
        "a.jsonl.gz",
        b'{"x":1}\n',
        "is not readable as JSONL: .*; replace it or leave it out",
    ),
    "Parquet that is not packed": ("a.parquet.gz", parquet(), NO_PARQUET),
    "Arrow that is not packed": ("a.arrow.gz", arrow(), NO_ARROW),
    "a manifest that is not packed": ("a.manifest.gz", b"a\n", "is not a readable list of files: .*; replace it .*"),
    "packed by another": ("a.csv.gz", bz2.compress(CSV), NO_CSV),
    "a packed file that only begins": ("a.csv.gz", gzip.compress(CSV)[:12], NO_CSV),
    "Parquet as CSV": ("a.csv", parquet(), f"is not readable as utf-8: {NO_TEXT}"),
    "Parquet as JSONL": ("a.jsonl", parquet(), NO_JSON),
    "Parquet as Arrow": ("a.arrow", parquet(), NO_ARROW),
    "CSV as Parquet": ("a.parquet", CSV, NO_PARQUET),
    "CSV as JSONL": ("a.jsonl", CSV, NO_JSON),
    "CSV as Arrow": ("a.arrow", CSV, NO_ARROW),
    "Arrow as Parquet": ("a.parquet", arrow(), NO_PARQUET),
    "Arrow as CSV": ("a.csv", arrow(), f"is not readable as utf-8: {NO_TEXT}"),
    "an Arrow stream as CSV": ("a.csv", arrow(make=ipc.new_stream), f"is not readable as utf-8: {NO_TEXT}"),
    "junk as CSV": ("a.csv", JUNK, f"is not readable as utf-8: {NO_TEXT}"),
    "junk as JSONL": ("a.jsonl", JUNK, NO_JSON),
    "junk as Parquet": ("a.parquet", JUNK, NO_PARQUET),
    "junk as Arrow": ("a.arrow", JUNK, NO_ARROW),
    "junk as packed CSV": ("a.csv.gz", JUNK, NO_CSV),
}


@pytest.mark.parametrize(("name", "content", "told"), WHOLE.values(), ids=WHOLE)
def test_a_file_that_cannot_be_read_is_refused_before_anything_is_sent(desk, name, content, told):
    """Its name, what is wrong with it, and what to do; `plan` says so already."""
    put(desk, **{name: content})
    line = refused(desk, f"in/{name}")
    assert re.fullmatch(rf"input\.(path|csv\.encoding): IN/{re.escape(name)}:? {told}", line), line


def test_junk_as_a_manifest_names_no_file(desk):
    """Whatever its lines are, they are rows."""
    put(desk, a__manifest=JUNK)
    line_of(desk.run("in/a.manifest"), 3)
    assert letters(desk) == {0: ("the line names no file", BAD * len(JUNK))}


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_kept_column_named_like_one_of_ours(desk, form):
    """The job file says so, whatever the file has; what is not kept may have any name."""
    put(desk, a__csv=b"x,source\n1,2\n", a__jsonl=b'{"x":1,"source":2}\n')
    assert "input.keep: 'source' is a column of the results; a kept column may not be" in refused(
        desk, f"in/a.{form}", keep=["source"]
    )
    assert desk.run(f"in/a.{form}").code == 0
    assert desk.rows() == {(f"a.{form}", 0): {"x": 1, "source": 2}}


def test_a_name_twice_is_let_be_where_it_is_not_used(desk):
    """Neither of the two is asked for."""
    put(desk, a__csv=b"x,z,z\n1,2,3\n")
    assert desk.run("in/a.csv", send=["x"]).code == 0
    assert desk.rows() == {("a.csv", 0): {"x": 1}}


# Nothing in it

NOTHING = {
    "a.csv": b"",
    "a.jsonl": b"",
    "a.manifest": b"",
    "b.csv.gz": b"",
    "b.jsonl.gz": b"",
    "c.csv.gz": gzip.compress(b""),
    "c.jsonl.gz": gzip.compress(b""),
    "header.csv": b"x,y\n",
    "header-without-newline.csv": b"x,y",
    "newlines.jsonl": b"\n\r\n",
    "no-rows.parquet": parquet(TABLE.slice(0, 0)),
    "no-rows.arrow": arrow(TABLE.slice(0, 0)),
    "no-rows.arrows": arrow(TABLE.slice(0, 0), ipc.new_stream),
}


@pytest.mark.parametrize("name", NOTHING)
def test_a_file_with_nothing_in_it_is_done_at_once(desk, name):
    """No rows, no calls, and a success."""
    put(desk, **{name: NOTHING[name]})
    job = desk.job(f"in/{name}")
    assert jobs.call("plan", job).out.startswith("1 files (1 new), 0 rows: 0 done, 0 left\n")
    done = jobs.call("run", job)
    assert (done.code, done.err, desk.seen.calls) == (0, "", [])
    assert done.out.startswith("0 rows: 0 scored, 0 dead letters, 0 left")
    assert (desk.out / "_SUCCESS").exists()
    assert jobs.proved(desk.out) == ()


@pytest.mark.parametrize("nothing", [b"", b"q\n", b"x,y\n"])
def test_a_file_with_nothing_in_it_is_in_nobodys_way(desk, nothing):
    """It has no say in columns and types, first or last."""
    put(desk, a__csv=nothing, b__csv=CSV, c__csv=nothing)
    assert desk.run("in/*.csv").code == 0
    assert desk.rows() == {("b.csv", 0): {"x": 1, "y": "a"}, ("b.csv", 1): {"x": 2, "y": "b"}}


def test_an_empty_file_among_files_is_a_row(desk):
    """Its content is empty, which the service may judge."""
    put(desk, a__bin=b"", b__bin=b"\x00")
    assert desk.run("in/*.bin", format="files", send=["content", "size"]).code == 0
    assert desk.rows() == {("a.bin", 0): {"content": "", "size": 0}, ("b.bin", 0): {"content": "AA==", "size": 1}}


# Files that differ

ODD = "unlike files before it; name the columns to send: input.send: [...]"
TYPES = "and int64 in files before it; declare it: input.columns: {x: ...}"
LESS, OTHER = TABLE.select(["x"]), pa.table({"x": ["1"], "y": ["a"]})
DIFFER = [
    ("csv", CSV, b"x,z\n1,a\n", {}, f"input.path: IN/b.csv does not have a column 'y', {ODD}"),
    ("csv", CSV, b"x,y,z\n1,a,2\n", {}, f"input.path: IN/b.csv has a column 'z', {ODD}"),
    ("csv", CSV, b"x\n1\n", {"send": ["x", "y"]}, "input.send: IN/b.csv has no column 'y'; it has: x"),
    ("csv", CSV, b"x\n1\n", {"keep": ["y"]}, "input.keep: IN/b.csv has no column 'y'; it has: x"),
    ("csv", b"1,a\n", b"2\n", {"csv": {"header": False}}, f"input.path: IN/b.csv does not have a column 'f1', {ODD}"),
    ("arrow", arrow(), arrow(LESS), {}, f"input.path: IN/b.arrow does not have a column 'y', {ODD}"),
    ("arrow", arrow(), arrow(OTHER), {}, f"input.path: column 'x' is string in IN/b.arrow {TYPES}"),
    ("parquet", parquet(), parquet(LESS), {"send": ["y"]}, "input.send: IN/b.parquet has no column 'y'; it has: x"),
    ("jsonl", b'{"x":1}\n', b'{"y":1}\n', {"send": ["y"]}, "input.send: IN/a.jsonl has no column 'y'; it has: x"),
]


@pytest.mark.parametrize(("form", "first", "second", "given", "told"), DIFFER)
def test_files_with_different_columns(desk, form, first, second, given, told):
    """The file that is odd, the column, and the key that says what matters."""
    put(desk, **{f"a.{form}": first, f"b.{form}": second})
    assert refused(desk, f"in/*.{form}", **given) == told


def test_columns_in_another_order_are_the_same(desk):
    """They go by name; and what is not sent may be missing."""
    put(desk, a__csv=CSV, b__csv=b"y,x\nc,3\n", c__csv=b"x\n4\n")
    assert desk.run("in/*.csv", send=["x"]).code == 0
    assert sorted(row["x"] for row in desk.rows().values()) == [1, 2, 3, 4]


def test_a_jsonl_file_has_the_columns_of_the_first_one(desk):
    """A key that is absent is null, and one that nobody planned is not sent."""
    put(desk, a__jsonl=b'{"x":1,"y":"a"}\n', b__jsonl=b'{"x":2,"z":"b"}\n')
    assert desk.run("in/*.jsonl").code == 0
    assert desk.rows() == {("a.jsonl", 0): {"x": 1, "y": "a"}, ("b.jsonl", 0): {"x": 2, "y": None}}


@pytest.mark.parametrize("columns", [{}, {"x": "int64"}])
def test_a_key_that_comes_later_is_in_nobodys_way(desk, columns):
    """Whether columns are found or all are declared: the files before it had none such, so it is not sent."""
    put(desk, a__jsonl=b'{"x":1}\n', b__jsonl=b'{"x":2,"z":3}\n{"z":4}\n')
    done = desk.run("in/*.jsonl", columns=columns)
    assert (done.code, done.err) == (0, "")
    assert desk.rows() == {("a.jsonl", 0): {"x": 1}, ("b.jsonl", 0): {"x": 2}, ("b.jsonl", 1): {"x": None}}


def test_rows_with_nothing_in_them_are_rows(desk):
    """Each is sent as an empty object, and has its answer."""
    put(desk, a__jsonl=b"{}\n{}\n{}\n")
    done = desk.run("in/a.jsonl")
    assert (done.code, done.err) == (0, "")
    assert desk.rows() == {("a.jsonl", row): {} for row in range(3)}
    assert jobs.proved(desk.out) == ()


def test_a_later_file_of_other_types_has_dead_letters(desk):
    """CSV has the types of the first file, for good."""
    put(desk, a__csv=b"x\n1\n", b__csv=b"x\n1.5\n2\n")
    line_of(desk.run("in/*.csv"), 3)
    assert letters(desk) == {0: ("x is '1.5', which is no int64", {"x": "1.5"})}
    assert desk.rows() == {("a.csv", 0): {"x": 1}, ("b.csv", 1): {"x": 2}}


# Files that end too soon, or are not what they were

MANY = 20_000
LINES = {
    "csv": b"x,y\n" + b"".join(b"%d,v%0100d\n" % (n, n * 7919) for n in range(MANY)),
    "jsonl": b"".join(b'{"x":%d,"y":"v%0100d"}\n' % (n, n * 7919) for n in range(MANY)),
}


def row_of(n):
    return {"x": n, "y": f"v{n * 7919:0100}"}


@pytest.mark.parametrize("form", LINES)
def test_a_truncated_gzip_file_is_read_as_far_as_it_goes(desk, form):
    """Exit 6 with its name; what lies before is committed. The whole file in its place is another one, and told so."""
    name = f"a.{form}.gz"
    whole = gzip.compress(LINES[form], 1)
    put(desk, **{name: whole[: len(whole) * 9 // 10]})
    job = desk.job(f"in/{name}")
    place = (desk.folder / "in" / name).as_uri()
    told = line_of(jobs.call("run", job), 6)
    assert re.fullmatch(rf"cannot read {place}: .+; put the file back as it was planned and run again", told)
    before = desk.rows()
    assert len(before) > MANY // 3
    assert before == {(name, n): row_of(n) for n in range(len(before))}
    assert jobs.letters(desk.out) == []
    assert jobs.proved(desk.out) == (f"missing: rows from {len(before)} on of {place}",)
    asked = len(desk.seen.calls)
    assert line_of(jobs.call("run", job), 6) == told
    assert len(desk.seen.calls) == asked  # nothing is asked again
    put(desk, **{name: whole})
    assert place in line_of(jobs.call("run", job), 2)
    assert jobs.call("run", job, "--changed", "rescore").code == 0
    assert desk.rows() == {(name, n): row_of(n) for n in range(MANY)}
    assert jobs.proved(desk.out) == ()


@pytest.mark.parametrize("content", [b'x,y\n1,a\n2,"b\n3,c\n', b'x,y\n1,a\n2,"b""\n3,c'])
def test_a_quote_that_is_never_closed(desk, content):
    """Exit 2: only its owner knows where the row ends. What lies before is committed; mended, it is another file."""
    put(desk, a__csv=content)
    job = desk.job("in/a.csv")
    place = (desk.folder / "in" / "a.csv").as_uri()
    assert line_of(jobs.call("run", job), 2) == f"input.path: {place}: source row 1 {UNENDED}"
    assert desk.rows() == {("a.csv", 0): {"x": 1, "y": "a"}}
    assert jobs.proved(desk.out) == (f"missing: rows from 1 on of {place}",)
    put(desk, a__csv=b"x,y\n1,a\n2,b\n3,c\n")
    assert "--changed rescore" in line_of(jobs.call("run", job), 2)
    assert jobs.call("run", job, "--changed", "rescore").code == 0
    assert desk.rows() == {("a.csv", n): {"x": n + 1, "y": "abc"[n]} for n in range(3)}


PLANNED = {
    "a.csv": CSV,
    "a.csv.gz": gzip.compress(CSV),
    "a.jsonl": b'{"x":1,"y":"a"}\n{"x":2,"y":"b"}\n',
    "a.jsonl.gz": gzip.compress(b'{"x":1,"y":"a"}\n{"x":2,"y":"b"}\n'),
    "a.arrow": arrow(),
    "a.arrows": arrow(make=ipc.new_stream),
    "a.parquet": parquet(),
    "a.manifest": b"a.manifest\na.manifest\n",
}
CHANGES = {
    "replaced": lambda path: path.write_bytes(PLANNED[path.name] * 2),
    "of the same size": lambda path: os.utime(path, ns=(1, 1)),
    "cut": lambda path: path.write_bytes(PLANNED[path.name][:-3]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": os.remove,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", PLANNED)
def test_a_file_that_changes_between_planning_and_reading(desk, name, change):
    """Exit 6 with its name, and nothing of it is sent; put back as it was, the same command finishes."""
    put(desk, **{name: PLANNED[name]})
    path = desk.folder / "in" / name
    planned = path.stat()
    job = desk.job(f"in/{name}", **({"send": ["name"]} if name == "a.manifest" else {}))

    def changed_first(*work):
        CHANGES[change](path)
        one_by_one(*work)

    with engine(changed_first):
        told = line_of(jobs.call("run", job), 6)
    what = "is gone since" if change == "removed" else "changed after"
    mend = "put it back, or use --changed rescore to score what is there"
    assert told == f"{path.as_uri()} {what} it was planned; {mend}"
    assert desk.seen.calls == []
    path.write_bytes(PLANNED[name])
    os.utime(path, ns=(planned.st_atime_ns, planned.st_mtime_ns))
    assert jobs.call("run", job).code == 0
    expected = {"name": name} if name == "a.manifest" else None
    assert desk.rows() == {(name, n): expected or {"x": n + 1, "y": "ab"[n]} for n in range(2)}
    assert jobs.proved(desk.out) == ()
