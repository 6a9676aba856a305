"""Credentials that are sent as they are: nothing at all, a token, an AppCode, an API key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import Refused
from schemas.secret import Unpicklable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.sign import Request


class Given(Unpicklable):
    """Headers that cannot be renewed; `mend` says what to do when they are refused."""

    def __init__(self, headers: Mapping[str, str], mend: str, *, secrets: Iterable[str] = ()) -> None:
        self._headers = dict(headers)
        self._mend = mend
        self._secrets = (*headers.values(), *secrets)

    def headers(self, request: Request) -> Mapping[str, str]:  # noqa: ARG002 the same for all
        """Give the same for every attempt."""
        return self._headers

    def refresh(self, stale: Mapping[str, str], reply: Mapping[str, str]) -> None:  # noqa: ARG002 there are no others
        """Refuse."""
        raise Refused(self._mend)

    def secrets(self, used: Mapping[str, str]) -> tuple[str, ...]:  # noqa: ARG002 the same for all
        """Give the values, and the keys inside them."""
        return self._secrets
