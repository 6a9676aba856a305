"""Who may call a service: the gateway's judgement of tokens, signatures, codes and keys. Each is really verified."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import requests

from pipeline.sandbox.iam import DEMO, PROJECT_ID
from pipeline.sandbox.replies import Refusal
from pipeline.sign import ALGORITHM, CONTENT, DATE, DATE_FORMAT, UNSIGNED, signature

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.sandbox.iam import Tokens
    from pipeline.sign import Request

ACCESS_KEY: Final = "DEMOACCESSKEY0123456"
SECRET_KEY: Final = "demo-secret-key-of-the-sandbox-012345678"  # noqa: S105
APP_KEY: Final = "de30a44b8e1f4c6aa2c5d7e9f0123456"
APP_SECRET: Final = "demo-secret-of-the-sandbox-app-01"  # noqa: S105
APP_CODE: Final = "demo-code-of-the-sandbox-app-0123456789"
API_KEY: Final = "demo-api-key-of-the-sandbox-0123456789"

ENVIRONMENT: Final = {
    "DEMO_PASSWORD": DEMO,
    "DEMO_ACCESS_KEY": ACCESS_KEY,
    "DEMO_SECRET_KEY": SECRET_KEY,
    "DEMO_APP_CODE": APP_CODE,
    "DEMO_APP_KEY": APP_KEY,
    "DEMO_APP_SECRET": APP_SECRET,
    "DEMO_API_KEY": API_KEY,
}
"""What the shipped jobs find their secrets by."""

TOLD: Final = f"""\
AK/SK: {ACCESS_KEY}, {SECRET_KEY}
AppCode: {APP_CODE}
AppKey, AppSecret: {APP_KEY}, {APP_SECRET}
API key: {API_KEY}
user, password, domain, project: {DEMO}; project id: {PROJECT_ID}"""

SIGNED_BODY: Final = 12_000_000  # bytes of the largest body that may be signed
SKEW_SECONDS: Final = 900.0
FAILURES: Final = 5  # in a row; one more locks an access key
LOCKED_SECONDS: Final = 300.0
IAM_SECONDS: Final = 10.0

_AUTHORIZATION: Final = re.compile(rf"{ALGORITHM} Access=([^,]*), SignedHeaders=([^,]*), Signature=([0-9a-f]*)")
_ACCESS_KEY: Final = re.compile("[A-Z0-9]{20}")  # what is none, is the key of an application


class Credentials:
    """Judges requests by the first kind of credentials that they have; `clock` tells wall-clock seconds.

    `iam` is the base URL of an IAM, ending in /v3, that is asked about each token instead of our own.
    """

    def __init__(self, tokens: Tokens, iam: str | None = None, clock: Callable[[], float] = time.time) -> None:
        self._tokens = tokens
        self._iam = iam
        self._clock = clock
        self._failures: Counter[str] = Counter()
        self._locked: dict[str, float] = {}  # until when

    async def check(self, request: Request) -> None:
        """Accept a request; the names of its headers are case-insensitive. Raises `Refusal`."""
        token, given = request.headers.get("x-auth-token"), request.headers.get("authorization", "")
        code = request.headers.get("x-apig-appcode")
        if token and self._iam:
            await asyncio.to_thread(_ask, self._iam, token)
        elif token:
            self._tokens.check(token)
        elif given.startswith(ALGORITHM):
            self._check_signature(request, given)
        elif given:
            _same(given.removeprefix("Bearer "), API_KEY, Refusal("401 APIG.0305"))
        elif code:
            _same(code, APP_CODE, Refusal("401 APIG.0303", "app not found with specified appCode"))
        else:
            self._tokens.check(None)

    def _check_signature(self, request: Request, given: str) -> None:
        found = _AUTHORIZATION.fullmatch(given)
        if found is None:
            raise Refusal("401 APIG.0301", "authorization header format is incorrect")
        access, names, proof = found.groups()
        if _ACCESS_KEY.fullmatch(access):
            self._check_access_key(request, access, names.split(";"), proof)
            return
        if access != APP_KEY:
            raise Refusal("401 APIG.0303", f"app not found, appkey {access}")
        problem = self._problem(request, names.split(";"), proof, APP_SECRET)
        if problem:
            raise Refusal("401 APIG.0303", problem.replace("aksk", "app"))

    def _check_access_key(self, request: Request, access: str, names: list[str], proof: str) -> None:
        if self._locked.get(access, 0.0) > self._clock():
            raise Refusal("401 APIG.0301", "AK access failed to reach the limit,forbidden")
        problem = f"Get secretKey failed,ak:{access},err:ak not exist"
        if access == ACCESS_KEY:
            problem = self._problem(request, names, proof, SECRET_KEY)
        if not problem:
            del self._failures[access]
            return
        self._failures[access] += 1
        if self._failures[access] > FAILURES:
            del self._failures[access]
            self._locked[access] = self._clock() + LOCKED_SECONDS
        raise Refusal("401 APIG.0301", problem)

    def _problem(self, request: Request, names: list[str], proof: str, secret: str) -> str:
        """Say what is wrong with a signature; nothing if it is right."""
        if len(request.body) > SIGNED_BODY:
            raise Refusal("413 APIG.0201")
        headers = request.headers
        date, content = headers.get(DATE, ""), headers.get(CONTENT, UNSIGNED)
        if not {"host", DATE.lower()} <= set(names) or not all(name in headers for name in names):
            return "verify aksk signature fail"
        if not self._is_now(date):
            now = datetime.fromtimestamp(self._clock(), UTC).strftime(DATE_FORMAT)
            return f"signature expired, signature time:{date},server time:{now}"
        unlike = content not in {UNSIGNED, hashlib.sha256(request.body).hexdigest()}
        right = hmac.compare_digest(signature(request, names, secret), proof)
        return "" if right and not unlike else "verify aksk signature fail"

    def _is_now(self, date: str) -> bool:
        try:
            moment = datetime.strptime(date, DATE_FORMAT).replace(tzinfo=UTC)
        except ValueError:
            return False
        return abs(moment.timestamp() - self._clock()) <= SKEW_SECONDS


def _same(given: str, right: str, refusal: Refusal) -> None:
    if not hmac.compare_digest(given.encode(), right.encode()):
        raise refusal


def _ask(iam: str, token: str) -> None:
    """Ask IAM about a token, as its own bearer. Raises `Refusal` where it knows none, or one without a project."""
    headers = {"X-Auth-Token": token, "X-Subject-Token": token}
    try:
        reply = requests.get(f"{iam}/auth/tokens?nocatalog=1", headers=headers, timeout=IAM_SECONDS)
        found: dict[str, Any] = reply.json().get("token", {})
    except requests.RequestException as error:
        raise Refusal("503 APIG.0613") from error
    if reply.status_code >= 500:  # noqa: PLR2004
        raise Refusal("503 APIG.0613")
    if reply.status_code != 200:  # noqa: PLR2004
        raise Refusal("401 APIG.0307")
    if "project" not in found:
        raise Refusal("400 ModelArts.0204")
