"""IAM tokens, shared by all threads of a process and, through a file, by all processes of the host.

Whoever needs one reads the file; only who finds nothing usable there takes the locks and asks IAM, one at a time on the
whole host.
"""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from filelock import FileLock

from pipeline.errors import Refused
from pipeline.iam import ASK_SECONDS, IamUnavailable, Token, ask
from schemas.secret import Unpicklable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pipeline.iam import Account
    from pipeline.sign import Request

HEADER: Final = "X-Auth-Token"
LOCK_SECONDS: Final = ASK_SECONDS + 10  # for another process to get its answer
PAUSE_SECONDS: Final = 5.0  # before renewal ahead is tried again, while IAM is out and the old token still good


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of this user's tokens."""
    base = environ.get("XDG_CACHE_HOME", "")
    home = environ.get("HOME") or tempfile.gettempdir()
    return (Path(base) if Path(base).is_absolute() else Path(home) / ".cache") / "bulkscore" / "tokens"


class Cache:
    """The token's file. Where the folder cannot be used, there is nothing in it, and each process asks for itself."""

    def __init__(self, folder: Path, key: str) -> None:
        self.key = key
        self._folder = folder
        self._file = folder / f"{key}.json"

    def read(self) -> Token | None:
        """Return the token; None where there is none."""
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Token)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    def write(self, token: Token) -> None:
        """Put a token there for others, if possible."""
        with suppress(OSError):
            handle, name = tempfile.mkstemp(dir=self._folder)  # with mode 0600
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(msgspec.json.encode(token))
                Path(name).replace(self._file)
            except OSError:
                Path(name).unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from asking meanwhile, as far as the folder allows it."""
        with ExitStack() as stack:
            with suppress(OSError, NotImplementedError):
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._folder.chmod(0o700)
                lock = FileLock(self._folder / f"{self.key}.lock", timeout=LOCK_SECONDS, mode=0o600)
                stack.enter_context(lock)
            yield


class _Shared:
    """What all of a process knows of one account."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.token: Token | None = None
        self.dead: set[str] = set()  # tokens that the service refused before their time
        self.refusal: str | None = None  # for good: a wrong password tried again locks the account
        self.outages = 0
        self.outage = IamUnavailable("")
        self.pause_until = 0.0  # no renewal ahead before


_shared: Final[dict[str, _Shared]] = {}


class Tokens(Unpicklable):
    """Tokens that IAM gives for a password."""

    def __init__(self, account: Account, cache: Cache, clock: Callable[[], float], verify: bool | str) -> None:  # noqa: FBT001
        self._account = account
        self._cache = cache
        self._clock = clock
        self._verify = verify
        self._shared = _shared.setdefault(cache.key, _Shared())

    def __repr__(self) -> str:
        return f"<tokens of {self._account.place}>"

    def headers(self, request: Request) -> Mapping[str, str]:  # noqa: ARG002 a token is for any request
        """Give the token; one that is about to die is renewed by one thread, while the others go on."""
        now, token = self._clock(), self._shared.token
        if token is None or not token.alive(now):
            token = self._live(None)
        elif token.due(now) and now >= self._shared.pause_until and self._shared.lock.acquire(blocking=False):
            token = self._renewed_ahead(token)
        return {HEADER: token.text}

    def refresh(self, stale: Mapping[str, str], reply: Mapping[str, str]) -> None:  # noqa: ARG002 IAM knows
        """See that there is another token than `stale`."""
        self._live(stale.get(HEADER))

    def secrets(self, used: Mapping[str, str]) -> tuple[str, ...]:
        """Give the token."""
        return tuple(used.values())

    def _live(self, stale: str | None) -> Token:
        """Get a live token; `stale` is dead. Who waited while IAM was found to be out shares that finding."""
        shared, outages = self._shared, self._shared.outages
        with shared.lock:
            if stale is not None:
                shared.dead.add(stale)
            token = shared.token
            if token is not None and token.text not in shared.dead and token.alive(self._clock()):
                return token
            shared.token = None  # so that others wait instead of using it
            if shared.outages != outages:
                raise IamUnavailable(*shared.outage.args)
            return self._obtain()

    def _renewed_ahead(self, token: Token) -> Token:
        """Renew while other threads go on with the old token; the lock is held and is released here."""
        try:
            current = self._shared.token
            if current is not None and current is not token:  # another thread was first
                return current
            return self._obtain()
        except IamUnavailable as outage:
            self._shared.pause_until = self._clock() + max(outage.retry_after or 0.0, PAUSE_SECONDS)
            return token
        finally:
            self._shared.lock.release()

    def _obtain(self) -> Token:
        """Take the token from the file, or else from IAM; the lock is held."""
        token = self._usable()
        if token is None:
            with self._cache.locked():
                token = self._usable() or self._ask()
        self._shared.token = token
        return token

    def _usable(self) -> Token | None:
        token = self._cache.read()
        return token if token and token.text not in self._shared.dead and not token.due(self._clock()) else None

    def _ask(self) -> Token:
        shared = self._shared
        if shared.refusal is not None:
            raise Refused(shared.refusal)
        try:
            token = ask(self._account, self._verify, self._clock)
        except Refused as refusal:
            shared.refusal = str(refusal)
            raise
        except IamUnavailable as outage:
            shared.outages += 1
            shared.outage = outage
            raise
        self._cache.write(token)
        return token
