"""Jobs through nginx: its limits, its timeouts, its pages, and connections that it closes."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import ExitStack

import pytest
from certificates import Authority
from gateway import gateway

from jobs import call, flowers, job_file, letters, proved, put, results, runs, token, until
from pipeline.sandbox.iam import Tokens
from pipeline.sandbox.server import Options, running

NAME = "svc.example.com"


def job(folder, gate, url, *, rows, **keys):
    """Write a job whose IAM is the sandbox's own, and whose service is behind the gateway."""
    put(folder / "in" / "rows.parquet", flowers(rows))
    given = {"service__url": f"{gate.url}/v1/infers/iris", "service__auth": token(url), "service__limits": {}}
    return job_file(folder, url, **{**given, **keys})


def scored(folder, path, rows):
    """Run a job to its end, and see that every row has its answer; returns the summary."""
    done = call("run", path)
    assert done.code == 0, done
    assert (letters(folder / "out"), proved(folder / "out")) == ([], ())
    assert results(folder / "out").num_rows == rows
    return runs(folder / "out")[-1]


def test_a_lower_limit_of_the_body_is_learned_from_a_page(tmp_path, sandbox):
    """The gateway takes 20 kB where we may send 12 MB, and says so in HTML."""
    url = sandbox()
    with gateway(tmp_path / "nginx", url, server="client_max_body_size 20k;") as gate:
        scored(tmp_path, job(tmp_path, gate, url, rows=6000), 6000)
        told = Counter(gate.statuses())
    assert 0 < told[413] <= 12
    assert set(told) == {200, 413}


def test_a_gateway_that_cuts_slow_requests_is_sent_smaller_ones(tmp_path, sandbox):
    """A page with 504 after a second is no end: requests are halved, and those that follow are smaller."""
    url = sandbox(row_latency=0.002)
    with gateway(tmp_path / "nginx", url, location="proxy_read_timeout 1s;") as gate:
        scored(tmp_path, job(tmp_path, gate, url, rows=4000), 4000)
        told = Counter(gate.statuses())
    assert told[504] >= 1, "else nothing was shown"
    assert set(told) == {200, 504}
    assert told[504] < told[200]


def test_a_rate_that_the_gateway_keeps_with_a_page_is_kept_by_us(tmp_path, sandbox):
    """`limit_req` refuses with 503 in HTML, without a word on when to come again."""
    url = sandbox()
    zone = "limit_req_zone $server_name zone=all:1m rate=25r/s;"
    with gateway(tmp_path / "nginx", url, http=zone, location="limit_req zone=all burst=2 nodelay;") as gate:
        scored(tmp_path, job(tmp_path, gate, url, rows=1000, service__limits={"rows": 10}), 1000)
        told = Counter(gate.statuses())
    assert told[200] >= 100
    assert 0 < told[503] < 300


def test_a_service_behind_the_gateway_that_goes_and_comes_back(tmp_path, monkeypatch):
    """Pages with 502 are waited out; what was under way is asked again."""
    monkeypatch.setattr(Tokens, "check", lambda *_: None)
    with ExitStack() as iam, ExitStack() as service:
        account = iam.enter_context(running(Options(port=0)))
        url = service.enter_context(running(Options(port=0, latency=0.01)))
        gate = iam.enter_context(gateway(tmp_path / "nginx", url))

        def disturb():
            until(lambda: gate.statuses().count(200) >= 50)
            service.close()
            until(lambda: gate.statuses().count(502) >= 3)
            service.enter_context(running(Options(port=int(url.rpartition(":")[2]))))

        thread = threading.Thread(target=disturb)
        thread.start()
        path = job(tmp_path, gate, account, rows=6000, service__limits={"rows": 5})
        scored(tmp_path, path, 6000)
        thread.join()
        assert 502 in gate.statuses(), "else nothing was shown"


@pytest.mark.parametrize("requests", [1, 7])
def test_connections_that_the_gateway_closes_are_no_trouble(tmp_path, sandbox, requests):
    """It ends each after so many requests, and says so: not one is tried again."""
    url = sandbox()
    with gateway(tmp_path / "nginx", url, server=f"keepalive_requests {requests};") as gate:
        summary = scored(tmp_path, job(tmp_path, gate, url, rows=2000, service__limits={"rows": 10}), 2000)
        connections = Counter(connection for _, connection, *_ in gate.told())
    assert summary["retries"] == 0
    assert max(connections.values()) <= requests
    assert set(gate.statuses()) == {200}


def test_large_replies_are_compressed_and_buffered(tmp_path, sandbox):
    """What the gateway does to a reply on its way is undone."""
    url = sandbox()
    packed = "gzip on; gzip_types application/json; gzip_proxied any; proxy_buffers 4 4k; proxy_busy_buffers_size 8k;"
    with gateway(tmp_path / "nginx", url, location=packed) as gate:
        scored(tmp_path, job(tmp_path, gate, url, rows=20_000, service__limits={"rows": 5000}), 20_000)
        assert all(ratio != "-" for *_, ratio in gate.told()[-3:])


def test_a_name_is_served_by_its_address_over_tls(tmp_path, sandbox):
    """A gateway with a private authority, many names behind one address, and clients that must show who they are."""
    url, authority = sandbox(), Authority(tmp_path / "ca")
    certificate, key = authority.issue(NAME)
    ours, our_key = authority.issue("client")
    server = f"""
      server_name {NAME}; ssl_certificate {certificate}; ssl_certificate_key {key};
      ssl_client_certificate {authority.ca}; ssl_verify_client on;
    """
    tls = {"ca": authority.ca, "cert": ours, "key": our_key}
    keys = {"service__headers": {"Host": NAME}, "service__limits": {"rows": 10}}
    with gateway(tmp_path / "nginx", url, listen="ssl", server=server) as gate:
        scored(tmp_path, job(tmp_path, gate, url, rows=200, service__tls=tls, **keys), 200)
        without = {"service__tls": {"ca": authority.ca}, "output__path": "none", **keys}
        done = call("run", job(tmp_path, gate, url, rows=200, **without))
    assert done.code == 4
    assert "No required SSL certificate was sent" in done.err
