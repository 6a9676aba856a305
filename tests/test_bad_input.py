"""Bad input: one clear line that names the place and the mend, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import os
import re
import socket
from contextlib import contextmanager

import pyarrow as pa
import pytest

import jobs
from pipeline import tokens
from pipeline.errors import StorageFailed


@pytest.fixture
def service(sandbox):
    """Start the service of a job that does not come that far."""
    return sandbox()


@pytest.fixture
def ready(tmp_path):
    """Have an input of ten flowers."""
    jobs.put(tmp_path / "in" / "a.parquet", jobs.flowers(10))
    return tmp_path


def refused(path, *, code=2, env=jobs.PASSWORD, command="run"):
    """Run a command that must fail before it does anything; return its one line."""
    done = jobs.call(command, path, env=env)
    assert done.code == code, done
    assert "Traceback" not in done.err
    lines = done.err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("ERROR ")
    out = path.parent / "out"
    assert [name for name in jobs.files(out) if name.startswith(("results", "errors", "receipts", "_SUCCESS"))] == []
    return lines[0].removeprefix("ERROR ")


def unasked(url):
    """Whether the service never heard of the job."""
    seen = jobs.stats(url)
    return (seen["requests"], seen["tokens_issued"]) == (0, 0)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def during(action):
    """Return a watch that does something between planning and reading."""

    @contextmanager
    def watch(*_):
        action()
        yield

    return watch


@pytest.mark.parametrize("command", ["check", "plan", "run"])
def test_a_missing_file(ready, service, command):
    """The file is named, on every command that would need it."""
    path = jobs.job_file(ready, service, input__path="in/b.parquet")
    told = refused(path, command=command)
    assert told == f"input.path: {ready}/in/b.parquet does not exist; mend the path, or put the file there"
    assert unasked(service)


@pytest.mark.parametrize("command", ["check", "plan", "run"])
@pytest.mark.parametrize("pattern", ["in/*.csv", "nowhere/**/*.parquet", "in/?.pq"])
def test_an_empty_glob(ready, service, command, pattern):
    """A pattern that matches nothing is a mistake, not an empty job."""
    told = refused(jobs.job_file(ready, service, input__path=pattern), command=command)
    assert told == f"input.path: {ready}/{pattern} matches no file; mend the path, or put the file there"


@pytest.mark.parametrize("command", ["check", "plan", "run"])
def test_a_folder_is_no_file(ready, service, command):
    """Whoever names the folder is told that files are meant."""
    told = refused(jobs.job_file(ready, service, input__path="in"), command=command)
    assert told == f"input.path: {ready}/in is a folder; name the files in it, such as {ready}/in/*.parquet"


def test_one_of_several_paths_is_missing(ready, service):
    """The others do not hide it."""
    path = jobs.job_file(ready, service, input__path=["in/*.parquet", "in/b.parquet"])
    assert refused(path).startswith(f"input.path: {ready}/in/b.parquet does not exist;")


def test_a_truncated_parquet_file(ready, service):
    """A file that was not copied to its end is named before anything is asked."""
    cut = jobs.put(ready / "in" / "b.parquet", jobs.flowers(100))
    cut.write_bytes(cut.read_bytes()[:-20])
    told = refused(jobs.job_file(ready, service))
    assert told.startswith(f"input.path: {cut.as_uri()} is not a readable Parquet file: ")
    assert told.endswith("; replace it or leave it out")
    assert unasked(service)


def test_a_file_that_is_not_parquet_at_all(ready, service):
    """The suffix promises, the content decides."""
    text = ready / "in" / "b.parquet"
    text.write_text("id,sepal_length\n1,2\n" * 20)
    assert refused(jobs.job_file(ready, service)).startswith(f"input.path: {text.as_uri()} is not a readable Parquet")


@pytest.mark.parametrize(
    ("key", "value"), [("send", [*jobs.SEND, "stem"]), ("keep", ["stem"]), ("columns", {"stem": "double"})]
)
def test_a_column_that_does_not_exist(ready, service, key, value):
    """The key, the file, the column and what there is instead."""
    told = refused(jobs.job_file(ready, service, **{f"input__{key}": value}))
    uri = (ready / "in" / "a.parquet").as_uri()
    assert told == f"input.{key}: {uri} has no column 'stem'; it has: id, {', '.join(jobs.SEND)}"
    assert unasked(service)


def test_a_column_that_one_file_does_not_have(ready, service):
    """It is that file that is named."""
    other = jobs.put(ready / "in" / "b.parquet", jobs.flowers(3).drop_columns("petal_width"))
    told = refused(jobs.job_file(ready, service))
    assert told.startswith(f"input.send: {other.as_uri()} has no column 'petal_width'; it has: id,")


def test_a_type_that_does_not_exist(ready, service):
    """The key and the types there are."""
    told = refused(jobs.job_file(ready, service, input__columns={"id": "words"}))
    assert "input.columns.id: 'words' is not a type; allowed: string" in told


def _with_texts(table):
    """Return the table with a column of texts where numbers were."""
    return table.set_column(1, "sepal_length", table["sepal_length"].cast(pa.string()))


def test_columns_of_different_type_in_two_files(ready, service):
    """Both types, both places, and the key that makes them one."""
    other = jobs.put(ready / "in" / "b.parquet", _with_texts(jobs.flowers(3)))
    assert refused(jobs.job_file(ready, service)) == (
        f"input.path: column 'sepal_length' is string in {other.as_uri()} and double in files before it; "
        "declare it: input.columns: {sepal_length: ...}"
    )


def test_a_declared_column_may_have_another_type_in_each_file(ready, service):
    """The mend that the line above names works: all are read as declared."""
    jobs.put(ready / "in" / "b.parquet", _with_texts(jobs.flowers(3)))
    path = jobs.job_file(ready, service, input__columns={"sepal_length": "double"})
    assert jobs.score(path).scored == 13


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.drop_columns("petal_width"), "does not have a column 'petal_width'"),
        (lambda table: table.append_column("stem", table["petal_width"]), "has a column 'stem'"),
    ],
)
def test_files_with_different_columns_when_all_are_sent(ready, service, change, told):
    """Which columns are sent may not depend on the file that a worker meets first."""
    jobs.put(ready / "in" / "a.parquet", jobs.flowers(10).drop_columns("id"))
    other = jobs.put(ready / "in" / "b.parquet", change(jobs.flowers(3).drop_columns("id")))
    path = jobs.job_file(ready, service, input={"path": "in/*.parquet"})
    assert refused(path) == (
        f"input.path: {other.as_uri()} {told}, unlike files before it; name the columns to send: input.send: [...]"
    )


def test_columns_that_are_not_sent_may_differ(ready, service):
    """Where the job file names what is sent, the rest of a file is nobody's business."""
    table = jobs.flowers(3)
    jobs.put(
        ready / "in" / "b.parquet",
        table.append_column("stem", table["petal_width"]).select(["stem", *table.column_names]),
    )
    assert jobs.score(jobs.job_file(ready, service)).scored == 13


def test_duplicate_column_names(ready, service):
    """A name that two columns have names neither of them."""
    table = jobs.flowers(3)
    double = pa.table([*table.columns, table["id"]], names=[*table.column_names, "sepal_width"])
    path = jobs.put(ready / "in" / "a.parquet", double)
    told = refused(jobs.job_file(ready, service))
    assert told == f"input.path: {path.as_uri()} has more than one column 'sepal_width'; give each a name of its own"


def test_a_duplicate_column_that_is_not_used_is_let_be(ready, service):
    """What is neither sent nor kept does not matter."""
    table = jobs.flowers(3)
    double = pa.table([*table.columns, table["id"], table["id"]], names=[*table.column_names, "x", "x"])
    jobs.put(ready / "in" / "a.parquet", double)
    assert jobs.score(jobs.job_file(ready, service)).scored == 3


@pytest.mark.parametrize("name", ["prediction", "source", "row_uuid", "scored_at"])
def test_a_kept_column_named_like_ours(ready, service, name):
    """It would be two columns of one name: the job file is wrong, offline already."""
    path = jobs.job_file(ready, service, input__keep=["id", name])
    for command in ("check", "run"):
        told = refused(path, command=command)
        assert f"'{name}' is a column of the results; a kept column may not be named like one of ours" in told
        assert "input.keep: " in told


@pytest.mark.parametrize(("env", "state"), [(None, "is not set"), ("", "is empty")])
@pytest.mark.parametrize("command", ["check", "run"])
def test_an_unset_secret(ready, service, env, state, command):
    """The key, the variable and what to type; an empty one is as good as none."""
    told = refused(jobs.job_file(ready, service), env={"DEMO_PASSWORD": env}, command=command)
    assert told == (
        f"service.auth.password: ${{env:DEMO_PASSWORD}} {state} in the environment; export DEMO_PASSWORD=..."
    )


@pytest.mark.parametrize("url", ["iris", "127.0.0.1:8500/v1", "ftp://host/x", "http://", "http:///v1", "http://h:p/"])
def test_a_url_that_is_not_one(ready, url):
    """The key, and what stands there."""
    told = refused(jobs.job_file(ready, "http://127.0.0.1:9", service__url=url))
    assert "service.url: " in told
    assert f"'{url}'" in told


def test_neither_project_nor_project_id(ready, service):
    """A token without a project opens nothing, so it is not asked for."""
    login = {key: value for key, value in jobs.token(service).items() if key != "project"}
    told = refused(jobs.job_file(ready, service, service__auth=login))
    assert "service.auth: project or project_id is required" in told
    assert unasked(service)


@pytest.mark.parametrize("output", [".", "in"])
def test_an_output_whose_objects_would_match_the_input(ready, service, output):
    """The next run would score its own results: refused, whichever of them contains the other."""
    path = jobs.job_file(ready, service, input__path="**/*.parquet", output__path=output)
    told = refused(path)
    assert told.startswith(f"output.path: {(ready / output).resolve()} is inside the input: its results/")
    assert f"would match {ready}/**/*.parquet; move one of them" in told
    assert jobs.files(ready) == ["in/a.parquet", "job.yaml"]


def test_an_output_beside_its_input_is_fine(ready, service):
    """They may share a folder as long as no object matches the pattern."""
    assert jobs.score(jobs.job_file(ready, service, output__path="in/out")).exit_code == 0


def test_an_unwritable_output(ready, service):
    """A path below a regular file: no folder can be made there, and nobody is asked."""
    (ready / "file").write_text("not a folder")
    told = refused(jobs.job_file(ready, service, output__path="file/out"), code=6)
    assert (ready / "file" / "out").as_uri() in told
    assert told.endswith("when that is mended, the same command resumes")
    assert unasked(service)
    assert (ready / "file").read_text() == "not a folder"


def test_an_output_that_is_a_file(ready, service):
    """An output is a folder; a file in its place stays as it is."""
    (ready / "out").write_text("mine")
    told = refused(jobs.job_file(ready, service), code=6)
    assert (ready / "out").as_uri() in told
    assert (ready / "out").read_text() == "mine"


@pytest.mark.parametrize("folder", ["results", "receipts"])
def test_an_output_that_fails_in_the_middle(ready, service, folder):
    """It is exit 6 and nothing that counts; when it is mended the same command resumes."""
    path = jobs.job_file(ready, service)
    with pytest.raises(StorageFailed, match=rf"^cannot \w+ {(ready / 'out').as_uri()}/{folder}: [^\n]+$"):
        jobs.score(path, watch=during(lambda: (ready / "out" / folder).write_text("in the way")))
    (ready / "out" / folder).unlink()
    assert jobs.score(path).exit_code == 0
    assert jobs.proved(ready / "out") == ()


def test_a_wrong_password(ready, service):
    """IAM's own words, exit 4; the password is not in them, and no request is made without a token."""
    done = jobs.call("run", jobs.job_file(ready, service), env={"DEMO_PASSWORD": "guessed"})
    assert done.code == 4
    [line] = done.err.splitlines()
    assert line == (
        f"ERROR IAM at {service}/v3 refuses the credentials: 401 Unauthorized.; "
        "check service.auth.user, domain, password and project"
    )
    assert "guessed" not in done.out + done.err
    assert unasked(service)
    assert jobs.results(ready / "out") is None
    assert not (ready / "out" / "_SUCCESS").exists()


def test_a_wrong_password_is_tried_once_or_twice(ready, service, monkeypatch):
    """However many splits and threads wait for a token: a wrong password tried often locks the account."""
    asked, ask = [], tokens.ask
    monkeypatch.setattr(tokens, "ask", lambda *args, **keys: asked.append(1) or ask(*args, **keys))
    monkeypatch.setattr("pipeline.plan.MIN_SPLIT_ROWS", 2)
    path = jobs.job_file(ready, service, service__limits={"rows": 1})
    assert jobs.call("run", path, env={"DEMO_PASSWORD": "guessed"}).code == 4
    assert 1 <= len(asked) <= 2


def test_a_wrong_url(ready, service):
    """A 404 concerns every request: the job ends with it, nothing is buried, and with the right URL it goes on."""
    path = jobs.job_file(ready, service, service__url=f"{service}/v1/infers/roses")
    done = jobs.call("run", path)
    assert done.code == 4
    assert done.err == (
        "ERROR the service refuses the job: 404 APIG.0101 The API does not exist or has not been published in the "
        f"environment ({service}/v1/infers/roses); mend service.url or service.auth and run it again\n"
    )
    assert jobs.letters(ready / "out") == []
    assert not (ready / "out" / "_SUCCESS").exists()
    assert jobs.call("run", jobs.job_file(ready, service)).code == 0
    assert jobs.proved(ready / "out") == ()


def test_a_stopped_service(ready, service):
    """Nobody listens: held on for `retry.outage`, then exit 6; no row dies of it, and the same command resumes."""
    stopped = f"http://127.0.0.1:{free_port()}/v1/infers/iris"
    keys = {"retry": {"outage": "1s", "attempts": 1}, "service__limits": {"rows": 5}}
    done = jobs.call("run", jobs.job_file(ready, service, service__url=stopped, **keys))
    assert done.code == 6
    told = rf"ERROR {stopped} has been out for \d+ s, longer than retry\.outage \(1 s\): [^\n]+\n"
    assert re.fullmatch(told, done.err)
    assert "run the same command again" in done.err
    assert done.out.startswith("10 rows: 0 scored, 0 dead letters, 10 left")
    assert jobs.letters(ready / "out") == []
    assert jobs.call("run", jobs.job_file(ready, service, **keys)).code == 0


def test_a_stopped_iam(ready, service):
    """IAM that does not answer is an outage too, not a refusal."""
    login = jobs.token(f"http://127.0.0.1:{free_port()}")
    path = jobs.job_file(ready, service, service__auth=login, retry={"outage": "1s", "attempts": 1})
    done = jobs.call("run", path)
    assert done.code == 6
    assert "IAM at " in done.err
    assert len(done.err.splitlines()) == 1
    assert jobs.letters(ready / "out") == []


@pytest.mark.parametrize(
    "change",
    [
        lambda path: jobs.put(path, jobs.flowers(20)),
        lambda path: jobs.put(path, jobs.flowers(9).rename_columns(list("abcde"))),
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        os.remove,
    ],
    ids=["replaced", "other columns", "cut", "removed"],
)
def test_a_file_that_changes_between_planning_and_reading(ready, service, change):
    """It is exit 6 with its name: what was planned is not what would be read."""
    path = ready / "in" / "a.parquet"
    summary = jobs.score(jobs.job_file(ready, service), watch=during(lambda: change(path)))
    assert summary.exit_code == 6
    assert path.as_uri() in summary.message
    assert "\n" not in summary.message
    assert (summary.scored, summary.dead, summary.left) == (0, 0, 10)


def test_a_file_without_rows(ready, service):
    """It is planned, it is done, and it is in nobody's way."""
    jobs.put(ready / "in" / "b.parquet", jobs.flowers(0))
    summary = jobs.score(jobs.job_file(ready, service))
    assert (summary.exit_code, summary.planned, summary.scored) == (0, 10, 10)
    assert jobs.proved(ready / "out") == ()


def test_nothing_but_files_without_rows(tmp_path, service):
    """A job of no rows is done at once: exit 0, `_SUCCESS`, and nobody is asked."""
    jobs.put(tmp_path / "in" / "a.parquet", jobs.flowers(0))
    path = jobs.job_file(tmp_path, service)
    assert json.loads(jobs.call("plan", path, "--json").out)["requests"] == 0
    assert jobs.call("run", path).code == 0
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert unasked(service)
    assert jobs.proved(tmp_path / "out") == ()


def test_a_job_file_that_is_not_there(tmp_path):
    """The path as it was given, and why."""
    assert refused(tmp_path / "gone.yaml") == f"{tmp_path}/gone.yaml: cannot be read: No such file or directory"


def test_all_problems_are_told_at_once(ready, service):
    """A line each, so that one look mends them all."""
    path = jobs.job_file(ready, service, input__path=["in/x.parquet", "in/*.pq"])
    done = jobs.call("check", path, env={"DEMO_PASSWORD": None})
    assert done.code == 2
    assert len(done.err.splitlines()) == 3
    assert all(line.startswith("ERROR ") for line in done.err.splitlines())
