"""The sandbox service, seen from outside: by the documents' own calls, by HTTP clients, and by bare sockets."""

from __future__ import annotations

import base64
import http.client
import importlib.util
import ipaddress
import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from keystoneauth1.exceptions import Unauthorized
from keystoneauth1.identity.v3 import Password
from keystoneauth1.session import Session

from pipeline.errors import JobError
from pipeline.sandbox.credentials import TOLD
from pipeline.sandbox.faults import OK, Fault, RowKey, read_rules
from pipeline.sandbox.iam import PROJECT_ID, REMEMBERED, Tokens
from pipeline.sandbox.infer import FOREIGN
from pipeline.sandbox.iris import FEATURES, LABELS, MODEL, Row, peek, predict
from pipeline.sandbox.limits import Bucket
from pipeline.sandbox.replies import MESSAGES, Refusal
from pipeline.sandbox.schedule import TOKEN_SERVES, Schedule
from pipeline.sandbox.server import Options, running, serve

ROOT = Path(__file__).resolve().parent.parent
FLOWER = {"sepal_length": 3, "sepal_width": 1, "petal_length": 2.2, "petal_width": 4}
CREDENTIALS = {"name": "demo", "password": "demo", "domain": {"name": "demo"}}


def auth(user=CREDENTIALS, scope=None):
    """Return the documented body of a token request."""
    identity = {"methods": ["password"], "password": {"user": user}}
    return {"auth": {"identity": identity, "scope": {"project": {"name": "demo"}} if scope is None else scope}}


def token_of(url, **request):
    """Buy a token."""
    return requests.post(f"{url}/v3/auth/tokens", json=auth(**request), timeout=10).headers["X-Subject-Token"]


def envelope(rows, uuid=None):
    """Return the documented body of an inference request."""
    return ({"meta": {"uuid": uuid}} if uuid else {}) | {"data": {"req_data": rows}}


def infer(url, rows=(FLOWER,), *, uuid=None, token=None, body=None, path="iris", headers=None):
    """Send one inference request with a good token, unless another is given."""
    headers = {"X-Auth-Token": token_of(url) if token is None else token, **(headers or {})}
    content = json.dumps(envelope(list(rows), uuid)) if body is None else body
    return requests.post(f"{url}/v1/infers/{path}", data=content, headers=headers, timeout=30)


def statuses(url, times, **request):
    """Return the statuses of several requests, sent one after the other."""
    token = token_of(url)
    return [infer(url, token=token, **request).status_code for _ in range(times)]


def stats(url, query=""):
    """Read the counters."""
    return requests.get(f"{url}/stats{query}", timeout=10).json()


def wait_until_all_left(url):
    """Wait until no request is in flight, and read the counters."""
    deadline = time.monotonic() + 30
    while stats(url)["in_flight"]:
        assert time.monotonic() < deadline
    return stats(url)


def bare_request(url, *, body=None, length=None):
    """Open a socket and send one inference request by hand."""
    content = json.dumps(envelope([FLOWER])).encode() if body is None else body
    head = (
        f"POST /v1/infers/iris HTTP/1.1\r\nHost: sandbox\r\nX-Auth-Token: {token_of(url)}\r\n"
        f"Content-Length: {len(content) if length is None else length}\r\n\r\n"
    )
    connection = socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=10)
    connection.sendall(head.encode() + content)
    return connection


def read_until(connection, end):
    """Receive all bytes up to and with `end`."""
    received = b""
    while not received.endswith(end):
        byte = connection.recv(1)
        assert byte, received
        received += byte
    return received


def test_a_password_buys_a_token_in_the_documented_form(sandbox):
    """201, the token in the header, the times in UTC with six digits, and what Keystone's readers expect."""
    url = sandbox(token_seconds=60.0)
    reply = requests.post(f"{url}/v3/auth/tokens", json=auth(), timeout=10)
    token = reply.json()["token"]
    form = "%Y-%m-%dT%H:%M:%S.%fZ"
    issued, expires = (datetime.strptime(token[key], form).replace(tzinfo=UTC) for key in ("issued_at", "expires_at"))
    assert reply.status_code == 201
    assert len(reply.headers["X-Subject-Token"]) > 1000
    assert expires - issued == timedelta(seconds=60)
    assert abs(datetime.now(UTC) - issued) < timedelta(seconds=30)
    assert (token["methods"], token["catalog"], token["roles"]) == (["password"], [], [])
    assert token["project"] == {"id": PROJECT_ID, "name": "demo", "domain": token["user"]["domain"]}


@pytest.mark.parametrize(
    "scope",
    [
        {"project": {"id": PROJECT_ID}},
        {"project": {"name": "demo", "domain": {"name": "demo"}}},
        {"project": {"name": "demo"}, "domain": {"name": "demo"}},
    ],
)
def test_a_project_can_be_named_in_each_documented_way(sandbox, scope):
    """By id, by name in a domain, and beside a domain, which it overrules."""
    url = sandbox()
    assert infer(url, token=token_of(url, scope=scope)).status_code == 200


def test_the_catalog_can_be_left_out(sandbox):
    """Any `nocatalog` drops it."""
    reply = requests.post(f"{sandbox()}/v3/auth/tokens?nocatalog=true", json=auth(), timeout=10)
    assert "catalog" not in reply.json()["token"]


@pytest.mark.parametrize(
    ("user", "scope"),
    [
        (CREDENTIALS | {"password": "wrong"}, None),
        (CREDENTIALS | {"name": "nobody"}, None),
        (CREDENTIALS | {"domain": {"name": "elsewhere"}}, None),
        (CREDENTIALS, {"project": {"name": "elsewhere"}}),
        (CREDENTIALS, {"domain": {"name": "elsewhere"}}),
    ],
)
def test_wrong_credentials_get_the_documented_401(sandbox, user, scope):
    """Whatever is wrong, the answer is the same."""
    url = sandbox()
    reply = requests.post(f"{url}/v3/auth/tokens", json=auth(user, scope), timeout=10)
    assert reply.status_code == 401
    assert reply.json() == {"error": {"message": "Unauthorized.", "code": 401, "title": "Unauthorized"}}
    assert "X-Subject-Token" not in reply.headers
    assert stats(url)["tokens_issued"] == 0


def test_other_ways_to_identify_oneself_are_401(sandbox):
    """A password is the only method."""
    body = auth()
    body["auth"]["identity"]["methods"] = ["token"]
    assert requests.post(f"{sandbox()}/v3/auth/tokens", json=body, timeout=10).status_code == 401


@pytest.mark.parametrize("body", ["", "{", "{}", '{"auth": {"identity": {"methods": ["password"]}}}', "[" * 100_000])
def test_a_malformed_token_request_is_400(sandbox, body):
    """Not JSON, or not the documented form."""
    reply = requests.post(f"{sandbox()}/v3/auth/tokens", data=body, timeout=10)
    assert (reply.status_code, reply.json()["error"]["title"]) == (400, "Bad Request")


def test_keystoneauth_gets_a_token_that_works(sandbox):
    """The field's own client reads the reply, and refuses a wrong password as Keystone's."""
    url = sandbox()
    person = {"auth_url": f"{url}/v3", "username": "demo", "user_domain_name": "demo"}
    scope = {"project_name": "demo", "project_domain_name": "demo"}
    session = Session()
    plugin = Password(**person, **scope, password="demo")
    assert infer(url, token=plugin.get_token(session)).status_code == 200
    assert not plugin.get_access(session).will_expire_soon(3600)
    with pytest.raises(Unauthorized):
        Password(**person, **scope, password="wrong").get_token(session)
    session.session.close()


def test_each_kind_of_bad_token_is_refused_in_its_own_words(sandbox):
    """Missing, made up, without a project, expired."""
    url, dead = sandbox(), sandbox(token_seconds=0.0)
    replies = {
        "missing": infer(url, token=""),
        "made up": infer(url, token="MIIgarbage"),
        "unscoped": infer(url, token=token_of(url, scope={})),
        "of the domain": infer(url, token=token_of(url, scope={"domain": {"name": "demo"}})),
        "expired": infer(dead),
    }
    iam = "Incorrect IAM authentication information"
    scope = (400, "ModelArts.0204", "Token must contain projectId info.")
    assert {name: (r.status_code, r.json()["error_code"], r.json()["error_msg"]) for name, r in replies.items()} == {
        "missing": (401, "APIG.0301", iam),
        "made up": (401, "APIG.0301", f"{iam}: decrypt token fail"),
        "unscoped": scope,
        "of the domain": scope,
        "expired": (401, "APIG.0307", "The token must be updated"),
    }


def test_a_token_lives_as_long_as_told_and_a_new_one_does_not_end_it():
    """To the second of an injected clock."""
    now = [0.0]
    tokens = Tokens(10.0, lambda: now[0])
    first = tokens.issue(project=True)
    now[0] = 9.9
    second = tokens.issue(project=True)
    tokens.check(first)
    now[0] = 10.0
    tokens.check(second)
    with pytest.raises(Refusal, match="0307"):
        tokens.check(first)


def test_the_oldest_of_many_tokens_is_forgotten():
    """So that a sandbox can run for months; then it is as good as made up."""
    tokens = Tokens(10.0)
    first, second = tokens.issue(project=True), tokens.issue(project=True)
    for _ in range(REMEMBERED - 1):
        tokens.issue(project=True)
    tokens.check(second)
    with pytest.raises(Refusal, match="0301"):
        tokens.check(first)


def test_the_model_knows_its_flowers(sandbox):
    """At least 146 of the 150 real rows, all in one request; extra fields do not matter."""
    url = sandbox()
    rows = pq.read_table(ROOT / "jobs/data/iris.parquet").to_pylist()
    answers = infer(url, rows).json()["data"]["resp_data"]
    right = sum(row["species"] == answer["predictresult"] for row, answer in zip(rows, answers, strict=True))
    assert right >= 146
    assert all(1 / 3 < answer["score"] <= 1 for answer in answers)


@given(st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 4), max_size=50))
def test_an_answer_does_not_depend_on_its_neighbours(rows):
    """One by one or all at once: the same to the last bit, for any numbers at all."""
    flowers = [Row(*row) for row in rows]
    assert predict(flowers) == [predict([flower])[0] for flower in flowers]


def test_the_shipped_files_are_what_training_makes():
    """Training again finds the shipped coefficients and the shipped table."""
    spec = importlib.util.spec_from_file_location("train_iris", ROOT / "jobs/train_iris.py")
    training = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(training)
    made = training.train()
    assert (made["labels"], made["features"]) == (LABELS, FEATURES)
    for made_row, row in zip(made["coefficients"], MODEL["coefficients"], strict=True):
        assert made_row == pytest.approx(row, abs=2e-6)
    assert made["intercepts"] == pytest.approx(MODEL["intercepts"], abs=2e-6)
    assert pq.read_table(ROOT / "jobs/data/iris.parquet").equals(training.iris_table())


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_documents_curl_call_works(sandbox):
    """Only host, token and path are ours; there is no `meta`, so the uuid is blank."""
    url = sandbox()
    row = '{"sepal_length":3,"sepal_width":1,"petal_length":2.2,"petal_width":4}'
    command = shlex.split(
        f"""curl -kv -d '{{"data":{{"req_data":[{row}]}}}}' -H 'X-Auth-Token:{token_of(url)}'"""
        f""" -H 'Content-type: application/json' -X POST {url}/v1/infers/iris"""
    )
    reply = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)
    assert reply["meta"] == {"uuid": ""}
    assert [answer["predictresult"] for answer in reply["data"]["resp_data"]] == ["virginica"]


def test_the_documents_python_call_works(sandbox):
    """Text input with no Content-Type at all, to the path that the model defines."""
    url = sandbox()
    body = {"meta": {"uuid": "10eb0091-887f-4839-9929-cbc884f1e20e"}, "data": {"req_data": [FLOWER]}}
    resp = requests.request(
        "POST",
        f"{url}/v1/infers/iris/predictions/iris",
        data=json.dumps(body),
        headers={"X-Auth-Token": token_of(url)},
        verify=False,
        timeout=10,
    )
    assert resp.status_code == 200
    assert resp.json()["meta"] == {"uuid": "10eb0091-887f-4839-9929-cbc884f1e20e"}
    assert [answer["predictresult"] for answer in resp.json()["data"]["resp_data"]] == ["virginica"]


def test_an_xgboost_type_model_has_no_wrapper(sandbox):
    """`req_data` and `resp_data` at the top; the other form is refused."""
    url = sandbox()
    bare = infer(url, path="iris-xgb", body=json.dumps({"req_data": [FLOWER, FLOWER]}))
    assert [answer["predictresult"] for answer in bare.json()["resp_data"]] == ["virginica", "virginica"]
    assert infer(url, path="iris-xgb").json()["erno"] == "MR.0105"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (json.dumps(envelope([FLOWER, {"sepal_length": 1}])), 400, "MR.0105"),
        (json.dumps(envelope([FLOWER, FLOWER | {"petal_width": None}])), 400, "MR.0105"),
        (json.dumps(envelope([FLOWER | {"petal_width": "4"}])), 500, "MR.0105"),
        (json.dumps(envelope([FLOWER | {"petal_width": True}])), 500, "MR.0105"),
        (json.dumps(envelope([3])), 400, "MR.0105"),
        ('{"data": {}}', 400, "MR.0105"),
        ("{}", 400, "MR.0101"),
        ("", 400, "ModelArts.4105"),
        ('{"data": {"req_data": [{"sepal_length": NaN}]}}', 400, "ModelArts.4105"),
        ('{"data": {"req_data": [{"sepal_length": null}]', 400, "ModelArts.4105"),
        (b'{"data": "\xff"}', 400, "ModelArts.4105"),
    ],
)
def test_content_that_the_model_cannot_take_is_refused_as_a_whole(sandbox, body, status, code):
    """By the layer that trips over it: the dispatcher over JSON, the model's code over a row."""
    reply = infer(sandbox(), body=body)
    found = reply.json()
    assert (reply.status_code, found.get("erno", found.get("error_code"))) == (status, code)
    assert reply.headers["Server"] == "ModelArts"
    if code == "MR.0105":
        assert found == {"erno": "MR.0105", "msg": "Recognition failed", "words_result": {}}


def test_unknown_paths_and_methods_are_refused(sandbox):
    """404 from the gateway; 405 where another method would do."""
    url = sandbox()
    unknown = infer(url, path="nothing")
    assert (unknown.status_code, unknown.json()["error_code"]) == (404, "APIG.0101")
    assert requests.get(f"{url}/v1/infers/iris", timeout=10).status_code == 405
    assert requests.put(f"{url}/v3/auth/tokens", timeout=10).status_code == 405
    assert requests.get(f"{url}/healthz", timeout=10).json() == {"status": "ok"}


def test_iam_tells_whose_a_token_is(sandbox):
    """To whoever has a token: the project's, the domain's, and 404 for one that is not good."""
    url = sandbox()
    ours, domains = token_of(url), token_of(url, scope={"domain": {"name": "demo"}})

    def told(asking, about):
        headers = {"X-Auth-Token": asking, "X-Subject-Token": about}
        return requests.get(f"{url}/v3/auth/tokens", headers=headers, timeout=10)

    assert told(ours, ours).json()["token"]["project"]["name"] == "demo"
    assert "project" not in told(ours, domains).json()["token"]
    assert [told(ours, "MIIgarbage").status_code, told("MIIgarbage", ours).status_code] == [404, 401]


def test_every_answer_says_who_gave_it_and_how_to_find_it(sandbox):
    """`X-Request-Id` always and never twice; `Server` tells the gateway from what is behind it."""
    url = sandbox()
    good, refused = infer(url), infer(url, token="MIIgarbage")
    issued = requests.post(f"{url}/v3/auth/tokens", json=auth(), timeout=10)
    replies = [good, refused, issued, infer(url, path="nothing"), requests.get(f"{url}/v1/infers/iris", timeout=10)]
    assert len({reply.headers["X-Request-Id"] for reply in replies}) == len(replies)
    assert refused.json()["request_id"] == refused.headers["X-Request-Id"]
    assert [good.headers["Server"], refused.headers["Server"]] == ["ModelArts", "api-gateway"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "status"), [(12_000_000, 200), (12_000_001, 413), (30_000_000, 413)])
def test_a_body_of_exactly_the_limit_is_the_largest(sandbox, size, status, chunked):
    """To the byte, announced or not; a client that sends all before it reads gets its answer."""
    url = sandbox()
    frame = len(json.dumps(envelope([FLOWER | {"pad": ""}])))
    body = json.dumps(envelope([FLOWER | {"pad": "x" * (size - frame)}])).encode()
    reply = infer(url, body=(body[at : at + 65536] for at in range(0, size, 65536)) if chunked else body)
    assert (len(body), reply.status_code) == (size, status)
    if status == 413:
        assert reply.json()["error_code"] == "APIG.0201"
        assert reply.json()["error_msg"] == "Request entity too large"
    assert stats(url)["bodies_over_limit"] == (status == 413)
    assert (stats(url)["max_body"] > 12_000_000) == (status == 413)


def test_a_request_over_the_time_limit_is_cut_with_its_time_in_the_queue(sandbox):
    """One slot: the first is answered, the second has waited too long."""
    url = sandbox(slots=1, latency=0.4, timeout=0.6)
    token = token_of(url)
    with ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(lambda _: infer(url, token=token), range(2)))
    cut = next(reply for reply in replies if reply.status_code == 504)
    assert sorted(reply.status_code for reply in replies) == [200, 504]
    assert (cut.json()["error_code"], cut.json()["error_msg"]) == ("APIG.0201", "Backend timeout")


def test_slots_bound_what_runs_at_once_and_the_rest_queues(sandbox):
    """Six requests of 0.1 s, a row's share included, in two slots take 0.3 s, and all of them are in flight."""
    url = sandbox(slots=2, latency=0.05, row_latency=0.05)
    token = token_of(url)
    started = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        found = [reply.status_code for reply in pool.map(lambda _: infer(url, token=token), range(6))]
    assert time.monotonic() - started >= 0.3
    assert found == [200] * 6
    assert stats(url)["peak_in_flight"] > 2


def test_a_rate_that_is_exceeded_is_answered_with_429(sandbox):
    """One request in a hundred seconds: the second is too early."""
    url = sandbox(rate=0.01)
    assert statuses(url, 1) == [200]
    reply = infer(url)
    assert (reply.status_code, reply.json()["error_code"]) == (429, "APIG.0308")


def test_a_rate_is_a_bucket_of_one_second():
    """As many at once as a second holds, then one per interval, and no more than that after a pause."""
    now = [0.0]
    bucket = Bucket(4.0, lambda: now[0])
    assert [bucket.take() for _ in range(5)] == [True] * 4 + [False]
    now[0] = 0.25
    assert [bucket.take() for _ in range(2)] == [True, False]
    now[0] = 1000.0
    assert [bucket.take() for _ in range(5)] == [True] * 4 + [False]


@pytest.mark.parametrize("key", MESSAGES)
def test_every_refusal_can_be_scheduled(sandbox, key):
    """By status and code; the body is of the family that the code belongs to."""
    url = sandbox(faults={1: key})
    status, code = key.split()
    reply = infer(url)
    found = reply.json()
    assert reply.status_code == int(status)
    assert found.get("erno", found.get("error_code")) == code
    assert reply.headers["Server"] == ("api-gateway" if code.startswith("APIG") else "ModelArts")
    assert infer(url).status_code == 200


def test_a_status_can_come_with_retry_after(sandbox):
    """`429 after 2s` names the seconds in the header; a bare status has none."""
    url = sandbox(faults={1: "429 after 2s", 2: 503})
    limited, down = infer(url), infer(url)
    assert (limited.status_code, limited.headers["Retry-After"]) == (429, "2")
    assert down.status_code == 503
    assert "Retry-After" not in down.headers


def test_expire_ends_all_tokens_until_a_new_one_is_bought(sandbox):
    """The request itself and later ones with old tokens are refused."""
    url = sandbox(faults={2: "expire"})
    old = token_of(url)
    found = [infer(url, token=old) for _ in range(3)]
    assert [reply.status_code for reply in found] == [200, 401, 401]
    assert {reply.json()["error_code"] for reply in found[1:]} == {"APIG.0307"}
    assert infer(url).status_code == 200


@pytest.mark.parametrize(
    ("fault", "uuid", "answers"),
    [("short", "u1", 1), ("long", "u1", 3), ("foreign", FOREIGN, 2), ("blank", "", 2)],
)
def test_answers_that_do_not_fit_their_request(sandbox, fault, uuid, answers):
    """A 200 of the right form with the wrong number of answers, or the wrong uuid."""
    reply = infer(sandbox(faults={1: fault}), [FLOWER, FLOWER], uuid="u1")
    assert (reply.status_code, reply.json()["meta"]["uuid"]) == (200, uuid)
    assert len(reply.json()["data"]["resp_data"]) == answers


def test_answers_that_are_not_json(sandbox):
    """A 200 cut in the middle of its JSON by the model, a 502 page from a proxy."""
    url = sandbox(faults={1: "garbage", 2: "html"})
    garbage, page = infer(url), infer(url)
    assert (garbage.status_code, garbage.headers["Server"]) == (200, "ModelArts")
    with pytest.raises(ValueError, match="Expecting"):
        garbage.json()
    assert (page.status_code, page.headers["Content-Type"]) == (502, "text/html; charset=utf-8")
    assert page.text.startswith("<html>")


def test_drop_resets_the_connection_after_the_work_was_done(sandbox):
    """The client sees a reset, and the server has scored the row."""
    url = sandbox(faults={1: "drop"})
    with bare_request(url) as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)
    assert {"requests": 1, "rows_received": 1, "rows_answered": 0, "dropped": 1}.items() <= stats(url).items()


@pytest.mark.parametrize("sent", [{"body": b"", "length": 100}, {}])
def test_drop_early_resets_the_connection_before_the_body_is_read(sandbox, sent):
    """Whether or not the body arrives, the client sees a reset, and nothing is scored."""
    url = sandbox(faults={1: "drop-early"})
    with bare_request(url, **sent) as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)
    assert {"requests": 1, "rows_received": 0, "dropped": 1}.items() <= stats(url).items()
    assert infer(url).status_code == 200


def test_truncate_closes_in_the_middle_of_the_body(sandbox):
    """The head promises more than comes."""
    with bare_request(sandbox(faults={1: "truncate"})) as connection:
        response = http.client.HTTPResponse(connection)
        response.begin()
        with pytest.raises(http.client.IncompleteRead) as cut:
            response.read()
        response.close()
    assert len(cut.value.partial) == int(response.headers["Content-Length"]) // 2


@pytest.mark.parametrize(
    ("fault", "beginning"), [("trickle", b'\r\n\r\n1\r\n{\r\n1\r\n"\r\n'), ("trickle-headers", b"HT")]
)
def test_a_trickle_begins_and_does_not_end(sandbox, fault, beginning):
    """Two bytes of body or head come in a second, and the next is not there yet."""
    url = sandbox(faults={1: fault})
    with bare_request(url) as connection:
        started = time.monotonic()
        read_until(connection, beginning)
        assert time.monotonic() - started > 0.5
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert wait_until_all_left(url)["dropped"] == 1


def test_a_client_that_leaves_in_the_middle_of_its_body_is_counted(sandbox):
    """Nothing is answered and nothing scored."""
    url = sandbox()
    with bare_request(url, body=b'{"data"', length=100):
        pass
    deadline = time.monotonic() + 30
    while not stats(url)["dropped"]:
        assert time.monotonic() < deadline
    assert {"requests": 1, "in_flight": 0, "rows_received": 0, "by_status": {}}.items() <= stats(url).items()


def test_slow_adds_to_the_time_in_service(sandbox):
    """Within the limit it is only late, beyond it is cut."""
    url = sandbox(timeout=1.0, faults={1: "slow 0.2s", 2: "slow 30s"})
    started = time.monotonic()
    assert infer(url).status_code == 200
    assert time.monotonic() - started >= 0.2
    assert infer(url).status_code == 504


@pytest.mark.parametrize(
    ("cell", "value", "meant"),
    [
        ("iris-007", "iris-007", True),
        ("7", "7.0", False),
        (7, "7.0", True),
        (7.5, "seven", False),
        (True, "1", False),
        (None, "None", False),
    ],
)
def test_a_row_is_meant_by_the_value_of_a_number_or_the_text_of_a_text(cell, value, meant):
    """No conversion from one to the other."""
    assert RowKey("id", value).matches({"id": cell}) is meant


@pytest.mark.parametrize("body", [b"--form--", b"[]", b"{}", b'{"data": [], "meta": 1}', b'{"data": {"req_data": 3}}'])
def test_a_body_of_another_form_has_no_name_and_no_rows(body):
    """Schedules look into every body, whatever it is."""
    assert peek(body) == ("", [])


@pytest.mark.parametrize("name", ["header", "meta"])
def test_a_request_number_means_a_request_and_not_an_attempt(sandbox, name):
    """Attempts are recognised by X-Request-Id or meta.uuid, and use up their own list."""
    url = sandbox(faults={1: [503, "ok", 500], 2: 429})
    token = token_of(url)

    def attempt(uuid):
        identity = {"headers": {"X-Request-Id": uuid}} if name == "header" else {"uuid": uuid}
        return infer(url, token=token, **identity).status_code

    assert [attempt(uuid) for uuid in "aabaaacb"] == [503, 200, 429, 500, 200, 200, 200, 200]


def test_requests_without_a_name_are_counted_as_they_arrive(sandbox):
    """Each is a new one."""
    assert statuses(sandbox(faults={1: [503, 503], 3: 500}), 4) == [503, 200, 500, 200]


def test_a_row_can_be_poisoned_for_ever(sandbox):
    """Whatever request has it, by text or by number; other rows are fine."""
    url = sandbox(faults={"row:id=iris-007": "MR.0105 always", "row:petal_width=9.0": [503]})
    bad, wide = FLOWER | {"id": "iris-007"}, FLOWER | {"petal_width": 9}
    assert statuses(url, 3, rows=[FLOWER, bad]) == [400, 400, 400]
    assert statuses(url, 2, rows=[FLOWER, wide]) == [503, 200]
    assert statuses(url, 1) == [200]


def test_chance_is_repeatable_and_as_frequent_as_told():
    """The same seed draws the same faults, another seed others; none at probability 0."""

    def draws(chaos, seed):
        schedule = Schedule({}, chaos=chaos, seed=seed)
        return [schedule.chance() for _ in range(2000)]

    assert draws(0.2, 1) == draws(0.2, 1)
    assert draws(0.2, 1) != draws(0.2, 2)
    assert 300 < sum(fault != OK for fault in draws(0.2, 1)) < 500
    assert all(fault == OK for fault in draws(0.0, 1))


def test_by_chance_a_token_dies_seldom():
    """One that is refused as soon as it was given would be a wrong one, which nobody survives."""
    schedule = Schedule({}, chaos=1.0)
    dies = [place for place in range(5000) if schedule.chance().kind == "expire"]
    assert len(dies) > 10
    assert min(later - earlier for earlier, later in pairwise(dies)) >= TOKEN_SERVES


def test_the_script_overrules_chance(sandbox):
    """An `ok` is an ok, even where every other request fails."""
    assert statuses(sandbox(chaos=1.0, faults=dict.fromkeys(range(1, 21), "ok")), 20) == [200] * 20


def test_chance_can_reset_before_the_body_is_read(sandbox, monkeypatch):
    """It needs no script, and it is counted."""
    monkeypatch.setattr("pipeline.sandbox.schedule.CHAOS", (Fault("drop-early"),))
    url = sandbox(chaos=1.0)
    with bare_request(url, body=b"", length=100) as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)
    assert {"dropped": 1, "bytes_received": 0, "by_fault": {"drop-early": 1}}.items() <= stats(url).items()


def test_a_model_can_crash_in_words_of_its_own(sandbox):
    """A 500 that has no code of the platform, from the model's server."""
    reply = infer(sandbox(faults={1: "crash"}))
    assert (reply.status_code, reply.headers["Server"], reply.text) == (500, "ModelArts", "Internal Server Error")


@pytest.mark.parametrize(
    ("name", "text"),
    [("f.json", '{"1": [503, "429 after 2s"]}'), ("f.yaml", "1:\n- 503\n- 429 after 2s")],
)
def test_a_schedule_can_be_json_or_yaml(tmp_path, name, text):
    """Both read as the mapping they are."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_rules(tmp_path / name) == read_rules({1: [503, "429 after 2s"]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({1: "explode"}, "faults: 1: 'explode' is not a fault; allowed: 400, 401"),
        ({1: 418}, "faults: 1: no layer answers '418'; allowed: 400 MR.0105"),
        ({0: 503}, "faults: 0: a key is a request number from 1, or row:COLUMN=VALUE"),
        ({"id=7": 503}, "faults: id=7: a key is a request number from 1, or row:COLUMN=VALUE"),
        ({1: ["503 always", "ok"]}, "faults: 1: only the last entry of a list may be 'always'"),
        ({"row:id=7": "drop-early"}, "faults: row:id=7: 'drop-early' happens before rows are read"),
    ],
)
def test_a_schedule_that_is_wrong_is_refused_in_one_line(content, message):
    """Where, what, and what is allowed."""
    with pytest.raises(JobError) as refused:
        read_rules(content)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", [None, "- 503", "{1: ["])
def test_a_schedule_file_that_cannot_be_read_is_named(tmp_path, text):
    """Missing, not a mapping, not YAML."""
    path = tmp_path / "faults.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(JobError, match=r"faults\.yaml: ") as refused:
        read_rules(path)
    assert "\n" not in str(refused.value)


def test_the_counters_add_up(sandbox):
    """Every request ends in one place, every row is counted where it was."""
    url = sandbox(faults={1: 503, 2: "drop"})
    assert infer(url).status_code == 503
    with pytest.raises(requests.ConnectionError):
        infer(url)
    bodies = [json.dumps(envelope([FLOWER] * rows)) for rows in (3, 5)]
    assert [infer(url, body=body).status_code for body in bodies] == [200, 200]
    size = len(json.dumps(envelope([FLOWER])))
    assert stats(url) == {
        "tokens_issued": 4,
        "requests": 4,
        "ok": 2,
        "dropped": 1,
        "by_status": {"503": 1, "200": 2},
        "by_fault": {"503 ModelArts.4302": 1, "drop": 1},
        "rows_received": 9,
        "rows_answered": 8,
        "bytes_received": 2 * size + sum(map(len, bodies)),
        "max_body": len(bodies[1]),
        "bodies_over_limit": 0,
        "in_flight": 0,
        "websockets": 0,
        "peak_in_flight": 1,
    }


def test_the_last_requests_are_shown_only_where_that_was_asked_for(sandbox):
    """Headers hold tokens, so recording is off unless told."""
    url, silent = sandbox(record=2), sandbox()
    for rows in (1, 2, 3):
        infer(url, [FLOWER] * rows, uuid=f"u{rows}", headers={"X-Mark": str(rows)})
    infer(silent)
    kept = stats(url, "?requests=1")["last_requests"]
    assert [request["headers"]["x-mark"] for request in kept] == ["2", "3"]
    assert json.loads(base64.b64decode(kept[1]["body"])) == envelope([FLOWER] * 3, "u3")
    assert "last_requests" not in stats(silent, "?requests=1")
    assert "last_requests" not in stats(url)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_normally(number):
    """Even with a request in flight; stdout has the one line with the URL, stderr the credentials."""
    program = "from pipeline.sandbox.server import *; serve(Options(port=0, latency=60.0, timeout=90.0))"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            line = process.stdout.readline()
            url = line.removeprefix("bulkscore sandbox: ").rstrip("\n")
            with bare_request(url):
                process.send_signal(number)
                rest, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert line.startswith("bulkscore sandbox: http://127.0.0.1:")
    assert (process.returncode, rest) == (0, "")
    assert errors == f"{TOLD}\n"
    assert PROJECT_ID in TOLD


def test_a_port_that_is_taken_is_one_clear_line():
    """It names the address and what to try."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(JobError, match=rf"127\.0\.0\.1:{port} cannot be listened on: .*; try --port 0"):
            serve(Options(port=port))


@pytest.fixture
def certificate(tmp_path):
    """Make a key and a certificate for 127.0.0.1 that signs itself."""
    x509 = pytest.importorskip("cryptography.x509", reason="cryptography makes the certificate")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "sandbox")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    signed = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))
    return {"tls_cert": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}


def test_tls_is_served_to_who_trusts_the_certificate(sandbox, certificate):
    """And connections break as they do without it; who does not trust it gets nothing."""
    url = sandbox(**certificate, faults={2: "drop"})
    with requests.Session() as session:
        session.verify = str(certificate["tls_cert"])
        token = session.post(f"{url}/v3/auth/tokens", json=auth(), timeout=10).headers["X-Subject-Token"]
        call = {"json": envelope([FLOWER]), "headers": {"X-Auth-Token": token}, "timeout": 10}
        assert session.post(f"{url}/v1/infers/iris", **call).status_code == 200
        with pytest.raises(requests.ConnectionError):
            session.post(f"{url}/v1/infers/iris", **call)
    assert url.startswith("https://")
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{url}/healthz", timeout=10)


def test_a_certificate_that_is_missing_is_one_clear_line(tmp_path):
    """Without the file, and without the option."""
    path = tmp_path / "none.pem"
    with pytest.raises(JobError, match=r"--tls-cert .*none\.pem"), running(Options(port=0, tls_cert=path)):
        pass
    with pytest.raises(JobError, match="add --tls-cert"), running(Options(port=0, tls_key=path)):
        pass
