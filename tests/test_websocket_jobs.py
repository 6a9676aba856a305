"""Jobs over websockets against the sandbox: answers are those over HTTP, whatever happens on the way."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack

import pytest
from rawserver import authority

from jobs import (
    ROOT,
    SEND,
    call,
    flowers,
    job_file,
    lasting,
    letters,
    process,
    proved,
    put,
    results,
    stats,
    until,
)
from pipeline.sandbox.credentials import ENVIRONMENT
from pipeline.sandbox.server import Options, running

ROWS = 300
NOBODY_ASKS = {"type": "none"}
LOST = ["drop", "drop-early", "truncate", "crash", "html", "expire", "drop"]
ODD = ["short", "long", "blank", "push", "swap", "slow 50ms", "push", "swap"]
REFUSED = ["503", "429", "408", "502", "ModelArts.4302", "429 after 1s"]


def over(folder, url, *, path="/v1/ws/iris", limits=None, **keys):
    """Write a job whose requests go over websockets."""
    service = {"service__url": f"{url}{path}", "service__transport": "websocket", "service__limits": limits or {}}
    return job_file(folder, url, **service, **keys)


def answers(folder):
    """Return what was answered to each row."""
    return {row["source_row"]: row["prediction"] for row in results(folder / "out").to_pylist()}


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """The answers to the rows, over HTTP."""
    folder = tmp_path_factory.mktemp("http")
    put(folder / "in" / "rows.parquet", flowers(ROWS))
    with running(Options(port=0)) as url:
        path = job_file(folder, url, service__url=f"{url}/vpc/v1/infers/iris", service__auth=NOBODY_ASKS)
        assert call("run", path).code == 0
    return answers(folder)


def test_a_job_over_websockets_answers_as_over_http(tmp_path, sandbox, right):
    """A connection for each request in flight, used again for the next."""
    put(tmp_path / "in" / "rows.parquet", flowers(ROWS))
    url = sandbox()
    done = call("run", over(tmp_path, url, limits={"rows": 5, "in_flight": 4}))
    assert done.code == 0, done.err
    assert answers(tmp_path) == right
    assert not proved(tmp_path / "out")
    seen = stats(url)
    assert 1 <= seen["websockets"] <= 4
    assert seen["requests"] == seen["ok"] >= 60


@pytest.mark.parametrize("faults", [LOST, ODD, REFUSED])
def test_whatever_happens_to_a_request_its_rows_get_their_answers(tmp_path, sandbox, right, faults):
    """Lost, swapped, refused for now, or with messages that nobody asked for in between; once, or twice in a row."""
    put(tmp_path / "in" / "rows.parquet", flowers(ROWS))
    url = sandbox(faults={4 + 3 * place: [fault] * (1 + place % 2) for place, fault in enumerate(faults)})
    done = call("run", over(tmp_path, url, limits={"rows": 5}))
    assert done.code == 0, done.err
    assert answers(tmp_path) == right
    assert not proved(tmp_path / "out")
    assert len(stats(url)["by_fault"]) == len(set(faults))


@pytest.mark.parametrize("fault", ["foreign", "garbage", "trickle"])
def test_an_answer_that_does_not_come_is_asked_for_again(tmp_path, sandbox, right, fault):
    """What answers nothing is no answer: the request's time runs out, and it is sent again."""
    put(tmp_path / "in" / "rows.parquet", flowers(ROWS))
    url = sandbox(faults={4: fault})
    done = call("run", over(tmp_path, url, limits={"rows": 50, "timeout": "200ms"}))
    assert done.code == 0, done.err
    assert answers(tmp_path) == right


def test_swaps_and_pushes_all_along_shift_nothing(tmp_path, sandbox, right):
    """Every answer comes over another connection, or after a heap of what nobody asked for."""
    put(tmp_path / "in" / "rows.parquet", flowers(ROWS))
    url = sandbox(faults={number: "swap" if number % 2 else "push" for number in range(5, 300)})
    done = call("run", over(tmp_path, url, limits={"rows": 1, "in_flight": 16}))
    assert done.code == 0, done.err
    assert answers(tmp_path) == right
    assert stats(url)["by_fault"].keys() == {"swap", "push"}


def test_a_greeting_shifts_nothing(tmp_path, sandbox, right):
    """It is skipped where the job file knows of it; where not, the answers' uuids tell them from it."""
    put(tmp_path / "in" / "rows.parquet", flowers(ROWS))
    url = sandbox()
    for greeting in (2, 0):
        keys = {"service__options": {"greeting": greeting}, "output": {"path": f"out{greeting}/out"}}
        done = call("run", over(tmp_path, url, path="/v1/ws/iris?greeting=2", limits={"rows": 20}, **keys))
        assert done.code == 0, done.err
        assert answers(tmp_path / f"out{greeting}") == right


def test_a_large_answer_comes_in_fragments(tmp_path, sandbox):
    """5,000 rows are answered by more than 64 KB."""
    put(tmp_path / "in" / "rows.parquet", flowers(5000))
    url = sandbox()
    done = call("run", over(tmp_path, url, limits={"rows": 5000, "in_flight": 2}), "--no-probe")
    assert done.code == 0, done.err
    assert results(tmp_path / "out").num_rows == 5000
    assert not proved(tmp_path / "out")


def test_a_message_that_is_too_large_teaches_the_limit(tmp_path, sandbox, right):
    """Code 1009 is what 413 is: the request is halved, and those that follow are smaller."""
    put(tmp_path / "in" / "rows.parquet", flowers(ROWS))
    url = sandbox(body_limit=5_000)
    done = call("run", over(tmp_path, url, limits={"rows": 200, "in_flight": 1}), "--no-probe")
    assert done.code == 0, done.err
    assert answers(tmp_path) == right
    assert 1 <= stats(url)["bodies_over_limit"] <= 8


def test_a_row_that_the_model_refuses_is_alone_in_the_end(tmp_path, sandbox, right):
    """Its error is a message, and costs that row."""
    put(tmp_path / "in" / "rows.parquet", flowers(ROWS))
    path = over(tmp_path, sandbox(faults={"row:sepal_length=1.7": "400 MR.0105 always"}), limits={"rows": 50})
    done = call("run", path)
    bad = {row for row, number in enumerate(flowers(ROWS)["sepal_length"].to_pylist()) if number == 1.7}
    assert done.code == 3, done.err
    assert {letter["source_row"] for letter in letters(tmp_path / "out")} == bad
    assert Counter(letter["kind"] for letter in letters(tmp_path / "out")) == {"rejected": len(bad)}
    assert answers(tmp_path) == {row: answer for row, answer in right.items() if row not in bad}


def test_a_row_that_closes_the_connection_is_alone_in_the_end(tmp_path, sandbox):
    """A model that falls over one row, each time: the others get their answers."""
    put(tmp_path / "in" / "rows.parquet", flowers(40))
    url = sandbox(faults={"row:sepal_length=4.5": "crash always"})
    done = call("run", over(tmp_path, url, limits={"rows": 10}, retry={"attempts": 2}))
    assert done.code == 3, done.err
    [letter] = letters(tmp_path / "out")
    assert (letter["source_row"], letter["status"], letter["code"]) == (5, 500, "1011")
    assert results(tmp_path / "out").num_rows == 39


def test_a_token_that_dies_is_renewed(tmp_path, sandbox, right):
    """A connection lives on with a dead token; the handshake of the next is refused, and asks for another."""
    put(tmp_path / "in" / "rows.parquet", flowers(ROWS))
    url = sandbox(faults={5: "expire", 6: "drop", 15: "expire"})
    done = call("run", over(tmp_path, url, limits={"rows": 10}))
    assert done.code == 0, done.err
    assert answers(tmp_path) == right
    assert stats(url)["tokens_issued"] >= 2


AUTHS = {
    "aksk": {"access_key": "${env:DEMO_ACCESS_KEY}", "secret_key": "${env:DEMO_SECRET_KEY}"},
    "app-key": {"key": "${env:DEMO_APP_KEY}", "secret": "${env:DEMO_APP_SECRET}"},
    "app-code": {"code": "${env:DEMO_APP_CODE}"},
}


def way_job(folder, base, way, *, urls=None, **keys):
    """Write a job over a few rows that go one way or the other."""
    websocket = way == "websocket"
    path = "/v1/ws/iris" if websocket else "/v1/infers/text"
    options = {} if websocket else {"body": {"input": {"$column": "id"}}}
    keys |= {"service__protocol": "modelarts" if websocket else "json", "service__options": options}
    keys |= {"service__transport": way, "service__url": [url + path for url in urls or [base]]}
    given = {"path": "in/*.parquet", "keep": ["id"]} | ({"send": SEND} if websocket else {})
    return job_file(folder, base, input=given, **{"service__limits": {"rows": 1}} | keys)


WAYS = pytest.mark.parametrize("way", ["websocket", "sse"])


@pytest.mark.parametrize("kind", ["aksk", "app-key"])
def test_each_handshake_is_signed_afresh(tmp_path, sandbox, kind):
    """As a GET without a body; a connection that is lost costs another signature, and no refusal."""
    put(tmp_path / "in" / "rows.parquet", flowers(6))
    url = sandbox(faults={2: "drop", 4: "drop"})
    done = call(
        "run", way_job(tmp_path, url, "websocket", service__auth={"type": kind, **AUTHS[kind]}), env=ENVIRONMENT
    )
    assert done.code == 0, done.err
    assert results(tmp_path / "out").num_rows == 6
    assert stats(url)["websockets"] >= 3


@WAYS
def test_a_node_that_is_gone_costs_nothing(tmp_path, sandbox, way):
    """Over either way the others share its requests."""
    put(tmp_path / "in" / "rows.parquet", flowers(60))
    urls = [sandbox(), sandbox()]
    gone = "http://127.0.0.1:9"
    auth = {"type": "app-code", **AUTHS["app-code"]}
    done = call("run", way_job(tmp_path, urls[0], way, urls=[*urls, gone], service__auth=auth), env=ENVIRONMENT)
    assert done.code == 0, done.err
    assert results(tmp_path / "out").num_rows == 60
    assert all(stats(url)["ok"] >= 10 for url in urls)


@WAYS
def test_an_authority_that_nobody_named_ends_the_job(tmp_path, sandbox, way):
    """At once, and with what to do about it."""
    put(tmp_path / "in" / "rows.parquet", flowers(5))
    authority(tmp_path / "tls")
    url = sandbox(tls_cert=tmp_path / "tls" / "server.pem")
    refused = call("run", way_job(tmp_path, url, way, service__auth=NOBODY_ASKS))
    assert (refused.code, "service.tls.ca" in refused.err) == (4, True), refused.err


def test_wrong_credentials_end_the_job(tmp_path, sandbox):
    """The platform's words about the handshake, and exit code 4."""
    put(tmp_path / "in" / "rows.parquet", flowers(5))
    auth = {"type": "app-code", "code": "${env:WRONG}"}
    done = call("run", over(tmp_path, sandbox(), service__auth=auth), env={"WRONG": "nobodys-code"})
    assert done.code == 4
    assert "APIG.0303" in done.err
    assert "nobodys-code" not in done.err


@pytest.mark.parametrize(("path", "word"), [("/v1/ws/none", "404"), ("/v1/infers/iris", "404")])
def test_a_wrong_url_ends_the_job(tmp_path, sandbox, path, word):
    """No such path, or one that speaks no websocket."""
    put(tmp_path / "in" / "rows.parquet", flowers(5))
    done = call("run", over(tmp_path, sandbox(), path=path))
    assert done.code == 4
    assert word in done.err


def test_a_service_that_is_gone_for_a_while_costs_nothing(tmp_path, right):
    """Gone in the middle of its answers and back again: the job goes on."""
    put(tmp_path / "in" / "rows.parquet", flowers(ROWS))
    limits = {"rows": 2, "in_flight": 4}
    with ExitStack() as first:
        url = first.enter_context(running(Options(port=0, latency=0.02)))
        path = over(tmp_path, url, path="/vpc/v1/ws/iris", limits=limits, service__auth=NOBODY_ASKS)
        with process("run", path) as job:
            until(lambda: stats(url)["ok"] >= 20)
            first.close()
            with running(Options(port=int(url.rpartition(":")[2]))):
                assert job.wait(60) == 0, job.stderr.read()
    assert answers(tmp_path) == right
    assert not proved(tmp_path / "out")


def test_random_drops_change_no_answer(tmp_path, sandbox):
    """A few thousand rows, one request in five in trouble: verified, and equal to those over HTTP."""
    put(tmp_path / "in" / "rows.parquet", flowers(3000))
    drops = {number: ("drop", "truncate", "swap", "push", "blank", "crash")[number % 6] for number in range(8, 900, 5)}
    url = sandbox(faults=drops)
    assert call("run", job_file(tmp_path, url, output={"path": "http"}), "--no-probe").code == 0
    done = call("run", over(tmp_path, sandbox(faults=drops), limits={"rows": 4, "in_flight": 16}))
    assert done.code == 0, done.err
    assert not proved(tmp_path / "out")
    for one, other in zip(lasting(tmp_path / "out"), lasting(tmp_path / "http"), strict=True):
        assert one == other


def of_digits(form):
    """Return the keys of a job that sends the digits: as they are, or as base64 in JSON."""
    pictures = {"path": str(ROOT / "jobs" / "data" / "digits" / "*.png"), "format": "files", "keep": ["name"]}
    options = {"body": {"image": {"$base64": "content"}}} if form == "json" else {"field": "images"}
    return {"service__protocol": form, "service__options": options, "input": pictures}


def read_right(folder):
    """Return how many digits were read, and how many of them as what they are."""
    found = {row["name"]: json.loads(row["prediction"])["predicted_label"] for row in results(folder).to_pylist()}
    return len(found), sum(name.startswith(label) for name, label in found.items())


@pytest.mark.parametrize("form", ["file", "json"])
def test_digits_are_read_over_a_websocket(tmp_path, sandbox, form):
    """The file's bytes as they are, or as base64 in JSON; at least 90 of 100 are right."""
    done = call("run", over(tmp_path, sandbox(), path="/v1/ws/digits", **of_digits(form)))
    assert done.code == 0, done.err
    read, right = read_right(tmp_path / "out")
    assert (read, right >= 90) == (100, True)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"field": "images", "form": {"a": "b"}}, "service.options.form"),
        ({"field": "images", "message": "json"}, "service.options.message"),
        ({"field": "images", "events": "last"}, "service.options.events"),
    ],
)
def test_options_that_a_message_cannot_honour_are_refused(tmp_path, options, place):
    """A message is a file's bytes, and has no fields."""
    checked = call("check", over(tmp_path, "http://127.0.0.1:9", **of_digits("file") | {"service__options": options}))
    assert checked.code == 2
    assert place in checked.err


@pytest.mark.parametrize("form", ["file", "json"])
def test_a_greeting_that_would_be_taken_for_an_answer_ends_the_job(tmp_path, sandbox, form):
    """Where requests have no uuid; the key to set is named, and then every picture gets its own answer."""
    url, keys = sandbox(), of_digits(form)
    for greeting in (0, 1):
        keys["service__options"]["greeting"] = greeting
        done = call("run", over(tmp_path, url, path="/v1/ws/digits?greeting=1", **keys))
        if not greeting:
            assert (done.code, "set service.options.greeting: 1" in done.err) == (4, True), done.err
    assert done.code == 0, done.err
    assert read_right(tmp_path / "out")[1] >= 90
