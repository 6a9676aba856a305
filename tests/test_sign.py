"""Signatures: the published vector, the platform's own signer as oracle, and what follows from a refusal."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from huaweicloudsdkcore.sdk_request import SdkRequest
from huaweicloudsdkcore.signer.signer import Signer
from hypothesis import given
from hypothesis import strategies as st

from pipeline.auth import open_auth
from pipeline.errors import Refused
from pipeline.sign import Request, sign, signature
from pipeline.signed import Signed
from schemas.auth import AkSkAuth, AppKeyAuth

ACCESS, SECRET = "QTWAOYTTINDUT2QVKYUC", "MFyfvK41ba2giqM7Uio6PznpdUKGpownRZlmVmHc"  # the published example
MOMENT = datetime(2019, 11, 15, 3, 36, 55, tzinfo=UTC)
HOST = "modelarts-infers-1.example.com"
SERVICE = f"https://{HOST}/v1/infers/eb3e0c54-3dfa-4750-af0c-95c45e5d3e83"
FLOWER = b'{"data":{"req_data":[{"sepal_length":3,"sepal_width":1,"petal_length":2.2,"petal_width":4}]}}'
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
POST = Request("POST", SERVICE, JSON, FLOWER)


def test_the_published_vector():
    """The example of the API signing guide, with each part of the header."""
    marker = "13551d6b-755d-4757-b956-536f674975c0"
    url = f"https://service.region.example.com/v1/77b6a44cba5143ab91d13ab9a8ff44fd/vpcs?limit=2&marker={marker}"
    assert sign(Request("GET", url, JSON, b""), ACCESS, SECRET, MOMENT) == {
        "X-Sdk-Date": "20191115T033655Z",
        "Host": "service.region.example.com",
        "Authorization": f"SDK-HMAC-SHA256 Access={ACCESS}, SignedHeaders=content-type;host;x-sdk-date, "
        "Signature=7be6668032f70418fcc22abc52071e57aff61b84a1d2381bb430d6870f4f6ebe",
    }


@pytest.mark.parametrize(
    ("url", "token", "headers", "body", "names", "proof"),
    [
        (
            SERVICE,
            None,
            JSON,
            FLOWER,
            "content-type;host;x-sdk-date",
            "e7afcb831f8fd4aec998564a5a2cc377f1b6a7ea737c466dfa8c341afbf0a1ff",
        ),
        (
            f"{SERVICE}/predictions/poetry",
            "tok",
            JSON | {"X-Project-Id": "p1"},
            FLOWER,
            "content-type;host;x-project-id;x-sdk-date;x-security-token",
            "77b3c566c053ce82955edffbfc8806070c220c74846efe94b21dc875593f2651",
        ),
        (
            SERVICE,
            None,
            FORM,
            b"--x\r\n--x--\r\n",
            "content-type;host;x-sdk-content-sha256;x-sdk-date",
            "58c87eb1f5d2121c9cfe67b5b3df438dee72bbd09736abc17b2ba382af3c324a",
        ),
    ],
    ids=["json", "path and temporary key", "multipart"],
)
def test_the_computed_vectors(url, token, headers, body, names, proof):
    """JSON; a custom path, a header of the job and a temporary key; a form, whose body is not signed."""
    added = signed(Clock(), token=token).headers(Request("POST", url, headers, body))
    assert added["Authorization"].endswith(f"SignedHeaders={names}, Signature={proof}")
    assert added.get("X-Security-Token") == token
    assert added.get("X-Sdk-Content-Sha256") == ("UNSIGNED-PAYLOAD" if headers is FORM else None)


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
PIECES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="?#"), max_size=8),
    st.sampled_from(["/", "//", "%2F", "%20", "%e4%bd%a0", "%", "%zz", "+", "~", " "]),
)
PATHS = st.lists(PIECES, max_size=6).map(lambda pieces: "/" + "".join(pieces))
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,8}", fullmatch=True).filter(
    lambda name: name.lower() not in {"host", "authorization", "content-type"}
)
HEADERS = st.dictionaries(NAMES, st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=9), max_size=4)


@given(
    method=st.sampled_from(["GET", "POST", "PUT", "post"]),
    path=PATHS,
    query=st.lists(st.tuples(WORDS, WORDS), max_size=4),
    headers=HEADERS.filter(lambda headers: len({name.lower() for name in headers}) == len(headers)),
    kind=st.sampled_from([JSON, FORM, {}]),
    body=st.binary(min_size=1, max_size=50),
)
def test_the_platforms_own_signer_says_the_same(method, path, query, headers, kind, body):
    """Over any path, query, headers and body."""
    theirs = SdkRequest(
        method=method,
        schema="https",
        host=HOST,
        resource_path=path,
        query_params=list(query),
        header_params={**headers, **kind, "X-Sdk-Date": "20191115T033655Z"},
        body=body,
    )
    Signer(SimpleNamespace(ak=ACCESS, sk=SECRET)).sign(theirs)
    search = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query)
    ours = signed(Clock()).headers(Request(method, f"https://{HOST}{path}?{search}", {**headers, **kind}, body))
    assert ours["Authorization"] == theirs.header_params["Authorization"]
    assert ours["Host"] == theirs.header_params["Host"]


@given(st.binary(max_size=30), st.binary(max_size=30))
def test_a_hash_that_is_given_stands_for_the_body(body, other):
    """Its text is signed, whatever the body is."""
    digest = hashlib.sha256(body).hexdigest()
    headers = {**JSON, "Host": HOST, "X-Sdk-Date": "20191115T033655Z"}
    names = ["content-type", "host", "x-sdk-date"]
    plain = signature(Request("POST", SERVICE, headers, body), names, SECRET)
    given_hash = headers | {"X-Sdk-Content-Sha256": digest}
    assert signature(Request("POST", SERVICE, given_hash, other), names, SECRET) == plain


def test_a_host_that_the_job_gives_is_the_one_that_is_signed():
    """Behind an IP address there may be many; none is added beside it."""
    request = Request("POST", "https://10.0.0.1:8443/x", {"host": HOST}, b"")
    added = sign(request, ACCESS, SECRET, MOMENT)
    right = sign(Request("POST", f"https://{HOST}/x", {}, b""), ACCESS, SECRET, MOMENT)
    assert "Host" not in added
    assert added["Authorization"] == right["Authorization"]
    assert sign(request._replace(headers={}), ACCESS, SECRET, MOMENT)["Host"] == "10.0.0.1:8443"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("ws://LOCALHOST:8598/x", "localhost:8598"),
        ("wss://Host.example:443/x", "host.example"),
        ("https://host:443/x", "host"),
        ("https://host:80/x", "host:80"),
        ("http://host:80/x", "host"),
        ("http://host:8080/x", "host:8080"),
        ("http://host:/x", "host"),
        ("https://user:word@[::1]:443/x", "[::1]"),
        ("https://[FE80::443]/x", "[fe80::443]"),
    ],
)
def test_the_host_is_signed_as_it_is_sent(url, host):
    """In the form that all clients and gateways agree on, which is not that of the job file."""
    added = sign(Request("POST", url, {}, b""), ACCESS, SECRET, MOMENT)
    right = sign(Request("POST", url, {"Host": host}, b""), ACCESS, SECRET, MOMENT)
    assert (added["Host"], added["Authorization"]) == (host, right["Authorization"])


class Clock:
    """Seconds that a test moves."""

    def __init__(self):
        self.now = MOMENT.timestamp()

    def __call__(self):
        return self.now


def signed(clock, **keys):
    return Signed(ACCESS, SECRET, **({"mend": "check the key", "clock": clock} | keys))


def date(seconds):
    """Return the headers of a reply that came so long after `MOMENT`, by the service's clock."""
    return {"Date": format_datetime(datetime.fromtimestamp(MOMENT.timestamp() + seconds, UTC), usegmt=True)}


def test_each_attempt_is_signed_afresh():
    """With the time that it is then."""
    clock = Clock()
    auth = signed(clock)
    first = auth.headers(POST)
    clock.now += 1
    second = auth.headers(POST)
    assert (first["X-Sdk-Date"], second["X-Sdk-Date"]) == ("20191115T033655Z", "20191115T033656Z")
    assert first["Authorization"] != second["Authorization"]


@pytest.mark.parametrize(
    "reply", [{}, {"Date": ""}, {"Date": "yesterday"}, {"Date": "Fri, 32 Nov 2019 03:36:55 GMT"}, *map(date, (-60, 60))]
)
def test_the_first_refusal_is_the_last_where_the_clocks_agree(reply):
    """Or where nobody knows: a key that is refused five times is locked."""
    auth = signed(Clock())
    with pytest.raises(Refused, match="check the key"):
        auth.refresh(auth.headers(POST), reply)


@pytest.mark.parametrize("seconds", [70, 7200])
def test_a_refusal_that_takes_its_time_is_no_wrong_clock(seconds):
    """What counts is how the clocks differ, not when the attempt was signed; both may be the case."""
    clock = Clock()
    auth = signed(clock)
    stale = auth.headers(POST)
    clock.now += seconds
    with pytest.raises(Refused, match="check the key"):
        auth.refresh(stale, date(seconds))
    auth.refresh(stale, date(seconds + 61))
    assert auth.headers(POST)["X-Sdk-Date"] == f"{MOMENT + timedelta(seconds=seconds + 61):%Y%m%dT%H%M%SZ}"


@pytest.mark.parametrize("ahead", [-100_000, -61, 61, 1200])
def test_a_wrong_clock_is_set_by_the_services_and_stays_right(ahead):
    """For this attempt and for all that follow; with it, the next refusal is the last."""
    clock = Clock()
    auth = signed(clock)
    auth.refresh(auth.headers(POST), date(ahead))
    clock.now += 5
    again = auth.headers(POST)
    right = datetime.fromtimestamp(MOMENT.timestamp() + ahead + 5, UTC)
    assert again["X-Sdk-Date"] == right.strftime("%Y%m%dT%H%M%SZ")
    with pytest.raises(Refused):
        auth.refresh(again, date(ahead + 5))


def test_all_attempts_that_a_wrong_clock_signed_are_made_again():
    """The clock is set by the first that is refused; the others find it right, and are not to blame either."""
    auth = signed(Clock())
    stale = [auth.headers(POST) for _ in range(3)]
    for one in stale:
        auth.refresh(one, date(1200))
    assert auth.headers(POST)["X-Sdk-Date"] == "20191115T035655Z"


def test_a_clock_that_is_mended_while_a_job_runs_is_believed_again():
    """What was added to it is then too much, and the service says so."""
    clock = Clock()
    auth = signed(clock)
    auth.refresh(auth.headers(POST), date(1200))
    clock.now += 1200
    auth.refresh(auth.headers(POST), date(1200))
    assert auth.headers(POST)["X-Sdk-Date"] == "20191115T035655Z"


def test_what_may_be_seen_of_a_signature():
    """The access key and the date tell what is wrong; the signature and the token let in."""
    auth = signed(Clock(), token="security-token")
    used = auth.headers(POST)
    proof = used["Authorization"]
    assert auth.secrets(used) == (proof, proof[-64:], "security-token")


@pytest.mark.parametrize(
    ("settings", "mend"),
    [
        (AkSkAuth(access_key="AK", secret_key="${env:SK}"), "check service.auth.access_key, secret_key"),
        (
            AkSkAuth(access_key="${env:AK}", secret_key="${env:SK}", security_token="${env:ST}"),
            "check service.auth.access_key, secret_key and security_token",
        ),
        (AppKeyAuth(key="AK", secret="${env:SK}"), "check service.auth.key and secret"),
    ],
)
def test_the_kinds_of_keys_differ_in_their_names_alone(settings, mend):
    """Of a user, of a user for some time, of an application."""
    auth = open_auth(settings, environ={"AK": "AK", "SK": SECRET, "ST": "tok"}, clock=Clock())
    used = auth.headers(POST)
    plain = sign(POST, "AK", SECRET, MOMENT)
    assert ("X-Security-Token" in used) or used == plain
    assert "Access=AK, " in used["Authorization"]
    with pytest.raises(Refused) as refused:
        auth.refresh(used, {})
    assert str(refused.value) == mend
