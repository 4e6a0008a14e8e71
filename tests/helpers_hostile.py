"""The hostile inputs of tests/hostile.yaml: how their bytes are made, and how they get into an inbox."""

import gzip
import io
import json
import lzma
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import yaml
from pyarrow import parquet

LIST = Path(__file__).with_name("hostile.yaml")
SILENT_SECONDS = 30


@dataclass(frozen=True)
class Entry:
    """One line of hostile.yaml, as its header says."""

    mechanism: str
    verdict: str
    name: str = ""
    name_bytes: str = ""
    shown: str = ""
    make: dict[str, Any] = field(default_factory=dict)
    pack: tuple[str, ...] = ()
    kind: str = "renamed"
    sidecar: str | None = None
    sidecar_make: dict[str, Any] | None = None
    sidecar_kind: str = ""
    rows: int = 0
    bad: int = 0
    long: int = 0
    line: int | None = None
    reason: str = ""
    needs: str = ""
    heavy: bool = False

    @property
    def file(self) -> str:
        """The name as the filesystem knows it."""
        return os.fsdecode(self.name_bytes.encode("latin-1")) if self.name_bytes else self.name

    @property
    def said(self) -> str:
        """The name as people see it."""
        return self.shown or self.name


def entries() -> list[Entry]:
    return [Entry(**given) for given in yaml.safe_load(LIST.read_text())]


# ---- bytes ----


def good(count: int, about: str) -> list[str]:
    """Good rows that differ from those of every other file."""
    return [json.dumps({"prompt": f"What is {n} of {about}?", "completion": f"It is {n}."}) for n in range(count)]


def content(entry: Entry) -> bytes:
    data = make(entry.make, f"{entry.mechanism} {entry.said}")
    for _ in entry.pack:
        data = packed_once(data)
    return data


def make(how: dict[str, Any], about: str) -> bytes:
    """What the header of hostile.yaml calls `make`."""
    if "call" in how:
        return bytes(GENERATORS[how["call"]](about=about, **how.get("with", {})))
    if "text" in how:
        return str(how["text"]).encode()
    if "hex" in how:
        return bytes.fromhex(how["hex"])
    if "rows" in how:
        return lines(good(how["rows"], about))
    row = bytes.fromhex(how["row_hex"]) if "row_hex" in how else str(how["row"]).encode()
    return among(
        row.replace(b"@", str(how.get("copy", "@")).encode() * how.get("copies", 1)), about, how.get("among", 4)
    )


def lines(rows: list[str]) -> bytes:
    return "".join(row + "\n" for row in rows).encode()


def among(row: bytes, about: str, count: int) -> bytes:
    """A row as the third of so many, the others good."""
    rows = good(count - 1, about)
    return lines(rows[:2]) + row + b"\n" + lines(rows[2:])


def cut(about: str, rows: int, bytes: int) -> bytes:
    return lines(good(rows, about))[:-bytes]


def trained(about: str) -> bytes:
    """The file that was trained before all others were dropped."""
    return lines(good(8, "the file that is trained first"))


def repeated(about: str, text: str, times: int, before: str = "") -> bytes:
    return before.encode() + text.encode() * times


def encoded(about: str, encoding: str) -> bytes:
    return lines(good(4, about)).decode().encode(encoding)


def line_ends(about: str, end: str) -> bytes:
    return "".join(row + end for row in good(4, about)).encode()


def zeros_after(about: str, rows: int, bytes: int) -> bytes:
    """What a power cut leaves of a file that was just growing."""
    return lines(good(rows, about)) + b"\0" * bytes


def array(about: str, rows: int) -> bytes:
    return f"[{', '.join(good(rows, about))}]".encode()


def big_array(about: str, rows: int) -> bytes:
    """All in one line."""
    return array(about, rows)


def nested(about: str, depth: int) -> bytes:
    return among(b'{"text": "a", "more": ' + b"[" * depth + b"]" * depth + b"}", about, 4)


def nested_array(about: str, depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def wide(about: str, columns: int) -> bytes:
    return among(json.dumps({f"a{n}": n for n in range(columns)}).encode(), about, 4)


def turns(about: str, turns: int) -> bytes:
    talk = [{"role": "user", "content": "Go on?"}, {"role": "assistant", "content": "Yes."}] * (turns // 2)
    return among(json.dumps({"messages": talk}).encode(), about, 4)


def numbered(about: str, rows: int) -> bytes:
    return b"".join(b'{"prompt": "%d?", "completion": "%d."}\n' % (n, n) for n in range(rows))


def size(about: str, megabytes: int) -> bytes:
    raise AssertionError("such a file is made in its place, never in memory")


# ---- packed and tables ----


def packed_once(data: bytes) -> bytes:
    """Always the same: with no time in it."""
    return gzip.compress(data, mtime=0)


def zipped(about: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as packed:
        packed.writestr(zipfile.ZipInfo("data.jsonl"), lines(good(4, about)))
    return data.getvalue()


def tarred(about: str) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as packed:
        rows = lines(good(4, about))
        info = tarfile.TarInfo("../../escaped.jsonl")
        info.size = len(rows)
        packed.addfile(info, io.BytesIO(rows))
    return packed_once(data.getvalue())


def xz(about: str) -> bytes:
    return lzma.compress(lines(good(4, about)))


def gz_cut(about: str, rows: int, bytes: int) -> bytes:
    return packed_once(lines(good(rows, about)))[:-bytes]


def gz_spoiled(about: str, rows: int, at: int) -> bytes:
    data = bytearray(packed_once(lines(good(rows, about))))
    data[at] ^= 0xFF
    return bytes(data)


def gz_trailing(about: str, rows: int, text: str) -> bytes:
    return packed_once(lines(good(rows, about))) + text.encode()


def gz_members(about: str, rows: int) -> bytes:
    return packed_once(lines(good(rows, about))) + packed_once(lines(good(rows, f"more of {about}")))


def gz_bomb(about: str, character: str, megabytes: int) -> bytes:
    data = io.BytesIO()
    with gzip.GzipFile(fileobj=data, mode="wb", mtime=0) as packed:
        for _ in range(megabytes):
            packed.write(character.encode() * 2**20)
    return data.getvalue()


def table(column: str, values: list[Any], **options: Any) -> bytes:
    data = io.BytesIO()
    parquet.write_table(pyarrow.table({column: values}), data, **options)
    return data.getvalue()


def parquet_file(about: str, rows: int = 20, cut: int = 0, spoil: int | None = None, magic: str = "PAR1") -> bytes:
    texts = pyarrow.array([f"{n} of {about}" for n in range(rows)], pyarrow.string())
    data = bytearray(table("text", texts, use_dictionary=False, compression="zstd"))
    if spoil is not None:
        data[spoil : spoil + 4] = b"\xff\xff\xff\x7f"
    data[-4:] = magic.encode()
    return bytes(data[: len(data) - cut])


def parquet_of(about: str, column: str, values: list[Any]) -> bytes:
    return table(column, values)


def parquet_bomb(about: str, rows: int, megabytes: int) -> bytes:
    """A file of some kilobytes, each of its rows so many megabytes."""
    text = pyarrow.array(["x y " * (megabytes << 18)])
    return table("text", pyarrow.DictionaryArray.from_arrays([0] * rows, text), compression="zstd")


GENERATORS: dict[str, Any] = {
    made.__name__: made
    for made in (cut, trained, repeated, encoded, line_ends, zeros_after, array, big_array, nested, nested_array)
} | {made.__name__: made for made in (wide, turns, numbered, size, zipped, tarred, xz, gz_cut, gz_spoiled)}
GENERATORS |= {made.__name__: made for made in (gz_trailing, gz_members, gz_bomb, parquet_of, parquet_bomb)}
GENERATORS["parquet"] = parquet_file


# ---- into the inbox ----


class Dropping:
    """Drops entries into an inbox. Ends what it has begun, and then knows what has to be where."""

    def __init__(self, inbox: Path, outside: Path) -> None:
        self.inbox = inbox
        self.outside = outside  # a folder of the same filesystem that is none of the daemon's business
        self._writers: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self.closed: dict[str, float] = {}  # when the last writer of a file was done
        self.inodes: dict[str, int] = {}  # of files that are known again by it
        self.names: list[str] = []  # of what was dropped, as people see them
        outside.mkdir(exist_ok=True)
        (outside / "secret.jsonl").write_text('{"text": "a secret"}\n')

    def drop(self, entry: Entry) -> None:
        if entry.sidecar is not None or entry.sidecar_make is not None:
            self._drop_sidecar(entry)
        self.names.append(entry.said)
        getattr(self, f"drop_{entry.kind}")(self.inbox / entry.file, entry)

    def _drop_sidecar(self, entry: Entry) -> None:
        path = (self.inbox / entry.file).with_suffix(".yaml")
        if entry.sidecar_kind == "link":
            path.symlink_to(str(entry.sidecar))
        else:
            path.write_bytes(sidecar(entry))

    def end(self) -> None:
        for writer in self._writers:
            writer.join(SILENT_SECONDS + 60)
        for listening in self._sockets:
            listening.close()

    def drop_renamed(self, path: Path, entry: Entry) -> None:
        beside = self.outside / "made"
        beside.write_bytes(content(entry))
        beside.rename(path)

    def drop_dated(self, path: Path, entry: Entry) -> None:
        self.drop_renamed(path, entry)
        os.utime(path, (0, 0))

    def drop_sparse(self, path: Path, entry: Entry) -> None:
        beside = self.outside / "made"
        beside.touch()
        os.truncate(beside, entry.make["with"]["megabytes"] << 20)
        self._rename(beside, path)

    def _rename(self, beside: Path, path: Path) -> None:
        self.inodes[path.name] = beside.stat().st_ino
        beside.rename(path)

    def drop_written(self, path: Path, entry: Entry) -> None:
        """Row by row, for a file that would not fit into memory."""
        beside = self.outside / "made"
        with beside.open("wb") as file:
            for n in range(entry.make["with"]["rows"]):
                file.write(b'{"prompt": "%d?", "completion": "%d."}\n' % (n, n))
        self._rename(beside, path)

    # -- files that somebody still writes --

    def _write_slowly(self, path: Path, parts: list[bytes], pause: float, reopen: bool = False) -> None:
        def write() -> None:
            file = path.open("ab", buffering=0)
            for part in parts[:-1]:
                file.write(part)
                if reopen:
                    file.close()
                time.sleep(pause)
                if reopen:
                    file = path.open("ab", buffering=0)
            file.write(parts[-1])
            self.closed[path.name] = time.time()
            file.close()

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        self._writers.append(writer)

    def drop_silent_writer(self, path: Path, entry: Entry) -> None:
        data = content(entry)
        self._write_slowly(path, [data[:100], data[100:]], SILENT_SECONDS)

    def drop_growing(self, path: Path, entry: Entry) -> None:
        self._write_slowly(path, content(entry).splitlines(keepends=True), 0.5)

    def drop_reopened(self, path: Path, entry: Entry) -> None:
        """Opened anew for each line, sooner than a file is taken for settled."""
        self._write_slowly(path, content(entry).splitlines(keepends=True), 0.05, reopen=True)

    def drop_killed_writer(self, path: Path, entry: Entry) -> None:
        code = "import os, sys, time; f = open(sys.argv[1], 'ab', 0); f.write(sys.stdin.buffer.read()); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE)
        assert child.stdin
        child.stdin.write(content(entry))
        child.stdin.close()
        until = time.monotonic() + 60
        while (not path.exists() or not path.stat().st_size) and time.monotonic() < until:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()

    def drop_replaced(self, path: Path, entry: Entry) -> None:
        """A file of the same name takes the place of one that is still being received."""
        with path.open("wb", buffering=0) as first:
            first.write(b'{"text": "the first')
            time.sleep(0.2)
            self.drop_renamed(path, entry)

    # -- what is no file, or not to be read --

    def drop_link(self, path: Path, entry: Entry) -> None:
        path.symlink_to(content(entry).decode())

    def drop_hard_link(self, path: Path, entry: Entry) -> None:
        other = self.outside / path.name
        other.write_bytes(content(entry))
        os.link(other, path)

    def drop_pipe(self, path: Path, entry: Entry) -> None:
        os.mkfifo(path)

    def drop_socket(self, path: Path, entry: Entry) -> None:
        listening = socket.socket(socket.AF_UNIX)
        folder = os.open(path.parent, os.O_DIRECTORY)
        listening.bind(f"/proc/self/fd/{folder}/{path.name}")  # the path of a socket may have 108 bytes
        os.close(folder)
        self._sockets.append(listening)

    def drop_folder(self, path: Path, entry: Entry) -> None:
        path.mkdir()
        (path / "inside.jsonl").write_bytes(content(entry))

    def drop_device(self, path: Path, entry: Entry) -> None:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # the zeros without end

    def drop_unreadable(self, path: Path, entry: Entry) -> None:
        self.drop_renamed(path, entry)
        path.chmod(0)


def sidecar(entry: Entry) -> bytes | None:
    """The bytes of the settings beside it."""
    if entry.sidecar_make is not None:
        return make(entry.sidecar_make, entry.said)
    return None if entry.sidecar is None else entry.sidecar.encode()


def lacking(entry: Entry, folder: Path) -> str:
    """What an entry needs that is not to be had here; "" where nothing is lacking."""
    if entry.needs == "not_root" and os.geteuid() == 0:
        return "root reads everything"
    if entry.needs == "devices":
        try:
            os.mknod(folder / ".device", 0o600 | 0o020000, os.makedev(1, 5))
        except OSError as error:
            return f"no device can be made: {error}"
        (folder / ".device").unlink()
    return ""
