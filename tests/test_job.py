"""The job file: what it means, what it refuses, and that it keeps its secrets."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import pickle
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.jobfile import changed_answers, fingerprint, json_schema, load, missing_secrets, resolved
from pipeline.typenames import ALLOWED
from schemas import values
from schemas.auth import TokenAuth
from schemas.job import Job, leaves, marks
from schemas.options import OPTIONS, JsonOptions
from schemas.secret import Secret, Unresolved, reveal
from schemas.template import columns, one_row
from schemas.values import Allowance, InvalidValueError, Rate

ROOT = Path(__file__).parents[1]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
TODAY = dt.date(2026, 11, 21)

BASE = """\
version: 1
name: flowers
input: {path: in.parquet}
service: {url: "http://host/score"}
output: {path: out}
"""
TOKEN = "{type: token, auth_url: http://iam/v3, user: u, domain: d, project: p, password: '${env:PW}'}"
AUTHS = (
    TOKEN,
    "{type: none}",
    "{type: aksk, access_key: AK, secret_key: '${env:SK}', security_token: '${env:ST}'}",
    "{type: app-code, code: '${env:CODE}'}",
    "{type: app-key, key: k, secret: '${env:SECRET}'}",
    "{type: api-key, key: '${env:KEY}'}",
)
PROTOCOLS = {
    "modelarts": "{}",
    "file": "{field: images}",
    "json": "{body: {image: {$base64: content}}}",
    "mindspore": "{model: lenet, method: predict}",
    "kserve": "{model: m}",
    "open-inference": "{model: m}",
    "openai-chat": "{model: m, messages: [{role: user, content: {$column: x}}]}",
    "openai-embeddings": "{model: m, input: {$column: x}}",
    "tensorflow": "{model: m}",
    "mlflow": "{}",
    "torchserve": "{model: m}",
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Load a job file of this text, from its own folder."""
    monkeypatch.chdir(tmp_path)

    def job(text=BASE, *, environ=(), **options):
        Path("job.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load("job.yaml", environ=dict(environ), today=TODAY, **options)

    return job


@pytest.fixture
def refused(make):
    """Load what must be refused, and give the lines that say why."""

    def lines(text=BASE, **options):
        with pytest.raises(JobError) as caught:
            make(text, **options)
        return str(caught.value).splitlines()

    return lines


SIZE = "allowed: bytes, or a number with KB, MB, GB, KiB, MiB, GiB"
TIME = "allowed: seconds, or a number with ms, s, m, h"
WHOLE = "allowed: a whole number, 1 or more"
SOME_TEXT = "allowed: text that is not empty, without control characters"
URL = "allowed: http://host/path or https://host/path"
RATE = "allowed: a number per s, min or h, such as 100/s"
SHARE = "allowed: a count, or a percentage of all rows such as 1%"
SECRET = "a secret is named by reference: ${env:NAME} or ${file:path}"
PROJECT = "give one of them, or export OS_PROJECT_NAME or OS_PROJECT_ID"
INPUT_KEYS = "path, format, columns, csv, send, rename, keep, nan"
CSV_KEYS = "delimiter, header, quote, encoding, null_values"
FORMATS = "parquet, csv, jsonl, arrow, files, manifest"
CHARACTER = r'allowed: one ASCII character, such as "," or "\t", in double quotes'
ENCODING = "allowed: a text encoding's name, such as utf-8, utf-16, cp1252, latin-1, gb18030"
ONE_LINE = "has more than one line or control characters; allowed: one line of text"
OURS = "prediction, source, source_row, row_uuid, request_uuid, request_row, attempts, latency_ms, scored_at"
SERVICE_KEYS = "url, protocol, transport, options, schema, version, auth, headers, tls, limits"
AUTH_TYPES = "none, token, aksk, app-code, app-key, api-key"
FORM_VALUES = 'allowed: text, a number, true, false, or {"$column": name}'
ALONE = "allowed: one of $column, $base64, $rows, alone"
JOINED = "would be lost; allowed with $rows: [*] instead, or a body without $rows"
SIGNED = "allowed: at most 12MB, or another auth.type"
FILE_KEYS = "field, form, part_type, content"
TRANSPORT_KEYS = "events, message, greeting"
AUTH_KEYS = (
    "type, auth_url, user, domain, project, project_id, password, token, access_key, secret_key, security_token, code, "
    "key, secret, header, prefix"
)
TOKEN_KEYS = "type, auth_url, user, domain, project, project_id, password, token"
HEADER = "is not text on one line, in ASCII, without space around it"

# One key, the value given to it, and the line that comes back after `job.yaml: KEY: `.
WRONG_VALUES = [
    ("name", '"a\\nb"', rf"'a\nb' is not allowed; {SOME_TEXT}"),
    ("name", '" "', f"' ' is not allowed; {SOME_TEXT}"),
    ("name", "2024", "2024 is not text; put it in quotes"),
    ("transprt", "x", "unknown key; allowed: version, name, params, input, service, output, retry, errors, runner"),
    ("params", "[a]", "['a'] is not a mapping; allowed: key: value"),
    ("input", "5", f"5 is not a mapping; allowed: keys {INPUT_KEYS}"),
    ("input", "", f"missing; allowed: a mapping with {INPUT_KEYS}"),
    ("input.path", "", "missing; required: One path or a list: local, file://, s3://, ...; with *, ? and **"),
    ("input.path", "[]", "the list is empty; name at least one, or leave the key out"),
    ("input.path", "5", "5 is not text; put it in quotes"),
    ("input.path", "[s3://b/x, s3://b/x]", "'s3://b/x' is in the list twice"),
    ("input.format", "parket", f"'parket' is not allowed; did you mean 'parquet'? allowed: {FORMATS}"),
    ("input.csv", "';'", f"';' is not a mapping; allowed: keys {CSV_KEYS}"),
    ("input.csv.sep", "';'", f"unknown key; allowed: {CSV_KEYS}"),
    ("input.csv.delimiter", "';;'", f"';;' is not allowed; {CHARACTER}"),
    ("input.csv.delimiter", "''", f"'' is not allowed; {CHARACTER}"),
    ("input.csv.delimiter", r"'\t'", rf"'\\t' is not allowed; {CHARACTER}"),
    ("input.csv.delimiter", r'"\n"', rf"'\n' is not allowed; {CHARACTER}"),
    ("input.csv.delimiter", "\u00a6", f"'\u00a6' is not allowed; {CHARACTER}"),
    ("input.csv.delimiter", r'"\0"', rf"'\x00' is not allowed; {CHARACTER}"),
    ("input.csv.delimiter", "1", f"1 is not allowed; {CHARACTER}"),
    ("input.csv.quote", "'--'", f"'--' is not allowed; {CHARACTER}"),
    ("input.csv.header", "no", "'no' is not allowed; allowed: true, false"),
    ("input.csv.encoding", "utf-9", f"'utf-9' is not an encoding; {ENCODING}"),
    ("input.csv.encoding", "base64", f"'base64' is not an encoding; {ENCODING}"),
    ("input.csv.encoding", "8859", "8859 is not text; put it in quotes"),
    ("input.csv.null_values", "NA", "'NA' is not a list; allowed: a list of text, such as [a, b]"),
    ("input.columns", "[a]", "['a'] is not a mapping; allowed: key: value"),
    ("input.send", "[]", "the list is empty; name at least one, or leave the key out"),
    ("input.send", "a", "'a' is not a list; allowed: a list of text, such as [a, b]"),
    ("input.send", "[a, a]", "'a' is in the list twice"),
    ("input.keep", "[true]", "true is not text; put it in quotes"),
    (
        "input.keep",
        "[source]",
        f"'source' is a column of the results; a kept column may not be named like one of ours: {OURS}",
    ),
    ("input.rename", "{a: x, b: x}", "columns 'a' and 'b' would both be sent as 'x'; rename one of them"),
    ("input.nan", "drop", "'drop' is not allowed; allowed: null, reject"),
    ("service.url", "ftp:/x", f"'ftp:/x' is not a URL to call; {URL}"),
    ("service.url", "http://", f"'http://' is not a URL to call; {URL}"),
    ("service.url", "http://[/", f"'http://[/' is not a URL to call; {URL}"),
    ("service.url", "http://h:99999/", f"'http://h:99999/' is not a URL to call; {URL}"),
    ("service.url", "http://u:hunter2@h/", "a URL may not carry a user or a password; use service.auth"),
    ("service.url", "http://u:hunter2@[/", "a URL may not carry a user or a password; use service.auth"),
    ("service.url", "[http://a, ws://b]", "some are for websockets and some are not; allowed: all of one kind"),
    ("service.transport", "tcp", "'tcp' is not allowed; allowed: http, sse, websocket"),
    ("service.protocl", "x", f"unknown key; did you mean 'protocol'? allowed: {SERVICE_KEYS}"),
    (
        "service.protocol",
        "grpc-soon",
        f"'grpc-soon' is not allowed; allowed: {', '.join(OPTIONS)}; or install the package that gives it",
    ),
    (
        "service.protocol",
        "modelart",
        "'modelart' is not allowed; did you mean 'modelarts'? allowed: " + ", ".join(OPTIONS),
    ),
    ("service.options.wrap", "x", f"unknown key; did you mean 'wrapper'? allowed: wrapper, meta, {TRANSPORT_KEYS}"),
    ("service.options.wrapper", "row", "'row' is not allowed; allowed: data, none"),
    ("service.options.meta", "no", "'no' is not allowed; allowed: true, false"),
    ("service.version", "1.10", "1.1 is not text; put it in quotes"),
    ("service.auth", "hunter2", f"is not a mapping; allowed: keys {AUTH_KEYS}"),
    ("service.headers", "hunter2", "is not a mapping; allowed: header names with their values"),
    ("service.headers", "{a b: hunter2}", "'a b' is not a header's name"),
    ("service.headers", "{a: hunter2, A: y}", "a header is given twice; upper and lower case are the same"),
    ("service.headers", "{a: 5}", f"the value of 'a' {HEADER}"),
    ("service.headers", '{a: "hunter2\\r\\nB: c"}', f"the value of 'a' {HEADER}"),
    ("service.tls.verify", "off", "'off' is not allowed; allowed: true, false"),
    ("service.limits.body", "12 bananas", f"'12 bananas' is not a size; {SIZE}"),
    ("service.limits.body", "0", f"0 is not a size; {SIZE}"),
    ("service.limits.timeout", "1d", f"'1d' is not a duration; {TIME}"),
    ("service.limits.timeout", "-1", f"-1 is not a duration; {TIME}"),
    ("service.limits.timeout", "0s", "'0s' is not allowed; allowed: a duration of more than 0"),
    ("service.limits.rows", "0", "0 is not allowed; allowed: a whole number from 1 to 10000"),
    ("service.limits.rows", "10001", "10001 is not allowed; allowed: a whole number from 1 to 10000"),
    ("service.limits.in_flight", "1.5", f"1.5 is not allowed; {WHOLE}"),
    ("service.limits.rate", "100", f"100 is not a rate; {RATE}"),
    ("service.limits.rate", "0/s", f"'0/s' is not a rate; {RATE}"),
    ("output.format", "arrow", "'arrow' is not allowed; allowed: parquet, jsonl, csv"),
    ("output.prediction", "string", "'string' is not a mapping; allowed: key: value"),
    ("retry.attempts", "true", f"true is not allowed; {WHOLE}"),
    ("retry.outage", "long", f"'long' is not a duration; {TIME}"),
    ("errors.allow", "101%", f"'101%' is not allowed; {SHARE}"),
    ("errors.allow", "-1", f"-1 is not allowed; {SHARE}"),
    ("runner.workers", "0", f"0 is not allowed; {WHOLE}"),
    ("runner.options", "x", "'x' is not a mapping; allowed: key: value"),
]

# The same, where the blame falls on another key than the one that was set.
WRONG_ELSEWHERE = [
    ({"params": "{a: [1]}"}, "params.a: [1] is not text"),
    ({"service.auth": "{}"}, f"service.auth.type: missing; allowed: {AUTH_TYPES}"),
    (
        {"service.auth": "{type: tokn}"},
        f"service.auth.type: 'tokn' is not allowed; did you mean 'token'? allowed: {AUTH_TYPES}",
    ),
    ({"service.auth": "{type: none, user: hunter2}"}, "service.auth.user: unknown key; allowed: type"),
    (
        {"service.auth": TOKEN, "service.auth.usr": "hunter2"},
        f"service.auth.usr: unknown key; did you mean 'user'? allowed: {TOKEN_KEYS}",
    ),
    ({"service.auth": TOKEN, "service.auth.password": "hunter2"}, f"service.auth.password: {SECRET}"),
    ({"service.auth": TOKEN, "service.auth.password": "hunter2${env:PW}"}, f"service.auth.password: {SECRET}"),
    ({"service.auth": "{type: token, token: hunter2}"}, f"service.auth.token: {SECRET}"),
    (
        {"service.auth": TOKEN, "service.auth.user": "5"},
        "service.auth.user: is not text on one line; put numbers in quotes",
    ),
    (
        {"service.auth": TOKEN, "service.auth.auth_url": "http://iam/v2.0"},
        "service.auth.auth_url: 'http://iam/v2.0' is not the URL of IAM v3; allowed: a URL that ends in /v3",
    ),
    (
        {"service.auth": TOKEN, "service.auth.auth_url": "https://u:hunter2@iam/v3"},
        "service.auth.auth_url: a URL may not carry a user or a password; use service.auth",
    ),
    (
        {"service.auth": TOKEN, "service.auth.project": ""},
        f"service.auth: project or project_id is required, since ModelArts takes project-scoped tokens only; {PROJECT}",
    ),
    (
        {"input.send": "[sepal, petal]", "input.rename": "{petl: x}"},
        "input.rename.petl: not a column that is sent; did you mean 'petal'? allowed: sepal, petal",
    ),
    (
        {"input.send": "[a, b]", "input.rename": "{a: b}"},
        "input.rename: columns 'a' and 'b' would both be sent as 'b'; rename one of them",
    ),
    (
        {"runner.name": "flink", "service.limits.rate": "1/s"},
        "runner.workers: missing; required with service.limits.rate on runner 'flink': each worker has rate / workers",
    ),
    (
        {"input.columns": "{id: string, x: flaot}"},
        f"input.columns.x: 'flaot' is not a type; allowed: {ALLOWED}; did you mean 'float'?",
    ),
    (
        {"output.prediction": "{score: 'list<number>'}"},
        f"output.prediction.score: 'list<number>' is not a type; allowed: {ALLOWED}; did you mean 'list<double>'?",
    ),
    ({"service.tls": "{key: k.pem}"}, "service.tls.cert: missing; required with service.tls.key"),
    (
        {"service.tls": "{ca: c.pem, verify: false}"},
        "service.tls.verify: false makes service.tls.ca of no use; leave one of them out",
    ),
    (
        {"output.path": "s3://a:hunter2@b"},
        "output.path: a path may not carry a password; use the storage's own credentials of this machine",
    ),
    (
        {"input.path": "[a.csv, b.jsonl.gz, c.CSV.zst]"},
        f"input.format: missing; the suffixes tell more than one: csv, jsonl; allowed: {FORMATS}",
    ),
    (
        {"input.path": "[/data/a.csv, '/data/part-*']"},
        f"input.format: missing; no suffix of '/data/part-*' tells it; allowed: {FORMATS}",
    ),
    ({"input.path": "/data/a.gz"}, f"input.format: missing; no suffix of '/data/a.gz' tells it; allowed: {FORMATS}"),
    (
        {"input.csv": "{header: true}"},
        "input.csv.header: only CSV has it, and input.format is parquet; leave it out, or give format: csv",
    ),
    (
        {"input.format": "csv", "input.csv": r"{delimiter: '|', quote: '|'}"},
        "input.csv.quote: '|' is the delimiter too; allowed: another one",
    ),
    ({"input.path": "${dat}"}, "input.path: ${dat} is not a parameter; allowed: today, yesterday, env:NAME, file:path"),
    (
        {"input.path": "${tody}"},
        "input.path: ${tody} is not a parameter; did you mean 'today'? allowed: today, yesterday, env:NAME, file:path",
    ),
    ({"input.path": "a${"}, "input.path: a ${ without its }"),
    ({"input.path": "${env:DIR}"}, "input.path: ${env:DIR} is not set in the environment; export DIR=..."),
    ({"input.path": "${file:no}"}, "input.path: ${file:no} cannot be read: No such file or directory"),
    ({"name.first": "x"}, "name.first: --set finds no mapping at name"),
    ({"name": "["}, "name: the value of --set is not YAML: did not find expected node content"),
]

# A whole file, and the line that comes back.
WRONG_FILES = [
    ("", "job.yaml: is empty; a job file starts with `version: 1`"),
    ("# nothing\n", "job.yaml: is empty; a job file starts with `version: 1`"),
    ("- version: 1\n", "job.yaml: is not a mapping; a job file starts with `version: 1`"),
    (b"\xff\xfe", "job.yaml: is not UTF-8 text"),
    ("a: \x00", "job.yaml: is not YAML: a character that may not be in it"),
    ("a: b: c", "job.yaml:1:5: is not YAML: mapping values are not allowed in this context"),
    ("a: 1\n\tb: 2", "job.yaml:2:1: is not YAML: found a tab character that violates indentation"),
    ("a: @hunter2", "job.yaml:1:4: is not YAML: found character that cannot start any token"),
    (
        "a: *hunter2",
        "job.yaml:1:4: is not YAML: an alias (*) without its anchor (&), an anchor given twice, or a second document",
    ),
    ("a: !hunter2 b", "job.yaml:1: tags are not known here; put text that starts with ! in quotes"),
    ("a: &a [*a]", "job.yaml:1: an alias leads back to itself"),
    ("? [a]\n: 1", "job.yaml:1: a key is not text"),
    ("a:\n  b: 1\n  b: 2", "job.yaml:3: a.b: the key is given twice"),
    ("a: " + "[" * 5000 + "]" * 5000, "job.yaml: is nested too deeply"),
    ("version: 2\nnme: x", "job.yaml:1: version: 2 is not allowed; allowed: 1"),
    ("version: '1'\n", "job.yaml:1: version: '1' is not allowed; allowed: 1"),
]


@pytest.mark.parametrize(("key", "value", "said"), WRONG_VALUES)
def test_a_wrong_value_is_told_by_key_value_and_what_is_allowed(refused, key, value, said):
    """One line names the key, what was found, and what may be there; nothing of a secret."""
    assert refused(sets={key: value}) == [f"job.yaml: {key}: {said}"]


@pytest.mark.parametrize(("sets", "said"), WRONG_ELSEWHERE)
def test_keys_that_contradict_each_other_are_told_in_one_line(refused, sets, said):
    """The line names the key to mend, which need not be the one that was changed."""
    lines = [re.sub(r"^job\.yaml(:\d+)?: ", "", line) for line in refused(sets=sets)]

    assert lines == [said]


@pytest.mark.parametrize(("text", "said"), WRONG_FILES)
def test_a_file_that_is_no_job_is_told_in_one_line_with_its_place(refused, text, said):
    """Line and column are the file's own; what stands there is not repeated, it may be a secret."""
    assert refused(text) == [said]


def test_no_refusal_shows_a_secret(refused):
    """A password written where it does not belong comes back in no message."""
    tables = [{key: value} for key, value, _ in WRONG_VALUES] + [sets for sets, _ in WRONG_ELSEWHERE]
    careless = [sets for sets in tables if "hunter2" in str(sets)]

    assert len(careless) > 10
    assert "hunter2" not in "".join("".join(refused(sets=sets)) for sets in careless)


def test_all_problems_are_told_at_once_in_the_order_of_the_file(refused):
    """A line each, with the line in the file; a missing key is told at the mapping it belongs to."""
    text = BASE.replace("path: in.parquet", "pth: a").replace("name: flowers", "name: 5")

    assert refused(text) == [
        "job.yaml:2: name: 5 is not text; put it in quotes",
        "job.yaml:3: input.path: missing; required: One path or a list: local, file://, s3://, ...; with *, ? and **",
        f"job.yaml:3: input.pth: unknown key; did you mean 'path'? allowed: {INPUT_KEYS}",
    ]


def test_a_missing_file_and_a_folder_are_told(tmp_path):
    """The path is shown as it was given."""
    for name, reason in {"no.yaml": "No such file or directory", "": "Is a directory"}.items():
        with pytest.raises(JobError) as caught:
            load(tmp_path / name, today=TODAY)

        assert str(caught.value) == f"{tmp_path / name}: cannot be read: {reason}"


def test_a_job_with_the_least_keys_has_the_documented_defaults(make):
    """What is left out, and what is null, has its default."""
    least = make(BASE + "retry:\n", sets={"service.limits": "{rate: null, in_flight: null}", "input.nan": "null"})

    assert json.loads(json.dumps(resolved(least)["service"]["limits"])) == {
        "body": 12_000_000,
        "timeout": 40.0,
        "rows": None,
        "in_flight": 512,
        "rate": None,
    }
    assert (least.retry.attempts, least.retry.seconds, least.retry.outage) == (8, 600, 1800)
    assert (least.input.nan, least.input.send, least.service.protocol) == ("null", None, "modelarts")
    assert (least.runner.name, least.runner.workers, least.errors.allow) == ("local", 1, Allowance())


def test_units_are_read_into_bytes_seconds_and_requests_a_second(make):
    """Sizes are bytes, durations seconds, rates requests a second."""
    limits = "{body: 12MiB, timeout: 500ms, rows: 100, rate: 6000/min}"
    job = make(sets={"service.limits": limits, "retry.outage": "2h", "errors.allow": "0.5%"})

    assert (job.service.limits.body, job.service.limits.timeout, job.service.limits.rate) == (
        12 * 2**20,
        0.5,
        Rate(100),
    )
    assert (job.retry.outage, job.errors.allow) == (7200, Allowance(Fraction(1, 2), percent=True))


def test_plain_scalars_are_text_where_yaml_1_1_would_guess(make):
    """`no`, times, dates and leading zeros are text; a byte order mark is skipped."""
    job = make("\ufeff" + BASE, sets={"input.send": "[no, 12:30, 2026-11-21, 007, off]"})

    assert job.input.send == ("no", "12:30", "2026-11-21", "007", "off")


def test_parameters_are_put_in_as_written(make):
    """The file's own values, those before them, the command line's, and the two UTC dates."""
    params = "params: {v: 1.10, dir: 'v${v}/${yesterday}', date: 2026-01-02}\n"
    job = make(
        BASE + params,
        params={"date": "7"},
        sets={"input.path": "/${dir}/${date}/${today}.csv", "retry.attempts": "${date}"},
    )

    assert job.params == {"v": "1.10", "dir": "v1.10/2026-11-20", "date": "7"}
    assert job.input.path == ("/v1.10/2026-11-20/7/2026-11-21.csv",)
    assert job.retry.attempts == 7


def test_numbers_and_flags_may_come_from_parameters(make):
    """What is put in is text, and is read like what it stands for."""
    params = "params: {on: true, few: 3, share: 2.5%, speed: 30/min}\n"
    sets = {
        "service.options.meta": "${on}",
        "service.limits": "{rows: '${few}', body: '${few}KB', rate: '${speed}'}",
        "errors.allow": "${share}",
    }
    written = resolved(make(BASE + params, sets=sets))

    assert written["service"]["options"]["meta"] is True
    assert written["service"]["limits"] | {"timeout": 0, "in_flight": 0} == {
        "body": 3000,
        "timeout": 0,
        "rows": 3,
        "in_flight": 0,
        "rate": "0.5/s",
    }
    assert written["errors"] == {"allow": "2.5%"}


def test_values_that_were_read_already_are_taken_as_they_are(make):
    """A job can be made of Python values too."""
    job = make()
    limits = job.service.limits.model_validate({"rate": Rate(2)})

    assert limits.rate == Rate(2)
    assert job.errors.model_validate({"allow": Allowance(Fraction(1))}).allow.permits(dead=1, planned=1)


def test_a_parameter_must_be_declared_and_have_a_value(refused):
    """A typing error in --param is not a silent no-op."""
    assert refused(BASE + "params: {date: null}\n", params={"dat": "1"}) == [
        "job.yaml:6: params.dat: --param dat is not declared under params; did you mean 'date'? allowed: date",
        "job.yaml:6: params.date: has no value; give one with --param date=...",
    ]
    assert refused(params={"date": "1"}) == [
        "job.yaml: params.date: --param date is not declared under params; the file declares none",
    ]


def test_set_overrides_and_makes_mappings_on_its_way(make):
    """The value is YAML; a mapping that is not there yet is made."""
    job = make(sets={"service.limits.rows": "10", "runner.options": "{a: [1, x], b: true}", "runner.options.c": "1e3"})

    assert job.service.limits.rows == 10
    assert job.runner.options == {"a": [1, "x"], "b": True, "c": 1000.0}


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("data/*.parquet", "HERE/data/*.parquet"),
        ("../x", "ABOVE/x"),
        ("/data/x", "/data/x"),
        ("~/x", "HERE/~/x"),
        (r"C:\data\x", r"C:\data\x"),
        ("D:/data/x", "D:/data/x"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("obs://bucket/**", "obs://bucket/**"),
        ("file:///data/x", "file:///data/x"),
    ],
)
def test_relative_paths_are_relative_to_the_job_file(make, tmp_path, written, path):
    """A drive letter is a path, not a scheme, and a URL stays as it is."""
    expected = path.replace("HERE", str(tmp_path)).replace("ABOVE", str(tmp_path.parent))
    quoted = json.dumps(written)
    job = make(
        sets={
            "input.path": quoted,
            "input.format": "parquet",
            "output.path": quoted,
            "service.tls": f"{{ca: {quoted}}}",
        }
    )

    assert (job.input.path, job.output.path, job.service.tls.ca) == ((expected,), expected, expected)


def test_references_outside_auth_and_headers_are_looked_up_at_once(make, tmp_path):
    """From the environment and from files beside the job file, without the last line end."""
    (tmp_path / "where").write_text("in/put\n")
    job = make(sets={"input.path": "${file:where}/${env:DAY}.csv", "name": "${env:DAY}"}, environ={"DAY": "mon"})

    assert (job.input.path, job.name) == ((f"{tmp_path}/in/put/mon.csv",), "mon")


def test_a_secret_is_nowhere_but_in_the_hand_of_its_reader(make, tmp_path):
    """repr, str, JSON and pickle hold references; literal headers are hidden."""
    (tmp_path / "key").write_text("hunter2\r\n")
    environ = {"PW": "hunter2", "USER_NAME": "hunter2"}
    headers = "{X-Key: 'Bearer ${file:key}', X-Literal: hunter2}"
    job = make(
        sets={"service.auth": TOKEN, "service.auth.user": "${env:USER_NAME}", "service.headers": headers},
        environ=environ,
    )
    auth = job.service.auth

    assert isinstance(auth, TokenAuth)
    assert "hunter2" not in f"{job!r} {job} {json.dumps(resolved(job))} {pickle.dumps(auth)!r}"
    assert repr(auth.password) == "Secret('${env:PW}')"
    assert resolved(job)["service"]["headers"] == {"X-Key": f"Bearer ${{file:{tmp_path}/key}}", "X-Literal": "***"}
    assert reveal(auth.user, environ) == auth.password.resolve(environ) == "hunter2"
    assert [value.resolve({}) for value in job.service.headers.values()] == ["Bearer hunter2", "hunter2"]


def test_a_job_survives_a_pickle(make):
    """Workers get the job as it was made, error places included."""
    job = make(sets={"service.auth": TOKEN, "service.limits.rate": "5/s", "service.headers": "{a: b}"})
    again = pickle.loads(pickle.dumps(job))

    assert again == job
    with pytest.raises(Unresolved, match=r"^service\.auth\.password: \$\{env:PW\} is not set"):
        again.service.auth.password.resolve({})


def test_missing_secrets_are_listed_with_their_keys(make, tmp_path):
    """Unset, empty, unreadable, many lines: each is one line with the mend."""
    (tmp_path / "pem").write_text("hunter2\nhunter2\n")
    (tmp_path / "bytes").write_bytes(b"\xff")
    (tmp_path / "none").write_text("\n")
    headers = "{A: '${env:EMPTY}', B: '${file:no}', C: '${file:pem}', D: '${file:bytes}', E: '${file:none}'}"
    job = make(sets={"service.auth": TOKEN, "service.headers": headers})

    assert missing_secrets(job, {"EMPTY": ""}) == [
        "service.auth.password: ${env:PW} is not set in the environment; export PW=...",
        "service.headers.A: ${env:EMPTY} is empty in the environment; export EMPTY=...",
        f"service.headers.B: ${{file:{tmp_path}/no}} cannot be read: No such file or directory",
        f"service.headers.C: ${{file:{tmp_path}/pem}} {ONE_LINE}",
        f"service.headers.D: ${{file:{tmp_path}/bytes}} is not UTF-8 text",
        f"service.headers.E: ${{file:{tmp_path}/none}} is empty",
    ]
    assert missing_secrets(make(sets={"service.auth": TOKEN}), {"PW": "x"}) == []


def test_os_variables_stand_for_what_token_auth_leaves_out(make):
    """They are references too: looked up by the worker, and missing ones are listed."""
    job = make(sets={"service.auth": "{type: token}"}, environ={"OS_PROJECT_NAME": "p"})

    assert resolved(job)["service"]["auth"] == {
        "type": "token",
        "auth_url": "${env:OS_AUTH_URL}",
        "user": "${env:OS_USERNAME}",
        "domain": "${env:OS_USER_DOMAIN_NAME}",
        "project": "${env:OS_PROJECT_NAME}",
        "project_id": None,
        "password": "${env:OS_PASSWORD}",
        "token": None,
    }
    assert len(missing_secrets(job, {})) == 5


def test_a_given_token_or_project_keeps_the_os_variables_out(make):
    """Nothing is asked for that the job does not need."""
    environ = {"OS_PROJECT_NAME": "p", "OS_PROJECT_ID": "i"}
    given = make(sets={"service.auth": "{type: token, token: '${env:T}'}"}, environ=environ)
    named = make(sets={"service.auth": TOKEN}, environ=environ)

    assert missing_secrets(given, {}) == ["service.auth.token: ${env:T} is not set in the environment; export T=..."]
    assert (named.service.auth.project, named.service.auth.project_id) == ("p", None)


def test_the_fingerprint_follows_answers_and_nothing_else(make):
    """Places, speed and verdicts may change; what decides answers may not, and is told with both values."""
    old = make()
    same = make(
        sets={
            "input.path": "b.parquet",
            "output.path": "c",
            "runner.name": "flink",
            "runner.workers": "3",
            "errors.allow": "1",
            "service.url": "http://b",
        },
    )
    new = make(sets={"input.keep": "[id]", "service.version": "v2", "service.options.meta": "false"})

    assert fingerprint(same) == fingerprint(old) != fingerprint(new)
    assert changed_answers(resolved(old), same) == []
    assert changed_answers(json.loads(json.dumps(resolved(old))), new) == [
        'input.keep: was [], is ["id"]',
        "service.options.meta: was true, is false",
        'service.version: was null, is "v2"',
    ]


def test_a_key_that_an_older_version_did_not_know_has_its_default(make):
    """Neither the fingerprint nor the comparison takes a new key at its default for a change."""
    job = make()
    old = resolved(job)
    del old["input"]["nan"], old["service"]["options"]

    assert changed_answers(old, job) == []
    assert fingerprint(job) == "1a6a07a9b08267216f520134327d4331600a9c414e4798b9115c157c25fb5060"


SUFFIXES = {
    "parquet": [".parquet", ".pq", ".PARQUET"],
    "csv": [".csv", ".CSV"],
    "jsonl": [".jsonl", ".ndjson"],
    "arrow": [".arrow", ".feather", ".ipc", ".arrows"],
    "manifest": [".manifest"],
}


@pytest.mark.parametrize("packed", ["", ".gz", ".zst", ".bz2", ".lz4"])
@pytest.mark.parametrize(("form", "suffix"), [(form, one) for form, all_of in SUFFIXES.items() for one in all_of])
def test_the_suffix_tells_the_form_of_the_input(make, form, suffix, packed):
    """Of files and of patterns, in a list too; the name of a compression may follow it."""
    job = make(sets={"input.path": f"[s3://b/x{suffix}{packed}, '/in/*/part-?{suffix}']"})

    assert job.input.format == form


def test_what_is_named_is_not_derived(make):
    """The suffix tells nothing when the form is given: whole files may have any name."""
    job = make(sets={"input.path": "[a.csv, 'b/*']", "input.format": "files"})

    assert job.input.format == "files"


def test_a_derived_form_is_the_same_job_as_a_named_one(make):
    """Neither the fingerprint nor the comparison tells them apart; an older job.json, which named none, is Parquet."""
    derived, named = make(), make(sets={"input.format": "parquet"})
    older = resolved(derived)
    older["input"]["format"] = None

    assert fingerprint(named) == fingerprint(derived)
    assert changed_answers(resolved(derived), named) == changed_answers(resolved(named), derived) == []
    assert changed_answers(older, derived) == []
    assert changed_answers(older, make(sets={"input.path": "in.csv"})) == [
        'input.format: was "parquet", is "csv"',
    ]


def test_csv_is_comma_separated_utf_8_with_names_unless_the_job_says_otherwise(make):
    """The defaults, and every key with a value of its own; an encoding has one name."""
    plain = make(sets={"input.path": "in.csv"}).input.csv
    given = r'{delimiter: "\t", header: "${on}", quote: "", encoding: latin1, null_values: [NA, \N]}'
    job = make(BASE + "params: {on: false}\n", sets={"input.path": "in.csv", "input.csv": given})

    assert plain.model_dump() == {
        "delimiter": ",",
        "header": True,
        "quote": '"',
        "encoding": "utf-8",
        "null_values": (),
    }
    assert job.input.csv.model_dump() == {
        "delimiter": "\t",
        "header": False,
        "quote": "",
        "encoding": "iso8859-1",
        "null_values": ("NA", r"\N"),
    }


def test_results_have_a_form_and_typed_fields(make):
    """Parquet with JSON text, unless the job says otherwise."""
    least, typed = make(), make(sets={"output.format": "csv", "output.prediction": "{label: string, score: double}"})

    assert (least.output.format, least.output.prediction) == ("parquet", {})
    assert (typed.output.format, typed.output.prediction) == ("csv", {"label": "string", "score": "double"})


def test_every_key_is_marked(make):
    """Marks are total over the keys of resolved jobs, and each of the four is in use."""
    jobs = [make(sets={"service.auth": auth}) for auth in AUTHS]
    jobs += [make(sets={"service.protocol": name, "service.options": options}) for name, options in PROTOCOLS.items()]

    def paths(value, prefix=""):
        held = {"params", "columns", "rename", "headers", "prediction"}
        if prefix == "service.options.":
            held |= {"form", "body", "parameters", "messages", "input", "types"}
        held |= {"options"} if prefix == "runner." else set()
        for key, one in value.items():
            inner = isinstance(one, dict) and key not in held
            yield from paths(one, f"{prefix}{key}.") if inner else [f"{prefix}{key}"]

    assert {path for job in jobs for path in paths(resolved(job))} == set(marks())
    assert set(marks().values()) == {"answers", "verdict", "speed", "place"}
    assert all(field.description for _, field in leaves())


def test_the_marks_are_those_of_the_contract():
    """What changes answers is a closed list: adding to it is a decision."""
    assert {path for path, mark in marks().items() if mark == "answers"} == {
        "name",
        *(f"input.{key}" for key in ("format", "columns", "send", "rename", "keep", "nan")),
        *(f"input.csv.{key}" for key in ("delimiter", "header", "quote", "encoding", "null_values")),
        *(f"service.{key}" for key in ("protocol", "schema", "version")),
        *(f"service.options.{key}" for key in ("wrapper", "meta", "field", "form", "part_type", "content")),
        *(f"service.options.{key}" for key in ("body", "answer", "method", "events")),
        *(f"service.options.{key}" for key in ("model", "version", "label", "signature", "rows", "key", "params")),
        *(
            f"service.options.{key}"
            for key in ("messages", "input", "parameters", "tensor", "outputs", "binary", "types")
        ),
        "output.format",
        "output.prediction",
    }


def test_the_published_schema_is_current():
    """`bulkscore schema` and the file in the repository are the same."""
    published = (ROOT / "schemas" / "job.schema.json").read_text(encoding="utf-8")

    assert published == json.dumps(json_schema(), indent=2) + "\n"


def test_the_schema_takes_what_the_loader_takes_and_refuses_unknown_keys():
    """Sizes, lists, nulls and references as people write them are valid; a key that is not known is not."""
    from jsonschema import Draft202012Validator

    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    valid = Draft202012Validator(schema).is_valid
    job = yaml.safe_load(
        BASE + "runner: null\nerrors: {allow: 1%}\nretry: {attempts: '${n}', outage: 30m}\nparams: {n: 5}"
    )
    job["service"] |= {"limits": {"body": "12MB", "rows": None, "rate": "6000/min"}, "auth": yaml.safe_load(TOKEN)}
    job["input"] |= {"path": ["a", "b"], "format": "csv", "csv": {"delimiter": "\t", "quote": "", "header": None}}
    job["output"] |= {"format": "jsonl", "prediction": {"score": "double"}}

    assert valid(job)
    assert not valid(job | {"input": {"path": "a", "csv": {"delimiter": ";;"}}})
    assert not valid(job | {"nme": 1})
    assert not valid(job | {"input": {"path": "a", "nan": "drop"}})
    assert not valid(job | {"retry": {"attempts": "many"}})
    assert not valid({key: job[key] for key in job if key != "name"})


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_shipped_job_is_valid(path):
    """By the loader and by the schema its first line names."""
    from jsonschema import Draft202012Validator

    text = path.read_text(encoding="utf-8")
    load(path, environ={}, today=TODAY)
    Draft202012Validator(json_schema()).validate(yaml.load(text, Loader=yaml.SafeLoader))

    assert text.startswith("# yaml-language-server: $schema=../schemas/job.schema.json\n")


def test_loading_a_job_imports_nothing_heavy():
    """`check` is quick because the job file needs neither Beam nor Arrow nor an HTTP client."""
    code = "import sys, pipeline.jobfile; print(*{'apache_beam', 'pyarrow', 'requests', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)

    assert done.stdout == "\n"


@given(st.integers(1, 10**12), st.sampled_from(sorted(values.SIZES)), st.sampled_from(["", " "]))
def test_a_size_is_its_number_times_its_unit(number, unit, space):
    """Exactly, with a space or without; and a plain number is bytes."""
    assert values.size(f"{number}{space}{unit}") == number * values.SIZES[unit]
    assert values.size(number) == number


@given(st.integers(0, 10**9), st.sampled_from(sorted(values.SECONDS)))
def test_a_duration_is_its_number_times_its_unit(number, unit):
    """In seconds; whole and with a fraction; and a plain number is seconds."""
    assert values.duration(f"{number}{unit}") == number * values.SECONDS[unit]
    assert values.duration(f"{number}.5 {unit}") == (number + 0.5) * values.SECONDS[unit]
    assert values.duration(number) == number


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())
READERS = [
    values.character,
    values.maybe_character,
    values.encoding,
    values.size,
    values.duration,
    values.count,
    values.rows,
    values.text,
    values.flag,
    Rate.read,
    Allowance.read,
]


@given(st.sampled_from([*READERS, values.texts, values.one_or_more, values.some_time]), ANYTHING)
def test_a_reader_gives_a_value_or_one_line(read, value):
    """Whatever stands in the file, the answer is a value or one line of reasons."""
    with contextlib.suppress(InvalidValueError):
        read(value)
        return
    with pytest.raises(InvalidValueError) as caught:
        read(value)
    assert len(str(caught.value).splitlines()) == 1


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 1000))
def test_an_allowance_is_exact(dead, planned, tenths):
    """A count is compared as it is, a percentage without rounding."""
    assert Allowance.read(tenths).permits(dead, planned) == (dead <= tenths)
    assert Allowance.read(f"{tenths / 10}%").permits(dead, planned) == (dead * 1000 <= tenths * planned)


@given(st.text(), st.text())
def test_a_secret_without_a_reference_is_never_shown(text, key):
    """A literal that had to be kept, as in a header, prints as stars."""
    assert str(Secret(f"x{text.replace('$', '')}", key)) == "***"


def test_a_job_and_its_parts_cannot_be_changed(make):
    """Frozen: what was checked is what is used."""
    job = make()

    with pytest.raises(ValueError, match="frozen"):
        job.name = "x"
    assert isinstance(job, Job)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({"service.protocol": "file"}, "service.options.field: missing; required: The input's name, such as images"),
        (
            {"service.protocol": "file", "service.options": "{field: images, feld: images}"},
            f"service.options.feld: unknown key; did you mean 'field'? allowed: {FILE_KEYS}, {TRANSPORT_KEYS}",
        ),
        (
            {"service.protocol": "file", "service.options": "{field: images, form: {a: [1]}}"},
            "service.options.form: [1] is not allowed for 'a'; " + FORM_VALUES,
        ),
        (
            {"service.protocol": "file", "service.options": "{field: images}", "service.limits.rows": "2"},
            "service.limits.rows: protocol file sends one row a request here; leave it out",
        ),
        (
            {"service.protocol": "file", "service.options": "{field: images}", "input.send": "[a]"},
            "input.send: protocol file sends what service.options names; leave it out",
        ),
        (
            {"service.protocol": "json", "service.options": "{body: {a: 1}}"},
            'service.options.body: no column in it; allowed: JSON with {"$column": name} or {"$base64": name}',
        ),
        (
            {"service.protocol": "json", "service.options": "{body: {a: {$colum: x}}}"},
            "service.options.body: {'$colum': 'x'} is not allowed; " + ALONE,
        ),
        (
            {"service.protocol": "json", "service.options": "{body: {a: {$column: x, b: 1}}}"},
            "service.options.body: {'$column': 'x', 'b': 1} is not allowed; " + ALONE,
        ),
        (
            {"service.protocol": "json", "service.options": "{body: {a: {$column: 5}}}"},
            "service.options.body: $column: 5 is not the name of a column; put it in quotes",
        ),
        (
            {"service.protocol": "json", "service.options": "{body: {$rows: {a: 1}}}"},
            'service.options.body: no column in $rows; allowed: {"$rows": {"x": {"$column": "x"}}}',
        ),
        (
            {"service.protocol": "json", "service.options": "{body: [{$rows: {$column: x}}, {$rows: {$column: x}}]}"},
            "service.options.body: $rows is in it 2 times; allowed: once, and not inside itself",
        ),
        (
            {"service.protocol": "json", "service.options": "{body: {a: {$rows: {$column: x}}, b: {$column: x}}}"},
            "service.options.body: a column outside of $rows, where there is no row; put it inside",
        ),
        (
            {"service.protocol": "json", "service.options": "{body: {$rows: {$column: x}}, answer: 'r[].l[]'}"},
            "service.options.answer: [] in 'r[].l[]' joins the lists of rows, and whose an item is " + JOINED,
        ),
        (
            {"service.options": "{events: last}"},
            "service.options.events: only transport sse has it, and it is http; leave it out",
        ),
        (
            {"service.url": "wss://h/x", "service.transport": "sse"},
            "service.transport: 'sse' is not for 'wss://h/x'; leave it out",
        ),
        (
            {
                "service.auth": "{type: aksk, access_key: AK, secret_key: '${env:SK}'}",
                "service.limits.body": "12000001",
            },
            "service.limits.body: 12000001 bytes are more than the gateway takes with a signature; " + SIGNED,
        ),
    ],
)
def test_what_does_not_fit_the_protocol_or_its_way_in_is_told(refused, sets, said):
    """Options are those of the protocol, and of the transport; the place and the mend are named."""
    [line] = refused(sets=sets)

    assert line.partition(": ")[2] == said


@pytest.mark.parametrize(
    ("url", "given", "way"),
    [
        ("http://h/x", {}, "http"),
        ("wss://h/x", {}, "websocket"),
        ("https://h/x", {"service.transport": "websocket"}, "websocket"),
        ("https://h/x", {"service.transport": "sse"}, "sse"),
    ],
)
def test_the_url_tells_the_transport_unless_the_job_does(make, url, given, way):
    """A platform gives websocket services an https address, too."""
    assert make(sets={"service.url": url, **given}).service.way == way


def test_the_columns_of_a_template_are_those_it_names(make):
    """Each once, in their order, inside lists and `$rows` too."""
    body = "{m: x, d: {$rows: [{$column: b}, {k: {$base64: a}}, {$column: b}]}}"
    options = make(sets={"service.protocol": "json", "service.options": f"{{body: {body}}}"}).service.options

    assert isinstance(options, JsonOptions)
    assert columns(options.body) == ("b", "a")
    assert not one_row(options.body)


KSERVE = {"service.protocol": "kserve"}
CHAT = {"service.protocol": "openai-chat"}
TALK = "{model: m, messages: {$column: x}"
SERVERS = [
    (KSERVE, "service.options.model", "missing; required where service.url is a server's base, as 'http://host/score'"),
    (
        {**KSERVE, "service.url": "http://h/v1/models/m:predict", "service.options": "{model: n}"},
        "service.options.model",
        "service.url 'http://h/v1/models/m:predict' has the whole path already; leave one of them out",
    ),
    ({**KSERVE, "service.options": "{version: 1}"}, "service.options.version", "unknown key; "),
    (
        {**KSERVE, "service.options": "{model: m, rows: lists}", "input.rename": "{x: y}"},
        "input.rename",
        "with service.",
    ),
    (
        {**KSERVE, "service.options": "{model: m, rows: values}", "input.send": "[x, y]"},
        "service.options.rows",
        "'values'",
    ),
    (
        {"service.protocol": "tensorflow", "service.options": "{model: m, version: '1', label: s}"},
        "service.options.label",
        "options.version says which version already",
    ),
    (
        {"service.protocol": "mlflow", "service.options": "{rows: lists}"},
        "service.options.rows",
        "'lists' is not for dataframe_records",
    ),
    (
        {"service.protocol": "mlflow", "service.options": "{key: dataframe_split, rows: values}"},
        "service.options.rows",
        "'values' is not for dataframe_split, whose columns have names; allowed: objects, or options.key: instances",
    ),
    (
        {"service.protocol": "tensorflow", "service.options": "{model: m, key: columns}"},
        "service.options.key",
        "'columns' is not allowed; allowed: instances, inputs",
    ),
    ({**CHAT, "service.options": TALK + "}", "input.send": "[x]"}, "input.send", "protocol openai-chat sends what"),
    (
        {**CHAT, "service.options": TALK + "}", "service.limits.rows": "2"},
        "service.limits.rows",
        "protocol openai-chat",
    ),
    (
        {**CHAT, "service.options": TALK + ", stream: true}", "service.transport": "http"},
        "service.options.stream",
        "a stream comes by transport sse, and it is http",
    ),
    (
        {**CHAT, "service.options": TALK + ", stream: true, events: last}"},
        "service.options.events",
        "protocol openai-chat puts a stream together",
    ),
]


@pytest.mark.parametrize(("sets", "key", "said"), SERVERS)
def test_what_does_not_fit_a_model_server_is_told(refused, sets, key, said):
    """One line names the key and the mend."""
    (line,) = refused(sets=sets)
    assert re.fullmatch(rf"job\.yaml(:\d+)?: {re.escape(f'{key}: {said}')}.*", line)


def test_a_streamed_chat_comes_by_events(make):
    """Nobody has to say so twice."""
    assert make(sets={**CHAT, "service.options": TALK + ", stream: true}"}).service.way == "sse"
    assert make(sets={**CHAT, "service.options": TALK + "}"}).service.way == "http"
