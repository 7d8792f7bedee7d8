"""Every event in a folder, counted: what makes, renames or removes something there, in the order it happens.

`crash_at` stops all writing from one event on, as the end of a process does: nothing can be cleaned up after it.
`full_at` lets nothing new be made from one event on, as a full disk does, but renaming and removing goes on.
"""

import contextlib
import errno
import os
import sys

from promptgen_jax.store import disk

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
MAKING = ("open", "os.mkdir", "os.link", "os.symlink", "os.truncate")
CHANGING = ("os.rename", "os.remove", "os.rmdir", "os.chmod", "os.utime")


class Crash(BaseException):
    """The end of the process."""


class _Watched:
    folder = None
    seen = 0
    at = None
    error = None


def _hook(event, arguments):
    if _Watched.folder is None or event not in MAKING + CHANGING or not _touches(event, arguments):
        return
    _Watched.seen += 1
    if _Watched.at is not None and _Watched.seen > _Watched.at and (_Watched.error is Crash or event in MAKING):
        raise Crash if _Watched.error is Crash else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))


def _touches(event, arguments):
    path = arguments[0]
    if not isinstance(path, (str, bytes, os.PathLike)) or (event == "open" and not (arguments[2] or 0) & WRITING):
        return False
    place = ""
    if event in ("os.remove", "os.rmdir") and arguments[1] != -1:  # within an open folder
        place = os.readlink(f"/proc/self/fd/{arguments[1]}")
    return os.path.abspath(os.path.join(place, os.fsdecode(path))).startswith(_Watched.folder)


sys.addaudithook(_hook)


@contextlib.contextmanager
def watched(folder, at=None, error=None):
    """Counts events in a folder, and lets everything behind event number `at` fail; yields the class with `seen`."""
    _Watched.folder, _Watched.seen, _Watched.at, _Watched.error = os.path.realpath(folder), 0, at, error
    try:
        yield _Watched
    finally:
        _Watched.folder = None


def crash_at(folder, number):
    """Only the first `number` events happen."""
    return watched(folder, number, Crash)


def full_at(folder, number):
    """Nothing is made after the first `number` events."""
    return watched(folder, number, OSError)


def leftovers(folder):
    """Hidden files and folders anywhere in a folder; the empty file that is locked stays, as its library says."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*") if path.name != disk.LOCK)
