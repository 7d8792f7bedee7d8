"""Files and folders on disk: written whole or not at all, held by one writer, read only where they are plain files.

What is being written lies beside its target under a hidden name, `.<target>-<8 hex digits>.partial`, which its writer
locks. So what a killed writer left can be told from what is being written, and the next call removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
from pydantic_core import from_json

from promptgen_jax import devices

try:
    import fcntl
except ImportError:  # Windows, which does not rename what is open anyway
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
ADVICE = "Free some space, get the right to write there, or choose another place."
DOCUMENT_BYTES = 2**26  # of a JSON document
PARTIAL, RETIRED = "partial", "retired"
AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2  # of linux/fs.h and of macOS's sys/stdio.h


@contextlib.contextmanager
def new_file(path: str | Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` once the block ends well; else `path` stays as it was.

    Args:
      path: the file.
      durable: whether to wait until it is on the disk, so that it outlives a power cut.

    Raises:
      OSError: it cannot be written, in one sentence.
    """
    path = Path(path)
    partial = _beside(path, PARTIAL)
    with _told(path):
        file = _created(partial)
        try:
            with file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
                os.replace(partial, path)  # while it is locked
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `folder` once the block ends well; else `folder` stays as it was.

    Old and new one are exchanged in one step where the system can. Where it cannot, and the process is killed between
    the two steps, `recover` brings the old one back.

    Raises:
      OSError: it cannot be written, in one sentence.
    """
    folder = Path(folder).resolve()  # of a link, what it leads to
    recover(folder)
    sweep(folder.parent, folder.name)
    with _told(folder):
        partial, held = _created_folder(folder)
        try:
            yield partial
            _sync(partial)
            _put(partial, folder)
        finally:
            try:
                shutil.rmtree(partial, ignore_errors=True)
            finally:
                _let_go(held)


def write_bytes(path: str | Path, content: bytes, *, durable: bool = True) -> None:
    """Writes a file atomically: it is either the old one or the whole new one.

    Args:
      path: the file.
      content: of it.
      durable: as in `new_file`.

    Raises:
      OSError: it cannot be written.
    """
    with new_file(path, durable=durable) as file:
        file.write(content)


def write_json(path: str | Path, value) -> None:
    """Writes JSON atomically."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_npz(path: str | Path, **arrays) -> None:
    """Writes arrays as .npz atomically."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_bytes(path, content.getvalue())


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes: no device, no pipe that never ends.

    Raises:
      FileNotFoundError: nothing there; ValueError: something else than such a file.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{path}: no regular file. Put the file itself there.")
        if found.st_size > limit:
            raise ValueError(f"{path}: {found.st_size} bytes; expected at most {limit}. Check what it is.")
        with open(handle, "rb", closefd=False) as file:
            return file.read(found.st_size)  # a buffer of that size, not of the limit, is made
    finally:
        os.close(handle)


class OutsideError(ValueError):
    """A path that leads out of the folder it is to lie in."""


def inside(folder: str | Path, *parts: str) -> Path:
    """The path of something in a folder, wherever links lead.

    Raises:
      OutsideError: it lies outside of the folder.
    """
    folder = Path(folder).resolve()
    try:
        path = folder.joinpath(*parts).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a zero byte
        path = None
    if path is None or not path.is_relative_to(folder):
        raise OutsideError(f"{os.path.join(*parts)}: not in {folder}. Name what lies in that folder.")
    return path


def parse_json(content: bytes) -> Any:
    """JSON of any kind, nested at most 200 deep.

    Raises:
      ValueError: no JSON, or nested deeper.
    """
    return from_json(content, cache_strings="keys")


def read_json(path: str | Path, *, advice: str) -> dict:
    """Reads a JSON object; `advice` says what to do if the file holds none.

    Raises:
      FileNotFoundError: no such file.
      ValueError: damaged, nested too deep, too large, or no file.
    """
    try:
        value = parse_json(read_bytes(path, DOCUMENT_BYTES))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}). {advice}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds no JSON object. {advice}")
    return value


def open_folder(what: str, folder: str | Path) -> Path:
    """The absolute path of a folder to write to, made if missing.

    Args:
      what: the option that named it, for messages.
      folder: its path; `~` is the home folder.

    Raises:
      PermissionError: it cannot be made or written to.
      ValueError: an empty text; an address, as gs://bucket/run.
    """
    folder = local_path(what, folder).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(f"{what} {folder}: cannot be made ({error.strerror}). Choose another one.") from None
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{what} {folder}: not writable. Choose another one.")
    return folder


def local_path(what: str, path: str | Path) -> Path:
    """A path with `~` expanded.

    Raises:
      ValueError: an address, as gs://bucket/run, or a path of Windows elsewhere, which is not on this machine; no such
        home folder; a zero byte.
    """
    if not str(path).strip():
        raise ValueError(f"{what} is empty; name a folder.")
    if "\0" in str(path):
        raise ValueError(f"{what} {str(path)!r}: has a zero byte, which no path can have. Write it again.")
    if os.name == "posix" and re.match(r"[a-zA-Z]:\\", str(path)):
        raise ValueError(f"{what} {path}: a path of Windows, and this is another system. Give one of this machine.")
    if re.match(r"[a-zA-Z][\w+.-]+:/", str(path)):
        raise ValueError(
            f"{what} {path}: an address, not a folder of this machine. Mount it (gcsfuse, s3fs), or choose a local one "
            "and copy it afterwards."
        )
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{what} {path}: there is no such home folder. Write its path out.") from None


@contextlib.contextmanager
def locked(what: str, folder: Path) -> Iterator[None]:
    """Keeps a folder for this run while the block lasts, and removes what killed writers left in it.

    The system lets go of it when the process ends, however it ends. Of several hosts the first one holds it for all.

    Args:
      what: the option that named it, for messages.
      folder: it has to exist.

    Raises:
      ValueError: another process has it.
      OSError: something else than a file is in the place of the lock, or the folder is read-only.
    """
    with contextlib.ExitStack() as stack:
        free = True
        if devices.is_first_host():
            lock = filelock.FileLock(folder / LOCK, timeout=0)
            try:
                stack.enter_context(lock)
                sweep(folder)
            except filelock.Timeout:
                free = False
            except OSError as error:
                raise OSError(f"{folder / LOCK}: cannot be locked ({error.strerror}). Delete it.") from None
        if not devices.agreed(free):
            raise ValueError(
                f"{what} {folder}: another process is working in it. Wait until that has ended, or choose another one."
            )
        yield


def sweep(folder: str | Path, name: str | None = None) -> None:
    """Removes what killed writers left in a folder: of the target called `name`, or of all where it is ours.

    What a living process writes is locked, and stays.
    """
    pattern = re.compile(rf"\.({'.+' if name is None else re.escape(name)})-[0-9a-f]{{8}}\.({PARTIAL}|{RETIRED})")
    for path in sorted(Path(folder).glob(".*")):
        found = pattern.fullmatch(path.name)
        if not found or (found[2] == RETIRED and not path.with_name(found[1]).exists()):
            continue  # a retired folder without a new one is the only one there is: see `recover`
        held = _held(path)
        if held is None:
            continue
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        _let_go(held)


def recover(folder: str | Path) -> None:
    """Brings back a folder that was being replaced when the process was killed, on systems that cannot exchange two."""
    folder = Path(folder)
    if folder.exists():
        return
    pattern = re.compile(rf"\.{re.escape(folder.name)}-[0-9a-f]{{8}}\.{RETIRED}")
    for path in sorted(folder.parent.glob(".*")):
        if pattern.fullmatch(path.name) and (held := _held(path)) is not None:
            os.rename(path, folder)
            _let_go(held)
            return


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}-{secrets.token_hex(4)}.{kind}")


def _created(path: Path) -> BinaryIO:
    """A new locked file. Whoever sweeps may have taken it for a leftover before it was locked: then another one."""
    while True:
        file = open(path, "x+b")
        if fcntl is not None:
            with contextlib.suppress(OSError):  # some file systems know no locks
                fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                return file
        file.close()


def _created_folder(folder: Path) -> tuple[Path, int | None]:
    """As `_created`, a folder."""
    while True:
        partial = _beside(folder, PARTIAL)
        partial.mkdir()
        held = _held(partial)
        if partial.exists():
            return partial, held
        _let_go(held)


def _held(path: Path) -> int | None:
    """Locks a file or folder that is there; None if a living process has it, or it is gone."""
    if fcntl is None:
        return None
    try:
        held = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held


def _let_go(held: int | None) -> None:
    if held is not None:
        os.close(held)


def _put(partial: Path, folder: Path) -> None:
    """Moves a folder to where another one may be, which is then where the first was, or gone."""
    if not folder.exists():
        os.rename(partial, folder)
    elif not _exchange(partial, folder):
        retired, held = _beside(folder, RETIRED), _held(folder)
        try:
            os.rename(folder, retired)
            os.rename(partial, folder)
            shutil.rmtree(retired)
        finally:
            _let_go(held)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two paths in one step; False if this system or file system cannot."""
    sys.audit("os.rename", str(one), str(other), -1, -1)
    libc: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    paths = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):
        return libc.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE) == 0
    return hasattr(libc, "renamex_np") and libc.renamex_np(*paths, RENAME_SWAP) == 0


def _sync(folder: Path) -> None:
    """Puts the files of a folder on the disk itself."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """An error of the system as a sentence that names the file; those that have one already pass."""
    try:
        yield
    except shutil.Error as error:  # of many files, (from, to, why) each
        raise OSError(f"{path}: cannot be written ({error.args[0][0][2]}). {ADVICE}") from error
    except OSError as error:
        if error.errno is None:
            raise
        where = "" if error.filename is None or Path(error.filename) == path else f", {error.filename}"
        raise type(error)(f"{path}: cannot be written ({error.strerror}{where}). {ADVICE}") from error
