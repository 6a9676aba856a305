"""What every test has: a clean environment, a closed network, and the sandbox service on loopback."""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import ExitStack

import kserving
import mlserving
import pytest
import tritonserving
from hypothesis import HealthCheck, settings

from pipeline import tokens
from pipeline.sandbox.server import Options, running
from pipeline.window import Window

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "FTP_PROXY")
TRUST = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")  # beats a session's own `verify`


settings.register_profile("bulkscore", deadline=None, print_blob=True)  # a busy machine is no finding
settings.register_profile(  # what tests/fuzz.py asks for; a strategy that is slow or rejects much is no finding either
    "fuzz", settings.get_profile("bulkscore"), max_examples=500, suppress_health_check=list(HealthCheck)
)
settings.load_profile("bulkscore")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """In CI, a test that is skipped because the machine lacks software fails."""
    report = yield
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
    if os.environ.get("CI") == "true" and reason.startswith("Skipped: needs "):
        report.outcome, report.longrepr = "failed", f"{reason}; in CI it must be there"
    return report


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path_factory):
    """No proxy, trust store, OpenStack credentials or token: a service of another test may have had the same port."""
    for name in os.environ:
        if name.upper() in PROXIES + TRUST or name.startswith("OS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(tokens, "_shared", {})


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch):
    """Refuse every connection that would leave the machine; not an OSError, which code under test would retry."""
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))


def _guarded(connect):
    def guarded(self, address):
        if isinstance(address, tuple) and not _is_loopback(address[0]):
            raise RuntimeError(f"a test tried to connect to {address[0]}:{address[1]}")
        return connect(self, address)

    return guarded


def _is_loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture
def sandbox():
    """Start services that stop with the test; called with the fields of `Options`, it returns a base URL."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(running(Options(port=0, **options)))


@pytest.fixture(scope="session")
def model_server(tmp_path_factory):
    """Return real model servers by name, each started for whoever asks first."""
    running = {"kserve": kserving.running, "mlserver": mlserving.running, "triton": tritonserving.running}
    with ExitStack() as stack:
        there = {}

        def started(name):
            if name not in there:
                there[name] = stack.enter_context(running[name](tmp_path_factory.mktemp(name)))
            return there[name]

        yield started


@pytest.fixture
def wide_open(monkeypatch):
    """Let the window be as large as `limits.in_flight` allows from the first request, for services that wait for it."""
    monkeypatch.setattr(Window, "limit", property(lambda window: int(window._upper)))
