"""Identities are derived, never drawn: the same rows have the same ids on every run and every runner."""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "urn:bulkscore")
"""Must never change: every row_uuid ever written hangs on it."""

_TEXT: Final = 36
_GROUPS: Final = ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))


def row_namer(job: str, path: str) -> Callable[[int, int], pa.StringArray]:
    """Return a function `(start, stop) -> row_uuids` for the rows of one source.

    A row_uuid is `uuid5(uuid5(NAMESPACE, job), "<path>:<row>")`, RFC 9562 version 5, in lower case. `path` is the
    source's path below the input's fixed prefix. The loop holds one SHA-1 a row and nothing else: at a million rows
    `uuid.uuid5` alone would cost more than the requests.
    """
    prefix = _prefix(job, f"{path}:")

    def names(start: int, stop: int) -> pa.StringArray:
        digests: list[bytes] = []
        copy, append = prefix.copy, digests.append
        for row in range(start, stop):
            digest = copy()
            digest.update(b"%d" % row)
            append(digest.digest())
        return _texts(b"".join(digests))

    return names


def file_names(job: str, paths: pa.Array[Any] | pa.ChunkedArray[Any]) -> pa.StringArray:
    """Return the row_uuids of rows that are whole files: each is row 0 of its path."""
    prefix = _prefix(job, "")
    digests: list[bytes] = []
    for path in paths.to_pylist():
        digest = prefix.copy()
        digest.update(f"{path}:0".encode())
        digests.append(digest.digest())
    return _texts(b"".join(digests))


def _prefix(job: str, text: str) -> hashlib._Hash:
    """Return the hash of the job's namespace and the beginning of a name in it."""
    return hashlib.sha1(uuid.uuid5(NAMESPACE, job).bytes + text.encode(), usedforsecurity=False)


def request_uuid(row_uuids: pa.StringArray) -> str:
    """Return the id of a request over these rows: UUIDv5 of their row_uuids, one after the other."""
    data = row_uuids.buffers()[2]
    start = row_uuids.offset * _TEXT  # every text has the same length, so a slice of the array is one of the bytes
    digest = hashlib.sha1(NAMESPACE.bytes, usedforsecurity=False)
    if data:
        digest.update(data.slice(start, len(row_uuids) * _TEXT))
    return str(uuid.UUID(bytes=digest.digest()[:16], version=5))


def _texts(digests: bytes) -> pa.StringArray:
    """Write SHA-1 digests (20 bytes each) as version 5 UUIDs, all at once."""
    octets = np.frombuffer(digests, np.uint8).reshape(-1, 20)[:, :16].copy()
    octets[:, 6] = octets[:, 6] & 0x0F | 0x50
    octets[:, 8] = octets[:, 8] & 0x3F | 0x80
    count = len(octets)
    digits = np.frombuffer(octets.tobytes().hex().encode(), np.uint8).reshape(count, 32)
    text = np.full((count, _TEXT), ord("-"), np.uint8)
    for hyphens, (start, stop) in enumerate(_GROUPS):
        text[:, start + hyphens : stop + hyphens] = digits[:, start:stop]
    return _array(text)


def repeated(uuids: Sequence[str], counts: Sequence[int]) -> pa.StringArray:
    """Return each uuid so many times, one after the other."""
    text = np.frombuffer("".join(uuids).encode(), np.uint8).reshape(-1, _TEXT)
    return _array(np.repeat(text, counts, axis=0))


def _array(text: npt.NDArray[np.uint8]) -> pa.StringArray:
    """Return uuids, a row of 36 characters each, as an array."""
    offsets = np.arange(0, text.size + 1, _TEXT, dtype=np.int32)
    return pa.StringArray.from_buffers(len(text), pa.py_buffer(offsets.data), pa.py_buffer(text.data))
