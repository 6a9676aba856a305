"""SDK-HMAC-SHA256, the signature of the platform's gateway: made with an access key (AK/SK) or an application's key.

A request that is signed goes out as it was signed: the headers given here, the body and the URL must not change.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

ALGORITHM: Final = "SDK-HMAC-SHA256"
DATE: Final = "X-Sdk-Date"
DATE_FORMAT: Final = "%Y%m%dT%H%M%SZ"
CONTENT: Final = "X-Sdk-Content-Sha256"
UNSIGNED: Final = "UNSIGNED-PAYLOAD"
_PORTS: Final = {"http": ":80", "ws": ":80", "https": ":443", "wss": ":443"}


class Request(NamedTuple):
    """An attempt before it has credentials; `url` in full, `headers` those that nobody on the way may rewrite."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes


def sign(request: Request, access: str, secret: str, moment: datetime) -> dict[str, str]:
    """Return what the request's headers lack: date, host and signature. `moment` is in UTC."""
    added = {DATE: moment.strftime(DATE_FORMAT)}
    if not any(name.lower() == "host" for name in request.headers):
        added["Host"] = host_of(request.url)
    headers = {**request.headers, **added}
    names = sorted(name.lower() for name in headers if "_" not in name and name.lower() != "authorization")
    proof = signature(request._replace(headers=headers), names, secret)
    added["Authorization"] = f"{ALGORITHM} Access={access}, SignedHeaders={';'.join(names)}, Signature={proof}"
    return added


def host_of(url: str) -> str:
    """Return a URL's host as servers are told it: in lower case, without the port that its scheme has anyway."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2].lower().removesuffix(_PORTS.get(parts.scheme, ":")).removesuffix(":")


def signature(request: Request, names: Iterable[str], secret: str) -> str:
    """Return 64 hex digits over the request and the headers of these lower-case names, in their order."""
    values = {name.lower(): value.strip() for name, value in request.headers.items()}
    headers = "".join(f"{name}:{values[name]}\n" for name in names)
    content = values.get(CONTENT.lower()) or hashlib.sha256(request.body).hexdigest()
    path, query = _target(request.url)
    canonical = "\n".join((request.method.upper(), path, query, headers, ";".join(names), content))
    text = "\n".join((ALGORITHM, values[DATE.lower()], hashlib.sha256(canonical.encode()).hexdigest()))
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


@lru_cache(maxsize=64)
def _target(url: str) -> tuple[str, str]:
    """Return a URL's path, which ends in a slash here, and its sorted query, both percent-encoded in one way only."""
    parts = urlsplit(url)
    path = quote(unquote(parts.path or "/"), safe="~/")
    pairs = sorted(tuple(map(unquote, pair.partition("=")[::2])) for pair in parts.query.split("&") if pair)
    query = "&".join("=".join(quote(one, safe="~") for one in pair) for pair in pairs)
    return path if path.endswith("/") else f"{path}/", query
