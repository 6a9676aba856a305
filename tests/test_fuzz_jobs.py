"""Job files of any content: a line for each problem and exit code 2, never a traceback."""

from __future__ import annotations

import json
from copy import deepcopy

import yaml
from engine import examples, place
from hypothesis import event, example, given
from hypothesis import strategies as st

import jobs

VALID = {
    "version": 1,
    "name": "iris",
    "params": {"date": "2026-11-21"},
    "input": {
        "path": ["in/*.csv"],
        "format": "csv",
        "columns": {"id": "string", "x": "list<float>"},
        "csv": {"delimiter": ";", "header": True},
        "send": ["id"],
        "rename": {"id": "key"},
        "keep": ["id"],
        "nan": "reject",
    },
    "service": {
        "url": "https://host/v1/infers/ID",
        "protocol": "modelarts",
        "options": {"wrapper": "data", "meta": True},
        "version": "v3",
        "auth": {
            "type": "token",
            "auth_url": "https://iam/v3",
            "user": "u",
            "domain": "d",
            "project": "p",
            "password": "${env:DEMO_PASSWORD}",
        },
        "headers": {"X-A": "${env:DEMO_PASSWORD}"},
        "tls": {"verify": False},
        "limits": {"body": "12MB", "timeout": "40s", "rows": 10, "in_flight": 4, "rate": "10/s"},
    },
    "output": {"path": "out/${date}", "format": "jsonl", "prediction": {"score": "double"}},
    "retry": {"attempts": 8, "seconds": 600, "outage": "30m"},
    "errors": {"allow": "1%"},
    "runner": {"name": "local", "workers": 1, "options": {"a": [1, True]}},
}

texts = st.text(max_size=12) | st.sampled_from(
    [
        *(
            "${date}",
            "${env:NOT_THERE}",
            "${file:/nowhere}",
            "${today}",
            "${",
            "${x}",
            "$",
            "~",
            "[",
            "*",
            "**",
            "../..",
        ),
        *(
            "s3://",
            "file://",
            "obs://b/k",
            "http://",
            "http://[",
            "https://h:99999/",
            "ws://h",
            "C:\\x",
            "\ud800",
            "\x00",
        ),
        *("1e999", "-1", "0", "1.5.5MB", "999999999999TB", "1000000000000000000h", "0/s", "nan", "inf%", "101%", "-1%"),
        *(
            "list<",
            "list<list<int8>>",
            "decimal(99,9)",
            "timestamp[x]",
            "struct<a:int64>",
            "int65",
            "dict",
            "none",
            "file",
        ),
    ]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**63, 10**400])
    | st.floats()
    | texts
    | st.dates()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


def places(value, above=()):
    """Yield the path of each value in a document."""
    yield above
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*above, key))


@st.composite
def mutated(draw):
    """Draw a valid job of which a few values are others, are gone, or have company."""
    job = deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from([path for path in places(job) if path] or [("version",)]))
        parent = job
        for key in above:
            parent = parent[key]
        change = draw(st.sampled_from(["set", "set", "set", "delete", "add"]))
        if change == "delete":
            del parent[last]
        elif change == "set" or not isinstance(parent, dict):
            parent[last] = draw(values)
        else:
            parent[draw(texts)] = draw(values)
    return job


@st.composite
def spliced(draw):
    """Draw the bytes of a valid job, with other bytes in place of some."""
    content = yaml.safe_dump(VALID).encode()
    start = draw(st.integers(0, len(content)))
    stop = draw(st.integers(start, min(len(content), start + 40)))
    filling = st.binary(max_size=20) | st.sampled_from(
        [
            b"&a ",
            b"*a",
            b"<<: *a",
            b"!!python/object:os.system ",
            b"---\n",
            b"? ",
            b"|\n",
            b"\t",
            b"{",
            b"- ",
            b"!!binary ",
        ]
    )
    return content[:start] + draw(filling) + content[stop:]


def see_it_checked(content):
    """`check` and `plan` know what to say of any job file; neither is here to read an input or to call anybody."""
    with place() as folder:
        path = folder / "job.yaml"
        path.write_bytes(content)
        (folder / "in").mkdir()
        (folder / "in" / "a.csv").write_bytes(b"id;x\n1;2\n")
        for command in ("check", "plan"):
            code, _, err = jobs.call(command, path)
            assert code in {0, 2}, err
            event(f"{command} {code}")
            lines = err.splitlines()
            assert all(line.startswith("ERROR ") for line in lines), err
            assert bool(lines) == (code == 2), err
            assert all(len(line) < 2000 for line in lines), "nobody reads that"


@examples()
@given(st.binary())
@example(b"")
@example(b"\xff\xfe")
@example(b"[" * 5000)
@example(b"{a: " * 5000)
@example(b"a: &a [*a]")
@example(b"version: 1\nname: &x [*x]")
@example(b"? [a]\n: 1")
@example(b"a: !!timestamp 2026-99-99")
@example(b"a: 2026-99-99")
@example(b"a: !!float x")
@example(b"a: !!int x")
@example(b"version: " + b"9" * 5000)
@example(b"x: &a [1]\ny: &b [*a,*a]\nz: &c [*b,*b]")
def test_any_bytes_are_a_job_file_or_a_few_lines_about_it(content):
    """Not YAML, not text, not a mapping, without end: exit code 2."""
    see_it_checked(content)


@examples(1.5)
@given(mutated())
def test_a_job_with_any_values_is_valid_or_told_what_is_wrong(job):
    """Wrong types, sizes, units, names, and keys that nobody knows."""
    try:
        content = json.dumps(job, default=str).encode()
    except ValueError:
        content = yaml.safe_dump(job).encode()
    see_it_checked(content)


@examples()
@given(spliced())
def test_a_job_that_was_cut_or_mixed_up_is_valid_or_told_what_is_wrong(content):
    """As editors and merges leave them; tags and anchors of YAML too."""
    see_it_checked(content)
