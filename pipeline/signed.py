"""Credentials that are never sent: each attempt is signed with a key, afresh."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

from pipeline.errors import Refused
from pipeline.sign import CONTENT, UNSIGNED, sign
from schemas.secret import Unpicklable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.sign import Request

SKEW_SECONDS: Final = 60.0
"""By which the service's clock must differ for ours to be what a signature was refused for."""

TOKEN: Final = "X-Security-Token"  # noqa: S105 a header's name


class _Proof(dict[str, str]):
    """An attempt's headers, and the seconds that were added to our clock for them."""

    def __init__(self, headers: Mapping[str, str], ahead: float) -> None:
        super().__init__(headers)
        self.ahead = ahead


class Signed(Unpicklable):
    """An access key (AK/SK, which may be temporary, with a security token), or an application's key and secret.

    Five refusals in a row lock a key, so that the first one is the last. Only where the service's clock shows that ours
    was the reason, its clock is taken from then on, and the attempt is made once more.
    """

    def __init__(
        self, access: str, secret: str, *, token: str | None = None, mend: str, clock: Callable[[], float]
    ) -> None:
        self._access = access
        self._secret = secret
        self._token = {TOKEN: token} if token else {}
        self._mend = mend
        self._clock = clock
        self._ahead = 0.0  # seconds of the service's clock before ours

    def headers(self, request: Request) -> Mapping[str, str]:
        """Sign an attempt; the body of a form with files goes unsigned, as the gateway wants it."""
        added = self._token
        if _content_type(request.headers).startswith("multipart/"):
            added = {**added, CONTENT: UNSIGNED}
        request = request._replace(headers={**request.headers, **added})
        ahead = self._ahead
        moment = datetime.fromtimestamp(self._clock() + ahead, UTC)
        return _Proof({**added, **sign(request, self._access, self._secret, moment)}, ahead)

    def refresh(self, stale: Mapping[str, str], reply: Mapping[str, str]) -> None:
        """Take the service's clock where ours made `stale`, and is wrong; raises `Refused` where it is not to blame.

        Clocks are compared as they are now, with what was added for `stale`: how long the reply took does not count.
        """
        assert isinstance(stale, _Proof)
        theirs, ours = _moment(reply.get("Date", "")), self._clock()
        if theirs is None or abs(theirs - ours - stale.ahead) <= SKEW_SECONDS:
            raise Refused(self._mend)
        self._ahead = theirs - ours  # not added to what it was: two threads may come to this at once

    def secrets(self, used: Mapping[str, str]) -> tuple[str, ...]:
        """Give what a service can quote: a signature, which lets in whoever repeats it at once, and the token."""
        proof = used["Authorization"]  # as a whole, too: encoded, its end looks different
        return (proof, proof.rpartition("=")[2], *self._token.values())


def _content_type(headers: Mapping[str, str]) -> str:
    return next((value.lower() for name, value in headers.items() if name.lower() == "content-type"), "")


def _moment(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).replace(tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return None
