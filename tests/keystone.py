"""OpenStack's own Keystone as IAM: installed once for all runs, started for a test module, with SQLite and loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from filelock import FileLock

from jobs import until

PACKAGES = ["keystone==30.0.0", "waitress==3.0.2"]
DEMO = "demo"  # user, password and project, in the domain that Keystone comes with
DOMAIN = "Default"
SETTINGS = """
    [DEFAULT]
    log_file = {folder}/keystone.log
    [database]
    connection = sqlite:///{folder}/keystone.db
    [fernet_tokens]
    key_repository = {folder}/fernet
    [fernet_receipts]
    key_repository = {folder}/fernet
    [credential]
    key_repository = {folder}/credential
    [identity]
    password_hash_rounds = 4
    [cache]
    backend = dogpile.cache.memory
    [token]
    expiration = {seconds}
"""
SERVER = """
    import sys
    from keystone.server import wsgi
    from waitress.server import create_server

    log_path = sys.argv.pop()  # Keystone reads the rest
    keystone = wsgi.initialize_public_application()

    def noting(environ, start_response):
        def started(status, headers, *more):
            with open(log_path, "a") as log:
                print(environ["REQUEST_METHOD"], environ["PATH_INFO"], status[:3], file=log)
            return start_response(status, headers, *more)

        return keystone(environ, started)

    server = create_server(noting, host="127.0.0.1", port=0, threads=4)
    print(server.effective_port, flush=True)
    server.run()
"""


@dataclass
class Keystone:
    """A running one; `url` ends in /v3."""

    url: str
    log: Path

    def asked(self, method, path="/v3/auth/tokens"):
        """Return the statuses of the requests so far."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [status for *request, status in lines if request == [method, path]]

    def grant(self, scope):
        """Get a token of the user by a bare call; returns it with what Keystone says of it."""
        account = {"name": DEMO, "password": DEMO, "domain": {"name": DOMAIN}}
        asked = {"auth": {"identity": {"methods": ["password"], "password": {"user": account}}, "scope": scope}}
        reply = requests.post(f"{self.url}/auth/tokens", json=asked, timeout=60)
        assert reply.status_code == 201, reply.text
        return reply.headers["X-Subject-Token"], reply.json()["token"]

    def tell(self, method, path, token, **headers):
        """Ask for something with a token, and return the status."""
        named = {name.replace("_", "-"): value for name, value in headers.items()} | {"X-Auth-Token": token}
        return requests.request(method, self.url + path, headers=named, timeout=60).status_code


@contextmanager
def running(folder, *, seconds):
    """Start Keystone in an empty folder, with tokens that live that long; skips where it cannot be had."""
    venv = installed()
    (folder / "keystone.conf").write_text(textwrap.dedent(SETTINGS.format(folder=folder, seconds=seconds)))
    (folder / "server.py").write_text(textwrap.dedent(SERVER))
    environment = {**os.environ, "OS_KEYSTONE_CONFIG_FILES": str(folder / "keystone.conf"), "PYTHONWARNINGS": "ignore"}
    prepare(venv, folder, environment)
    (folder / "requests.log").touch()
    line = [venv / "bin" / "python", folder / "server.py", folder / "requests.log"]
    with (
        (folder / "server.log").open("w") as errors,
        subprocess.Popen(line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        try:
            port = server.stdout.readline().strip()
            assert port, (folder / "server.log").read_text()
            keystone = Keystone(f"http://127.0.0.1:{port}/v3", folder / "requests.log")
            until(lambda: answers(keystone.url))
            yield keystone
        finally:
            server.terminate()


def answers(url):
    """Whether it is there."""
    with suppress(requests.ConnectionError):
        return requests.get(url, timeout=30).status_code == 200
    return False


def prepare(venv, folder, environment):
    """Make the tables, the keys and the user, who is its administrator."""
    for name in ("fernet", "credential"):
        (folder / name).mkdir(mode=0o700)
    owner = ["--keystone-user", str(os.getuid()), "--keystone-group", str(os.getgid())]
    admin = ["--bootstrap-username", DEMO, "--bootstrap-password", DEMO, "--bootstrap-project-name", DEMO]
    for words in (["db_sync"], ["fernet_setup", *owner], ["credential_setup", *owner], ["bootstrap", *admin]):
        line = [venv / "bin" / "keystone-manage", "--config-file", folder / "keystone.conf", *words]
        done = subprocess.run(
            line, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stderr


def cache():
    """Return the folder of software that tests install, which lasts from run to run."""
    folder = Path(os.environ.get("BULKSCORE_TESTS_CACHE") or Path.home() / ".cache" / "bulkscore-tests")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def installed(packages=PACKAGES):
    """Return an environment for the packages alone, made by whoever comes first: Keystone's is 200 MB, and a minute."""
    venv = cache() / "-".join([*packages, f"python{sys.version_info.major}.{sys.version_info.minor}"])
    with FileLock(f"{venv}.lock"):
        if not (venv / "complete").exists():
            make(venv, packages)
    return venv


def make(venv, packages):
    """Install it; skips the test where there is nothing to install it from."""
    pip = [venv / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *packages]
    for line in ([sys.executable, "-m", "venv", "--clear", venv], pip):
        done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            pytest.skip(f"needs {packages[0]}: pip install {' '.join(packages)} fails: {done.stderr.strip()[-300:]}")
    (venv / "complete").touch()
