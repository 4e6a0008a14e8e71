"""The suites of a workspace: the files in data/benchmarks, and where their token caches lie.

A row is one as it would be trained: its last answer is what is expected. Beside `messages` or a `prompt` the answer
may also stand in `expected`. A plain `text` is not asked about, only read.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import orjson

from daemon.core import files
from daemon.core.attempts import SuiteGiven
from daemon.core.config import Settings
from daemon.core.paths import Workspace
from daemon.core.records import Record
from daemon.data import tokens
from daemon.data.digests import Digests
from daemon.data.holdout import CACHE_PREFIX
from daemon.data.lines import BadRow, Line, UnusableFile, parse
from daemon.data.reading import Reader, Reading
from daemon.data.render import Renderer
from daemon.data.sources import Source
from daemon.data.survey import batches
from daemon.data.tokens import TokensWriter

META = "suite.json"
TAKEN_NAMES = ("holdout", "training", "throughput", "memory_peak_gb")  # in results.yaml, beside the suites


class SuiteMeta(Record):
    """`suite.json` in a suite's token cache: what was found in its file."""

    file: str
    rows: int
    left_out_rows: int  # bad, or longer than max_length
    reason: str | None  # why none can be used, in words


def listed(workspace: Workspace, settings: Settings) -> list[SuiteGiven]:
    """The suites, in order of name; a file that cannot be opened is none."""
    return [suite for _, suite in _found(workspace, settings)]


def _found(workspace: Workspace, settings: Settings) -> Iterator[tuple[Path, SuiteGiven]]:
    names = sorted(f for f in workspace.benchmarks.glob("*.jsonl") if f.is_file() and not f.name.startswith("."))
    of_model = tokens.key(workspace.root / settings.base_model, settings) if names else ""
    for file in names:
        try:
            key = hashlib.sha256(f"{of_model}\n{files.hash_file(file)}".encode()).hexdigest()
        except OSError:
            continue
        folder = workspace.benchmarks / f"{CACHE_PREFIX}{key[:16]}"
        name = file.name if file.stem in TAKEN_NAMES else file.stem
        yield file, SuiteGiven(name=name, key=key, folder=str(folder.relative_to(workspace.root)))


def are_unread(workspace: Workspace, settings: Settings) -> bool:
    """Whether intake has still to look at a suite."""
    return any(read_meta(workspace.root / suite.folder) is None for suite in listed(workspace, settings))


def read_meta(folder: Path) -> SuiteMeta | None:
    """What is known of the suite with this cache; None where intake has not looked at it, or that is damaged."""
    try:
        return SuiteMeta.load(folder / META)
    except ValueError:
        return None


def prepare(workspace: Workspace, settings: Settings, renderer: Renderer) -> None:
    """Make the token caches that are not there yet; clear away those of other suites or settings."""
    found = {workspace.root / suite.folder: (file, suite.key) for file, suite in _found(workspace, settings)}
    old = {*workspace.benchmarks.glob(f"{CACHE_PREFIX}*"), *files.leftovers(workspace.benchmarks)}
    for folder in sorted(old):
        if folder not in found or _is_damaged(folder, found[folder][1]):
            files.remove(folder)
    for folder, (file, key) in found.items():
        if not folder.exists():  # else the same content stands in another file too
            _read(file, folder, key, settings, renderer)


def _is_damaged(folder: Path, key: str) -> bool:
    return read_meta(folder) is None or tokens.check(folder, key, key) is not None


def _read(file: Path, folder: Path, key: str, settings: Settings, renderer: Renderer) -> None:
    reader, left_out, wrong = Reader(renderer, settings), 0, "it has none"
    with files.stage(folder) as staged, TokensWriter(staged) as writer:
        try:
            for batch in batches(Source(file, settings)):
                for line, found in reader.read([_with_answer(line) for line in batch]):
                    if isinstance(found, Reading) and found.fault is None and found.length <= settings.max_length:
                        writer.append(found.ids, _last_answer(found.mask), line.number, found.digest)
                        continue
                    wrong = wrong if left_out else f"line {line.number}: {_in_words(found, settings)}"
                    left_out += 1
        except UnusableFile as error:
            wrong = error.reason
        rows = writer.finish(key, key, left_out).rows
        reason = None if rows else f"no row of {file.name} can be used: {wrong}"
        meta = SuiteMeta(file=file.name, rows=rows, left_out_rows=left_out, reason=reason)
        meta.save(staged / META)


def _in_words(found: Reading | BadRow, settings: Settings) -> str:
    if isinstance(found, BadRow):
        return found.reason
    too_long = f"the row has {found.length} tokens, max_length is {settings.max_length}"
    return "no answer is expected" if found.fault else too_long


def _with_answer(line: Line) -> Line:
    """The answer that stands beside its question is put where a row to be trained has it."""
    if b'"expected"' not in line.data or line.too_long:
        return line
    try:
        row = parse(line.data)
    except BadRow:
        return line
    expected = row.pop("expected", None)
    if isinstance(row.get("messages"), list):
        row["messages"] = [*row["messages"], {"role": "assistant", "content": expected}]
    else:
        row["completion"] = expected
    return line._replace(data=orjson.dumps(row))


def _last_answer(mask: bytes) -> bytes:
    """The mask of what is expected: the last run of trained tokens, or all of a text."""
    end = mask.rfind(1) + 1
    start = mask.rfind(0, 0, end) + 1
    return bytes(start) + mask[start:end] + bytes(len(mask) - end)


def count_shared(workspace: Workspace, seen: Digests) -> int:
    """How many different rows of a file stand in a suite too; of those that intake has read."""
    caches = [folder for folder in workspace.benchmarks.glob(f"{CACHE_PREFIX}*") if read_meta(folder)]
    return seen.count(digest for folder in caches for digest in tokens.read_digests(folder))
