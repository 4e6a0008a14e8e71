"""A set of digests in flat arrays: a set of Python's would take a hundred bytes a row, and files have millions."""

from array import array
from collections.abc import Iterable

_FIRST_SLOTS = 1 << 10


class Digests:
    """Eight bytes of each digest: among ten million rows two different ones look the same once in 400,000 files."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * _FIRST_SLOTS))  # 0 = free
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, digest: bytes) -> bool:
        key = _key(digest)
        return self._slots[_place(self._slots, key)] == key

    def add(self, digest: bytes) -> bool:
        """Whether it was not in the set before."""
        key = _key(digest)
        place = _place(self._slots, key)
        if self._slots[place] == key:
            return False
        self._slots[place] = key
        self._count += 1
        if 3 * self._count > 2 * len(self._slots):
            self._grow()
        return True

    def count(self, others: Iterable[bytes]) -> int:
        """How many different ones of the others are in the set."""
        found = Digests()
        return sum(found.add(digest) for digest in others if digest in self)

    def _grow(self) -> None:
        slots = array("Q", bytes(16 * len(self._slots)))
        for key in self._slots:
            if key:
                slots[_place(slots, key)] = key
        self._slots = slots


def _key(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little") or 1


def _place(slots: "array[int]", key: int) -> int:
    """Where the key is, or where it would be."""
    last = len(slots) - 1
    place = key & last
    while slots[place] not in (0, key):
        place = (place + 1) & last
    return place
