"""The unpickler of all readers: makes what a table of names says, and nothing else, at the cost of the file's own size.

It is Python's own in Python: the one in C believes a file how many objects it will remember, and reserves memory for
them. Attributes can be set on objects that ask for it only, never on the functions and classes that make them.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

MAX_STEPS = 1_000_000  # of a file; those of networks have some ten thousand
FORBIDDEN = (
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.NEWOBJ_EX),
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4),
)


class Capped:
    """A file whose reads ask for no more than is left in it: Python makes room for what is asked for first."""

    def __init__(self, file: BinaryIO):
        """Reads from where the file is."""
        start = file.tell()
        self.end = file.seek(0, os.SEEK_END)
        file.seek(start)
        self.file, self.readline, self.tell = file, file.readline, file.tell

    def read(self, count: int = -1) -> bytes:
        """Up to `count` bytes, all that are left if it is negative."""
        left = max(0, self.end - self.tell())
        return self.file.read(left if count < 0 else min(count, left))


class _Steps(dict):
    """What to do for each code, counted."""

    left = MAX_STEPS

    def __getitem__(self, code):
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError(f"it takes more than {MAX_STEPS} steps, which no network does")
        return super().__getitem__(code)


class SafeUnpickler(pickle._Unpickler):
    """Makes objects of named makers.

    Attributes:
      stateful: the classes whose instances take a state.
    """

    stateful: tuple[type, ...] = ()

    def __init__(self, file: BinaryIO, known: dict[str, Callable], what: str, **options):
        """Reads from a file.

        Args:
          file: binary, read from where it is.
          known: the maker of each global that may be asked for, by `module.name`.
          what: what others are not, for messages.
          **options: of `pickle.Unpickler`.
        """
        super().__init__(Capped(file), **options)
        self._known, self._what = known, what
        self.dispatch = _Steps(self.dispatch)
        for code in FORBIDDEN:
            del self.dispatch[code[0]]
        self.dispatch[pickle.BUILD[0]] = SafeUnpickler._build
        self.dispatch[pickle.NEWOBJ[0]] = SafeUnpickler._make

    def find_class(self, module: str, name: str) -> Any:
        """The maker of a global. Raises pickle.UnpicklingError if it may not be asked for."""
        try:
            return self._known[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which {self._what}") from None

    def _make(self):
        arguments, maker = self.stack.pop(), self.stack.pop()
        self.append(maker.__new__(maker, *arguments) if isinstance(maker, type) else maker(*arguments))

    def _build(self):
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, self.stateful):
            made.__setstate__(state)
        elif not isinstance(made, dict):  # of those, attributes are left out
            raise pickle.UnpicklingError(f"it sets attributes of a {type(made).__name__}")
