"""Every way of authentication by every transport through every channel: jobs that end well, and are verified."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack

import pyarrow as pa
import pytest
from certificates import Authority

from jobs import ROOT, flowers, job_file, proved, put, results, score, stats, token
from pipeline.sandbox.credentials import ENVIRONMENT
from pipeline.sandbox.infer import DIRECT
from pipeline.sandbox.server import Options, running

AUTHS = {
    "token": None,  # IAM is at the first node
    "aksk": {"access_key": "${env:DEMO_ACCESS_KEY}", "secret_key": "${env:DEMO_SECRET_KEY}"},
    "app-code": {"code": "${env:DEMO_APP_CODE}"},
    "app-key": {"key": "${env:DEMO_APP_KEY}", "secret": "${env:DEMO_APP_SECRET}"},
    "api-key": {"key": "${env:DEMO_API_KEY}"},
    "none": {},
}
SENTENCES = ["A good day.", "Bad luck! All is lost.", "Ein schöner Tag, oder?", "今天天气很好。", "One more."]
TRANSPORTS = {
    "HTTP JSON": ("iris", {}),
    "HTTP multipart": ("digits", {"service__protocol": "file", "service__options": {"field": "images"}}),
    "SSE": (
        "text",
        {
            "service__protocol": "json",
            "service__transport": "sse",
            "service__options": {"body": {"input": {"$column": "text"}}},
        },
    ),
    "WebSocket": ("iris", {"service__transport": "websocket"}),
}
CHANNELS = ("public TLS", "private CA", "several nodes")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Two services over TLS, with one IAM for both; they trust the authority that signed them, as the public does."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    certificate, key = authority.issue("127.0.0.1")
    tls = {"port": 0, "tls_cert": certificate, "tls_key": key}
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("REQUESTS_CA_BUNDLE", authority.ca)
        first = stack.enter_context(running(Options(**tls)))
        second = stack.enter_context(running(Options(**tls, iam=f"{first}/v3")))
        yield authority.ca, first, second


def rows_of(service, folder):
    """Put the service's input into a folder; returns the keys that name it, and how many rows it has."""
    if service == "digits":
        pictures = sorted((ROOT / "jobs" / "data" / "digits").glob("*.png"))[::17]
        (folder / "in").mkdir()
        for picture in pictures:
            shutil.copy(picture, folder / "in")
        return {"input": {"path": "in/*.png", "format": "files", "keep": ["name"]}}, len(pictures)
    if service == "text":
        put(folder / "in" / "texts.parquet", pa.table({"text": SENTENCES}))
        return {"input": {"path": "in/*.parquet"}}, len(SENTENCES)
    put(folder / "in" / "rows.parquet", flowers(12))
    return {}, 12


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("auth", AUTHS)
def test_every_way_in(nodes, tmp_path, monkeypatch, auth, transport, channel):
    """Each row has its answer; with several nodes, each of them answered some."""
    ca, *urls = nodes
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", ca)
    service, keys = TRANSPORTS[transport]
    given, rows = rows_of(service, tmp_path)
    path = f"{DIRECT if auth == 'none' else ''}/v1/{'ws' if transport == 'WebSocket' else 'infers'}/{service}"
    used = urls if channel == "several nodes" else urls[:1]
    way = token(urls[0]) if auth == "token" else {"type": auth, **AUTHS[auth]}
    tls = {} if channel == "public TLS" else {"ca": ca}
    limits = {"rows": 2} if service == "iris" else {}
    before = [stats(url)["requests"] for url in urls]

    summary = score(
        job_file(
            tmp_path,
            "",
            **given,
            **keys,
            service__url=[url + path for url in used],
            service__auth=way,
            service__tls=tls,
            service__limits=limits,
        )
    )

    assert (summary.exit_code, summary.scored, proved(tmp_path / "out")) == (0, rows, ())
    assert all(json.loads(one) for one in results(tmp_path / "out")["prediction"].to_pylist())
    asked = [stats(url)["requests"] - one for url, one in zip(urls, before, strict=True)]
    assert [one > 0 for one in asked] == [True, channel == "several nodes"]
