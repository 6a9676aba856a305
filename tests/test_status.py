from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.status import Action, Fault, judge, words

RETRY, SLOWER, TIMEOUT, REJECT = Action.RETRY, Action.SLOWER, Action.TIMEOUT, Action.REJECT
MISFIT = Action.MISFIT
TOO_LARGE, REFRESH, STOP = Action.TOO_LARGE, Action.REFRESH, Action.STOP

GATEWAY = [
    (404, "APIG.0101", "The API does not exist or has not been published in the environment.", STOP),
    (500, "APIG.0103", "The backend does not exist.", STOP),
    (500, "APIG.0104", "The plug-ins do not exist.", STOP),
    (500, "APIG.0105", "The backend configurations do not exist.", STOP),
    (404, "APIG.0103", "The backend does not exist.", STOP),
    (400, "APIG.0104", "The plug-ins do not exist.", STOP),
    (400, "APIG.0105", "The backend configurations do not exist.", STOP),
    (400, "APIG.0106", "Orchestration error.", STOP),
    (500, "APIG.0107", "The custom lua script encountered an unexpected error", RETRY),
    (404, "APIG.0108", "The server group ID does not exist", STOP),
    (400, "APIG.0201", "API request error.", REJECT),
    (413, "APIG.0201", "Request entity too large.", TOO_LARGE),
    (414, "APIG.0201", "Request URI too large.", STOP),
    (494, "APIG.0201", "Request headers too large.", STOP),
    (502, "APIG.0201", "Backend unavailable.", RETRY),
    (504, "APIG.0201", "Backend timeout.", TIMEOUT),
    (500, "APIG.0201", "An unexpected error occurred", RETRY),
    (502, "APIG.0202", "Backend unavailable", RETRY),
    (504, "APIG.0203", "Backend timeout.", TIMEOUT),
    (400, "APIG.0204", "SSL protocol is not supported: TLSv1.1", STOP),
    (400, "APIG.0205", "Verify client certificate failed", STOP),
    *(  # whether there are others is for the way in to say: a key has none
        (401, "APIG.0301", f"Incorrect IAM authentication information: {text}", REFRESH)
        for text in (
            "decrypt token fail",
            "verify aksk signature fail",
            "AK access failed to reach the limit,forbidden",
            "Get secretKey failed,ak:xxx,err:ak not exist",
        )
    ),
    (403, "APIG.0302", "The IAM user is not authorized to access the API.", STOP),
    *(
        (401, "APIG.0303", f"Incorrect app authentication information: {text}", STOP)
        for text in (
            "app not found, appkey xxx",
            "app not found with specified appCode",
        )
    ),
    (  # a clock can be set right
        401,
        "APIG.0303",
        "Incorrect app authentication information: signature expired, signature time:x,server time:y",
        REFRESH,
    ),
    (403, "APIG.0304", "The app is not authorized to access the API.", STOP),
    (401, "APIG.0305", "Incorrect authentication information.", REFRESH),
    (403, "APIG.0306", "API access denied.", STOP),
    (401, "APIG.0307", "The token must be updated.", REFRESH),
    (429, "APIG.0308", "The throttling threshold has been reached.", SLOWER),
    (403, "APIG.0310", "The project is unavailable.", STOP),
    (401, "APIG.0311", "Incorrect debugging authentication information.", STOP),
    (401, "APIG.0312", "Incorrect third-party authentication information.", STOP),
    (401, "APIG.0313", "Incorrect identities for third-party authentication.", STOP),
    (403, "APIG.0314", "Third-party authentication denied.", STOP),
    (403, "APIG.0401", "Unknown client IP address.", STOP),
    (403, "APIG.0402", "The IP address is not authorized to access the API.", STOP),
    (403, "APIG.0404", "Access to the backend IP address has been denied.", STOP),
    (403, "APIG.0405", "The app is not accessed from a trusted IP address.", STOP),
    (405, "APIG.0501", "The app quota has been used up.", STOP),
    (405, "APIG.0502", "The app has been frozen.", STOP),
    (500, "APIG.0601", "Internal server error.", RETRY),
    (400, "APIG.0602", "Bad request.", REJECT),
    (500, "APIG.0605", "Domain name resolution failed.", RETRY),
    (500, "APIG.0606", "Failed to load the API configurations.", RETRY),
    (400, "APIG.0607", "The following protocol is supported: HTTPS", STOP),
    (500, "APIG.0608", "Failed to obtain the admin token.", RETRY),
    (500, "APIG.0609", "The VPC backend does not exist.", RETRY),
    (502, "APIG.0610", "No backend available.", RETRY),
    (500, "APIG.0611", "The backend port does not exist.", RETRY),
    (500, "APIG.0612", "An API cannot call itself.", RETRY),
    (503, "APIG.0613", "The IAM service is currently unavailable.", SLOWER),
    (500, "APIG.0615", "Incorrect third-party authentication VPC information.", RETRY),
    (500, "APIG.0616", "Incorrect third-party authentication request information.", RETRY),
    (500, "APIG.0617", "Incorrect third-party authentication response information.", RETRY),
    (500, "APIG.0705", "Backend signature calculation failed.", RETRY),
    (403, "APIG.0802", "The IAM user is forbidden in the currently selected region", STOP),
    (400, "APIG.1009", "AppKey or AppSecret is invalid", STOP),
    (401, "APIG.1009", "AppKey or AppSecret is invalid", STOP),
    *(
        (status, f"APIG.{number}", "", STOP)
        for status in (400, 401)
        for number in (*range(1001, 1005), 2102, *range(2201, 2214))
    ),
]

DISPATCHER = [
    (400, "ModelArts.0204", "Token must contain projectId info.", STOP),
    (401, "ModelArts.0201", "Token is missing.", REFRESH),
    (401, "ModelArts.0202", "Token has expired.", REFRESH),
    (401, "ModelArts.0203", "Invalid token.", REFRESH),
    (401, "ModelArts.0204", "Failed to parse the token.", REFRESH),
    *((401, f"ModelArts.{number}", "", STOP) for number in ("0205", "0206", "0207", "0208", "0209", "0210", "0212")),
    *((403, f"ModelArts.{number}", "", STOP) for number in ("0203", "0206", "0210", "4116", "4118")),
    (400, "ModelArts.4105", "Incorrect JSON format of the input data.", REJECT),
    (400, "ModelArts.4106", "The account is restricted.", STOP),
    (413, "ModelArts.4104", "The request body size exceeds the maximum.", TOO_LARGE),
    (400, "ModelArts.4200", "Invalid request.", STOP),
    (400, "ModelArts.4201", "The URL has no service ID.", STOP),
    (400, "ModelArts.4202", "Empty request.", REJECT),
    (400, "ModelArts.4203", "Invalid request because requested service x is unavailable.", STOP),
    (401, "ModelArts.4201", "Invalid token.", REFRESH),
    (401, "ModelArts.4203", "No access permission.", STOP),
    *((status, "ModelArts.4204", "API x does not exist.", STOP) for status in (400, 404, 500)),
    (408, "ModelArts.4205", "Connection timed out.", RETRY),
    (429, "ModelArts.4206", "Excessive number of requests to x.", SLOWER),
    *(
        (status, "ModelArts.4302", f"Gateway forwarding error. {text}", SLOWER)
        for status in (500, 503)
        for text in (
            "connection refused",
            "Due to self protection, the backend service is disconnected, please wait moment.",
        )
    ),
    *(
        (status, "ModelArts.4503", f"Internal error: {text} x", action)
        for status in (500, 504)
        for text, action in [
            ("backend service not found or failed to respond", RETRY),
            ("SSL error in the backend service", STOP),
            ("the response timed out", TIMEOUT),
            ("Backend service respond timeout", SLOWER),
        ]
    ),
    (500, "ModelArts.4503", "a text of tomorrow", RETRY),
    (504, "ModelArts.4503", "a text of tomorrow", TIMEOUT),
    (400, "ModelArts.4503", "The DLI queue timed out.", REJECT),
    (500, "ModelArts.4505", "Internal backend service error because reading timed out.", TIMEOUT),
    (500, "ModelArts.4301", "Failed to obtain the admin token.", RETRY),
    (500, "ModelArts.4801", "Consul failed.", RETRY),
    (503, "ModelArts.4700", "Unavailable gateway.", SLOWER),
    (404, "ModelArts.4901", "The app-auth API does not exist.", STOP),
    *((400, f"ModelArts.{number}", "", STOP) for number in (4902, 4903, 4904, 4905)),
    (429, "ModelArts.2799", "Too many requests.", SLOWER),
    (429, "ModelArts.6101", "The system is busy.", SLOWER),
    *((status, "ModelArts.8909", "Connection timed out.", TIMEOUT) for status in (400, 500, 504)),
    *((status, "ModelArts.8909", "Access failed.", RETRY) for status in (400, 500, 502)),
    *((status, "ModelArts.8910", "The protocol differs from that of the service.", STOP) for status in (400, 500)),
    (500, "ModelArts.8803", "a text that is not known", RETRY),
    (400, "ModelArts.8803", "a text that is not known", REJECT),
]

MODEL = [
    (400, "MR.0101", "The input parameter is invalid", REJECT),
    (200, "MR.0101", "The input parameter is invalid", REJECT),
    (400, "MR.0105", "Recognition failed", REJECT),
    (500, "MR.0105", "Recognition failed", REJECT),
    (200, "MR.0105", "Recognition failed", REJECT),
]

STATUSES = {
    **dict.fromkeys((403, 404, 405, 410, 411, 414, 415, 431, 494, 501), STOP),
    **dict.fromkeys((400, 409, 418, 422, 499), REJECT),
    **dict.fromkeys((408, 425, 500, 502, 507, 520, 599, 200, 201), RETRY),
    **dict.fromkeys((202, 204, 207, 299), MISFIT),
    **dict.fromkeys((429, 503), SLOWER),
    **dict.fromkeys((301, 302, 307, 308, 101), STOP),
    401: REFRESH,
    413: TOO_LARGE,
    504: TIMEOUT,
}

SHAPES = {
    "flat": lambda code, text: {"error_code": code, "error_msg": text, "request_id": "acbc54"},
    "camel": lambda code, text: {"errorCode": code, "errorMsg": text},
    "nested": lambda code, text: {"error": {"message": text, "code": code, "title": "x"}},
    "erno": lambda code, text: {"erno": code, "msg": text, "words_result": {}},
}


def body(shape, code, text):
    return json.dumps(SHAPES[shape](code, text)).encode()


ROWS = [
    *(("gateway", *row) for row in GATEWAY),
    *(("dispatcher", *row) for row in DISPATCHER),
    *(("model", *row) for row in MODEL),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("by", "status", "code", "text", "action"), ROWS)
def test_each_row_of_the_error_tables_has_its_action(by, status, code, text, action, shape):
    """The platform's tables, in each shape its bodies have: judged by status, code and, where needed, text."""
    message = text or f"HTTP {status} from an unnamed server"
    assert judge(status, {}, body(shape, code, text)) == Fault(action, status, code, message, by)


@pytest.mark.parametrize(
    ("server", "code", "by"),
    [
        ("api-gateway", "", "gateway"),
        ("ModelArts", "", "model"),
        ("ModelArts", "KeyError", "model"),
        ("ModelArts", "ModelArts.4302", "dispatcher"),
        ("ModelArts", "MR.0105", "model"),
        ("ModelArts", "APIGW.0308", "gateway"),
        ("nginx/1.27", "", None),
        ("nginx/1.27", "APIG.0308", "gateway"),
        ("", "", None),
    ],
)
def test_who_answered_is_told_by_the_code_else_by_the_server(server, code, by):
    """A platform's code is its own; `Server: ModelArts` without one means that the model itself speaks."""
    assert judge(500, {"Server": server}, body("flat", code, "no")).by == by


@pytest.mark.parametrize(
    ("status", "model", "others"),
    [
        (400, REJECT, REJECT),
        (401, REFRESH, REFRESH),
        (403, REJECT, STOP),
        (404, REJECT, STOP),
        (405, STOP, STOP),
        (413, TOO_LARGE, TOO_LARGE),
        (422, REJECT, REJECT),
        (429, SLOWER, SLOWER),
        (500, RETRY, RETRY),
        (503, SLOWER, SLOWER),
        (504, TIMEOUT, TIMEOUT),
    ],
)
def test_who_answered_decides_where_it_matters(status, model, others):
    """A model that knows no such customer says 404 of a row; a gateway that knows no such path says it of the job."""
    content = b'{"detail": "Not found"}'
    assert judge(status, {"Server": "ModelArts"}, content).action is model
    assert judge(status, {"Server": "api-gateway"}, content).action is others
    assert judge(status, {}, content).action is others
    assert judge(status, {"Server": "ModelArts"}, body("flat", "ModelArts.0000", "no")).action is others


@pytest.mark.parametrize(("status", "code", "text", "action"), GATEWAY)
def test_the_gateways_other_prefix_means_the_same(status, code, text, action):
    """`APIGW.` is `APIG.`; the message for the user keeps the service's own code."""
    other = code.replace("APIG.", "APIGW.")
    fault = judge(status, {}, body("flat", other, text))
    assert (fault.action, fault.code) == (action, other)


@pytest.mark.parametrize(("status", "action"), STATUSES.items())
@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"plain", b'{"error_code": "Tomorrow.0001"}'])
def test_a_status_decides_where_no_code_does(status, action, content):
    """Without a body, and with one that says nothing known."""
    assert judge(status, {}, content).action is action


def test_a_page_of_html_is_told_without_its_tags():
    """A proxy's page: its text in one line."""
    page = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><hr><center>nginx</center></body></html>"
    assert judge(502, {}, page) == Fault(RETRY, 502, None, "502 Bad Gateway nginx")


def test_an_answer_without_a_body_names_its_status_and_server():
    """There are no words of the service to repeat."""
    assert judge(502, {"Server": "api-gateway"}, b"").message == "HTTP 502 from api-gateway"
    assert judge(502, {}, b"{}").message == "HTTP 502 from an unnamed server"


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b'{"detail": "no such field"}', "", "no such field"),
        (b'{"detail": [{"msg": "field required"}]}', "", '{"detail": [{"msg": "field required"}]}'),
        (b'{"error": "model failed"}', "", "model failed"),
        (b'{"code": 401, "message": "no"}', "401", "no"),
        (b'{"error": true, "error_code": "", "code": "X", "msg": "y"}', "X", "y"),
        (b'{"error_msg": "two\\nlines\\t here"}', "", "two lines here"),
        (b'"just text"', "", '"just text"'),
        (b"[]", "", ""),
        (b"\xff\xfe not text", "", "\ufffd\ufffd not text"),
        (b"x" * 5000, "", "x" * 200),
        (b'{"error_msg": "' + b"x" * 5000 + b'"}', "", "x" * 500),
    ],
)
def test_the_words_of_an_answer_are_found_in_any_shape(content, code, message):
    """One line, cut to a length that a log can bear; where no shape is known, how the body begins."""
    assert words(content) == (code, message)


@given(status=st.integers(100, 599), content=st.binary())
def test_any_answer_is_a_fault(status, content):
    """Whatever bytes come with whatever status, there is an action and a line of words; nothing is raised."""
    assert_fault(judge(status, {}, content), status)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["error", "error_code", "code", "erno", "msg", "detail"]) | st.text(), inner)
    ),
    max_leaves=10,
)


@given(status=st.integers(100, 599), answer=json_values)
def test_any_json_is_a_fault(status, answer):
    """Codes and messages of any type, at any depth."""
    assert_fault(judge(status, {}, json.dumps(answer).encode()), status)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"code":' * 50_000, b'{"code":' + b"9" * 10_000 + b"}"])
def test_a_hostile_body_is_a_fault_too(content):
    """Nesting without end, and numbers without end."""
    assert_fault(judge(500, {}, content), 500)


def assert_fault(fault, status):
    assert isinstance(fault.action, Action)
    assert fault.status == status
    assert fault.message
    assert "\n" not in fault.message + (fault.code or "")
