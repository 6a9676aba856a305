"""LitServe, a model server of others, with OpenAI's two protocols: installed once for all runs, on loopback."""

from __future__ import annotations

import textwrap
from contextlib import contextmanager

import keystone
from realserving import free_port
from serving import started

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
def running(folder, *, port=None, kill=False):
    """Start the server; yields its URL. Its workers are processes of their own, and end with their group."""
    venv, port = keystone.installed(PACKAGES), port or free_port()
    (folder / "server.py").write_text(textwrap.dedent(SERVER))
    url = f"http://127.0.0.1:{port}"
    with started([venv / "bin" / "python", "server.py", port], folder, f"{url}/health", kill=kill):
        yield url
