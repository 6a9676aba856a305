"""LitServe, a model server of others, with OpenAI's two protocols: installed once for all runs, on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import textwrap
from contextlib import contextmanager, suppress

import keystone
import requests

from jobs import until

PACKAGES = ["litserve==0.2.19"]
CRASH = "crash"
SERVER = """
    import sys

    import litserve as ls


    class Talk(ls.LitAPI):
        def setup(self, device):
            pass

        def predict(self, request):
            text = request.messages[-1].content
            if text == "crash":
                raise ValueError("the model cannot take this")
            yield from ("I have", " read ", str(len(text)))


    class Embed(ls.LitAPI):
        def setup(self, device):
            pass

        def predict(self, texts):
            if "crash" in texts:
                raise ValueError("the model cannot take this")
            return [[len(text), 0.5, -0.25] for text in texts]

        def encode_response(self, output):
            return {"embeddings": output}


    if __name__ == "__main__":
        apis = [Talk(spec=ls.OpenAISpec()), Embed(spec=ls.OpenAIEmbeddingSpec())]
        server = ls.LitServer(apis, accelerator="cpu")
        server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
"""


@contextmanager
def running(folder):
    """Start the server; yields its URL. Its workers are processes of their own, and end with their group."""
    venv = keystone.installed(PACKAGES)
    (folder / "server.py").write_text(textwrap.dedent(SERVER))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    line = [venv / "bin" / "python", folder / "server.py", str(port)]
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(line, cwd=folder, stdout=log, stderr=log, start_new_session=True) as server,
    ):
        try:
            until(lambda: server.poll() is not None or answers(f"http://127.0.0.1:{port}/health"))
            assert server.poll() is None, (folder / "server.log").read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def answers(url):
    """Whether it is there, and its models are."""
    with suppress(requests.RequestException):
        return requests.get(url, timeout=30).status_code == 200
    return False
