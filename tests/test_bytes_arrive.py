"""Tensors that are sent as bytes to real model servers come back bit for bit: KServe's and NVIDIA Triton."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import requests
import tensorwire
import tritonserving
from hypothesis import HealthCheck, given, settings
from kserving import NEGATIVE, POISON
from test_binaryinference import adapter, alike, column_of, tensors
from test_openinference import chunks_of

from jobs import call, job_file, letters, proved, put, results
from pipeline.status import Action, Fault

pytestmark = pytest.mark.timeout(900)  # the first one may install a server
MANY = settings(max_examples=150, suppress_health_check=list(HealthCheck))
SIGNALLING = {2: 0x0200, 4: 0x0040_0000, 8: 0x0008_0000_0000_0000}
"""The bit by which a NaN is a quiet one, by a float's bytes."""


class Echo(NamedTuple):
    """A server's model that gives back what it has decoded."""

    server: str
    url: str
    session: requests.Session

    def ask(self, batch, made=None):
        """Send a batch in one request; return the adapter's verdict, and the reply."""
        made = made or adapter()
        [chunk] = chunks_of(made, batch)
        body = made.wire(chunk.body)
        headers = {"Content-Type": made.content_type, **made.headers(body)}
        reply = self.session.post(f"{self.url}/v2/models/echo/infer", data=body, headers=headers, timeout=60)
        return made.read(reply.status_code, reply.headers, reply.content, uuid="", rows=len(chunk)), reply


@pytest.fixture
def echo(request, model_server):
    """One of the servers."""
    with requests.Session() as session:
        yield Echo(request.param, model_server(request.param).url, session)


def of(*servers):
    """Ask these servers."""
    return pytest.mark.parametrize("echo", servers, indirect=True)


def quiet(array):
    """Return floats whose NaN are quiet: KServe makes doubles of them in between, which quiets them."""
    if array.dtype.kind != "f":
        return array
    bits = array.view(f"<u{array.dtype.itemsize}")
    return np.where(np.isnan(array), bits | SIGNALLING[array.dtype.itemsize], bits).astype(bits.dtype).view(array.dtype)


@of("kserve")
@MANY
@given(tensors())
def test_a_tensor_of_any_datatype_and_shape_comes_back_bit_for_bit(echo, array):
    """FP16, infinities, and NaN with a payload among them; of BYTES those that are text."""
    if array.dtype == object:
        array = np.array([one.hex().encode() for one in array.ravel()], object).reshape(array.shape)
    array = quiet(array)
    verdict, reply = echo.ask(pa.RecordBatch.from_arrays([column_of(array)], ["x"]))
    assert not isinstance(verdict, Fault), verdict
    assert alike(tensorwire.read(reply.headers, reply.content)[1]["x"], array)


@of("triton")
@MANY
@given(tensors())
def test_a_row_of_any_datatype_comes_back_bit_for_bit(echo, array):
    """Any NaN and any bytes, too; the model has one axis beside the rows."""
    array = array.reshape(len(array), -1)
    name = tensorwire.datatype_of(array)
    verdict, reply = echo.ask(pa.RecordBatch.from_arrays([column_of(array)], [name]))
    assert not isinstance(verdict, Fault), verdict
    assert alike(tensorwire.read(reply.headers, reply.content)[1][name], array)


@of("kserve", "triton")
@pytest.mark.parametrize("options", [{}, {"outputs": ["FP16", "BYTES"]}])
def test_outputs_are_bytes_however_they_are_asked_for(echo, options):
    """All of them, or those that are named; each row has its own part."""
    halves = column_of(np.array([[0.1, np.nan], [-0.0, 2048]], np.float16))
    batch = pa.record_batch({"FP16": halves, "BYTES": column_of(np.array([[b"a"], ["\u4e2d".encode()]], object))})
    verdict, _ = echo.ask(batch, adapter(**options))
    assert [json.loads(one) for one in verdict.to_pylist()] == [
        {"FP16": [0.1, None], "BYTES": "a"},
        {"FP16": [-0.0, 2048.0], "BYTES": "\u4e2d"},
    ]


@of("kserve", "triton")
def test_outputs_come_in_json_where_the_job_says_so(echo):
    """Inputs are bytes all the same."""
    made = adapter(parameters={"binary_data_output": False})
    verdict, reply = echo.ask(pa.record_batch({"FP32": column_of(np.array([[0.5, 1], [2, 3]], np.float32))}), made)
    assert tensorwire.LENGTH not in reply.headers
    assert verdict.to_pylist() == ['{"FP32":[0.5,1.0]}', '{"FP32":[2.0,3.0]}']


@of("kserve", "triton")
def test_rows_of_nothing_come_back(echo):
    """Their reply has no bytes."""
    verdict, _ = echo.ask(pa.record_batch({"FP64": pa.array([[], []], pa.list_(pa.float64(), 0))}))
    assert verdict.to_pylist() == ['{"FP64":[]}'] * 2


@of("kserve")
def test_bytes_that_are_no_text_are_refused_by_kserve(echo):
    """It makes text of BYTES before the model sees them: the row is to blame, and says why."""
    fault, _ = echo.ask(pa.record_batch({"x": [b"\xff"]}))
    assert (fault.action, fault.status) == (Action.REJECT, 500)
    assert "Failed to encode" in fault.message


@of("mlserver")
@pytest.mark.parametrize(
    ("value", "status", "action", "mend"),
    [(2.0, 422, Action.STOP, "service.options.binary"), (1.1, 500, Action.REJECT, "")],
)
def test_mlserver_has_no_such_extension(echo, value, status, action, mend):
    """It takes the body for JSON: how it fails depends on whether the bytes happen to be UTF-8."""
    fault, _ = echo.ask(pa.record_batch({"x": [value]}))
    assert (fault.status, fault.action, fault.mend) == (status, action, mend)


def test_a_job_of_halves_and_bytes_is_scored_by_triton(tmp_path, model_server):
    """More rows a request than the model takes, and one that it refuses: it alone is a dead letter, all is proved."""
    rows = 200
    halves = np.random.default_rng(2).random((rows, 3)).astype(np.float16)
    halves[77, 0], halves[3, 1] = POISON, np.nan
    content = np.array([[bytes([row, 255 - row])] for row in range(rows)], object)
    put(
        tmp_path / "in" / "a.parquet",
        pa.table({"id": range(rows), "FP16": column_of(halves), "BYTES": column_of(content)}),
    )
    service = {
        "url": model_server("triton").url,
        "protocol": "open-inference",
        "options": {"model": "echo", "binary": True},
        "limits": {"rows": 2 * tritonserving.MOST},
    }
    kinds = {"FP16": "fixed_size_list<float16>[3]", "BYTES": "fixed_size_list<binary>[1]"}
    given = {"path": "in/*.parquet", "send": list(kinds), "columns": kinds, "keep": ["id"]}
    done = call("run", job_file(tmp_path, "", service=service, input=given, errors__allow=1), "-q")
    assert done.code == 0, done.err
    [letter] = letters(tmp_path / "out")
    assert (letter["source_row"], letter["kind"], letter["message"]) == (77, "rejected", NEGATIVE)
    assert letter["row"][0]["data"] == [-1.0, *(float(str(one)) for one in halves[77, 1:])]
    found = {row["id"]: json.loads(row["prediction"]) for row in results(tmp_path / "out").to_pylist()}
    assert set(found) == set(range(rows)) - {77}
    assert found[3]["FP16"][1] is None
    for row, answer in found.items():
        assert row == 3 or np.array(answer["FP16"], np.float16).tobytes() == halves[row].tobytes()
    assert found[0]["BYTES"] == "AP8="
    assert not proved(tmp_path / "out")
