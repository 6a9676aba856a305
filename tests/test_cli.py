"""The command line as a user meets it: the shipped job, every command, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from subprocess import run as subprocess_run
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

import jobs
from pipeline import __version__, cli
from pipeline.errors import JobError
from pipeline.progress import Progress
from pipeline.sandbox.credentials import ENVIRONMENT
from pipeline.sandbox.server import Options, running
from pipeline.show import showing
from schemas.job import OUR_COLUMNS

IRIS = jobs.ROOT / "jobs" / "iris.yaml"
TYPES = {
    "prediction": pa.string(),
    "source": pa.string(),
    "source_row": pa.int64(),
    "row_uuid": pa.string(),
    "request_uuid": pa.string(),
    "request_row": pa.int32(),
    "attempts": pa.int32(),
    "latency_ms": pa.float64(),
    "scored_at": pa.timestamp("us", tz="UTC"),
}
COMMANDS = {"check", "plan", "run", "verify", "serve", "schema"}


@pytest.fixture(scope="module")
def iris(tmp_path_factory):
    """Run the shipped job once, as a user would, and keep the service: (job arguments, output, service, what ran)."""
    folder = tmp_path_factory.mktemp("iris job")
    with pytest.MonkeyPatch.context() as patch, running(Options(port=0)) as url:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        arguments = (IRIS, "--param", f"service={url}", "--set", f"output.path={folder / 'out'}")
        before = jobs.call("plan", *arguments, "--json")
        ran = jobs.command("run", *arguments, "--json")
        yield SimpleNamespace(arguments=arguments, out=folder / "out", url=url, ran=ran, before=before)


def test_the_shipped_job_scores_every_flower(iris):
    """The command ends well, says so in one JSON object on stdout, and complains of nothing on stderr."""
    assert (iris.ran.code, iris.ran.err) == (0, "")
    summary = json.loads(iris.ran.out)
    counts = {name: summary[name] for name in ("job", "planned", "scored", "dead", "left", "exit_code", "message")}
    assert counts == {"job": "iris", "planned": 150, "scored": 150, "dead": 0, "left": 0, "exit_code": 0, "message": ""}
    assert summary["output"] == iris.out.as_uri()
    assert jobs.stats(iris.url)["rows_received"] == 150


def test_the_shipped_job_finds_the_species(iris):
    """At least 146 of the 150 flowers are what the data says they are: answers are at their own rows."""
    rows = jobs.results(iris.out).to_pylist()
    right = sum(json.loads(row["prediction"])["predictresult"] in row["species"] for row in rows)
    assert len(rows) == 150
    assert 146 <= right < 150


def test_results_have_the_kept_columns_and_ours_with_their_types(iris):
    """The kept columns come first, as they are in the input; then ours; no part differs."""
    given = pq.read_schema(jobs.ROOT / "jobs" / "data" / "iris.parquet")
    schemas = [pq.read_schema(path) for path in (iris.out / "results").iterdir()]
    assert schemas
    for schema in schemas:
        assert schema.names == ["id", "species", *TYPES]
        assert tuple(TYPES) == OUR_COLUMNS
        assert [schema.field(name).type for name in TYPES] == list(TYPES.values())
        assert [schema.field(name).type for name in ("id", "species")] == [
            given.field(name).type for name in ("id", "species")
        ]


def test_every_result_tells_where_it_comes_from(iris):
    """The source is an absolute URI, rows count from 0, ids are unique, and what was measured is there."""
    given = pq.read_table(jobs.ROOT / "jobs" / "data" / "iris.parquet")
    table = jobs.results(iris.out)
    assert set(table["source"].to_pylist()) == {(jobs.ROOT / "jobs" / "data" / "iris.parquet").as_uri()}
    assert table["source_row"].to_pylist() == list(range(150))
    assert table["id"].to_pylist() == given["id"].to_pylist()
    assert len(set(table["row_uuid"].to_pylist())) == 150
    assert all(table[name].null_count == 0 for name in TYPES)
    assert min(table["attempts"].to_pylist()) == 1
    assert min(table["latency_ms"].to_pylist()) > 0


def test_rows_of_one_request_share_its_uuid_and_count_their_places(iris):
    """`request_row` is the place in `req_data`: within a request it counts from 0 in input order."""
    places = {}
    for row in jobs.results(iris.out).to_pylist():
        places.setdefault(row["request_uuid"], []).append(row["request_row"])
    assert places
    assert all(rows == list(range(len(rows))) for rows in places.values())


def test_a_second_run_does_nothing(iris):
    """All is done: nothing is asked, neither of the service nor of IAM, and the exit code is the output's."""
    seen, there = jobs.stats(iris.url), jobs.files(iris.out / "results")
    again = jobs.call("run", *iris.arguments)
    assert (again.code, again.err) == (0, "")
    assert again.out.startswith("150 rows: 150 scored, 0 dead letters, 0 left (this run: 0 scored, 0 requests,")
    assert again.out.endswith(f"results: {iris.out.as_uri()}/results\n")
    assert jobs.stats(iris.url) == seen
    assert jobs.files(iris.out / "results") == there


def test_verify_agrees_from_the_job_file_and_from_the_output(iris):
    """The job file, the output's path and its URI all name the same output."""
    said = f"{iris.out.as_uri()}: 150 rows = 150 results + 0 dead letters: verified\n"
    assert jobs.call("verify", *iris.arguments) == (0, said, "")
    assert jobs.call("verify", iris.out) == (0, said, "")
    assert jobs.call("verify", iris.out.as_uri()) == (0, said, "")
    assert json.loads(jobs.call("verify", iris.out, "--json").out)["breaches"] == []


def test_plan_tells_what_a_run_would_do(iris):
    """Before the run all rows are left, in about as many bytes as were sent; afterwards none is."""
    before, after = json.loads(iris.before.out), json.loads(jobs.call("plan", *iris.arguments, "--json").out)
    counts = ("files", "new_files", "rows", "done", "left", "splits", "requests")
    assert [before[name] for name in counts] == [1, 1, 150, 0, 150, 1, 1]
    assert [after[name] for name in counts] == [1, 0, 150, 150, 0, 0, 0]
    assert before["bytes"] == pytest.approx(jobs.stats(iris.url)["bytes_received"], rel=0.05)
    assert jobs.call("plan", *iris.arguments).out.startswith("1 files (0 new), 150 rows: 150 done, 0 left\n")


def test_plan_writes_and_asks_nothing(sandbox, tmp_path):
    """It may be tried on any job: no output folder appears, and the service does not hear of it."""
    url = sandbox()
    jobs.put(tmp_path / "in" / "a.parquet", jobs.flowers(30))
    done = jobs.call("plan", jobs.job_file(tmp_path, url))
    assert done.code == 0
    assert "about 3 requests" in done.out
    assert jobs.files(tmp_path) == ["in/a.parquet", "job.yaml"]
    seen = jobs.stats(url)
    assert (seen["requests"], seen["tokens_issued"]) == (0, 0)


def test_check_works_offline(tmp_path):
    """A valid job is valid although nobody answers at its URL."""
    jobs.put(tmp_path / "in" / "a.parquet", jobs.flowers(1))
    path = jobs.job_file(tmp_path, "http://127.0.0.1:9")
    assert jobs.call("check", path) == (0, f"{path}: job iris is valid\n", "")
    assert json.loads(jobs.call("check", path, "--json").out) == {"job": "iris", "ok": True}


@pytest.mark.parametrize("job", sorted(IRIS.parent.glob("*.yaml")), ids=lambda path: path.name)
def test_check_needs_neither_beam_nor_arrow(job):
    """It is quick because what is slow to import is not imported, whatever the protocol."""
    script = (
        "import sys; from pipeline.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "print([name for name in ('apache_beam', 'pyarrow', 'numpy', 'requests') if name in sys.modules])"
    )
    done = subprocess_run(
        [sys.executable, "-c", script, "check", str(job), "--param", "service=https://host.example"],
        capture_output=True, text=True, check=False, timeout=60, env={**ENVIRONMENT, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"{job}: job {job.stem} is valid", "[]"], done.stderr


def test_schema_prints_the_schema_in_the_repository():
    """Editors read the same schema that the command prints."""
    done = jobs.call("schema")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == json.loads((jobs.ROOT / "schemas" / "job.schema.json").read_text("utf-8"))


def test_version_is_printed():
    """The name and the version, in one line."""
    assert jobs.call("--version") == (0, f"bulkscore {__version__}\n", "")


def test_help_names_every_command():
    """`--help` shows what there is, and each command explains itself."""
    done = jobs.call("--help")
    assert done.code == 0
    assert {name for name in COMMANDS if f"\n  {name} " in done.out} == COMMANDS
    for name in COMMANDS:
        shown = jobs.call(name, "--help")
        assert shown.code == 0
        assert f"bulkscore {name}" in shown.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["skore"], "No such command 'skore'"),
        (["check", "--fast", "job.yaml"], "No such option: --fast"),
        (["check"], "Missing argument 'JOB'"),
        (["run", IRIS, "extra"], "ERROR 'extra' is one argument too many; options for the Beam runner stand after --"),
        (["check", IRIS, "--param", "service"], "ERROR --param 'service' is not NAME=VALUE"),
        (["check", IRIS, "--set", "=1"], "ERROR --set '=1' is not NAME=VALUE"),
        (["serve", "--timeout", "soon"], "ERROR --timeout: 'soon' is not a duration"),
    ],
)
def test_a_wrong_command_line_is_exit_2(arguments, told):
    """What is wrong is said on stderr, without a traceback; stdout stays empty."""
    done = jobs.call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert "Traceback" not in done.err


def test_no_arguments_show_the_help():
    """A bare `bulkscore` tells what it can do, and that it was called wrongly."""
    done = jobs.call()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: bulkscore")


def test_serve_prints_one_line_with_its_url():
    """A script can read the URL and call it; SIGTERM ends the service normally."""
    with jobs.process("serve", "--port", "0") as served:
        first = served.stdout.readline()
        url = first.split()[-1]
        assert url.startswith("http://127.0.0.1:")
        assert requests.get(f"{url}/healthz", timeout=10).json() == {"status": "ok"}
        served.terminate()
        rest, _ = served.communicate(timeout=30)
    assert (served.returncode, rest) == (0, "")


def test_a_defect_is_exit_1_with_its_traceback(monkeypatch, tmp_path):
    """What nobody foresaw is shown whole, and named as ours."""

    def broken(*_):
        raise ZeroDivisionError("a planted defect")

    monkeypatch.setattr("pipeline.estimate.estimate", broken)
    jobs.put(tmp_path / "in" / "a.parquet", jobs.flowers(1))
    done = jobs.call("plan", jobs.job_file(tmp_path, "http://127.0.0.1:9"))
    assert (done.code, done.out) == (1, "")
    assert "ZeroDivisionError: a planted defect" in done.err
    assert done.err.endswith("ERROR this is a defect of bulkscore; please report it with the lines above\n")


def test_a_run_without_tls_verification_says_so(sandbox, tmp_path):
    """Whoever switched verification off is told at every run, on stderr."""
    jobs.put(tmp_path / "in" / "a.parquet", jobs.flowers(1))
    path = jobs.job_file(tmp_path, sandbox(), service__tls={"verify": False})
    done = jobs.call("run", path)
    assert done.code == 0
    assert done.err == "* service.tls.verify is false: whoever answers for the service is believed\n"


def test_words_after_two_dashes_go_to_the_runner():
    """Options pass; a word that is none was meant otherwise."""
    assert cli.beam_arguments(["--parallelism=2", "x"]) == ["--parallelism=2", "x"]
    assert cli.beam_arguments([]) == []
    with pytest.raises(JobError, match="one argument too many"):
        cli.beam_arguments(["x"])


def test_the_first_signal_stops_and_is_remembered(capsys):
    """The run is asked to stop, once; afterwards the signals mean what they meant before."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stopped = []
    with cli.interruptible(stopped.append):
        signal.raise_signal(signal.SIGTERM)
    assert stopped == [143]
    assert capsys.readouterr().err == "* stopping: requests in flight end and are committed; once more to stop now\n"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_second_signal_ends_the_process(monkeypatch):
    """Whoever asks twice does not wait; two at once, as `timeout` sends them, are one."""
    ended = []
    monkeypatch.setattr("os._exit", ended.append)
    with cli.interruptible(lambda _: None, clock=iter((10.0, 10.1, 11.0)).__next__):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert ended == []
        signal.raise_signal(signal.SIGTERM)
    assert ended == [143]


def test_progress_lines_go_to_stderr(monkeypatch, capfd):
    """Without a terminal a line comes now and then; a quiet run has none."""
    monkeypatch.setattr("pipeline.show.LINE_SECONDS", 0.01)
    with _seen_by(capfd) as seen, showing(Progress(), 10, quiet=False):
        jobs.until(lambda: "* 0/10 rows" in seen())
    with showing(Progress(), 10, quiet=True):
        pass
    left = capfd.readouterr()
    assert left.out == ""


@contextmanager
def _seen_by(capfd):
    texts = []

    def seen():
        texts.append(capfd.readouterr().err)
        return "".join(texts)

    yield seen


def test_the_job_files_of_the_repository_are_valid():
    """Every shipped job passes its own check."""
    shipped = sorted(Path(jobs.ROOT / "jobs").glob("*.yaml"))
    assert IRIS in shipped
    assert [jobs.call("check", path, env=ENVIRONMENT).code for path in shipped] == [0] * len(shipped)
