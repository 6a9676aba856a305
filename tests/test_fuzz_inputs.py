"""Input files of any content: what can be read is scored, what cannot is told in a line, and no row is lost."""

from __future__ import annotations

import json

import pytest
import service
from engine import engine, examples, one_by_one, place
from hypothesis import event, example, given
from hypothesis import strategies as st

import jobs

CSV = [
    *(b",", b";", b"\n", b"\r\n", b"\r", b'"', b'""', b"'", b"\t", b" ", b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\\"),
    *(
        b"a",
        b"b",
        b"id",
        b"1",
        b"-1",
        b"1.5",
        b"1e400",
        b"nan",
        b"inf",
        b"true",
        b"null",
        b"2026-11-21",
        b"\xe4\xb8\xad",
    ),
    *(
        b"9223372036854775808",
        b"00012",
        b"\xff",
        b"\xed\xa0\x80",
        b"\x1a",
        b"\x85",
        b"\xe2\x80\xa8",
        b"source_row",
        b"#",
    ),
]
JSONL = [
    *(b"{", b"}", b"[", b"]", b":", b",", b"\n", b"\r\n", b'"', b'"a"', b'"b"', b"1", b"-0", b"1e400", b"NaN", b"null"),
    *(
        b"true",
        b"\xef\xbb\xbf",
        b"\xff",
        b'"\\ud800"',
        b'"\\u0000"',
        b"9223372036854775808",
        b"\x00",
        b" ",
        b"\t",
        b"//",
    ),
    *(
        b'{"a":1}\n',
        b'{"a":"x","b":null}\n',
        b'{"a":[1,{"c":2}]}\n',
        b'{"a":1,"a":2}\n',
        b"{}\n",
        b"[1]\n",
        b'{"":1}\n',
    ),
    *(b'{"source":1}\n', b'{"a":1.0}\n', b'{"a":123456789012345678901234567890}\n', b"1\n"),
]
GZIP = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
PACKED = ["a.csv.gz", "a.jsonl.zst", "a.jsonl.gz", "a.parquet", "a.arrow"]
FORMS = {"csv": CSV, "jsonl": JSONL}


def echo(call):
    """Answer each row with itself, whatever it is."""
    sent = json.loads(call.body)
    return 200, {}, json.dumps({"meta": sent["meta"], "data": {"resp_data": sent["data"]["req_data"]}}).encode()


@pytest.fixture(scope="module")
def url():
    """One service for all examples."""
    with service.recording(echo) as recorded:
        yield recorded.url


def pieces(words):
    """Draw bytes that look like the form, and a few that do not."""
    mess = st.lists(st.sampled_from(words) | st.binary(max_size=4), max_size=40).map(b"".join)
    rows = st.lists(st.sampled_from([word for word in words if word.startswith(b"{") and len(word) > 2] or words))
    return mess | st.tuples(rows.map(b"".join), mess, rows.map(b"".join)).map(b"".join) | rows.map(b"".join)


def see_it_scored(url, name, content, **keys):
    """A run ends with each row in its place, or in a line that says why not; then the next one comes to the same."""
    with place() as folder, engine(one_by_one):
        (folder / "in").mkdir()
        (folder / "in" / name).write_bytes(content)
        path = jobs.job_file(
            folder,
            "",
            input={"path": f"in/{name}", **keys},
            service={"url": url, "auth": {"type": "none"}, "limits": {"rows": 3, "in_flight": 2}},
            errors={"allow": "100%"},
        )
        first, again = (jobs.call("run", path, "-q", "--json") for _ in range(2))
        for ran in (first, again):
            assert ran.code in {0, 2, 6}, ran
            lines = ran.err.splitlines()
            assert all(line.startswith("ERROR ") for line in lines), ran.err
            assert bool(lines) == (ran.code != 0), ran.err
        assert first.code == again.code
        event(f"exit {first.code}")
        out = folder / "out"
        if first.code == 0:
            assert jobs.proved(out) == ()
            done, redone = json.loads(first.out), json.loads(again.out)
            assert done["scored"] + done["dead"] == done["planned"] == redone["planned"]
            assert redone["requests"] == 0
            assert len(jobs.letters(out)) == done["dead"]


@examples(0.7)
@given(content=pieces(CSV))
@example(content=b"")
@example(content=b"a\n")
@example(content=b"a,a\n1,2\n")
@example(content=b'a\n"')
@example(content=b'"a\n1\n2\n')
@example(content=b"a,b\n1\n1,2,3\n\n4,5")
@example(content=b"\xef\xbb\xbfa\n1")
@example(content=b"\xff\xfea\x00\n\x001\x00")
@example(content=b"a\n" + b"9" * 400)
@example(content=b"a\n" + b"x" * 100_000)
def test_any_bytes_are_a_csv_file_or_a_line_about_it(url, content):
    """Quotes without an end, rows too long or too short, other encodings, bytes of no meaning."""
    see_it_scored(url, "a.csv", content)


@examples(0.7)
@given(content=pieces(JSONL))
@example(content=b"")
@example(content=b"\n\n")
@example(content=b'{"a":1}\n{"a":')
@example(content=b'{"a":1}\n{"a":"x"}\n{"b":[]}\n')
@example(content=b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}\n")
@example(content=b"[" * 100_000)
@example(content=b'{"a":' + b"9" * 5000 + b"}\n")
@example(content=b'{"a":"\\ud800"}\n')
def test_any_bytes_are_a_jsonl_file_or_a_line_about_it(url, content):
    """JSON that is none, rows that are no objects, values of every type, depth without an end."""
    see_it_scored(url, "a.jsonl", content)


@examples(0.7)
@given(
    form=st.sampled_from(list(FORMS)),
    content=st.data(),
    declared=st.sampled_from(["int64", "double", "string", "bool", "timestamp[us]", "list<double>", "decimal(9,2)"]),
    nan=st.sampled_from(["null", "reject"]),
)
def test_any_bytes_are_read_as_the_declared_types_or_told(url, form, content, declared, nan):
    """A value that does not fit is that row's trouble."""
    begin = b"a,b\n" if form == "csv" else b""
    see_it_scored(
        url,
        f"a.{form}",
        begin + content.draw(pieces(FORMS[form])),
        columns={"a": declared},
        nan=nan,
        keep=["a"],
        send=["a"],
    )


@examples(0.5)
@given(
    content=st.binary(max_size=60),
    name=st.sampled_from(["a.csv.gz", "a.jsonl.zst", "a.jsonl.gz", "a.parquet", "a.arrow"]),
)
@example(content=GZIP, name="a.csv.gz")
@example(content=GZIP + b"\x03\x00" + b"\x00" * 8, name="a.csv.gz")
@example(content=b"PAR1PAR1", name="a.parquet")
@example(content=b"ARROW1\x00\x00", name="a.arrow")
def test_a_packed_file_that_is_none_is_told_in_a_line(url, content, name):
    """Whatever its name promises."""
    see_it_scored(url, name, content)
