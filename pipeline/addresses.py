"""Where a protocol's requests go: `service.url` as it stands, or a server's base with the protocol's path behind it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from schemas.servers import MindSporeOptions


class Path(NamedTuple):
    """A protocol's path: how a whole one is known (`whole` is found in it), and those made of options.

    `made` are tried in order: the first of which the job file has all options, and no other one that says where to go.
    """

    whole: str
    made: tuple[str, ...]
    example: str

    @property
    def names(self) -> frozenset[str]:
        """The options that a path is made of."""
        return frozenset(re.findall(r"{(\w+)}", "".join(self.made)))


PATHS: Final[Mapping[str, Path]] = {
    "kserve": Path(r":\w+$", ("/v1/models/{model}:predict",), "/v1/models/NAME:predict"),
    "tensorflow": Path(
        r":\w+$",
        (
            "/v1/models/{model}/versions/{version}:predict",
            "/v1/models/{model}/labels/{label}:predict",
            "/v1/models/{model}:predict",
        ),
        "/v1/models/NAME:predict",
    ),
    "open-inference": Path(
        r"/infer$",
        ("/v2/models/{model}/versions/{version}/infer", "/v2/models/{model}/infer"),
        "/v2/models/NAME/infer",
    ),
    "torchserve": Path(
        r"/predictions/[^/]|:predict$|/invocations$",
        ("/predictions/{model}/{version}", "/predictions/{model}"),
        "/predictions/NAME",
    ),
    "mindspore": Path(
        r"/(version/\d+/)?model/[^/:]+(/version/\d+)?:[^/:]+\Z",
        ("/model/{model}/version/{version}:{method}", "/model/{model}:{method}"),
        "/model/NAME[/version/V]:METHOD",
    ),
    "mlflow": Path(r"/invocations$", ("/invocations",), "/invocations"),
    "openai-chat": Path(r"/chat/completions$", ("/chat/completions",), "/v1/chat/completions"),
    "openai-embeddings": Path(r"/embeddings$", ("/embeddings",), "/v1/embeddings"),
}
"""By `service.protocol`; a protocol that is not here is called by the URL as it stands."""

_MINDSPORE: Final = "mindspore"
_VERSION_FIRST: Final = "/version/{version}/model/{model}:{method}"
"""Where a MindSpore model's name has `version`: the server takes one from behind the path's first; 0 is the newest."""

_VERSION: Final = "/v1"
_OPENAI: Final = "openai-"


def whole(protocol: str, url: str) -> bool:
    """Whether a URL has the protocol's path already."""
    path = PATHS.get(protocol)
    return path is None or re.search(path.whole, urlsplit(url).path.rstrip("/")) is not None


def address(protocol: str, options: Any, url: str) -> str:
    """Return the URL to call. A query stays behind the path; a bare OpenAI host gets the `/v1` of its base URLs."""
    path = PATHS.get(protocol)
    if path is None or whole(protocol, url):
        return url
    parts = urlsplit(url)
    options = {name: value for name in path.names if (value := getattr(options, name, None)) not in {None, ""}}
    given = {name: quote(str(value), safe="") for name, value in options.items()}
    made = path.made
    if protocol == _MINDSPORE and "version" in given.get("model", ""):
        given, made = {"version": "0", **given}, (_VERSION_FIRST,)
    form = next((one for one in made if set(re.findall(r"{(\w+)}", one)) <= set(given)), "")
    base = parts.path.rstrip("/") or (_VERSION if protocol.startswith(_OPENAI) else "")
    return urlunsplit(parts._replace(path=base + form.format(**given)))


def misaddressed(url: str, options: MindSporeOptions) -> Iterator[tuple[str, str]]:
    """Say (option, or url; what is wrong) of a URL and MindSpore options that do not make one address."""
    path, parts = PATHS[_MINDSPORE], urlsplit(url)
    if parts.query or parts.fragment:
        yield "url", "MindSpore Serving takes a query for a part of the method's name; allowed: none"
    elif re.search(path.whole, parts.path):
        for name in ("model", "version", "method"):
            if getattr(options, name) is not None:
                yield name, "service.url names the method already; leave it out, or give the server's base as the URL"
    elif ":" in parts.path:
        yield "url", f"{parts.path!r} is not a method; allowed: {path.example}, or the server's base"
    else:
        for name in ("model", "method"):
            if getattr(options, name) is None:
                yield name, f"missing; required where service.url is not the whole {path.example}"
