"""What a sandbox can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping


@dataclass(frozen=True)
class Options:
    """Times in seconds, sizes in bytes."""

    host: str = "127.0.0.1"
    port: int = 8500  # 0 is any free port
    token_seconds: float = 86_400.0
    body_limit: int = 12_000_000  # the largest body that is accepted
    timeout: float = 40.0  # of a whole request, its time in the queue included
    slots: int | None = None  # executions at once; None is no bound
    latency: float = 0.0  # of a request
    row_latency: float = 0.0  # and of each row in it
    rate: float | None = None  # requests per second
    faults: str | os.PathLike[str] | Mapping[object, object] | None = None  # a file, or its content
    chaos: float = 0.0  # probability of a random fault
    seed: int = 1  # of the random faults
    tls_cert: str | os.PathLike[str] | None = None
    tls_key: str | os.PathLike[str] | None = None
    iam: str | None = None  # base URL of an IAM that is asked about each token, instead of the sandbox's own
    record: int = 0  # requests kept for /stats?requests=1, with their headers and so with their tokens
