"""The first, the last and the new lines of a JSONL file, without reading all of it."""

from itertools import islice
from pathlib import Path
from typing import Any

from daemon.core import files

TAIL_BYTES = 1 << 20  # room for the longest line, one with examples


def first_lines(path: Path, count: int) -> list[dict[str, Any]]:
    """The first whole ones; empty where there is no file."""
    try:
        with path.open("rb") as lines:
            return [value for line in islice(lines, count) if (value := files.parse_line(line)) is not None]
    except FileNotFoundError:
        return []


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole one, where there is any."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = log.read().splitlines()
    except FileNotFoundError:
        return None
    return next((value for line in reversed(lines) if (value := files.parse_line(line)) is not None), None)


def last_lines(path: Path) -> list[dict[str, Any]]:
    """The whole ones near its end; empty where there is no file."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return [value for line in log.read().splitlines() if (value := files.parse_line(line)) is not None]
    except FileNotFoundError:
        return []


def new_lines(path: Path, position: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines from `position` on, and the position after them; half a line is left for the next look."""
    try:
        with path.open("rb") as log:
            log.seek(position)
            text = log.read()
    except FileNotFoundError:
        return [], position
    whole = text[: text.rfind(b"\n") + 1]
    lines = [line for raw in whole.splitlines() if (line := files.parse_line(raw)) is not None]
    return lines, position + len(whole)
