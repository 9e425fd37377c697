"""The output of a process on disk: its first MiB and its last nine, written by a keeper, read by the agent.

The file begins with the number of bytes that were ever written (8 bytes, little-endian). Then come the first
MiB, and a ring for the rest. The ring is one MiB larger than what a reader may use: the keeper overwrites that
part while it appends.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Final, Self

HEAD: Final = 1024 * 1024
"""Bytes that are kept from the beginning of an output."""
TAIL: Final = 9 * 1024 * 1024
"""Bytes that are kept from the end of an output that exceeds HEAD + TAIL."""
_STEP: Final = 1024 * 1024
"""The largest number of bytes that one append overwrites."""
_RING: Final = TAIL + _STEP
_SIZE: Final = struct.Struct("<Q")
_LONGEST: Final = 4
"""Bytes of the longest character in UTF-8."""
_CONTINUATION, _MASK = 0x80, 0xC0


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an output: whole characters from `offset` to `next`."""

    offset: int
    next: int
    data: bytes
    size: int
    """Bytes ever written."""
    dropped: int
    """Bytes that were left out so far between the kept beginning and the kept end."""


class OutputWriter:
    """Appends to the file of an output; there is one writer."""

    def __init__(self, descriptor: int) -> None:
        self._file, self.size = descriptor, 0

    def append(self, data: bytes) -> None:
        """Add whole characters. Raises OSError, for example if the disk is full; then they are not added."""
        for start in range(0, len(data), _STEP):
            step = data[start : start + _STEP]
            for at, part in _placed(self.size, step):
                _write_at(self._file, part, at)
            self.size += len(step)
            # After the bytes: a reader never sees a size that includes bytes that are not there.
            _write_at(self._file, _SIZE.pack(self.size), 0)


class OutputReader:
    """Reads the file of an output, also while it grows."""

    def __init__(self, descriptor: int) -> None:
        self._file = descriptor

    @classmethod
    def open(cls, path: os.PathLike[str]) -> Self:
        """Open an output. Raises OSError."""
        return cls(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def size(self) -> int:
        """Return how many bytes were ever written."""
        packed = os.pread(self._file, _SIZE.size, 0)
        return int(_SIZE.unpack(packed)[0]) if len(packed) == _SIZE.size else 0

    def read(self, after: int, limit: int) -> Piece:
        """Return at most `limit` bytes from byte `after` on, but at least one character if there is any.

        An `after` inside a character, or in the part that was dropped, moves on to what comes next.
        """
        while True:
            piece = self._read(after, limit)
            size = self.size()
            if size <= HEAD + TAIL or piece.next <= HEAD or piece.offset >= size - TAIL:
                return piece

    def _read(self, after: int, limit: int) -> Piece:
        size = self.size()
        dropped, end = 0, size
        after = max(0, min(after, size))
        if size > HEAD + TAIL:
            head, tail = self._head_end(), self._next_character(size - TAIL, size)
            dropped = tail - head
            if after < head:
                end = head
            else:
                after = max(after, tail)
        after = self._next_character(after, end)
        data = self._bytes(after, min(end, after + max(limit, _LONGEST)))
        whole = _whole_characters(data[:limit]) or _first_character(data)
        return Piece(after, after + len(whole), whole, size, dropped)

    def _head_end(self) -> int:
        """Return where the first MiB ends, before a character that it would cut."""
        start = HEAD - _LONGEST
        return start + len(_whole_characters(self._bytes(start, HEAD), cut_front=True))

    def _next_character(self, offset: int, end: int) -> int:
        following = self._bytes(offset, min(end, offset + _LONGEST))
        while following and following[0] & _MASK == _CONTINUATION:
            offset, following = offset + 1, following[1:]
        return offset

    def _bytes(self, start: int, end: int) -> bytes:
        parts = []
        for at, length in _places(start, end - start):
            parts.append(os.pread(self._file, length, at))
        return b"".join(parts)


def _places(offset: int, length: int) -> list[tuple[int, int]]:
    """Return where in the file `length` bytes of the output from `offset` on are: positions and lengths."""
    places = []
    while length > 0:
        if offset < HEAD:
            at, room = offset, HEAD - offset
        else:
            in_ring = (offset - HEAD) % _RING
            at, room = HEAD + in_ring, _RING - in_ring
        part = min(room, length)
        places.append((_SIZE.size + at, part))
        offset, length = offset + part, length - part
    return places


def _placed(offset: int, data: bytes) -> list[tuple[int, bytes]]:
    parts, done = [], 0
    for at, length in _places(offset, len(data)):
        parts.append((at, data[done : done + length]))
        done += length
    return parts


def _write_at(descriptor: int, data: bytes, at: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written


def _whole_characters(data: bytes, *, cut_front: bool = False) -> bytes:
    """Return the data without an incomplete character at its end.

    `cut_front`: the data may begin inside a character.
    """
    for back in range(1, min(_LONGEST, len(data)) + 1):
        byte = data[-back]
        if byte & _MASK != _CONTINUATION:
            return data if _length(byte) <= back else data[:-back]
    return data if cut_front else b""


def _first_character(data: bytes) -> bytes:
    return data[: _length(data[0])] if data else b""


def _length(first: int) -> int:
    """Return the length of the character that begins with this byte."""
    if first < _CONTINUATION:
        return 1
    return 2 if first < 0xE0 else 3 if first < 0xF0 else 4  # noqa: PLR2004 — UTF-8
