"""A data file of any accepted kind as rows in one pass, which also gives the file's size and hash."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon.core import files
from daemon.core.config import Settings
from daemon.core.files import CHUNK
from daemon.data import elements, tables
from daemon.data.lines import HashedFile, Line, Stream, UnusableFile, split_lines

GZ = ".gz"
PARQUET = ".parquet"
UNITS = {".jsonl": "line", ".json": "element", ".csv": "line", PARQUET: "row", ".txt": "line"}  # what is numbered
MAX_RATIO = 200  # of unpacked to packed bytes; zeros reach 1,000, text 4 to 20
FREE_BYTES = 64 << 20  # that may be unpacked at any ratio
KINDS = (*UNITS, *(kind + GZ for kind in UNITS if kind != PARQUET))


def kind_of_file(name: str) -> str | None:
    """The ending that says how a file is read; None where it cannot be."""
    return next((kind for kind in reversed(KINDS) if name.lower().endswith(kind)), None)


class Source:
    """The rows of one file. `sha256` and `bytes` are those of the file as it lies there, packed or not."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self._path = path
        self._settings = settings
        self._kind = kind_of_file(path.name) or ""
        self.unit = UNITS.get(self._kind.removesuffix(GZ), "line")
        self._seen: tuple[int, str] | None = None

    @property
    def bytes(self) -> int:
        return self._look()[0]

    @property
    def sha256(self) -> str:
        return self._look()[1]

    def _look(self) -> tuple[int, str]:
        """What the pass has found; a file that was not read to its end is hashed by itself."""
        if self._seen is None:
            self._seen = (self._path.stat().st_size, files.hash_file(self._path))
        return self._seen

    def __iter__(self) -> Iterator[Line]:
        """Raises UnusableFile, in the middle of the rows too."""
        if not self._kind:
            raise unknown_kind(self._path.name)
        if self._path.is_file() and not self._path.stat().st_size:
            return  # empty, which is no damage, whatever the kind
        if self._kind == PARQUET:
            yield from tables.read_parquet(self._path, self._settings.max_row_bytes)
            return
        with HashedFile(self._path) as file:
            packed = self._kind.endswith(GZ)
            whole = _Unpacked(file, self._settings.max_unpacked_bytes) if packed else file
            yield from self._rows(io.BufferedReader(whole, CHUNK))
            self._seen = (file.bytes, file.sha256)

    def _rows(self, stream: Stream) -> Iterator[Line]:
        limit = self._settings.max_row_bytes
        kind = self._kind.removesuffix(GZ)
        if kind == ".csv":
            return tables.read_csv(stream, limit, self._settings.column_map)
        if kind == ".txt":
            return tables.read_blocks(stream, limit)
        if kind == ".json" and not elements.holds_lines(stream):
            return elements.read_elements(stream, limit)
        return split_lines(stream, limit)


class _Unpacked(io.RawIOBase):
    """A gzip stream that never gives more than it may, and says in words what is wrong with it."""

    def __init__(self, packed: HashedFile, max_bytes: int) -> None:
        self._packed = packed
        self._stream = gzip.GzipFile(fileobj=io.BufferedReader(packed, CHUNK))
        self._given = 0
        self._max_bytes = max_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            count = self._stream.readinto(buffer)
        except EOFError:
            reason = "the file is not whole: its compressed data ends too early"
            raise UnusableFile(reason, "copy the file again, whole") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise UnusableFile(f"the compressed data is damaged: {error}", "copy or pack the file again") from None
        self._given += count
        if self._given > self._max_bytes:
            raise UnusableFile(
                f"the file unpacks to more than {self._max_bytes:,} bytes", "split it, or raise max_unpacked_bytes"
            )
        if self._given > MAX_RATIO * max(self._packed.bytes, FREE_BYTES // MAX_RATIO):
            raise UnusableFile(
                f"the file unpacks to more than {MAX_RATIO} times its size, as no text does", "drop it unpacked"
            )
        return count


def unknown_kind(name: str) -> UnusableFile:
    packed = name.lower().endswith((".zip", ".xz", ".zst", ".bz2", ".7z", ".tar.gz", ".tgz"))
    remedy = (
        "unpack it, or pack it as .jsonl.gz"
        if packed
        else "write it as JSON Lines (one JSON object a line) into a file whose name ends in .jsonl; "
        f"{', '.join(list(UNITS)[1:])} are read too"
    )
    ending = Path(name).suffix or "a file without ending"
    return UnusableFile(f"{ending} is not a kind of file that can be read", remedy)
