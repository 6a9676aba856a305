"""The MindSpore Serving protocol: its addresses, its replies, and jobs over it."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime
from itertools import count
from random import Random

import pyarrow as pa
import pytest
from demo import DEMO
from hypothesis import given
from hypothesis import strategies as st
from service import recording

from jobs import ROOT, call, job_file, letters, loaded, put, receipts, results, score, stats
from pipeline.converse import Answered, Dead, Scored, Send, Setting, converse
from pipeline.errors import JobError
from pipeline.gate import Gate
from pipeline.ids import row_namer
from pipeline.mindspore import MindSpore
from pipeline.outage import Outage
from pipeline.pack import Block, Limits, pack
from pipeline.replies import Partly
from pipeline.sandbox import mindspore as server
from pipeline.status import Action, Fault
from schemas.job import Input, Retry
from schemas.options import MindSporeOptions

ADAPTER = MindSpore(MindSporeOptions(model="demo", method="fail_neg"))


def read(reply, rows=2, status=200):
    body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
    return ADAPTER.read(status, {}, body, uuid="", rows=rows)


def failed(text):
    return {"error_msg": text}


# The four replies of the document, in its order.


def test_all_instances_succeed():
    """Each answer is the object that stands in the reply."""
    assert read({"instances": [{"result": 0}, {"result": 1}]}).to_pylist() == ['{"result": 0}', '{"result": 1}']


def test_some_instances_fail():
    """The others have their answers."""
    found = read({"instances": [{"result": 0}, failed("Preprocess Failed")]})
    assert isinstance(found, Partly)
    assert found.failed == (1,)
    assert found.answers[0].as_py() == '{"result": 0}'


def test_all_instances_fail():
    """It is a fault of the request, in the first one's words."""
    found = read({"instances": [failed("Preprocess Failed"), failed("Time out")]})
    assert (found.action, found.message) == (Action.REJECT, "Preprocess Failed")


def test_the_request_fails():
    """One text for all of them."""
    assert read(failed("Parse request failed")) == Fault(Action.REJECT, 200, None, "Parse request failed", "model")


TEXTS = [
    ("Parser request failed, json array, shape is empty", Action.REJECT),
    ("Parser reqeust failed, json value is null", Action.REJECT),  # as 1.1.0 spells it
    ("Illegal JSON format.", Action.REJECT),
    ("Failed to construct the response", Action.REJECT),
    ("Instances input x check failed, detail: Instance tensor check failed", Action.REJECT),
    (
        "Call Preprocess Failed, method: 'm', stage index(begin with 1): 1, error msg: servable is not available",
        "reject",
    ),
    ("Call f Failed, method: 'm', stage index(begin with 1): 1, error msg: Time out", Action.REJECT),
    ("Serving Error: enqueued requests count exceeds the limit 10000", Action.SLOWER),
    ("Request servable(demo) method(echo) , servable is not available", Action.ABSENT),
    ("Predict failed, Request servable(demo) method(echo)  version(2) , servable is not available", Action.ABSENT),
    ("Request servable(demo) method(nosuch) , method is not available", Action.STOP),
    ("please check url, the keyword:[model] must contain.", Action.STOP),
    ("http message only support POST right now", Action.STOP),
    ("Cannot find input x2 in instance input , servable demo, method add", Action.STOP),
    ("http message is bigger than 1048576", Action.TOO_LARGE),
    ("Time out", Action.TIMEOUT),
]


@pytest.mark.parametrize("key", ["error_msg", "error_message"])
@pytest.mark.parametrize(("text", "action"), TEXTS)
def test_what_a_text_means(key, text, action):
    """By how it begins: what follows may be anybody's words. 1.1.0 calls it by another name."""
    found = read({key: text})
    assert (found.action, found.message, found.status) == (Action(action), " ".join(text.split()), 200)


def test_the_byte_limit_is_learned_from_its_text():
    """It says how large a body may be."""
    assert read(failed("http message is bigger than 1048576")).most_bytes == 1 << 20


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"instances": [{"y": 1}]}, "2 rows were sent, 1 instances came back"),
        ({"predictions": []}, "neither instances nor error_msg"),
        (b"", "cannot be read"),
        (b"<html>", "cannot be read"),
        ({"instances": {"y": 1}}, "cannot be read"),
        (b'{"instances":[{"y":"\xff"},{"y":"\xff"}]}', "not UTF-8"),
        ({"instances": [{"error_msg": 5}, {}]}, "cannot be read"),
    ],
)
def test_a_reply_that_is_none_is_a_misfit(reply, message):
    """A success must have an instance for each row."""
    found = read(reply)
    assert found.action is Action.MISFIT
    assert message in found.message


def test_a_proxys_refusal_is_judged_by_its_status():
    """The server itself knows only 200."""
    assert read(b"<h1>Bad Gateway</h1>", status=502).action is Action.RETRY


def test_bytes_among_the_outputs_are_base64_text_and_all_else_is_as_it_stands():
    """As bytes are in all answers; NaN is null, and numbers keep their digits."""
    body = b'{"instances":[{"a":{"b64":"AAEC"},"b":[1.0,null],"c":18446744073709551615,"d":{"b64":"","x":1}}]}'
    assert read(body, rows=1).to_pylist() == [
        '{"a":"AAEC","b":[1.0,null],"c":18446744073709551615,"d":{"b64":"","x":1}}'
    ]


# Addresses


@pytest.mark.parametrize(
    ("url", "options", "address"),
    [
        ("http://h:1500", {"model": "m", "method": "f"}, "http://h:1500/model/m:f"),
        ("http://h:1500/", {"model": "m", "method": "f", "version": 3}, "http://h:1500/model/m/version/3:f"),
        ("http://h/at", {"model": "m", "method": "f", "version": 0}, "http://h/at/model/m/version/0:f"),
        ("http://h", {"model": "conversion", "method": "f"}, "http://h/version/0/model/conversion:f"),
        ("http://h", {"model": "conversion", "method": "f", "version": 2}, "http://h/version/2/model/conversion:f"),
        ("http://h:1500/model/m:f", {}, "http://h:1500/model/m:f"),
        ("http://h:1500/model/m/version/2:f", {}, "http://h:1500/model/m/version/2:f"),
        ("http://h:1500/version/2/model/m:f", {}, "http://h:1500/version/2/model/m:f"),
    ],
)
def test_the_url_is_the_servers_base_or_the_whole(url, options, address):
    """What is made of the options is what the server's own search finds again."""
    made = MindSpore(MindSporeOptions(**options)).address(url)
    assert made == address
    found = server.called(made.partition("//")[2].partition("/")[2].join(["/", ""]))
    assert found.method == "f"
    assert found.model == options.get("model", "m")


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("http://h", {}, "service.options.model: missing; required where service.url is not the whole"),
        ("http://h", {"model": "m"}, "service.options.method: missing; required where service.url is not the whole"),
        ("http://h/model/m:f", {"model": "m"}, "service.options.model: service.url names the method already"),
        ("http://h/model/m:f", {"version": 0}, "service.options.version: service.url names the method already"),
        ("http://h/model/m:f?x=1", {}, "service.url: MindSpore Serving takes a query for a part of the method's name"),
        ("http://h/model/m/version/x:f", {}, "service.url: '/model/m/version/x:f' is not a method"),
        ("http://h/models/m:f", {}, "service.url: '/models/m:f' is not a method"),
        ("http://h", {"model": "a:b", "method": "f"}, "service.options.model: 'a:b' is not a name in a URL"),
        ("http://h", {"model": "m", "method": "f", "version": -1}, "service.options.version: -1"),
        ("http://h/model/m:f", {"types": {"x": "f16"}}, "service.options.types.x: 'f16' is not allowed"),
        ("ws://h/model/m:f", {}, "service.transport: protocol mindspore goes over http alone"),
    ],
)
def test_what_makes_no_address_is_an_error_of_the_job_file(tmp_path, url, options, message):
    """With its place, and how to mend it, before anything is called."""
    keys = {"service__url": url, "service__options": options, "service__protocol": "mindspore"}
    file = job_file(tmp_path, "", service__auth={"type": "none"}, **keys)
    with pytest.raises(JobError) as error:
        loaded(file)
    assert message in str(error.value)


# Conversations


def chunk_of(values):
    batch = pa.record_batch({"x": pa.array(values)})
    encoded = ADAPTER.encoder(Input(path="in"), batch.schema, ["x"]).encode(batch)
    block = Block(0, encoded, row_namer("job", "path")(0, len(values)), batch)
    [chunk] = pack([block], Limits(12_000_000), ADAPTER.frame)
    return chunk


def conversed(values, ask=None):
    """Converse about rows with a server; returns the outcomes and how many rows each request had."""
    ask = ask or (lambda body: server.answer({"demo": DEMO}, "POST", "/model/demo:fail_neg", body, 1 << 20)[1])
    setting = Setting(
        adapter=ADAPTER,
        retry=Retry(),
        url="http://h",
        clock=lambda: 0.0,
        now=lambda: datetime(2026, 11, 22, tzinfo=UTC),
        rng=Random(1),
        last_success=lambda: 0.0,
    )
    conversation, reply, sizes = converse(chunk_of(values), setting), None, []
    while True:
        try:
            command = conversation.send(reply)
        except StopIteration as end:
            return end.value, sizes
        reply = None
        if isinstance(command, Send):
            sizes.append(len(command.chunk))
            reply = Answered(200, {}, ask(command.chunk.body), 0.1)


def told(outcomes):
    """Return what became of each row, in order of the outcomes."""
    found = []
    for one in outcomes:
        if isinstance(one, Scored):
            rows = one.chunk.source_rows[one.first : one.first + len(one.answers)].tolist()
            found += [(row, json.loads(text)["out"]) for row, text in zip(rows, one.answers.to_pylist(), strict=True)]
        else:
            found += [(row, one.fault.message) for row in one.chunk.source_rows.tolist()]
    return found


@given(st.lists(st.integers(-2, 3), min_size=1, max_size=30))
def test_exactly_the_instances_that_fail_are_dead(values):
    """The answers beside them are kept: one request for all, and one for each that failed, wherever some succeeded."""
    outcomes, sizes = conversed(values)
    found = told(outcomes)
    assert [row for row, _ in found] == list(range(len(values)))
    for (_, said), value in zip(found, values, strict=True):
        assert said == 2 * value if value >= 0 else said.endswith("error msg: negative not allowed")
    bad = sum(value < 0 for value in values)
    if bad < len(values):
        assert sizes == [len(values)] + [1] * bad
    assert sum(isinstance(one, Scored) and not one.further for one in outcomes) == min(1, len(values) - bad)


def test_an_instance_that_succeeds_alone_has_its_answer():
    """A server may say of good instances what was wrong with others."""
    blamed = []

    def ask(body):
        rows = [one["x"] for one in json.loads(body)["instances"]]
        if len(rows) > 1:
            blamed.extend(rows[:2])
            return json.dumps({"instances": [failed("batch failed")] * 2 + [{"out": row} for row in rows[2:]]}).encode()
        return json.dumps({"instances": [{"out": rows[0]}]}).encode()

    outcomes, sizes = conversed([5, 6, 7, 8], ask)
    assert told(outcomes) == [(0, 5), (1, 6), (2, 7), (3, 8)]
    assert (blamed, sizes) == ([5, 6], [4, 1, 1])
    assert not any(isinstance(one, Dead) for one in outcomes)


# Jobs


def job(folder, url, method="predict", **keys):
    return job_file(
        folder,
        url,
        service__url=url,
        service__auth={"type": "none"},
        service__protocol="mindspore",
        service__options={"model": keys.pop("model", "iris"), "method": method, **keys.pop("options", {})},
        **keys,
    )


@pytest.mark.parametrize("name", ["mindspore-iris", "mindspore-digits"])
def test_the_jobs_that_come_with_it_run(tmp_path, sandbox, name):
    """As they are, and their outputs are proved."""
    url, out = sandbox(), tmp_path / "out"
    done = call("run", ROOT / "jobs" / f"{name}.yaml", "--param", f"service={url}", "--set", f"output.path={out}")
    assert done.code == 0, done.err
    assert "verified" in call("verify", out).out


def test_a_job_with_failing_instances_has_exactly_those_as_dead_letters(tmp_path, sandbox):
    """Pictures that are none, among others, in requests of many; all is counted once, and in order."""
    pictures = [file.read_bytes() for file in sorted((ROOT / "jobs" / "data" / "digits").rglob("*.png"))[:30]]
    pictures[7] = pictures[8] = pictures[29] = b"no picture"
    put(tmp_path / "in" / "a.parquet", pa.table({"id": range(30), "image": pa.array(pictures, pa.binary())}))
    file = job(tmp_path, sandbox(), model="digits", input__send=["image"], errors={"allow": 3})
    done = call("run", file)
    assert done.code == 0, done.err
    out = tmp_path / "out"
    assert [letter["source_row"] for letter in letters(out)] == [7, 8, 29]
    assert {letter["kind"] for letter in letters(out)} == {"rejected"}
    assert all("the file is not a picture" in letter["message"] for letter in letters(out))
    scored = results(out).to_pylist()
    assert [row["source_row"] for row in scored] == [row for row in range(30) if row not in {7, 8, 29}]
    requests = {row["request_uuid"] for row in scored} | {letter["request_uuid"] for letter in letters(out)}
    assert sum(receipt["requests"] for receipt in receipts(out).values()) == len(requests)
    assert "verified" in call("verify", out).out


def test_rows_that_the_server_would_misread_are_never_sent(tmp_path, sandbox):
    """They are dead letters with the rule; the others are answered."""
    values = pa.array([[1, 2], [3], [], None, [2**31]], pa.list_(pa.int64()))
    put(tmp_path / "in" / "a.parquet", pa.table({"id": range(5), "x": values}))
    file = job(tmp_path, sandbox(), "echo", model="echo", input__send=["x"], errors={"allow": 3})
    assert call("run", file).code == 0
    assert [row["prediction"] for row in results(tmp_path / "out").to_pylist()] == ['{"out":[1,2]}', '{"out":[3]}']
    assert [letter["kind"] for letter in letters(tmp_path / "out")] == ["unreadable"] * 3


def test_the_byte_limit_of_the_server_is_learned(tmp_path, sandbox):
    """It tells it once, and no larger request is sent from then on."""
    texts = ["x" * 3000] * 300
    put(tmp_path / "in" / "a.parquet", pa.table({"id": range(300), "x": texts}))
    url = sandbox(body_limit=20_000)
    file = job(tmp_path, url, "echo", model="echo", input__send=["x"], service__limits={"in_flight": 1})
    assert score(file).scored == 300
    assert stats(url)["bodies_over_limit"] <= 8  # those that were cut out of the first one
    largest = max(len(json.loads(text)["out"]) for text in results(tmp_path / "out")["prediction"].to_pylist())
    assert largest == 3000


def test_a_method_that_is_not_there_ends_the_job(tmp_path, sandbox):
    """In the server's words, with nothing written off."""
    put(tmp_path / "in" / "a.parquet", pa.table({"id": [1], "x": [1]}))
    done = call("run", job(tmp_path, sandbox(), "nosuch", model="echo", input__send=["x"]))
    assert done.code == 4
    assert "method is not available" in done.err
    assert "mend service.url, or method in service.options, and run it again" in done.err


def test_the_documents_request_is_what_is_sent_of_parquet_rows(tmp_path):
    """Both of its instances in one body, but for the type that may be left out."""
    boxes = [[[1, 1], [2, 3], [3, 4]], [[2, 2], [5, 5], [6, 6]]]
    pictures = [b"\x89PNG\r\n zero", b"\x89PNG\r\n one"]
    columns = {"tag": ["one", "two"], "box": pa.array(boxes, pa.list_(pa.list_(pa.int32()))), "image": pictures}
    put(tmp_path / "in" / "a.parquet", pa.table(columns))
    with serving() as service:
        done = call("run", job(tmp_path, service.url, "f", model="m", input={"path": "in/*.parquet"}), "--no-probe")
    assert done.code == 0, done.err
    [asked] = service.calls
    assert asked.path.endswith("/model/m:f")
    assert json.loads(asked.body) == {
        "instances": [
            {"tag": "one", "box": boxes[0], "image": {"b64": b64encode(pictures[0]).decode()}},
            {"tag": "two", "box": boxes[1], "image": {"b64": b64encode(pictures[1]).decode()}},
        ]
    }


ABSENT = json.dumps(failed("Request servable(m) method(f) , servable is not available")).encode()


def serving(*absent):
    """Answer each instance with its x, but say at some requests, by number, that the servable is not there."""
    numbers = count()

    def answer(call):
        if next(numbers) in absent:
            return 200, {}, ABSENT
        return 200, {}, json.dumps({"instances": json.loads(call.body)["instances"]}).encode()

    return recording(answer)


def absent_job(folder, url, rows=40):
    put(folder / "in" / "a.parquet", pa.table({"id": range(rows), "x": range(rows)}))
    return job(folder, url, "f", model="m", input__send=["x"], service__limits={"rows": 1, "in_flight": 2})


def test_a_model_that_was_never_there_ends_the_job(tmp_path, monkeypatch, caplog):
    """Not at once, for it may be loading, and long before an outage is over; with the keys that may be wrong.

    It is no outage, whose pauses would make it longer: a server is there.
    """
    monkeypatch.setattr(Gate, "ABSENT_SECONDS", 2.0)
    monkeypatch.setattr(Outage, "AFTER_SECONDS", 0.0)
    with serving(*range(10_000)) as service:
        done = call("run", absent_job(tmp_path, service.url))
    assert done.code == 4
    assert [record.message for record in caplog.records] == [
        "Request servable(m) method(f) , servable is not available; it may still be loading: 2 s are left"
    ]
    [line] = [line for line in done.err.splitlines() if line.startswith("ERROR")]
    assert "servable is not available, for " in line
    assert f"({service.url}/model/m:f); mend service.url, or model or version in service.options, and run it" in line
    assert (letters(tmp_path / "out"), receipts(tmp_path / "out")) == ([], {})
    with serving() as service:
        assert call("run", tmp_path / "job.yaml", "--set", f"service.url={service.url}").code == 0
        assert len(service.calls) == 40


def test_a_model_that_is_still_loading_is_waited_for(tmp_path):
    """The server is up before its model."""
    with serving(0, 1, 2) as service:
        assert call("run", absent_job(tmp_path, service.url)).code == 0
    assert len(results(tmp_path / "out")) == 40


def test_one_of_two_servers_that_does_not_have_the_model_is_left_out(tmp_path, caplog):
    """It is tried again from time to time; the other one answers all rows."""
    with serving(*range(10_000)) as without, serving() as having:
        file = absent_job(tmp_path, [without.url, having.url], rows=400)
        done = call("run", file)
    assert done.code == 0, done.err
    assert len(results(tmp_path / "out")) == 400
    assert len(having.calls) == 400
    [record] = caplog.records
    assert f"{without.url}/model/m:f is left out while it fails, and others get its requests: Req" in record.message
    assert 1 <= len(without.calls) < 20


def test_a_model_that_goes_and_comes_back_is_waited_for(tmp_path, monkeypatch, caplog):
    """However long it takes: it was there."""
    monkeypatch.setattr(Gate, "ABSENT_SECONDS", 0.01)
    with serving(*range(5, 9)) as service:
        done = call("run", absent_job(tmp_path, service.url))
    assert done.code == 0, done.err
    assert not caplog.records
    assert len(results(tmp_path / "out")) == 40
    assert letters(tmp_path / "out") == []


def test_an_input_that_is_missing_ends_the_job(tmp_path, sandbox):
    """It concerns every row."""
    put(tmp_path / "in" / "a.parquet", pa.table({"id": [1], "y": [1]}))
    done = call("run", job(tmp_path, sandbox(), "echo", model="echo", input__send=["y"]))
    assert done.code == 4
    assert "Cannot find input x" in done.err
    assert "mend input.send or input.rename and run it again" in done.err
