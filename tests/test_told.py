"""What others say is told on one line, without control characters and our secrets; what is odd in an output is told."""

from __future__ import annotations

import json
from unittest import mock

import pytest
from engine import Killed
from service import recording, score
from test_gate import plain

import jobs
from jobs import call, letters
from pipeline import run as run_module
from pipeline import write
from pipeline.openinference import OpenInference
from pipeline.status import Fault
from schemas.servers import OpenInferenceOptions
from schemas.values import readable

SECRET = "s3cr3t-abcdefgh"
ODD = "Bad\nERROR forged \x1b]0;title\x07 and \x1b[2J more"


def quoting(request):
    """Answer with the header that came."""
    answers = [{"predictresult": f"key={request.headers['X-Key']}"} for _ in request.places]
    return 200, {}, json.dumps({"data": {"resp_data": answers}}).encode()


@pytest.mark.parametrize("arguments", [[], ["--no-probe"]])
def test_an_answer_that_quotes_a_secret_is_told_without_it(tmp_path, arguments):
    """It does not fit what is declared, so it is in the error's line, in the dead letters, and in what runs keep."""
    with recording(quoting) as service:
        job = plain(
            tmp_path,
            service.url,
            service__headers={"X-Key": "${env:DEMO_PASSWORD}"},
            output={"path": "out", "prediction": {"predictresult": "double"}},
        )
        told = call("run", *arguments, job, env={"DEMO_PASSWORD": SECRET})
    assert told.code == (3 if arguments else 4)
    assert "key=***" in told.err
    kept = [path.read_bytes() for path in (tmp_path / "out").rglob("*.json*")]
    assert kept
    assert not any(SECRET.encode() in one for one in [*kept, told.err.encode(), told.out.encode()])


def inferring(request):
    """Refuse row 3 in odd words, of a tensor protocol."""
    tensor = json.loads(request.body)["inputs"][0]
    rows = tensor["shape"][0]
    if 3.0 in tensor["data"]:
        return 400, {}, json.dumps({"error": {"type": ODD, "message": ODD}}).encode()
    output = {"name": "p", "shape": [rows], "datatype": "FP64", "data": [1.0] * rows}
    return 200, {}, json.dumps({"outputs": [output]}).encode()


def test_the_cause_is_on_one_line_whatever_the_service_says(tmp_path):
    """A code with breaks and terminal sequences in it forges no line."""
    with recording(inferring) as service:
        model = {"service__protocol": "open-inference", "service__options": {"model": "m"}}
        told = call("run", "-q", plain(tmp_path, service.url, **model))
    assert told.code == 3
    assert told.err.count("\n") == 1
    assert "Bad ERROR forged" in told.err
    assert told.err.rstrip("\n").isprintable()


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_start_that_is_refused_is_told_on_one_line(tmp_path, status):
    """Whatever the service says, and however much, of its rows or of the job."""
    body = json.dumps({"error_code": "X\x1b[31m", "error_msg": ODD + "z" * 100_000}).encode()
    with recording(lambda _: (status, {}, body)) as service:
        told = call("run", "-q", plain(tmp_path, service.url))
    assert told.code == 4
    assert told.err.rstrip("\n").isprintable()
    assert len(told.err) < 2000


@pytest.mark.parametrize(
    "output",
    [
        {"name": "p", "shape": [1], "datatype": "z" * 200_000, "parameters": {"binary_data_size": 0}},
        {"name": "p", "shape": [1] * 300_000, "datatype": "FP32", "data": []},
        {"name": "p", "shape": [1, 10_000_000, 0], "datatype": "FP32", "data": []},
        {"name": "p", "shape": [1, 1_000_000_000, 0], "datatype": "FP32", "parameters": {"binary_data_size": 0}},
    ],
    ids=["datatype", "shape", "empty lists", "empty bytes"],
)
def test_a_reply_that_says_much_about_nothing_is_told_in_few_words(output):
    """It takes neither long nor much."""
    told = json.dumps({"outputs": [output]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(told))}
    fault = OpenInference(OpenInferenceOptions(model="m")).read(200, headers, told, uuid="", rows=1)
    assert isinstance(fault, Fault)
    assert len(fault.message) < 600


def test_lines_are_readable():
    """Control characters are written as they are escaped; what is long is cut."""
    assert readable("a\n b\x1b[2J\x07") == r"a b\x1b[2J\x07"
    assert readable("x" * 600) == "x" * 500 + "..."


class Refusing:
    """A service that refuses two rows and then the key, until it is mended."""

    def __init__(self):
        self.asked, self.mended = 0, False

    def __call__(self, request):
        """Answer a request."""
        self.asked += 1
        if self.mended:
            return score(request)
        refused = 400, {}, b'{"error_code": "MR.0105", "error_msg": "no"}'
        return refused if self.asked <= 2 else (401, {}, b'{"error_code": "APIG.0303", "error_msg": "bad key"}')


@pytest.mark.parametrize("between", [[], ["retry"]])
def test_a_refused_start_that_was_killed_is_taken_back_by_whatever_comes_next(tmp_path, between):
    """Its two letters are of the wrong contract, not of the rows."""
    real, taken = run_module.take_back, []

    def dying(*given):
        taken.append(given)
        if len(taken) == 2:
            raise Killed
        return real(*given)

    service = Refusing()
    with recording(service) as recorded:
        job = plain(tmp_path, recorded.url)
        with (
            mock.patch.object(write, "OBJECT_BYTES", 1),
            mock.patch.object(run_module, "take_back", dying),
            pytest.raises(Killed),
        ):
            jobs.score(job, probe=True)
        assert len(letters(tmp_path / "out")) == 2
        for command in between:
            call(command, job)
        service.mended = True
        assert call("run", job).code == 0
    assert letters(tmp_path / "out") == []


@pytest.mark.parametrize("arguments", [[], ["--restart"]])
def test_a_broken_stop_file_keeps_nobody_from_running(tmp_path, arguments):
    """Each run writes it anew."""
    with recording() as service:
        job = plain(tmp_path, service.url)
        assert call("run", job).code == 0
        (tmp_path / "out" / "stop.json").write_bytes(b"")
        assert call("run", *arguments, job).code == 0


def test_a_job_json_that_was_edited_is_no_defect(tmp_path):
    """Whoever took its input away gets no traceback: what is done is kept."""
    with recording() as service:
        job = plain(tmp_path, service.url)
        assert call("run", job).code == 0
        path = tmp_path / "out" / "job.json"
        edited = json.loads(path.read_text())
        del edited["input"]
        path.write_text(json.dumps(edited))
        told = call("run", "--changed", "keep", job)
    assert told.code == 0
    assert "Traceback" not in told.err
