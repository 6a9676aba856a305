"""The token endpoint's judgement: who may have a token, what the answer says, which tokens are good. No I/O.

One user of one domain in one project, all called `demo`. Tokens are opaque and live as long as the sandbox is told.
"""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pipeline.sandbox.replies import NOT_JSON, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

DEMO: Final = "demo"  # user, password, domain and project
USER_ID: Final = "5b050baea9db472c88cbae67e8d6e1d7"
DOMAIN_ID: Final = "d78cbac186b744899480f25bd022f468"
PROJECT_ID: Final = "5a2f0b1c9d8e4f7aa6b3c2d1e0f98765"
TOKEN_BYTES: Final = 1_200  # real tokens are long: about this many after base64
REMEMBERED: Final = 10_000  # tokens; the oldest are forgotten, so that a sandbox can run for months


class Denied(Exception):
    """No token: the status and the message of IAM's reply."""

    def __init__(self, status: int, title: str, message: str) -> None:
        super().__init__(status, title, message)
        self.status = status
        self.body = {"error": {"message": message, "code": status, "title": title}}


class _Named(msgspec.Struct):
    id: str | None = None
    name: str | None = None

    def is_demo(self, identifier: str) -> bool:
        return self.id == identifier if self.id is not None else self.name == DEMO


class _InDomain(_Named):
    """A thing whose name means something only together with its domain; a domain left out is the user's own."""

    domain: _Named | None = None

    def is_demo(self, identifier: str) -> bool:
        return super().is_demo(identifier) and (self.domain is None or self.domain.is_demo(DOMAIN_ID))


class _User(_InDomain, kw_only=True):
    password: str


class _Password(msgspec.Struct):
    user: _User


class _Identity(msgspec.Struct):
    methods: list[str]
    password: _Password | None = None


class _Scope(msgspec.Struct):
    project: _InDomain | None = None
    domain: _Named | None = None


class _Auth(msgspec.Struct):
    identity: _Identity
    scope: _Scope | None = None


class _Body(msgspec.Struct):
    auth: _Auth


def authenticate(body: bytes) -> bool:
    """Return whether the request asks for a token of the project, the only kind that services accept.

    Raises:
        Denied: 400 if the request is malformed; 401 for wrong credentials, or a project or domain that is not there.

    """
    try:
        auth = msgspec.json.decode(body, type=_Body).auth
    except NOT_JSON as error:
        raise Denied(400, "Bad Request", f"The request body is invalid: {error}") from error
    if "password" in auth.identity.methods and auth.identity.password is None:
        raise Denied(400, "Bad Request", "The request body is invalid: password is a required property")
    if not (_is_demo_user(auth.identity) and _is_demo_scope(auth.scope)):
        raise Denied(401, "Unauthorized", "Unauthorized.")
    return auth.scope is not None and auth.scope.project is not None


def _is_demo_user(identity: _Identity) -> bool:
    if identity.methods != ["password"] or identity.password is None:
        return False
    user = identity.password.user
    return user.is_demo(USER_ID) and user.password == DEMO


def _is_demo_scope(scope: _Scope | None) -> bool:
    if scope is not None and scope.project is not None:
        return scope.project.is_demo(PROJECT_ID)
    return scope is None or scope.domain is None or scope.domain.is_demo(DOMAIN_ID)


def document(issued_at: datetime, seconds: float, *, project: bool, catalog: bool) -> dict[str, Any]:
    """Return the body that comes with a token issued at `issued_at` (UTC) for `seconds`."""
    domain = {"id": DOMAIN_ID, "name": DEMO}
    token: dict[str, Any] = {
        "methods": ["password"],
        "issued_at": _timestamp(issued_at),
        "expires_at": _timestamp(issued_at + timedelta(seconds=seconds)),
        "user": {"id": USER_ID, "name": DEMO, "domain": domain, "password_expires_at": ""},
        "roles": [],
    }
    token |= {"project": {"id": PROJECT_ID, "name": DEMO, "domain": domain}} if project else {}
    token |= {"catalog": []} if catalog else {}
    return {"token": token}


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Tokens:
    """The tokens that were issued; `clock` counts seconds and never goes back."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.issued = 0
        self._clock = clock
        self._known: dict[str, tuple[float, bool]] = {}  # token -> when it dies, whether it is the project's

    def issue(self, *, project: bool) -> str:
        """Return a new token; older ones stay valid."""
        token = "MII" + secrets.token_urlsafe(TOKEN_BYTES)
        self._known[token] = self._clock() + self.seconds, project
        self.issued += 1
        if len(self._known) > REMEMBERED:
            del self._known[next(iter(self._known))]
        return token

    def expire_all(self) -> None:
        """Let every token die now, as when the user's password is changed."""
        self._known = {token: (float("-inf"), project) for token, (_, project) in self._known.items()}

    def scope(self, token: str) -> bool | None:
        """Return whether a token that is alive is the project's; None for any other."""
        dies, project = self._known.get(token, (float("-inf"), False))
        return project if self._clock() < dies else None

    def check(self, token: str | None) -> None:
        """Accept a token of the project that is alive.

        Raises:
            Refusal: the reply of the gateway, or of the dispatcher about the scope.

        """
        if not token:
            raise Refusal("401 APIG.0301")
        if token not in self._known:
            raise Refusal("401 APIG.0301", "decrypt token fail")
        dies, project = self._known[token]
        if self._clock() >= dies:
            raise Refusal("401 APIG.0307")
        if not project:
            raise Refusal("400 ModelArts.0204")
