"""nginx as the gateway in front of a service: what it says by itself, in its own words."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from jobs import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PLACES = (
    f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"  # where it is, and who is not root looks not
)

_CONFIGURATION = """
daemon off;
master_process off;
pid nginx.pid;
events {{ worker_connections 1024; }}
http {{
  log_format told '$status $connection $request_length $gzip_ratio';
  access_log access.log told;
  client_body_temp_path client; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  client_max_body_size 12m;
  {http}
  server {{
    listen 127.0.0.1:{port} {listen};
    {server}
    location / {{
      proxy_pass {upstream};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      {location}
    }}
  }}
}}
"""


@dataclass
class Gateway:
    """A running nginx: its base URL, and the folder with its logs."""

    url: str
    folder: Path

    def told(self) -> list[list[str]]:
        """Return what it answered: status, number of the connection, bytes of the request, gzip's ratio or "-"."""
        return [line.split() for line in (self.folder / "access.log").read_text(encoding="utf-8").splitlines()]

    def statuses(self) -> list[int]:
        return [int(status) for status, *_ in self.told()]


@contextmanager
def gateway(
    folder: Path, upstream: str, *, http: str = "", listen: str = "", server: str = "", location: str = ""
) -> Iterator[Gateway]:
    """Run nginx in front of `upstream`, as the current user; the rest is put where its name says."""
    program = shutil.which("nginx", path=_PLACES)
    if program is None:
        pytest.skip("needs nginx: apt-get install nginx-light")
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    parts = {"http": http, "listen": listen, "server": server, "location": location}
    (folder / "nginx.conf").write_text(_CONFIGURATION.format(port=port, upstream=upstream, **parts), encoding="utf-8")
    line = [program, "-e", "error.log", "-p", str(folder), "-c", "nginx.conf"]
    with subprocess.Popen(line, stdin=subprocess.DEVNULL) as running:
        try:
            until(lambda: running.poll() is not None or _listens(port))
            assert running.poll() is None, (folder / "error.log").read_text(encoding="utf-8")
            yield Gateway(f"{'https' if 'ssl' in listen else 'http'}://127.0.0.1:{port}", folder)
        finally:
            running.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
