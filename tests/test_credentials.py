"""What the sandbox's gateway says to credentials, right and wrong, in the platform's words."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
import requests
from huaweicloudsdkcore.sdk_request import SdkRequest
from huaweicloudsdkcore.signer.signer import Signer
from requests.structures import CaseInsensitiveDict

from pipeline.sandbox.credentials import (
    ACCESS_KEY,
    API_KEY,
    APP_CODE,
    APP_KEY,
    APP_SECRET,
    SECRET_KEY,
    SIGNED_BODY,
    Credentials,
)
from pipeline.sandbox.iam import Tokens
from pipeline.sandbox.replies import Refusal
from pipeline.sign import Request, sign

URL = "http://sandbox/v1/infers/iris"
BODY = b'{"data":{"req_data":[{"sepal_length":3,"sepal_width":1,"petal_length":2.2,"petal_width":4}]}}'
JSON = {"Content-Type": "application/json"}
NOW = 1_573_789_015.0
PAIRS = [(ACCESS_KEY, SECRET_KEY), (APP_KEY, APP_SECRET)]


class Clock:
    """Seconds that a test moves."""

    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gateway(clock):
    """Judge requests; a refusal comes back as its status, code and detail."""
    credentials = Credentials(Tokens(60.0), clock=clock)

    def judge(headers, body=BODY, url=URL, method="POST"):
        try:
            asyncio.run(credentials.check(Request(method, url, CaseInsensitiveDict(headers), body)))
        except Refusal as refusal:
            return f"{refusal.key} {refusal.detail}".strip()
        return "ok"

    return judge


def signed(access=ACCESS_KEY, secret=SECRET_KEY, *, at=NOW, body=BODY, **headers):
    given = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
    return {**given, **sign(Request("POST", URL, given, body), access, secret, datetime.fromtimestamp(at, UTC))}


@pytest.mark.parametrize(
    "headers",
    [
        *(signed(*pair) for pair in PAIRS),
        signed(X_Sdk_Content_Sha256=hashlib.sha256(BODY).hexdigest()),
        signed(X_Sdk_Content_Sha256="UNSIGNED-PAYLOAD", body=b"another"),
        {"X-Apig-AppCode": APP_CODE},
        {"Authorization": f"Bearer {API_KEY}"},
        {"Authorization": API_KEY},
    ],
)
def test_right_credentials_are_let_in(gateway, headers):
    """A signature of either kind of key, with the body signed, hashed or left out; a code; a key."""
    assert gateway(headers) == "ok"


FAIL = "verify aksk signature fail"


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "401 APIG.0301"),
        ({"X-Auth-Token": "MII"}, "401 APIG.0301 decrypt token fail"),
        (signed(secret="another"), f"401 APIG.0301 {FAIL}"),
        (signed(body=b"another"), f"401 APIG.0301 {FAIL}"),
        (signed(X_Sdk_Content_Sha256=hashlib.sha256(b"another").hexdigest()), f"401 APIG.0301 {FAIL}"),
        (signed() | {"Content-Type": "text/plain"}, f"401 APIG.0301 {FAIL}"),
        (signed() | {"Host": "another"}, f"401 APIG.0301 {FAIL}"),
        ({"Authorization": signed()["Authorization"]}, f"401 APIG.0301 {FAIL}"),
        ({"Authorization": "SDK-HMAC-SHA256 Signature=1"}, "401 APIG.0301 authorization header format is incorrect"),
        (signed("A" * 20), f"401 APIG.0301 Get secretKey failed,ak:{'A' * 20},err:ak not exist"),
        (signed(APP_KEY, "another"), "401 APIG.0303 verify app signature fail"),
        (signed("another-app"), "401 APIG.0303 app not found, appkey another-app"),
        ({"X-Apig-AppCode": "another"}, "401 APIG.0303 app not found with specified appCode"),
        ({"Authorization": "Bearer ключ"}, "401 APIG.0305"),
    ],
)
def test_wrong_credentials_are_refused_in_the_platforms_words(gateway, headers, words):
    """None at all too; whatever was signed must be what came."""
    assert gateway(headers) == words


def test_another_path_query_or_method_than_the_signed_one_is_refused(gateway):
    """A signature is for one request; how its path is encoded does not matter."""
    assert gateway(signed(), url="http://sandbox/v1/infers/%69ris") == "ok"
    for changed in ({"url": f"{URL}/x"}, {"url": f"{URL}?x=1"}, {"method": "GET"}):
        assert gateway(signed(), **changed) == f"401 APIG.0301 {FAIL}"


@pytest.mark.parametrize(("pair", "code"), [(PAIRS[0], "APIG.0301"), (PAIRS[1], "APIG.0303")])
def test_a_signature_counts_for_fifteen_minutes(gateway, pair, code):
    """Before and after, by the gateway's clock, which it tells."""
    for skew in (-900, 900):
        assert gateway(signed(*pair, at=NOW + skew)) == "ok"
    assert gateway(signed(*pair, at=NOW - 901)) == (
        f"401 {code} signature expired, signature time:20191115T032154Z,server time:20191115T033655Z"
    )
    assert gateway(signed(*pair, at=NOW + 901)).startswith(f"401 {code} signature expired")
    assert gateway(signed(*pair) | {"X-Sdk-Date": "today"}).startswith(f"401 {code} signature expired")


def test_more_than_five_failures_in_a_row_lock_an_access_key_for_five_minutes(gateway, clock):
    """The right key too; a success before that starts the count anew."""
    for _ in range(2):
        assert [gateway(signed(secret="x")) for _ in range(5)] == [f"401 APIG.0301 {FAIL}"] * 5
        assert gateway(signed()) == "ok"
    for _ in range(6):
        gateway(signed(secret="x"))
    clock.now += 299
    assert gateway(signed(at=clock.now)) == "401 APIG.0301 AK access failed to reach the limit,forbidden"
    assert gateway(signed(*PAIRS[1], at=clock.now)) == "ok"
    clock.now += 1
    assert gateway(signed(at=clock.now)) == "ok"


@pytest.mark.parametrize("pair", PAIRS)
def test_a_signed_body_has_its_own_limit(gateway, pair):
    """Whatever the service takes: 12 MB."""
    for size, words in ((SIGNED_BODY, "ok"), (SIGNED_BODY + 1, "413 APIG.0201")):
        body = bytes(size)
        assert gateway(signed(*pair, body=body), body) == words


def test_the_high_speed_channel_asks_nobody(sandbox):
    """The same paths below /vpc, and the same answers; elsewhere a request without credentials is refused."""
    url = sandbox()
    for path in ("/v1/infers/iris", "/v1/infers/iris/predictions/iris"):
        assert requests.post(url + path, BODY, timeout=10).status_code == 401
        reply = requests.post(f"{url}/vpc{path}", BODY, timeout=10)
        assert reply.json()["data"]["resp_data"][0]["predictresult"]
    assert requests.post(f"{url}/vpc/v1/infers/no", BODY, timeout=10).json()["error_code"] == "APIG.0101"


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("path", ["/v1/infers/iris", "/v1/infers/iris/predictions/iris?a=1&b=%2F%20&a=0"])
def test_the_platforms_own_signer_is_let_in(sandbox, pair, path):
    """The documents' way to sign: their signer makes the headers and the URL, `requests` sends them."""
    url = sandbox()
    request = SdkRequest(
        method="POST",
        schema="http",
        host=url.removeprefix("http://"),
        resource_path=path.partition("?")[0],
        query_params=[("a", "1"), ("b", "/ "), ("a", "0")] if "?" in path else [],
        header_params=dict(JSON),
        body=BODY,
    )
    Signer(SimpleNamespace(ak=pair[0], sk=pair[1])).sign(request)
    reply = requests.post(f"{url}{request.uri}", BODY, headers=request.header_params, timeout=10)
    assert reply.status_code == 200, reply.text


def test_the_documents_way_with_an_app_code(sandbox):
    """One header, nothing signed."""
    headers = {"X-Apig-AppCode": APP_CODE}
    body = {"data": {"req_data": [dict.fromkeys(("sepal_length", "sepal_width", "petal_length", "petal_width"), 1.5)]}}
    reply = requests.post(f"{sandbox()}/v1/infers/iris", headers=headers, json=body, timeout=10)
    assert reply.status_code == 200, reply.text
