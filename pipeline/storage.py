"""Folders and objects, local or on an object store, through pyarrow.fs.

An object is visible only when it is whole: local ones are written beside their place and renamed, remote ones are
spooled to a local file and sent in one piece under their final name. Every failure is a StorageFailed that names the
object; nothing is swallowed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import uuid
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Self, cast
from urllib.parse import unquote

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from pipeline.errors import StorageFailed
from schemas.receipt import StoredObject
from schemas.values import COMPRESSED

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCAL: Final = LocalFileSystem()
_PART: Final = ".part-"
_READ_BUFFER: Final = 1 << 20
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: `D:/x` is a path


class Store:
    """A folder by path or URL. Names are relative to it, with forward slashes."""

    def __init__(self, location: str) -> None:
        with storing("open", location):
            self._fs, self._root = open_source(location)
        self.uri = _uri(self._fs, self._root, location)

    def names(self, folder: str) -> list[str]:
        """Return the names of the objects directly in a folder, sorted; a folder that is not there has none."""
        with storing("list", f"{self.uri}/{folder}"):
            found = self._fs.get_file_info(FileSelector(self._path(folder), allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == FileType.File)

    def is_empty(self) -> bool:
        """Whether nothing is in the folder but names that start with a dot, or there is no folder."""
        with storing("list", self.uri):
            found = self._fs.get_file_info(FileSelector(self._root, allow_not_found=True))
        return all(info.base_name.startswith(".") for info in found)

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        with storing("look up", f"{self.uri}/{name}"):
            return bool(self._fs.get_file_info(self._path(name)).type == FileType.File)

    def read(self, name: str) -> bytes:
        """Return a small object whole."""
        with storing("read", f"{self.uri}/{name}"), self._fs.open_input_stream(self._path(name)) as stream:
            return stream.read()

    def open(self, name: str) -> pa.NativeFile:
        """Open an object for reading; the caller closes it."""
        with storing("read", f"{self.uri}/{name}"):
            return self._fs.open_input_file(self._path(name))

    def write(self, name: str, content: bytes) -> None:
        """Write a small object in one piece, over one that is there."""
        with self.create(str(Path(name).parent)) as draft:
            draft.write(content)
            draft.keep(name)

    def write_new(self, name: str, content: bytes) -> bool:
        """Write a small object in one piece unless there is one; whether it was written. For local folders alone."""
        with self.create(str(Path(name).parent)) as draft:
            draft.write(content)
            return draft.keep_new(name)

    def delete(self, name: str) -> None:
        """Delete an object; one that is gone already is no error."""
        with storing("delete", f"{self.uri}/{name}"), suppress(FileNotFoundError):
            self._fs.delete_file(self._path(name))

    def delete_folder(self, name: str) -> None:
        """Delete a folder with all that is in it; one that is gone already is no error."""
        with storing("delete", f"{self.uri}/{name}"), suppress(FileNotFoundError):
            self._fs.delete_dir(self._path(name))

    def delete_empty(self, folder: str) -> None:
        """Delete a folder that nothing is in, not even a draft; only local disks have such ones."""
        if self.local:
            with suppress(OSError):
                (self.local / folder).rmdir()

    def create(self, folder: str) -> Draft:
        """Open a draft of an object in `folder`; the caller closes it, and unless it was kept nothing is left of it."""
        with storing("write", f"{self.uri}/{folder}"):
            with suppress(FileNotFoundError):  # at its end another run deletes a folder that nothing is in yet
                return self._draft(folder)
            return self._draft(folder)

    @property
    def local(self) -> Path | None:
        """The folder on this machine, if it is one."""
        return Path(self._root) if isinstance(self._fs, LocalFileSystem) else None

    def _draft(self, folder: str) -> Draft:
        self._fs.create_dir(self._path(folder), recursive=True)
        return Draft(self._fs, self._root, folder)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name not in {"", "."} else self._root


class Draft:
    """An object in the making: a binary file that counts and hashes what is written to it."""

    def __init__(self, fs: FileSystem, root: str, folder: str) -> None:
        self._fs = fs
        self._root = root
        self._local = isinstance(fs, LocalFileSystem)
        self._hash = hashlib.sha256()
        self.size = 0
        place = Path(root, folder, f"{_PART}{uuid.uuid4().hex}") if self._local else None
        self._part = place
        self._file: IO[bytes] = place.open("wb") if place else tempfile.TemporaryFile()  # noqa: SIM115 - closed by close

    def write(self, content: bytes | memoryview) -> int:
        """Append bytes."""
        with storing("write", self._root):
            self._file.write(content)
        self._hash.update(content)
        self.size += len(content)
        return len(content)

    def keep(self, name: str) -> StoredObject:
        """Make it visible as `name`, whole, and say what was written."""
        target = f"{self._root}/{name}"
        with storing("write", target):
            self._file.flush()
            if self._part:
                os.fsync(self._file.fileno())
                self._part.replace(target)
                self._part = None
            else:
                self._file.seek(0)
                with self._fs.open_output_stream(target) as stream:
                    shutil.copyfileobj(self._file, stream, 1 << 20)
        return StoredObject(name, self.size, self._hash.hexdigest())

    def keep_new(self, name: str) -> bool:
        """Make it visible as `name` unless there is such an object; whether it was done. For local folders alone."""
        assert self._part
        with storing("write", f"{self._root}/{name}"):
            self._file.flush()
            os.fsync(self._file.fileno())
            try:
                Path(self._root, name).hardlink_to(self._part)
            except FileExistsError:
                return False
            except OSError:  # a disk without links
                if Path(self._root, name).exists():
                    return False
                self._part.replace(Path(self._root, name))
                self._part = None
        return True

    def close(self) -> None:
        """Give up what was not kept; what cannot even be closed, on a full disk, was not kept either."""
        with suppress(OSError):
            self._file.close()
        if self._part:
            with suppress(OSError):
                self._part.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What pyarrow asks of a file object that it writes to.
    closed = False

    def flush(self) -> None:
        """Nothing waits: `keep` flushes."""

    def writable(self) -> bool:
        """A draft is there to be written to."""
        return True


def is_draft(name: str) -> bool:
    """Whether an object was never kept: its process died."""
    return name.startswith(_PART)


@contextmanager
def storing(action: str, name: str) -> Iterator[None]:
    """Translate what storage raises into a StorageFailed that says what failed, where."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise StorageFailed(
            f"cannot {action} {name}: {reason}; when that is mended, the same command resumes"
        ) from error


def open_source(location: str) -> tuple[FileSystem, str]:
    """Return the file system of a path or URI, and the path on it."""
    if not _SCHEME.match(location):
        return _LOCAL, str(Path(location).absolute()).rstrip("/")
    scheme, _, place = location.partition("://")
    if scheme == "file":  # the only URIs that are written with percent signs
        return _LOCAL, unquote(place).rstrip("/")
    if "?" in location:  # options of the store
        fs, path = FileSystem.from_uri(location)
        return fs, path.rstrip("/")
    host, _, path = place.partition("/")
    fs, root = _store(f"{scheme}://{host}")
    return fs, f"{root.rstrip('/')}/{path}".rstrip("/")


@lru_cache(maxsize=64)
def _store(root: str) -> tuple[FileSystem, str]:
    """Open a bucket once: connections are dear, and names in it may be any text, which URIs may not."""
    fs, path = FileSystem.from_uri(root)
    return fs, path


def open_stream(uri: str) -> pa.NativeFile:
    """Open a file from its beginning, decompressed by its suffix (.gz, .zst, .bz2, .lz4); the caller closes it."""
    fs, path = open_source(uri)
    return fs.open_input_stream(path, compression="detect", buffer_size=_READ_BUFFER)


def open_seekable(uri: str) -> pa.NativeFile | IO[bytes]:
    """Open a file for reading anywhere in it; a compressed one is unpacked into a temporary file first."""
    fs, path = open_source(uri)
    if not is_compressed(uri):
        return fs.open_input_file(path)
    with ExitStack() as unless_done:
        spool = unless_done.enter_context(tempfile.TemporaryFile())
        with open_stream(uri) as stream:
            shutil.copyfileobj(stream, spool, _READ_BUFFER)
        spool.seek(0)
        unless_done.pop_all()
    return spool


def packed_share(uri: str) -> float:
    """Return what share of its unpacked bytes a file takes, judged by its beginning; 1 for one that is plain."""
    if not is_compressed(uri):
        return 1.0
    fs, path = open_source(uri)
    with fs.open_input_file(path) as raw:
        stream = pa.CompressedInputStream(raw, cast("Any", pa.Codec.detect(path).name))
        try:
            unpacked = len(stream.read(16 * _READ_BUFFER))
        except OSError:  # it is not what its name says, as reading it will show
            return 1.0
        return raw.tell() / max(1, unpacked)


def is_compressed(uri: str) -> bool:
    """Whether a file is unpacked before it is read."""
    return uri.endswith(COMPRESSED)


def _uri(fs: FileSystem, path: str, location: str) -> str:
    if isinstance(fs, LocalFileSystem):
        return Path(path).absolute().as_uri()
    return f"{location.partition('://')[0]}://{path}"
