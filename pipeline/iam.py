"""One question to IAM v3: a token of a project, for a user's password."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
import requests

from pipeline import __version__
from pipeline.deadline import DeadlineAdapter, Watchdog
from pipeline.errors import JobError, Refused
from pipeline.retry import retry_after
from pipeline.status import words
from pipeline.transport import FENCE_SECONDS, mishap, trusting_context
from schemas.secret import Secret, reveal, strike

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keystoneauth1.access import AccessInfo
    from keystoneauth1.exceptions import ClientException

    from schemas.auth import TokenAuth

ASK_SECONDS: Final = 60.0  # for IAM to answer, all in all
AHEAD: Final = 0.2  # a token is renewed when this part of its life is left,
AHEAD_SECONDS: Final = 300.0  # or this, whichever is less
USUAL_LIFE: Final = 86_400.0  # of a token that comes without its times: what the platform documents
SHORTEST_LIFE: Final = 1.0  # so that clocks that disagree do not make us ask before every request

_TRANSIENT: Final = frozenset({408, 425, 429})  # and 5xx; any other refusal stands
_MEND: Final = {
    400: "service.auth.domain and project, or project_id",
    403: "what service.auth.user may do in the project",
    404: "service.auth.auth_url",
}
_MEND_OTHERS: Final = "service.auth.user, domain, password and project"


class IamUnavailable(Exception):
    """IAM gives no token now but may later. One line; `retry_after` are the seconds it asked us to wait, or None."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True, slots=True)
class Token:
    """A token, when it was received and how many seconds it lives: both by our clock, whatever that of IAM says."""

    text: str = field(repr=False)
    obtained_at: float
    life: float

    def alive(self, now: float) -> bool:
        """Whether it may still be used."""
        return now < self.obtained_at + self.life

    def due(self, now: float) -> bool:
        """Whether it is time to renew it."""
        return now >= self.obtained_at + self.life - min(self.life * AHEAD, AHEAD_SECONDS)


@dataclass(frozen=True, slots=True)
class Account:
    """All that asks for a token, resolved. `place` names IAM as the job file does."""

    place: str
    auth_url: str = field(repr=False)
    user: str = field(repr=False)
    domain: str = field(repr=False)
    password: str = field(repr=False)
    project: str | None = field(repr=False)
    project_id: str | None = field(repr=False)

    def key(self) -> str:
        """Derive a name for the token's file; slowly, because a password is in it and file names are seen."""
        parts = (self.auth_url, self.user, self.domain, self.password, self.project, self.project_id)
        return hashlib.pbkdf2_hmac("sha256", msgspec.json.encode(parts), b"bulkscore token", 50_000).hex()


def account_of(auth: TokenAuth, environ: Mapping[str, str]) -> Account:
    """Resolve what asks for a token. Raises `JobError` where something is missing."""

    def text(name: str) -> str | None:
        value: Secret | str | None = getattr(auth, name)
        return None if value is None else reveal(value, environ)

    def required(name: str) -> str:
        value = text(name)
        if not value:
            raise JobError(f"service.auth.{name} is missing; a token needs auth_url, user, domain and password")
        return value

    project, project_id = text("project"), text("project_id")
    if not (project or project_id):
        raise JobError("service.auth: neither project nor project_id; a token for the service needs one of them")
    return Account(
        place=f"IAM at {auth.auth_url}",
        auth_url=required("auth_url"),
        user=required("user"),
        domain=required("domain"),
        password=required("password"),
        project=None if project_id else project,
        project_id=project_id,
    )


def ask(account: Account, verify: bool | str, clock: Callable[[], float]) -> Token:  # noqa: FBT001 as in requests
    """Ask IAM once. Raises `Refused` or `IamUnavailable`, without a trace of the request: the password is in it."""
    from keystoneauth1.exceptions import ClientException  # slow to import, and seldom needed

    try:
        access = _access(account, verify)
        now = clock()
        return Token(_text(access), now, _life(access, now))
    except ClientException as error:
        failure = _failure(account, error)
    except (KeyError, TypeError, ValueError):
        failure = Refused(f"{account.place} answers without a token; check service.auth.auth_url")
    raise failure


def _text(access: AccessInfo) -> str:
    if not access.auth_token:
        raise ValueError("an answer without a token")
    return str(access.auth_token)


def _life(access: AccessInfo, now: float) -> float:
    """Return a token's seconds, by IAM's own clock alone where the answer has both times."""
    expires, issued = _time(access, "expires"), _time(access, "issued")
    if expires is None:
        return USUAL_LIFE
    return max((expires - (issued or datetime.fromtimestamp(now, UTC))).total_seconds(), SHORTEST_LIFE)


def _time(access: AccessInfo, name: str) -> datetime | None:
    try:
        found: datetime | None = getattr(access, name)
    except KeyError:
        return None
    return found


def _access(account: Account, verify: bool | str) -> AccessInfo:  # noqa: FBT001 as in requests
    from keystoneauth1.identity.v3 import Password
    from keystoneauth1.session import Session

    password = Password(
        account.auth_url,
        username=account.user,
        user_domain_name=account.domain,
        password=account.password,
        project_id=account.project_id,
        project_name=account.project,
        project_domain_name=account.domain if account.project else None,
        include_catalog=False,
    )
    adapter = DeadlineAdapter(trusting_context(verify))
    with closing(requests.Session()) as http, closing(Watchdog()) as watchdog, watchdog.within(ASK_SECONDS):
        http.trust_env = False  # .netrc must not have a say; proxies and authorities are the adapter's business
        http.mount("https://", adapter)
        http.mount("http://", adapter)
        agent = f"bulkscore/{__version__}"
        session = Session(session=http, timeout=ASK_SECONDS + FENCE_SECONDS, redirect=False, user_agent=agent)
        return password.get_access(session)


def _failure(account: Account, error: ClientException) -> Refused | IamUnavailable:
    """Tell a refusal, which stands, from an outage, which passes."""
    response: Any = getattr(error, "response", None)
    if response is None:
        kind, what = mishap(error.__context__ or error)
        if kind == "tls":
            mend = "set REQUESTS_CA_BUNDLE or service.tls.ca if it has an authority of its own"
            return Refused(f"{account.place}: {what}; {mend}")
        return IamUnavailable(f"{account.place} gives no answer: {what}")
    status = response.status_code
    code, message = words(strike(response.content, [account.password]))
    said = " ".join(f"{status} {'' if code == str(status) else code} {message}".split())
    said = said.replace(account.password, "***")  # however short it is
    if status in _TRANSIENT or status >= 500:  # noqa: PLR2004
        return IamUnavailable(
            f"{account.place} gives no token: {said}", retry_after(response.headers, datetime.now(UTC))
        )
    if status < 400:  # noqa: PLR2004
        return Refused(f"{account.place} answers {status} without a token; check service.auth.auth_url")
    return Refused(f"{account.place} refuses the credentials: {said}; check {_MEND.get(status, _MEND_OTHERS)}")
