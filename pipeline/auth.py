"""How the service lets us in: what each attempt needs, and where it comes from. One small file for each kind.

Nothing of it can be pickled, and no `repr`, log line or error holds a secret.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from pipeline.given import Given
from pipeline.iam import IamUnavailable, account_of
from pipeline.signed import Signed
from pipeline.tokens import HEADER, Cache, Tokens, cache_folder
from schemas.secret import reveal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from pipeline.sign import Request
    from schemas.auth import AkSkAuth, ApiKeyAuth, AppCodeAuth, AppKeyAuth, TokenAuth
    from schemas.auth import Auth as AnyAuth

__all__ = ["Auth", "IamUnavailable", "open_auth"]


class Auth(Protocol):
    """A way in, safe to use from many threads."""

    def headers(self, request: Request) -> Mapping[str, str]:
        """Give the headers for the next attempt; this may ask IAM. Raises `Refused` or `IamUnavailable`."""

    def refresh(self, stale: Mapping[str, str], reply: Mapping[str, str]) -> None:
        """Prepare one more attempt after a 401 to `stale`, whose headers are `reply`, unless somebody has.

        Raises `Refused`, which says what to mend, where there is nothing else to try; `IamUnavailable`.
        """

    def secrets(self, used: Mapping[str, str]) -> tuple[str, ...]:
        """Give what of an attempt's credentials must not be seen where the service quotes it."""


def open_auth(
    auth: AnyAuth,
    *,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.time,
    cache_dir: Path | None = None,
    verify: bool | str = True,
    hosts: Collection[str | None] = (),
) -> Auth:
    """Resolve the secrets and open the way in; nobody is asked yet.

    `cache_dir` is the folder of the tokens, by default under `XDG_CACHE_HOME` or `~/.cache`; `clock` tells wall-clock
    seconds, which all processes of the host share. `verify` is for IAM: a file of authorities counts beside those that
    are trusted anyway, and False only where IAM is on one of the service's `hosts`; elsewhere a password would go to
    whoever answers. Raises `Unresolved` for a secret that is not there, `JobError` for a missing key.
    """
    return _KINDS[auth.type](auth, _Here(environ, clock, cache_dir or cache_folder(environ), verify, hosts))


@dataclass(frozen=True, repr=False)
class _Here:
    """Where a way in is opened: what `open_auth` was given."""

    environ: Mapping[str, str]
    clock: Callable[[], float]
    cache_dir: Path
    verify: bool | str
    hosts: Collection[str | None]


def _none(*_: object) -> Auth:
    return Given({}, "the service asks for credentials; set service.auth in the job file")


def _token(auth: TokenAuth, here: _Here) -> Auth:
    if auth.token is not None:
        given = {HEADER: reveal(auth.token, here.environ)}
        return Given(given, "the given token was refused; renew service.auth.token")
    account = account_of(auth, here.environ)
    verify = here.verify or urlsplit(account.auth_url).hostname not in here.hosts
    return Tokens(account, Cache(here.cache_dir, account.key()), here.clock, verify)


def _access_key(auth: AkSkAuth, here: _Here) -> Auth:
    token = None if auth.security_token is None else reveal(auth.security_token, here.environ)
    mend = f"check service.auth.access_key, secret_key{' and security_token' if token else ''}"
    access, secret = reveal(auth.access_key, here.environ), reveal(auth.secret_key, here.environ)
    return Signed(access, secret, token=token, mend=mend, clock=here.clock)


def _app_key(auth: AppKeyAuth, here: _Here) -> Auth:
    key, secret = reveal(auth.key, here.environ), reveal(auth.secret, here.environ)
    return Signed(key, secret, mend="check service.auth.key and secret", clock=here.clock)


def _app_code(auth: AppCodeAuth, here: _Here) -> Auth:
    return Given({"X-Apig-AppCode": reveal(auth.code, here.environ)}, "check service.auth.code")


def _api_key(auth: ApiKeyAuth, here: _Here) -> Auth:
    key = reveal(auth.key, here.environ)
    mend = "check service.auth.key, header and prefix"
    return Given({auth.header: auth.prefix + key}, mend, secrets=[key])


_KINDS: Final[dict[str, Callable[[Any, _Here], Auth]]] = {
    "none": _none,
    "token": _token,
    "aksk": _access_key,
    "app-key": _app_key,
    "app-code": _app_code,
    "api-key": _api_key,
}
"""By `service.auth.type`: adding one is a line here."""
