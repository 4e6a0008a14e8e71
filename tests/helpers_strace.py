"""A trace of system calls, read for what the disk was told: nothing unsynced gets its name, no step outruns another."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import PurePosixPath

from daemon.core.files import STAGE_PREFIX
from tests.helpers_powerloss import FOR_PEOPLE

TRACED = (
    "open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,copy_file_range,sendfile,"
    "ioctl,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mkdir,mkdirat,unlink,unlinkat,rmdir,"
    "fsync,fdatasync,syncfs"
)
STRACE = ["strace", "-D", "-f", "-y", "-qq", "-s", "0", "--seccomp-bpf", f"--trace={TRACED}"]
WRITES = {"write", "pwrite64", "writev", "pwritev", "pwritev2", "ftruncate", "fallocate"}
LATER = "rejected.jsonl"  # written line by line; synced before the report that tells of it, and no sooner
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)\) += +(-?\d+|\?)(?:<([^>]*)>)?")
_UNFINISHED = re.compile(r"^(\d+) +(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. \w+ resumed>(.*)$")
_DESCRIPTOR = re.compile(r"^\d+<([^>]*)>")
_NAMED = re.compile(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"(?:\.\.\.)?')


def whole_lines(lines: Iterable[str]) -> Iterator[str]:
    """Calls during which another thread was seen stand in two pieces."""
    begun: dict[str, str] = {}
    for line in lines:
        line = line.rstrip("\n")
        if unfinished := _UNFINISHED.match(line):
            begun[unfinished[1]] = unfinished[2]
        elif resumed := _RESUMED.match(line):
            yield f"{resumed[1]} {begun.pop(resumed[1], '')}{resumed[2]}"
        else:
            yield line


@dataclass
class Lint:
    """What was written and not synced, by path, with the thread that did it."""

    root: str
    findings: list[str] = field(default_factory=list)
    renames: int = 0
    syncs: int = 0
    _bytes: dict[str, str] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)  # folders in which a name has come, or gone by a rename
    _known: set[str] = field(default_factory=set)  # files that were made already

    def read(self, lines: Iterable[str]) -> "Lint":
        for line in whole_lines(lines):
            call = _CALL.match(line)
            if call and not call[4].startswith("-"):
                self._take(call[1], call[2], call[3], call[5] or "")
        for path in [*self._bytes, *self._names]:
            self.findings.append(f"never synced: {self._short(path)}")
        return self

    def _take(self, thread: str, name: str, arguments: str, result: str) -> None:
        descriptor = _DESCRIPTOR.match(arguments)
        here = descriptor[1] if descriptor else ""
        if name in ("fsync", "fdatasync"):
            self.syncs += 1
            self._bytes.pop(here, None)
            self._names.pop(here, None)
        elif name == "syncfs":
            self._bytes.clear()
            self._names.clear()
        elif name in WRITES or (name == "ioctl" and "FICLONE" in arguments):
            self._written(thread, here)
        elif name in ("copy_file_range", "sendfile"):
            for path in re.findall(r"\d+<([^>]*)>", arguments):
                self._written(thread, path)
        elif name in ("open", "openat", "creat"):
            self._opened(thread, arguments, result)
        else:
            self._named(
                thread,
                name,
                [f"{folder}/{path}" if path[:1] != "/" else path for folder, path in _NAMED.findall(arguments)],
            )

    def _opened(self, thread: str, arguments: str, path: str) -> None:
        new = "O_CREAT" in arguments and path not in self._known
        if new or "O_TRUNC" in arguments:
            self._written(thread, path)
        if new and self._counts(path):
            self._known.add(path)
            self._names[str(PurePosixPath(path).parent)] = thread

    def _named(self, thread: str, name: str, paths: list[str]) -> None:
        if name.startswith("rename"):
            self._renamed(thread, paths[0], paths[1])
        elif name.startswith(("link", "symlink", "mkdir")):
            path = paths[-1]
            if self._counts(path):
                self._names[str(PurePosixPath(path).parent)] = thread
        elif name.startswith(("unlink", "rmdir")):
            self._known.discard(paths[0])
            for known in (self._bytes, self._names):
                known.pop(paths[0], None)

    def _renamed(self, thread: str, source: str, target: str) -> None:
        if not (self._counts(source) and self._counts(target)):
            return
        self.renames += 1
        staged = STAGE_PREFIX in str(PurePosixPath(target).parent)
        for path in [p for p in (*self._bytes, *self._names) if p == source or p.startswith(f"{source}/")]:
            if not staged:
                self.findings.append(f"renamed unsynced: {self._short(path)}, to {self._short(target)}")
        if not staged:
            self._look_behind(thread, source, target)
        for known in (self._bytes, self._names):
            for path in [p for p in known if p == source or p.startswith(f"{source}/")]:
                known[target + path[len(source) :]] = known.pop(path)
        self._known = (self._known - {source}) | {target}
        for path in (source, target):
            self._names[str(PurePosixPath(path).parent)] = thread

    def _look_behind(self, thread: str, source: str, target: str) -> None:
        """Whatever this thread did before has to last before it gives the next thing its name."""
        inside = str(PurePosixPath(source).parent)
        for path, who in [*self._bytes.items(), *self._names.items()]:
            made_now = path == inside  # the temporary file that gets its name now was made here
            late = path.endswith(LATER) and not target.endswith("report.json")
            if who == thread and not made_now and not late and STAGE_PREFIX not in path:
                self.findings.append(f"went on to {self._short(target)} before a sync of {self._short(path)}")

    def _written(self, thread: str, path: str) -> None:
        if self._counts(path):
            self._bytes[path] = thread

    def _counts(self, path: str) -> bool:
        name = PurePosixPath(path).name
        return path.startswith(f"{self.root}/") and not any(fnmatch(name, pattern) for pattern in FOR_PEOPLE)

    def _short(self, path: str) -> str:
        return path.removeprefix(f"{self.root}/")
