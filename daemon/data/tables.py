"""The rows of tables and texts: CSV, Parquet, and blocks of plain text, each as the JSON object that it stands for."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from daemon.data.lines import BadRow, Line, Stream, UnusableFile, physical_lines

DELIMITERS = (",", ";", "\t")
LISTS = ("messages", "conversations", "tools", "history", "chosen", "rejected")  # a cell may hold them as JSON
PARQUET_BATCH_ROWS = 8  # decoded at a time: each may be as long as a row may be, though the file is small


# ---- CSV ----


class _Cells:
    """Feeds lines to the csv module, and remembers where a row begins and how long it is."""

    def __init__(self, stream: Stream, max_row_bytes: int) -> None:
        self._lines = physical_lines(stream, max_row_bytes)
        self._limit = max_row_bytes
        self.first = 0  # line of the row
        self.raw = bytearray()

    def begin_row(self) -> None:
        self.first, self.raw = 0, bytearray()

    def __iter__(self) -> "_Cells":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.first = self.first or line.number
        self.raw += line.data
        if line.too_long:
            raise BadRow(f"the row is longer than {self._limit:,} bytes", "shorten it, or raise max_row_bytes")
        if len(self.raw) > self._limit:
            raise UnusableFile(
                f"the row that begins in line {self.first} does not end within {self._limit:,} bytes",
                "close its quotation mark, or raise max_row_bytes",
            )
        try:
            return line.data.decode()
        except UnicodeDecodeError as error:
            reason = f"not valid UTF-8 at byte {error.start + 1} of the line"
            raise BadRow(reason, "save the file as UTF-8") from None


def read_csv(stream: Stream, max_row_bytes: int, column_map: Mapping[str, str]) -> Iterator[Line]:
    """The rows under the header; `number` is that of the row's first line. Raises UnusableFile."""
    csv.field_size_limit(max_row_bytes)
    head = stream.peek(1 << 16).split(b"\n", 1)[0].decode(errors="replace")
    cells = _Cells(stream, max_row_bytes)
    rows = csv.reader(cells, strict=True, delimiter=max(DELIMITERS, key=head.count))
    lists = {*LISTS, *(column_map[ours] for ours in LISTS if ours in column_map)}
    header = _read_header(rows)
    if header is None:
        return
    while True:
        cells.begin_row()
        try:
            fields = next(rows)
            line = _csv_line(cells.first, header, fields, lists) if "".join(fields).strip() else None
        except StopIteration:
            return
        except BadRow as bad:
            line = _bad_line(cells, bad)
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise UnusableFile(
                    f"the quotation mark that opens in line {cells.first} is never closed",
                    "close it; a quotation mark inside a field is written twice",
                ) from None
            line = _bad_line(cells, BadRow(f"not valid CSV: {error}", 'write " inside quotation marks as ""'))
        if line is not None:
            yield line


def _bad_line(cells: _Cells, bad: BadRow) -> Line:
    return Line(cells.first, bytes(cells.raw), False, True, bad)


def _read_header(rows: Iterator[list[str]]) -> list[str] | None:
    remedy = "write the names of the columns into the first line"
    try:
        header = [name.strip() for name in next(rows)]
    except StopIteration:
        return None
    except (BadRow, csv.Error) as error:
        raise UnusableFile(f"the header cannot be read: {error}", remedy) from None
    if not all(header) or len(set(header)) < len(header):
        raise UnusableFile("the header has a column without a name, or a name twice", remedy)
    return header


def _csv_line(number: int, header: list[str], fields: list[str], lists: set[str]) -> Line:
    if len(fields) != len(header):
        raise BadRow(
            f"the row has {len(fields)} fields, the header has {len(header)}",
            "put fields that hold a delimiter or a line break in quotation marks",
        )
    values = {name: _cell(value) if name in lists else value for name, value in zip(header, fields, strict=True)}
    return Line(number, orjson.dumps(values), False, True)


def _cell(value: str) -> Any:
    if value.lstrip()[:1] == "[":
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value  # the check of the format says what is wrong
    return value or None


# ---- Parquet ----


def read_parquet(path: Path, max_row_bytes: int) -> Iterator[Line]:
    """The rows, numbered from 1, a few at a time. Raises UnusableFile."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UnusableFile(
            "reading .parquet needs pyarrow, which is not installed",
            "pip install training-daemon[parquet], or write the rows as .jsonl",
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as table:
            for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield _parquet_line(number, row, max_row_bytes)
    except MemoryError:  # pyarrow's too: a page of the file is decoded as a whole
        raise UnusableFile(
            "a value of the table unpacks to more than memory holds",
            "store shorter values, or write the rows as .jsonl",
        ) from None
    except (pyarrow.ArrowException, OSError) as error:
        said = str(error).partition("\n")[0][:200] or type(error).__name__
        said = "".join(c if c.isprintable() else repr(c)[1:-1] for c in said)  # bytes of the file, as it seems
        raise UnusableFile(f"the file is not whole or no Parquet file: {said}", "write or copy it again") from None


def _parquet_line(number: int, row: dict[str, Any], max_row_bytes: int) -> Line:
    try:
        data = orjson.dumps(row)
    except TypeError as error:
        return Line(number, b"", False, True, BadRow(f"a value is no text: {error}", "store the columns as text"))
    return Line(number, data[: max_row_bytes + 1], len(data) > max_row_bytes, True)


# ---- plain text ----


def read_blocks(stream: Stream, max_row_bytes: int) -> Iterator[Line]:
    """Each block between blank lines as one text; `number` is that of its first line."""
    first, block, too_long = 0, bytearray(), False
    for line in physical_lines(stream, max_row_bytes):
        if line.data.strip() or line.too_long:
            first = first or line.number
            too_long = too_long or line.too_long or len(block) + len(line.data) > max_row_bytes
            block += b"" if too_long else line.data
        elif first:
            yield _block_line(first, bytes(block), too_long)
            first, block, too_long = 0, bytearray(), False
    if first:
        yield _block_line(first, bytes(block), too_long)


def _block_line(number: int, block: bytes, too_long: bool) -> Line:
    try:
        text = block.decode().rstrip("\r\n") if not too_long else ""
    except UnicodeDecodeError as error:
        bad = BadRow(f"not valid UTF-8 at byte {error.start + 1} of the block", "save the file as UTF-8")
        return Line(number, block, False, True, bad)
    return Line(number, orjson.dumps({"text": text}), too_long, True)
