"""A loss of power, modelled: of what was not synced, any part may be on the disk and any part may not.

A `Recorder` watches an operation on a real folder and notes each of its effects on names and bytes. An effect is sure
to last once everything that it touched was synced: bytes by an fsync of the file, names by one of their folder, a
rename by one of both. `states` lists what a disk may hold if the power fails after any of the calls; `Tree.build`
makes it a real folder.

It is harder than real filesystems: those keep the order of renames, here a later one may last where an earlier one
does not; bytes may lack in the middle of a file. Two things are taken as given: a rename is whole or not at all, and
what was never made cannot be renamed.
"""

import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import combinations
from pathlib import Path
from typing import Any

from daemon.core.files import STAGE_PREFIX
from tests.helpers_disk import disk_with

ALL_SUBSETS = 6  # pending effects of which every combination is tried; of more only a sample
SAMPLE = 24
LARGE_BYTES = 1 << 16  # from here on a file is read again only where its size or time has changed
# Nothing decides by these: they are for people, or for processes that a loss of power ends.
FOR_PEOPLE = ("*.log", "log.jsonl", "*.lock", "heartbeat", "stacks.txt")
ROOT = 0
PACKAGE = Path(__file__).parent.parent / "daemon"

Site = tuple[str, int]  # file below the package, line


@dataclass
class Tree:
    """Names and bytes. A node that no name leads to is not on the disk for anybody who looks."""

    folders: dict[int, dict[str, int]] = field(default_factory=dict)
    contents: dict[int, bytes | str] = field(default_factory=dict)  # text: where a link leads

    def copy(self) -> "Tree":
        return Tree({node: dict(names) for node, names in self.folders.items()}, dict(self.contents))

    def walk(self, node: int = ROOT, path: str = "") -> Iterator[tuple[str, int]]:
        for name, inner in self.folders[node].items():
            yield f"{path}{name}", inner
            if inner in self.folders:
                yield from self.walk(inner, f"{path}{name}/")

    def key(self) -> int:
        """The same for all trees in which a reader sees the same; nobody reads what is only staged."""
        shown = (
            (path, self.contents.get(node)) for path, node in self.walk() if f"/{STAGE_PREFIX}" not in _above(path)
        )
        return hash(frozenset(shown))

    def build(self, target: Path) -> None:
        target.mkdir()
        for path, node in self.walk():
            place = target / path
            content = self.contents.get(node)
            if content is None:
                place.mkdir()
            elif isinstance(content, str):
                place.symlink_to(content)
            else:
                place.write_bytes(content)


def _above(path: str) -> str:
    return "/" + path.rpartition("/")[0]


Change = Callable[[Tree], None]


@dataclass
class Effect:
    number: int
    words: str
    needs: set[int]  # nodes that have to be synced before it is sure to last
    change: Change
    after: "Effect | None" = None  # the one that made the name which this one takes away


@dataclass(frozen=True)
class State:
    """What the disk may hold if the power fails after a call."""

    number: int  # of the call
    words: str
    tree: Tree
    last: bool  # the operation had returned: what it did has to last


def enter(folder: int, name: str, node: int) -> Change:
    return lambda tree: tree.folders[folder].__setitem__(name, node)


def leave(folder: int, name: str, node: int) -> Change:
    def change(tree: Tree) -> None:
        if tree.folders[folder].get(name) == node:
            del tree.folders[folder][name]

    return change


def both(first: Change, second: Change) -> Change:
    return lambda tree: (first(tree), second(tree), None)[2]


def overlay(node: int, offset: int, data: bytes) -> Change:
    """Bytes at their place; what should stand before them and did not reach the disk reads as zeros."""

    def change(tree: Tree) -> None:
        old = tree.contents[node]
        assert isinstance(old, bytes)
        tree.contents[node] = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]

    return change


def cut(node: int) -> Change:
    return lambda tree: tree.contents.__setitem__(node, b"")


class Recorder:
    """Watches a folder while its operation runs; foreign writers are seen at the next call of ours."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._nodes: dict[int, int] = {}  # inode -> node
        self._names: dict[tuple[int, str], int] = {}
        self._large: dict[int, tuple[tuple[int, int], bytes]] = {}
        self._made: dict[tuple[int, str], Effect] = {}
        self._next = ROOT + 1
        self._base = Tree({ROOT: {}})
        self._live = Tree({ROOT: {}})
        self._effects: list[Effect] = []
        self._points: list[tuple[str, int, frozenset[int]]] = []  # words, effects so far, which of them last
        self.sites: set[Site] = set()
        self._observe()
        for effect in self._effects:
            effect.change(self._base)
        self._effects.clear()
        self._made.clear()
        self._mark("before the first call")

    # ---- watching ----

    def around(self, name: str, call: Callable[[], Any], arguments: tuple[Any, ...]) -> Any:
        self._note_sites()
        self._observe()
        try:
            return call()
        finally:
            self._observe()
            if name == "fsync":
                self._sync(arguments[0])
            if name == "syncfs":
                for effect in self._effects:
                    effect.needs.clear()
            self._mark(f"after {name} {self._short(arguments[0])}")

    def end(self) -> None:
        self._observe()
        self._mark("in the end")

    def _short(self, argument: Any) -> str:
        path = Path(os.readlink(f"/proc/self/fd/{argument}")) if isinstance(argument, int) else Path(argument)
        return str(path.relative_to(self._root)) if path.is_relative_to(self._root) else path.name

    def _note_sites(self) -> None:
        frame = sys._getframe(2)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                self.sites.add((str(path.relative_to(PACKAGE)), frame.f_lineno))
            frame = frame.f_back  # type: ignore[assignment]

    def _mark(self, words: str) -> None:
        lasting = frozenset(n for n, effect in enumerate(self._effects) if not effect.needs)
        self._points.append((words, len(self._effects), lasting))

    def _sync(self, descriptor: int) -> None:
        node = self._nodes.get(os.fstat(descriptor).st_ino)
        for effect in self._effects:
            effect.needs.discard(-1 if node is None else node)

    def _add(self, words: str, needs: set[int], change: Change, after: Effect | None = None) -> Effect:
        effect = Effect(len(self._effects), words, set() if _for_people(words) else needs, change, after)
        change(self._live)
        self._effects.append(effect)
        return effect

    # ---- what has changed since the last look ----

    def _observe(self) -> None:
        names: dict[tuple[int, str], int] = {}
        bytes_of: dict[int, tuple[str, bytes]] = {}
        known = set(self._nodes.values())
        self._look(self._root, ROOT, names, bytes_of)
        self._compare_names(names, known)
        for node, (path, data) in bytes_of.items():
            self._compare_bytes(node, path, data)
        self._names = names
        alive = set(names.values())
        self._nodes = {inode: node for inode, node in self._nodes.items() if node in alive or node == ROOT}

    def _look(
        self, path: Path, node: int, names: dict[tuple[int, str], int], data: dict[int, tuple[str, bytes]]
    ) -> None:
        self._nodes.setdefault(path.stat().st_ino, ROOT)
        for entry in sorted(os.scandir(path), key=lambda e: e.name):
            info = entry.stat(follow_symlinks=False)
            inner = self._nodes.get(info.st_ino)
            if inner is None:
                inner = self._nodes[info.st_ino] = self._birth(entry)
            names[node, entry.name] = inner
            if entry.is_dir(follow_symlinks=False):
                self._look(Path(entry.path), inner, names, data)
            elif entry.is_file(follow_symlinks=False):
                data[inner] = entry.path.removeprefix(f"{self._root}/"), self._read(entry.path, info)

    def _birth(self, entry: os.DirEntry[str]) -> int:
        node, self._next = self._next, self._next + 1
        for tree in (self._base, self._live):
            if entry.is_dir(follow_symlinks=False):
                tree.folders[node] = {}
            else:
                tree.contents[node] = os.readlink(entry.path) if entry.is_symlink() else b""
        return node

    def _read(self, path: str, info: os.stat_result) -> bytes:
        stamp = (info.st_size, info.st_mtime_ns)
        known = self._large.get(info.st_ino)
        if known is None or known[0] != stamp or info.st_size < LARGE_BYTES:
            known = self._large[info.st_ino] = (stamp, Path(path).read_bytes())
        return known[1]

    def _compare_names(self, names: dict[tuple[int, str], int], known: set[int]) -> None:
        gone = {place: node for place, node in self._names.items() if names.get(place) != node}
        for place, node in names.items():
            if self._names.get(place) == node:
                continue
            left = next((p for p, n in gone.items() if n == node), None) if node in known else None
            if left is None:
                effect = self._add(f"name {place[1]}", {place[0]}, enter(*place, node))
            else:
                del gone[left]
                change = both(leave(*left, node), enter(*place, node))
                words = f"rename {left[1]} to {place[1]}"
                effect = self._add(words, {left[0], place[0]}, change, self._made.get(left))
            self._made[place] = effect
        lost_folders = {node for node in gone.values() if node in self._live.folders}
        inside = [(p, n) for p, n in gone.items() if p[0] in lost_folders]
        for place, node in gone.items():
            if place[0] not in lost_folders and place not in names:
                for half in (inside[::2], inside[1::2]):  # of a tree that goes, some names may go before others
                    if node in lost_folders and half:
                        self._add("names inside", {place[0]}, _leave_all(half))
                self._add(f"no name {place[1]}", {place[0]}, leave(*place, node), self._made.get(place))

    def _compare_bytes(self, node: int, path: str, data: bytes) -> None:
        before = self._live.contents[node]
        assert isinstance(before, bytes)
        if data == before:
            return
        if not data.startswith(before):
            self._add(f"cut {path}", {node}, cut(node))
            before = b""
        middle = (len(before) + len(data)) // 2
        for start, end in ((len(before), middle), (middle, len(data))):
            if start < end:
                self._add(f"bytes {start}-{end} of {path}", {node}, overlay(node, start, data[start:end]))

    # ---- what may be on the disk ----

    @property
    def points(self) -> int:
        """After how many calls the power may have failed so far."""
        return len(self._points)

    def states(self, since: int = 0) -> Iterator[State]:
        """Every state after every call; up to ALL_SUBSETS pending effects in every combination."""
        for number, (words, count, lasting) in enumerate(self._points):
            if number < since:
                continue
            sure = set(lasting)
            for n in range(count - 1, -1, -1):  # what a lasting effect came after has to last too
                if n in sure and (after := self._effects[n].after):
                    sure.add(after.number)
            pending = [n for n in range(count) if n not in sure]
            for chosen in _subsets(pending):
                applied = sure | set(chosen)
                if self._possible(applied):
                    tree = self._base.copy()
                    for n in sorted(applied):
                        self._effects[n].change(tree)
                    lost = [self._effects[n].words for n in pending if n not in applied]
                    yield State(number, f"{words}, without {lost}", tree, number == len(self._points) - 1)

    def _possible(self, applied: set[int]) -> bool:
        return all(e.after is None or e.after.number in applied for e in (self._effects[n] for n in applied))


def _leave_all(places: list[tuple[tuple[int, str], int]]) -> Change:
    changes = [leave(*place, node) for place, node in places]
    return lambda tree: [change(tree) for change in changes].clear()


def _for_people(words: str) -> bool:
    return any(fnmatch(words.rsplit("/", 1)[-1].split(" ")[-1], pattern) for pattern in FOR_PEOPLE)


def _subsets(pending: list[int]) -> Iterable[tuple[int, ...]]:
    if len(pending) <= ALL_SUBSETS:
        return [c for size in range(len(pending) + 1) for c in combinations(pending, size)]
    chance = random.Random(len(pending))
    prefixes = [tuple(pending[:n]) for n in range(len(pending) + 1)]
    singles = [(n,) for n in pending]
    but_one = [tuple(m for m in pending if m != n) for n in pending]
    some = [tuple(n for n in pending if chance.random() < 0.5) for _ in range(SAMPLE)]
    return dict.fromkeys([*prefixes, *singles, *but_one, *some])


@contextmanager
def watching(root: Path) -> Iterator[Recorder]:
    recorder = Recorder(root)
    with disk_with(recorder.around):
        yield recorder
    recorder.end()
