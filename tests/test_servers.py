from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.converse import of_content, refusal
from pipeline.servers import finite, judged
from pipeline.status import Action

DETAIL = {"detail": [{"type": "missing", "loc": ["body", "messages"], "msg": "Field required"}]}
TORCH = {"code": 503, "type": "InternalServerException", "message": "Prediction failed"}


def traceback(last):
    """Return a body as a server gives it that is debugged."""
    frame = '  File "/a/b.py", line 1, in f\n    raise ValueError("no")\n    ^^^^^^\n'
    return f"Traceback (most recent call last):\n{frame}{frame}{last}\n".encode()


TRACE = 'Traceback (most recent call last):\n  File "m.py", line 1\n    f(x)\n    ^^^^\nValueError: x\ny\n'
MLFLOW_TRACE = {
    "error_code": "BAD_REQUEST",
    "message": "Encountered an unexpected error. Verify that",
    "stack_trace": TRACE,
}
ENFORCED = (
    "Failed to predict data '   a\n0  Error: 1'. \nError: Failed to enforce schema of data 'a' with schema 's'. Error: "
)
MLFLOW_MISSING = {"error_code": "INVALID_PARAMETER_VALUE", "message": f"{ENFORCED}Model is missing inputs ['x']."}
MLFLOW_SAID = {**MLFLOW_MISSING, "message": f"{ENFORCED}Incompatible input types for column x."}
FLAGGED = "Your chosen model requires moderation and your input was flagged"
ERRORS = [
    # protocol, status, body, what it means, code, message
    ("kserve", 404, {"error": "Model with name nope does not exist."}, "STOP", None, "Model with name nope"),
    ("kserve", 400, {"error": 'Expected "instances" to be a list'}, "REJECT", None, "Expected"),
    ("kserve", 500, {"error": "KeyError : 'instances'"}, "REJECT", None, "KeyError : 'instances'"),
    ("kserve", 500, {"error": "ValueError : X has 3 features"}, "REJECT", None, "ValueError : X has 3"),
    ("kserve", 500, {"error": "UFuncTypeError : ufunc 'matmul' did not"}, "REJECT", None, "UFuncTypeError : ufunc"),
    ("kserve", 500, {"error": "OverflowError : Python integer 300 out"}, "REJECT", None, "OverflowError"),
    ("open-inference", 400, {"error": "Model iris is not ready yet."}, "SLOWER", None, "Model iris is not ready"),
    ("open-inference", 400, {"error": "Model m with version v is not ready yet."}, "SLOWER", None, "Model m"),
    ("open-inference", 500, traceback("ValueError: a\n  b"), "REJECT", None, "ValueError: a b"),
    ("open-inference", 500, traceback("numpy.exceptions.AxisError: axis 1"), "RETRY", None, "numpy.exceptions.AxisErr"),
    ("open-inference", 500, traceback("np._UFuncTypeError: no"), "REJECT", None, "np._UFuncTypeError: no"),
    ("open-inference", 500, b"Traceback (most recent call last):", "RETRY", None, "Traceback"),
    ("open-inference", 500, b"Internal Server Error", "RETRY", None, "Internal Server Error"),
    (
        "open-inference",
        500,
        {"error": "Failed to encode \"b'\\xff'\" using UTF-8. Please"},
        "REJECT",
        None,
        "Failed to",
    ),
    (
        "open-inference",
        422,
        {"detail": [{"loc": ["body"], "msg": "Input should be a valid dictionary or object to extract fields from"}]},
        "STOP",
        None,
        "body: Input should be a valid dictionary",
    ),
    ("kserve", 500, {"error": "RuntimeError : out of memory"}, "RETRY", None, "RuntimeError"),
    ("kserve", 500, {"error": "RuntimeError : CUDA error: device-side assert"}, "RETRY", None, "RuntimeError"),
    ("kserve", 500, {"error": "RuntimeError : can't start new thread"}, "RETRY", None, "RuntimeError"),
    ("kserve", 500, {"error": "RuntimeError : Event loop is closed"}, "RETRY", None, "RuntimeError"),
    ("kserve", 500, {"error": "OutOfMemoryError : CUDA out of memory"}, "RETRY", None, "OutOfMemoryError"),
    ("kserve", 500, {"error": "RuntimeError : mat1 and mat2 shapes cannot be"}, "REJECT", None, "RuntimeError"),
    ("kserve", 500, {"error": "ZeroDivisionError : division by zero"}, "REJECT", None, "ZeroDivisionError"),
    ("kserve", 500, {"error": "FloatingPointError : invalid value"}, "REJECT", None, "FloatingPointError"),
    ("kserve", 500, {"error": "ArithmeticError : no"}, "REJECT", None, "ArithmeticError"),
    ("kserve", 500, {"error": "AssertionError : "}, "REJECT", None, "AssertionError"),
    ("open-inference", 500, traceback("AssertionError"), "REJECT", None, "AssertionError"),
    ("kserve", 500, {"error": "AttributeError : 'NoneType' object has no"}, "REJECT", None, "AttributeError"),
    ("kserve", 500, {"error": "UnicodeDecodeError : 'utf-8' codec"}, "REJECT", None, "UnicodeDecodeError"),
    ("kserve", 500, {"error": "UnicodeEncodeError : 'utf-8' codec"}, "REJECT", None, "UnicodeEncodeError"),
    ("open-inference", 500, traceback("a.b.ValidationError: 1 error"), "REJECT", None, "a.b.ValidationError"),
    ("kserve", 500, {"error": "ConnectionError : no"}, "RETRY", None, "ConnectionError"),
    ("kserve", 402, b"", "STOP", None, "HTTP 402"),
    ("kserve", 407, b"<h1>Proxy Authentication Required</h1>", "STOP", None, "Proxy"),
    ("kserve", 503, {"error": "Model with name iris is not ready."}, "SLOWER", None, "Model with name"),
    ("kserve", 405, {"detail": "Method Not Allowed"}, "STOP", None, "Method Not Allowed"),
    ("kserve", 422, DETAIL, "REJECT", None, "body.messages: Field required"),
    ("tensorflow", 400, {"error": "JSON Parse error: The document is empty"}, "REJECT", None, "JSON Parse"),
    ("tensorflow", 400, {"error": 'JSON object: {"a": 1} keys must be equal to: a,b'}, "STOP", None, "JSON object"),
    ("tensorflow", 400, {"error": 'JSON object: {"a": "keys must be equal to: a"}'}, "REJECT", None, "JSON object"),
    ("tensorflow", 404, {"error": "Servable not found for request: Latest(half)"}, "STOP", None, "Servable"),
    ("tensorflow", 409, {"error": "aborted"}, "RETRY", None, "aborted"),
    ("tensorflow", 429, {"error": "queue is full"}, "SLOWER", None, "queue is full"),
    ("tensorflow", 499, {"error": "cancelled"}, "RETRY", None, "cancelled"),
    ("tensorflow", 501, {"error": "unimplemented"}, "STOP", None, "unimplemented"),
    ("tensorflow", 503, {"error": "unavailable"}, "SLOWER", None, "unavailable"),
    ("tensorflow", 504, {"error": "deadline exceeded"}, "TIMEOUT", None, "deadline"),
    ("torchserve", 400, {**TORCH, "code": 400, "type": "InvalidKeyException"}, "REFRESH", "InvalidKeyException", ""),
    ("torchserve", 503, TORCH, "RETRY", "InternalServerException", "Prediction failed"),
    (
        "torchserve",
        500,
        {**TORCH, "code": 500, "message": "Worker died."},
        "RETRY",
        "InternalServerException",
        "Worker",
    ),
    ("torchserve", 503, {**TORCH, "type": "ServiceUnavailableException"}, "SLOWER", "ServiceUnavailableException", ""),
    ("torchserve", 404, {**TORCH, "code": 404, "type": "ModelNotFoundException"}, "STOP", "ModelNotFoundException", ""),
    ("mlflow", 400, {"error_code": "BAD_REQUEST", "message": "m"}, "REJECT", "BAD_REQUEST", "m"),
    ("mlflow", 400, MLFLOW_TRACE, "REJECT", "BAD_REQUEST", "ValueError: x y (Encountered an unexpected error)"),
    ("mlflow", 400, MLFLOW_MISSING, "STOP", "INVALID_PARAMETER_VALUE", "Model is missing inputs ['x']."),
    ("mlflow", 400, MLFLOW_SAID, "REJECT", "INVALID_PARAMETER_VALUE", "Incompatible input types for column x."),
    ("mlflow", 504, b"Request processing time exceeded limit", "TIMEOUT", None, "Request processing time"),
    ("mlflow", 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "m"}, "REJECT", "INVALID_PARAMETER_VALUE", ""),
    ("mlflow", 415, b"Unsupported content type", "STOP", None, "Unsupported content type"),
    ("mlflow", 500, b"Internal Server Error", "RETRY", None, "Internal Server Error"),
    ("openai", 400, {"error": {"message": "m", "code": "context_length_exceeded"}}, "REJECT", None, "m"),
    ("openai", 401, {"error": {"message": "m", "code": "invalid_api_key"}}, "REFRESH", "invalid_api_key", "m"),
    ("openai", 403, {"error": {"message": "m", "type": "permission"}}, "STOP", "permission", "m"),
    ("openai", 402, {"error": {"message": "Insufficient Balance", "code": "x"}}, "STOP", "x", "Insufficient Balance"),
    ("openai", 402, {"error": {"message": "Insufficient credits", "code": 402}}, "STOP", None, "Insufficient credits"),
    ("openai", 403, {"error": {"message": FLAGGED, "code": 403}}, "REJECT", None, FLAGGED),
    ("openai", 403, {"error": {"message": "m", "code": "content_policy_violation"}}, "REJECT", None, "m"),
    ("openai", 403, {"error": {"message": "Your account was flagged."}}, "STOP", None, "Your account"),
    ("openai", 403, {"error": {"message": "Key disabled"}}, "STOP", None, "Key disabled"),
    ("kserve", 403, {"error": "flagged"}, "STOP", None, "flagged"),
    ("openai", 404, {"error": {"message": "m", "code": "model_not_found"}}, "STOP", "model_not_found", "m"),
    ("openai", 429, {"error": {"message": "m", "code": "rate_limit_exceeded"}}, "SLOWER", "rate_limit_exceeded", "m"),
    ("openai", 429, {"error": {"message": "m", "code": "insufficient_quota"}}, "STOP", "insufficient_quota", "m"),
    ("openai", 429, {"error": {"message": "m", "type": "insufficient_quota", "code": None}}, "STOP", None, "m"),
    ("openai", 500, {"detail": "Internal server error"}, "RETRY", None, "Internal server error"),
    ("openai", 503, {"error": {"message": "overloaded", "type": "server_error"}}, "SLOWER", "server_error", ""),
    ("openai", 418, {"error": {"message": "m"}}, "REJECT", None, "m"),
]


@pytest.mark.parametrize(("protocol", "status", "said", "action", "code", "message"), ERRORS)
def test_an_error_means_what_the_table_says(protocol, status, said, action, code, message):
    """In each of the servers' shapes, with their own words."""
    fault = judged(protocol, status, {}, said if isinstance(said, bytes) else json.dumps(said).encode())
    assert (fault.action, fault.status) == (Action[action], status)
    assert message in fault.message
    assert code is None or fault.code == code


MODEL = "service.url or service.options.model"
VERSION = "service.url, or model or version in service.options"
INPUTS = "input.send or input.rename"
CREDIT = "the account's credit or service.auth"


@pytest.mark.parametrize(
    ("protocol", "status", "said", "mend"),
    [
        ("openai", 404, {"error": {"message": "m", "code": "model_not_found"}}, MODEL),
        ("kserve", 404, {"error": "no"}, MODEL),
        ("open-inference", 404, {"error": "no"}, VERSION),
        ("tensorflow", 404, {"error": "no"}, VERSION),
        ("torchserve", 404, {**TORCH, "code": 404, "type": "ModelNotFoundException"}, VERSION),
        ("mlflow", 404, {"error": "no"}, "service.url"),
        ("mlflow", 400, MLFLOW_MISSING, INPUTS),
        ("tensorflow", 400, {"error": 'JSON object: {"a": 1} keys must be equal to: a,b'}, INPUTS),
        ("openai", 402, {}, CREDIT),
        ("openai", 429, {"error": {"message": "m", "code": "insufficient_quota"}}, CREDIT),
        ("openai", 407, {}, "the proxy that the environment names"),
        ("openai", 403, {}, "service.url or service.auth"),
    ],
)
def test_what_ends_a_job_says_what_mends_it(protocol, status, said, mend):
    """By the keys that are to blame, which are not always those of the address."""
    fault = judged(protocol, status, {}, json.dumps(said).encode())
    assert fault.action is Action.STOP
    assert refusal(fault, "http://host").endswith(f"(http://host); mend {mend} and run it again")


@pytest.mark.parametrize(
    ("protocol", "status", "said"), [("kserve", 500, {"error": "x"}), ("torchserve", 503, TORCH), ("mlflow", 500, b"x")]
)
def test_a_crash_may_be_the_rows_fault(protocol, status, said):
    """So it is bounded, and the rows are found by halving."""
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    assert of_content(judged(protocol, status, {}, body))


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (503, {}, {"error": "busy"}),
        (502, {}, {"message": "An invalid response was received from the upstream server"}),
        (504, {}, {"message": "The upstream server is timing out"}),
        (500, {"Server": "api-gateway"}, {"error_code": "APIG.0202", "error_msg": "no"}),
        (500, {}, {"error_code": "ModelArts.4503", "error_msg": "failed to respond"}),
    ],
)
def test_what_stands_before_the_server_is_no_rows_fault(status, headers, body):
    """Gateways say so by their codes, or by their status."""
    assert not of_content(judged("kserve", status, headers, json.dumps(body).encode()))


def test_a_platforms_word_stands():
    """A server that runs behind ModelArts is answered for by its gateway."""
    fault = judged("kserve", 429, {}, b'{"error_code":"APIG.0308","error_msg":"The throttling threshold is reached"}')
    assert (fault.action, fault.code, fault.by) == (Action.SLOWER, "APIG.0308", "gateway")


@pytest.mark.parametrize("headers", [{}, {"Server": "ModelArts"}])
def test_no_model_is_no_rows_fault(headers):
    """It stops the job, also where the platform passes the container's own 404 on."""
    fault = judged("kserve", 404, headers, b'{"error":"Model with name nope does not exist."}')
    assert fault.action is Action.STOP


@given(st.sampled_from(["kserve", "tensorflow", "mlflow", "torchserve", "openai"]), st.integers(100, 599), st.binary())
def test_no_error_raises(protocol, status, body):
    """Any bytes with any status are a fault."""
    assert judged(protocol, status, {}, body).status == status


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (b'{"predictions":[NaN,Infinity,-Infinity,1.5]}', {"predictions": [None, None, None, 1.5]}),
        (b'{"predictions":["NaN"]}', {"predictions": ["NaN"]}),
        (b'{"predictions":[1.0]}', {"predictions": [1.0]}),
    ],
)
def test_what_json_does_not_have_is_null(body, read):
    """Some servers write NaN and infinities, and mean numbers."""
    assert json.loads(finite(body)) == read


def test_what_is_beside_it_stays_as_it_is():
    """Digits, spaces and texts, whatever is in them; of a NaN in one row no other row learns."""
    body = rb'{"predictions": [1.50, 12345678901234567890123, NaN, "\"NaN, \\", -Infinity , {"NaN":"Infinity"}]}'
    read = rb'{"predictions": [1.50, 12345678901234567890123, null, "\"NaN, \\", null , {"NaN":"Infinity"}]}'
    assert finite(body) == read


@given(st.binary() | st.text(alphabet='"\\NaIinfty-[,:').map(str.encode))
def test_what_cannot_be_read_cannot_be_read_afterwards(some):
    """Its reader says what is wrong with it."""
    finite(b"NaN" + some)


@given(
    st.recursive(
        st.floats() | st.integers() | st.text(alphabet='"\\NaInfity-[,:') | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["NaN", '"', "-Infinity"]), inner),
    )
)
def test_no_text_is_taken_for_a_number(value):
    """Whatever stands in it."""
    body = json.dumps([value, float("nan")])
    assert json.loads(finite(body.encode())) == json.loads(body, parse_constant=lambda _: None)


def test_a_reply_that_was_cut_is_looked_at_once():
    """A text without an end is not looked for from each quote in it."""
    body = b'["' + rb"NaN \"" * 200_000
    assert finite(body) == body
