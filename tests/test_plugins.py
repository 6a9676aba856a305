"""Protocols of other packages: what a job file, the command line and a run make of them, sound or not."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import shutil
import sys

import plugged
import pyarrow as pa
import pytest
import yaml
from jsonschema import Draft202012Validator
from service import recording

import jobs
from pipeline.errors import JobError
from pipeline.jobfile import changed_answers, fingerprint, resolved
from pipeline.protocols import adapter_of
from schemas.options import OPTIONS

NO_AUTH = {"type": "none"}
FNAPI = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
KEYS = "allowed: answer, delimiter, events, message, greeting"
ONE = 'allowed: one ASCII character, such as "," or "\\t", in double quotes'
HEAD = "from pipeline.adapter import Adapter, Options, Plugin\n"
PLAIN = HEAD + "PROTOCOL = Plugin(Options, lambda _: Adapter())\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the example, installed."""
    return plugged.build(tmp_path_factory.mktemp("example"))


@pytest.fixture
def use(monkeypatch):
    """Put folders with installed packages on the path, here and in processes; forget what was imported of them."""
    before = set(sys.modules)

    def put(*folders):
        for folder in folders:
            monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))

    yield put
    for name in set(sys.modules) - before:
        if name.startswith(("bulkscore_csv", "gives_")):
            del sys.modules[name]


def job(folder, url="http://127.0.0.1:1/x", **keys):
    """Write a job that sends flowers as CSV."""
    answer = {"service__protocol": "csv", "service__options": {"answer": ["label", "sum"]}}
    keys = {"service__url": url, "service__auth": NO_AUTH, **answer, **keys}
    return jobs.job_file(folder, "", **keys)


def flowers(folder, rows, bad=()):
    """Write flowers, those of which the first measure is given in `bad` with it."""
    table = jobs.flowers(rows)
    first = [dict(bad).get(row, value) for row, value in enumerate(table["sepal_length"].to_pylist())]
    jobs.put(folder / "in" / "flowers.parquet", table.set_column(1, "sepal_length", pa.array(first)))


@pytest.mark.parametrize("runner", [{"name": "local", "workers": 2}, {"name": FNAPI}], ids=["local", "fnapi"])
def test_a_job_is_scored_by_the_protocol_of_another_package(tmp_path, site, use, runner):
    """In worker processes and on Beam's own runner: bad rows are the only dead letters, and `retry` heals them."""
    use(site)
    bad = {3: -1.0, 40: -2.0, 41: 9.0}
    flowers(tmp_path, 60, bad)
    with recording(plugged.serve) as service:
        path = job(tmp_path, service.url, runner=runner, errors__allow=3)
        done = jobs.command("run", path, "-q")
        assert done.code == 0, done.err
        assert not jobs.proved(tmp_path / "out")
        sent = service.calls[0]
        service.answer = lambda call: (200, {}, b"healed,1\r\n" * len(plugged.read(call.body)))
        retried = jobs.command("retry", path, "-q", "--json") if runner["name"] == "local" else None
    assert (sent.headers["Content-Type"], sent.body.count(b"\r\n")) == ("text/csv", 1)
    answers = {row["id"]: json.loads(row["prediction"]) for row in jobs.results(tmp_path / "out").to_pylist()}
    measures = {row["id"]: [row[name] for name in jobs.SEND] for row in jobs.flowers(60).to_pylist()}
    expected = {name: {"label": "setosa", "sum": f"{sum(found):.3f}"} for name, found in measures.items()}
    if retried:
        assert retried.code == 0, retried.err
        assert json.loads(retried.out)["dead"] == 0
        healed = {f"iris-{row:05d}": {"label": "healed", "sum": "1"} for row in bad}
        assert answers == expected | healed
        assert not jobs.proved(tmp_path / "out")
    else:
        assert answers == {name: one for name, one in expected.items() if int(name[-5:]) not in bad}
        died = {one["source_row"]: (one["kind"], one["message"]) for one in jobs.letters(tmp_path / "out")}
        assert died == {
            3: ("rejected", "not a flower: -1.0"),
            40: ("rejected", "not a flower: -2.0"),
            41: ("rejected", "9 is too large"),
        }


def test_its_example_is_a_job(tmp_path, site, use):
    """That `bulkscore protocols` shows, `check` passes, the schema allows, and a server answers."""
    use(site)
    [told] = [one for one in json.loads(jobs.call("protocols", "--json").out)["protocols"] if one["protocol"] == "csv"]
    (tmp_path / "job.yaml").write_text(told["example"], encoding="utf-8")
    shutil.copytree(jobs.ROOT / "jobs" / "data", tmp_path / "data")
    assert (told["package"], told["url"]) == ("bulkscore-csv", "the full URL to call")
    assert {one["name"] for one in told["options"]} == {"answer", "delimiter"}
    assert "csv (of the package bulkscore-csv): Rows as lines of CSV, and answers too." in jobs.call("protocols").out
    assert jobs.call("check", tmp_path / "job.yaml").code == 0
    schema = json.loads(jobs.call("schema").out)
    Draft202012Validator(schema).validate(yaml.safe_load(told["example"]))
    with recording(plugged.serve) as service:
        done = jobs.call("run", tmp_path / "job.yaml", "-q", "--param", f"service={service.url}")
    assert done.code == 0, done.err
    assert not jobs.proved(tmp_path / "results" / "csv")


def test_the_schema_knows_its_options(site, use):
    """And refuses others; without the package the name is unknown."""
    text = {"version": 1, "name": "n", "input": {"path": "p"}, "output": {"path": "o"}}
    text["service"] = {"url": "http://h/", "protocol": "csv", "options": {"answer": ["a"], "delimiter": ";"}}
    plain = Draft202012Validator(json.loads(jobs.call("schema").out))
    use(site)
    schema = Draft202012Validator(json.loads(jobs.call("schema").out))
    assert schema.is_valid(text)
    assert not plain.is_valid(text)
    assert not schema.is_valid(text | {"service": text["service"] | {"options": {"answer": ["a"], "quote": "x"}}})


@pytest.mark.parametrize(
    ("sets", "line"),
    [
        (
            {"service.protocol": "cvs"},
            f"service.protocol: 'cvs' is not allowed; did you mean 'csv'? allowed: {', '.join(OPTIONS)}, csv",
        ),
        ({"service.options": "{answr: [a]}"}, f"service.options.answr: unknown key; did you mean 'answer'? {KEYS}"),
        (
            {"service.options": "{}"},
            "service.options.answer: missing; required: The names of an answer's fields, in order",
        ),
        ({"service.options.delimiter": "ab"}, f"service.options.delimiter: 'ab' is not allowed; {ONE}"),
        ({"service.schema": "config.json"}, "service.schema: protocol csv has none; leave it out"),
    ],
)
def test_what_is_wrong_with_its_options_is_said_in_a_line(tmp_path, site, use, sets, line):
    """As with a protocol of ours, with the nearest name."""
    use(site)
    flowers(tmp_path, 1)
    (tmp_path / "config.json").write_text('{"apis": [{"url": "/"}]}', encoding="utf-8")
    given = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    done = jobs.call("check", job(tmp_path), *given)
    assert done.code == 2
    assert line in [one.partition(": ")[2] for one in done.err.splitlines()]


def test_a_column_without_a_form_in_it_is_an_error_of_the_job(tmp_path, site, use):
    """Its encoder says so in a line."""
    use(site)
    rows = pa.table({"id": ["a"], **{name: [[1.0]] for name in jobs.SEND}})
    jobs.put(tmp_path / "in" / "flowers.parquet", rows)
    done = jobs.call("run", job(tmp_path), "-q")
    assert done.code == 2
    assert "ERROR input.send: column 'sepal_length' is a list or a struct" in done.err


def test_its_options_decide_the_answers(tmp_path, site, use):
    """By their marks: a change of one is told, and changes the fingerprint; a default may be written or not."""
    use(site)
    plain = jobs.loaded(job(tmp_path))
    same = jobs.loaded(job(tmp_path), service__options__delimiter='","', service__url="http://b/")
    other = jobs.loaded(job(tmp_path), service__options__delimiter='";"')
    ours = jobs.loaded(job(tmp_path, service__protocol="kserve", service__options={"model": "m"}))
    assert fingerprint(plain) == fingerprint(same) != fingerprint(other)
    assert changed_answers(resolved(plain), same) == []
    assert changed_answers(resolved(plain), other) == ['service.options.delimiter: was ",", is ";"']
    assert resolved(plain)["service"]["options"]["answer"] == ["label", "sum"]
    assert 'service.protocol: was "kserve", is "csv"' in changed_answers(resolved(ours), plain)
    assert 'service.protocol: was "csv", is "kserve"' in changed_answers(resolved(plain), ours)


def test_an_output_outlives_the_package_that_made_it(tmp_path, site, use, monkeypatch):
    """A job of ours over it is told what changed, though the old protocol's options are unknown by now."""
    use(site)
    old = resolved(jobs.loaded(job(tmp_path)))
    monkeypatch.undo()
    ours = jobs.loaded(job(tmp_path, service__protocol="kserve", service__options={"model": "m"}))
    assert 'service.protocol: was "csv", is "kserve"' in changed_answers(old, ours)


WRONG = {
    "an error when it is imported": (
        "import nowhere\n",
        "cannot be loaded (ModuleNotFoundError: No module named 'nowhere')",
    ),
    "an end of the process": ("import sys\nsys.exit(3)\n", "cannot be loaded (SystemExit: 3)"),
    "no such object": ("", "cannot be loaded (AttributeError: module 'gives_wrong' has no attribute 'PROTOCOL')"),
    "a syntax error": ("def\n", "cannot be loaded (SyntaxError: invalid syntax"),
    "another thing": ("PROTOCOL = {}\n", "gives a dict; allowed: a Plugin of pipeline.adapter"),
    "other options": (HEAD + "PROTOCOL = Plugin(dict, Adapter)\n", "gives options that are no subclass of the Options"),
    "no adapter": (HEAD + "PROTOCOL = Plugin(Options, 5)\n", "gives an adapter that cannot be called with options"),
    "an option without a mark": (
        HEAD + "class Mine(Options):\n    x: int = 1\nPROTOCOL = Plugin(Mine, Adapter)\n",
        "gives an option 'x' that is not marked with what a change of it changes",
    ),
    "an adapter that fails": (
        HEAD + "PROTOCOL = Plugin(Options, Adapter)\n",
        "makes no adapter of service.options (TypeError: Adapter() takes no arguments)",
    ),
    "an adapter of another kind": (HEAD + "PROTOCOL = Plugin(Options, list)\n", "makes a list; allowed: an Adapter"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_package_that_cannot_be_used_is_named_with_the_mend(tmp_path, use, case):
    """Exit 2 and one line, for the job that names it; to all others it is nothing."""
    text, why = WRONG[case]
    use(plugged.package(tmp_path / "site", "gives_wrong", text))
    flowers(tmp_path, 1)
    done = jobs.call("check", job(tmp_path, service__options={}))
    assert done.code == 2
    [line] = done.err.splitlines()
    assert f"service.protocol: 'csv' is given by gives_wrong, whose gives_wrong:PROTOCOL {why}" in line
    assert line.endswith("; mend or uninstall it")
    others = job(tmp_path, service__protocol="mlflow", service__options={})
    assert jobs.call("check", others).code == 0
    Draft202012Validator(json.loads(jobs.call("schema").out)).validate(json.loads(others.read_text()))
    assert len(json.loads(jobs.call("protocols", "--json").out)["protocols"]) == len(OPTIONS) + 1


def test_a_package_may_not_take_a_name_of_ours(tmp_path, use):
    """Nobody's answers come from a package that the job does not mean; who names another protocol is not disturbed."""
    use(plugged.package(tmp_path / "site", "gives_kserve", PLAIN, name="kserve"))
    flowers(tmp_path, 1)
    done = jobs.call("check", job(tmp_path, service__protocol="kserve", service__options={"model": "m"}))
    assert done.code == 2
    assert done.err.partition("service.protocol: ")[2] == (
        "'kserve' is bulkscore's own, and gives_kserve gives one too; "
        "uninstall gives_kserve, or give its protocol another name\n"
    )
    assert jobs.call("check", job(tmp_path, service__protocol="mlflow", service__options={})).code == 0
    assert (
        "kserve (of the package gives_kserve) cannot be used:\n  'kserve' is bulkscore's own"
        in jobs.call("protocols").out
    )
    assert "gives_kserve" not in sys.modules


def test_two_packages_may_not_give_one_name(tmp_path, use):
    """The line names both."""
    folders = [plugged.package(tmp_path / name, name, PLAIN) for name in ("gives_one", "gives_two")]
    use(*folders)
    flowers(tmp_path, 1)
    done = jobs.call("check", job(tmp_path, service__options={}))
    assert done.code == 2
    assert "'csv' is given by gives_one and gives_two; uninstall one of them" in done.err


def test_nothing_of_a_package_is_imported_for_other_jobs(tmp_path, use):
    """Not by `check`, nor by an error about another key."""
    use(plugged.package(tmp_path / "site", "gives_harm", "raise SystemExit('harm')\n"))
    flowers(tmp_path, 1)
    assert jobs.call("check", job(tmp_path, service__protocol="mlflow", service__options={})).code == 0
    assert jobs.call("check", job(tmp_path, service__protocol="mlfow", service__options={})).code == 2
    assert "gives_harm" not in sys.modules


def test_a_job_travels_to_workers_by_the_name_of_its_protocol(tmp_path, use, site):
    """With its options; to one that lacks the package too, where the line says so."""
    use(site)
    sent = jobs.loaded(job(tmp_path))
    travelled = pickle.dumps(sent)
    there = pickle.loads(travelled)
    assert there == sent
    assert there.service.options.model_fields_set == sent.service.options.model_fields_set
    assert b"bulkscore_csv" not in travelled
    sys.path.remove(str(site))
    importlib.invalidate_caches()
    elsewhere = pickle.loads(travelled)
    with pytest.raises(JobError, match=r"service\.protocol: 'csv' is given by no package here; install the one"):
        adapter_of(elsewhere.service)


ALIASED = (
    HEAD
    + """
from collections.abc import Callable
from typing import Annotated
from pydantic import Field
from pipeline.adapter import marked


class Mine(Options):
    sep_: Annotated[str, marked("answers", "What stands between."), Field(alias="sep")] = ","
    made: Annotated[Callable | None, marked("place", "No JSON Schema can say what it is.")] = None


PROTOCOL = Plugin(Mine, lambda _: Adapter())
"""
)


def test_options_that_are_written_by_another_name(tmp_path, use):
    """They travel, they count, and what no schema can describe disturbs nobody's."""
    use(plugged.package(tmp_path / "site", "gives_aliased", ALIASED))
    plain, other = (jobs.loaded(job(tmp_path, service__options={"sep": sep})) for sep in ",;")
    assert pickle.loads(pickle.dumps(other)) == other
    assert fingerprint(plain) != fingerprint(other)
    assert changed_answers(resolved(plain), other) == ['service.options.sep: was ",", is ";"']
    assert jobs.call("schema").code == 0


BROKEN = {
    "wire raises": (
        "def wire(self, body): return undefined",
        "failed in wire (NameError: name 'undefined' is not defined, gives_broken.py line 4)",
    ),
    "wire ends the process": ("def wire(self, body): raise SystemExit(3)", "failed in wire (SystemExit: 3, "),
    "wire gives text": ("def wire(self, body): return 'x'", "gives 'x' in wire; allowed: bytes"),
    "headers that fail": ("def headers(self, body): return body.nothing", "failed in headers (AttributeError: "),
    "a header that is a number": (
        "def headers(self, body): return {'X-Length': 3}",
        "gives {'X-Length': 3} in headers; allowed: a mapping of headers' names to ASCII text on one line",
    ),
    "a header of two lines": (
        "def headers(self, body): return {'X-Length': '3\\n'}",
        "gives {'X-Length': '3\\n'} in",
    ),
    "frame gives one value": ("def frame(self, uuid): return b'['", "gives b'[' in frame; allowed: two bytes objects"),
    "frame fails": ("def frame(self, uuid): return self.nothing", "failed in frame (AttributeError: "),
    "an envelope of text": ("envelope = ('[', ']')", "gives ('[', ']') in envelope"),
    "no rows": ("most_rows = 0", "gives 0 in most_rows; allowed: a whole number from 1 to 10000"),
    "another method": ("method = 'GET'", "gives 'GET' in method; allowed: POST, PUT"),
    "an address that fails": ("def address(self, url): return url.nothing", "failed in address (AttributeError: "),
    "no encoder": ("def encoder(self, *given): return None", "gives None in encoder"),
    "an encoder that fails": (
        "def encoder(self, *given): return self\n    def encode(self, batch, uuids=None): raise ValueError('bad')",
        "failed in encode (ValueError: bad, gives_broken.py line 5)",
    ),
    "an encoder of something else": (
        "def encoder(self, *given): return self\n    def encode(self, batch, uuids=None): return b'1'",
        "gives b'1' in encode",
    ),
    "names that are none": ("def named(self, given): return 3", "gives 3 in named"),
    "columns that are text": ("def columns(self, given, names): return 'id'", "gives 'id' in columns"),
    "a fault that is none": ("def fault(self, *reply): return None", "gives None in read"),
    "a fault that fails": ("def fault(self, *reply): raise KeyError('x')", "failed in read (KeyError: 'x', "),
    "reading that fails": (
        "def read(self, *reply, **of): return {}['x']",
        "failed in read (KeyError: 'x', gives_broken.py line 4)",
    ),
    "answers that are no array": ("def read(self, *reply, **of): return ['1']", "gives ['1'] in read"),
}


def broken(folder, text):
    """Write a package with an adapter that is broken in one way; returns its folder."""
    told = f"{HEAD}class Mine(Adapter):\n    '''An adapter.'''\n    {text}\n"
    return plugged.package(folder, "gives_broken", told + "PROTOCOL = Plugin(Options, lambda _: Mine())\n")


def answering(call):
    """Answer each row of a JSON list with its first measure."""
    return 200, {}, json.dumps([row["sepal_length"] for row in json.loads(call.body)]).encode()


def refusing(_):
    """Answer nothing."""
    return 500, {}, b"not now"


IN_PROCESSES = ("wire raises", "frame fails", "an address that fails", "an encoder that fails", "reading that fails")


@pytest.mark.parametrize(("case", "workers"), [*((case, 1) for case in BROKEN), *((case, 2) for case in IN_PROCESSES)])
def test_an_error_in_a_packages_adapter_is_told_in_a_line(tmp_path, use, case, workers):
    """It names the package and the method, and ends the run with exit 2: in threads, and in processes."""
    text, why = BROKEN[case]
    use(broken(tmp_path / "site", text))
    flowers(tmp_path, 20)
    runner = {"name": "local", "workers": workers}
    with recording(refusing if "fault" in text else answering) as service:
        path = job(tmp_path, service.url, service__options={}, runner=runner)
        done = (jobs.call if workers == 1 else jobs.command)("run", path, "-q")
    assert done.code == 2, done.err
    [line] = done.err.splitlines()
    assert line.startswith("ERROR ")
    assert f"service.protocol: 'csv' is given by gives_broken, whose adapter {why}" in line
    assert line.endswith("; mend or uninstall it")


def test_a_package_may_send_headers_with_each_body_and_show_rows_as_it_likes(tmp_path, use):
    """In dead letters of rows that were sent; what is no bytes ends the run in its line."""
    refusing = "def answers(self, body): return [Fault(Action.REJECT, 200, None, 'no') if one == 9 else one "
    refusing += "for one in msgspec.json.decode(body)]\n    "
    headers = "def headers(self, body): return {'x-length': str(len(body))}\n    "
    for name, shown in {"sound": "b'{\"seen\": true}'", "broken": "'x'"}.items():
        folder = tmp_path / name
        site = broken(folder / "site", f"{refusing}{headers}def shown(self, row): return {shown}")
        source = site / "gives_broken.py"
        source.write_text("import msgspec\nfrom pipeline.adapter import Action, Fault\n" + source.read_text())
        flowers(folder, 20, {3: 9.0})
        use(site)
        with recording(answering) as service:
            path = job(folder, service.url, service__options={}, service__headers={"X-Length": "1"}, errors__allow=1)
            done = jobs.command("run", path, "-q")
        assert all(call.headers["x-length"] == str(len(call.body)) for call in service.calls)
        if name == "sound":
            assert done.code == 0, done.err
            assert [letter["row"] for letter in jobs.letters(folder / "out")] == [{"seen": True}]
        else:
            assert done.code == 2
            assert "gives 'x' in shown; allowed: bytes" in done.err


def test_the_mended_package_goes_on_where_the_broken_one_ended(tmp_path, use):
    """Nothing that was answered before is lost or asked again, and no row is missing."""
    text = "def wire(self, body):\n        if b'iris-00015' in body: raise ValueError('fifteen')\n        return body"
    site = broken(tmp_path / "site", text)
    use(site)
    flowers(tmp_path, 20)
    keys = {"service__options": {}, "input__send": ["id", "sepal_length"], "service__limits__rows": 1}
    with recording(answering) as service:
        path = job(tmp_path, service.url, service__limits__in_flight=1, **keys)
        done = jobs.command("run", path, "-q")
        assert done.code == 2, done.err
        assert "failed in wire (ValueError: fifteen, gives_broken.py line 5)" in done.err
        (site / "gives_broken.py").write_text(PLAIN, encoding="utf-8")
        before = jobs.receipts(tmp_path / "out")
        assert jobs.command("run", path, "-q").code == 0
    assert not jobs.proved(tmp_path / "out")
    assert jobs.results(tmp_path / "out").num_rows == 20
    assert before
    assert before.items() <= jobs.receipts(tmp_path / "out").items()


def test_the_words_of_an_adapter_that_fails_quote_no_secret(tmp_path, use):
    """Services quote what they refuse, and an adapter what it cannot read."""
    use(broken(tmp_path / "site", "def read(self, status, headers, body, **of): raise ValueError(body.decode())"))
    flowers(tmp_path, 3)
    with recording(lambda call: (200, {}, f"who is {call.headers['X-Key']}?".encode())) as service:
        path = job(tmp_path, service.url, service__options={}, service__headers={"X-Key": "${env:OWN_KEY}"})
        done = jobs.call("run", path, "-q", env={"OWN_KEY": "hunter2-and-more"})
    assert service.calls[0].headers["X-Key"] == "hunter2-and-more"
    assert done.code == 2
    assert "failed in read (ValueError: who is " in done.err
    assert "hunter2" not in done.err


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("class Own(Options):\n    'Mine.'\nPROTOCOL = Plugin(Own, Said)", "Mine."),
        ("class Own(Options): pass\nPROTOCOL = Plugin(Own, Said)", "Said in a line."),
        ("PROTOCOL = Plugin(Options, Said)", "Said in a line."),
        ("PROTOCOL = Plugin(Options, lambda _: Said())", "Said in a line."),
        ("PROTOCOL = Plugin(Options, lambda _: Adapter())", ""),
        ("class Own(Options): pass\nPROTOCOL = Plugin(Own, lambda _: Said())", ""),
    ],
)
def test_a_protocol_is_told_by_its_options_or_by_its_adapter(tmp_path, use, text, about):
    """By the first line of what they say of themselves."""
    said = "class Said(Adapter):\n    '''Said in a line.\n\n    And more.\n    '''\n"
    use(plugged.package(tmp_path / "site", "gives_words", f"{HEAD}{said}{text}\n"))
    [one] = [one for one in json.loads(jobs.call("protocols", "--json").out)["protocols"] if "package" in one]
    assert (one["about"], one["package"]) == (about, "gives_words")
