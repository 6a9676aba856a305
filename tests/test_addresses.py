from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.addresses import address

HOST = "http://host:8000"
MODEL = {"model": "iris"}
BASES = [
    ("kserve", HOST, MODEL, "/v1/models/iris:predict"),
    ("kserve", HOST + "/", MODEL, "/v1/models/iris:predict"),
    ("kserve", HOST + "/v1/infers/ID", MODEL, "/v1/infers/ID/v1/models/iris:predict"),
    ("kserve", HOST, {"model": "a/b c:d"}, "/v1/models/a%2Fb%20c%3Ad:predict"),
    ("tensorflow", HOST, MODEL, "/v1/models/iris:predict"),
    ("tensorflow", HOST, {**MODEL, "version": "3"}, "/v1/models/iris/versions/3:predict"),
    ("tensorflow", HOST, {**MODEL, "label": "stable"}, "/v1/models/iris/labels/stable:predict"),
    ("torchserve", HOST, MODEL, "/predictions/iris"),
    ("torchserve", HOST, {**MODEL, "version": "1.0"}, "/predictions/iris/1.0"),
    ("mindspore", HOST + "/", {**MODEL, "method": "f"}, "/model/iris:f"),
    ("mindspore", HOST, {**MODEL, "method": "f", "version": 2}, "/model/iris/version/2:f"),
    ("mindspore", HOST, {**MODEL, "method": "f", "version": 0}, "/model/iris/version/0:f"),
    ("mindspore", HOST, {"model": "conversion", "method": "f"}, "/version/0/model/conversion:f"),
    ("mindspore", HOST, {"model": "conversion", "method": "f", "version": 2}, "/version/2/model/conversion:f"),
    ("mlflow", HOST, {}, "/invocations"),
    ("mlflow", HOST + "/?x=1", {}, "/invocations?x=1"),
    ("openai-chat", HOST, MODEL, "/v1/chat/completions"),
    ("openai-chat", HOST + "/v1", MODEL, "/v1/chat/completions"),
    ("openai-chat", HOST + "/openai/deployments/x?api-version=1", MODEL, None),
    ("openai-embeddings", HOST + "/v1/", MODEL, "/v1/embeddings"),
]
WHOLE = [
    ("kserve", "/v1/models/iris:predict"),
    ("kserve", "/v1/models/iris:explain"),
    ("tensorflow", "/v1/models/iris/versions/3:predict"),
    ("torchserve", "/predictions/iris"),
    ("torchserve", "/predictions/iris/2.0"),
    ("torchserve", "/invocations"),
    ("mlflow", "/prefix/invocations"),
    ("openai-chat", "/v2/chat/completions?x=1"),
    ("openai-embeddings", "/embeddings"),
    ("mindspore", "/model/iris:f"),
    ("mindspore", "/version/3/model/iris:f"),
    ("modelarts", "/v1/infers/ID"),
]


@pytest.mark.parametrize(("protocol", "url", "options", "path"), BASES)
def test_a_base_gets_the_protocols_path(protocol, url, options, path):
    """With the model and its version as path segments, behind what the base has and before its query."""
    expected = HOST + path if path else f"{HOST}/openai/deployments/x/chat/completions?api-version=1"
    assert address(protocol, SimpleNamespace(**options), url) == expected


@pytest.mark.parametrize(("protocol", "path"), WHOLE)
def test_a_whole_path_stands_as_it_is(protocol, path):
    """Whatever is called behind it."""
    assert address(protocol, SimpleNamespace(), HOST + path) == HOST + path


@pytest.mark.parametrize(("protocol", "url", "options", "_"), BASES)
def test_an_address_is_whole(protocol, url, options, _):
    """Made once, it is not made again."""
    made = address(protocol, SimpleNamespace(**options), url)
    assert address(protocol, SimpleNamespace(**options), made) == made
