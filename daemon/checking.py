"""A data file looked at before it is dropped, by the code that reads it in the queue: validate, preview, holdout."""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from daemon.core import config, files
from daemon.core.config import Settings
from daemon.core.errors import BadConfig, BadData, DaemonError, NotFound, Refused, UsageError, WorkerExit
from daemon.core.paths import JOB_RECORD, JOB_REJECTED_ROWS, JOB_REPORT, JOB_TOKENS, Workspace
from daemon.core.records import IntakeReport, Job, Sidecar, now
from daemon.data import formats, tokens
from daemon.data.intake import job_settings
from daemon.data.lines import BadRow, Line, UnusableFile, parse
from daemon.data.render import Renderer
from daemon.data.sources import Source
from daemon.data.survey import IN_HOLDOUT
from daemon.jobs.sidecar import read_sidecar, sidecar_paths
from daemon.jobs.store import printable

SHOWN_LINES = 20  # of each kind of trouble
SHOWN_KINDS = 50
_PARTICULARS = re.compile(r"'[^']*'|\d[\d,.]*|(?<=columns: ).*")  # what differs between two rows with the same trouble


# ---- validate ----


@dataclass
class Trouble:
    """One kind of thing that is wrong with rows."""

    reason: str  # of the first such row
    fix: str
    row: str  # the beginning of the first such row
    harmless: bool = False  # meant so: nothing is to be mended
    count: int = 0
    lines: list[int] = field(default_factory=list)  # the first ones


@dataclass(frozen=True)
class Card:
    """What intake makes of a file."""

    report: IntakeReport
    troubles: list[Trouble]

    @property
    def good(self) -> bool:
        return self.report.usable and not self.report.warnings and all(t.harmless for t in self.troubles)

    def facts(self) -> dict[str, Any]:
        return {"report": self.report.model_dump(mode="json"), "troubles": [asdict(t) for t in self.troubles]}


def validate(workspace: Workspace, file: Path) -> Card:
    """Let intake look at a file that is not in the queue."""
    with _read(workspace, file) as (folder, report):
        return Card(report, _troubles(folder / JOB_REJECTED_ROWS))


@contextmanager
def _read(workspace: Workspace, file: Path) -> Iterator[tuple[Path, IntakeReport]]:
    """A job's folder elsewhere, as intake leaves it; gone afterwards."""
    job = _job(file)
    with tempfile.TemporaryDirectory(prefix="training-check-") as made:
        folder = Path(made)
        job.save(folder / JOB_RECORD)
        command = [sys.executable, "-P", "-m", "daemon.data.intake", str(workspace.root), made, "--outside"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode == WorkerExit.BAD_CONFIG:
            said = json.loads(done.stdout)
            raise BadConfig(said["message"], said["remedy"])
        report = IntakeReport.load(folder / JOB_REPORT)
        if done.returncode != 0 or report is None:
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise DaemonError(f"Reading {job.file} ended unexpectedly: {last}", "check memory and disk, and try again")
        yield folder, report


def _job(file: Path) -> Job:
    """The file as a job of its own. An absolute name of the data leads out of the job's folder, to where it lies."""
    if not file.exists():
        raise NotFound(f"There is no file {file}.", "check the name; quote it if it has blanks")
    if not file.is_file():
        raise UsageError(f"{file} is not a regular file.", "name a data file")
    sidecar = _sidecar(file)
    return Job(
        id="outside",
        file=printable(file.name),
        data=str(file.absolute()),
        bytes=file.stat().st_size,
        epochs=sidecar.epochs,
        learning_rate=sidecar.learning_rate,
        column_map=sidecar.column_map,
        taken_in_at=now(),
    )


def _sidecar(file: Path) -> Sidecar:
    beside = sidecar_paths(file)
    return read_sidecar(beside[0]) if beside else Sidecar()


def _troubles(rejected: Path) -> list[Trouble]:
    """The refused rows by kind, most frequent first; in flat memory, however many there are."""
    kinds: dict[str, Trouble] = {}
    if not rejected.exists():
        return []
    with rejected.open("rb") as lines:
        for line in lines:
            row = orjson.loads(line)
            kind = _PARTICULARS.sub("…", row["reason"])
            if kind not in kinds and len(kinds) >= SHOWN_KINDS:
                kind = "other"
            trouble = kinds.setdefault(
                kind, Trouble(row["reason"], row["fix"], row["row"], row["reason"] == IN_HOLDOUT)
            )
            trouble.count += 1
            if len(trouble.lines) < SHOWN_LINES:
                trouble.lines.append(row["line"])
    return sorted(kinds.values(), key=lambda trouble: -trouble.count)


def fitting_length(workspace: Workspace, report: IntakeReport) -> int | None:
    """The max_length to propose; None where none is needed. Raises Refused where the model cannot have it."""
    settings, _ = config.load(workspace.config)
    wanted = report.fitting_max_length
    if wanted is None or wanted <= settings.max_length:
        return None
    limit = (files.read_json(workspace.root / settings.base_model / "config.json") or {}).get("max_position_embeddings")
    if isinstance(limit, int) and wanted > limit:
        raise Refused(
            f"{report.file} would need max_length {wanted}, and the model has {limit} positions.",
            "shorten or split the rows; training_queue validate lists them",
        )
    return wanted


def set_max_length(workspace: Workspace, length: int) -> None:
    config.change(workspace.config, "max_length", length)


# ---- preview ----


def preview(workspace: Workspace, file: Path, count: int) -> list[dict[str, Any]]:
    """The first rows as the model sees them: pieces of text, trained or not; of a bad row why it is bad."""
    job = _job(file)
    settings = job_settings(job, config.load(workspace.config)[0])
    renderer = Renderer(workspace.root / settings.base_model, settings.enable_thinking)
    source = Source(file, settings)
    shown: list[dict[str, Any]] = []
    try:
        for line in source:
            shown.append({source.unit: line.number} | _look(line, renderer, settings))
            if len(shown) >= count:
                break
    except UnusableFile as error:
        if not shown:
            raise BadData(f"{job.file}: {error.reason}.", error.remedy) from None
    return shown


def _look(line: Line, renderer: Renderer, settings: Settings) -> dict[str, Any]:
    try:
        if line.too_long:
            raise BadRow(f"the row is longer than {settings.max_row_bytes:,} bytes", "shorten it")
        if line.trouble:
            raise line.trouble
        row = formats.read(line.data, settings.column_map)
        encoded = renderer.encode([renderer.draft(row)])[0]
    except BadRow as bad:
        return {"reason": bad.reason, "fix": bad.fix}
    pairs = zip(encoded.mask, encoded.ids, strict=True)
    pieces = [
        {"text": renderer.decode([token for _, token in run]), "trained": bool(trained)}
        for trained, run in groupby(pairs, key=lambda pair: pair[0])
    ]
    length = len(encoded.ids)
    return {
        "format": row.format,
        "tokens": length,
        "trained_tokens": encoded.mask.count(1),
        "too_long": length > settings.max_length,
        "pieces": pieces,
    }


# ---- holdout ----


def hold_out(workspace: Workspace, file: Path, count: int) -> dict[str, Any]:
    """Copy some good rows of a file into the holdout, from where intake keeps them from being trained.

    Which ones is decided by their content alone, so the same command chooses the same rows.
    """
    target = workspace.validation / f"{file.name.split('.')[0] or 'rows'}.jsonl"
    if target.exists():
        raise Refused(f"{target} is there already.", "remove it first, or rename it to keep both")
    with _read(workspace, file) as (folder, report):
        if not report.usable:
            raise BadData(f"{report.file}: {report.reason}.", report.remedy or "correct the file")
        chosen = _choose(folder / JOB_TOKENS, count)
    kept = _rows(file, job_settings(_job(file), config.load(workspace.config)[0]), chosen)
    files.make_folder(workspace.validation)
    files.write(target, b"".join(kept))
    return {"file": report.file, "rows": len(kept), "of": report.rows, "holdout": str(target), "lines": sorted(chosen)}


def _choose(cache: Path, count: int) -> set[int]:
    """The lines of the rows whose hashes come first; each different row counts once."""
    lines = array("Q", (cache / tokens.LINES).read_bytes())
    digests = (cache / tokens.DIGESTS).read_bytes()
    size = formats.DIGEST_BYTES
    different = {digests[i * size : (i + 1) * size]: line for i, line in reversed(list(enumerate(lines)))}
    if count > len(different) // 2:
        raise UsageError(
            f"{count} rows are more than half of the {len(different)} different good ones.",
            f"ask for at most {len(different) // 2}: most of a file is there to be trained",
        )
    ordered = sorted(different, key=lambda digest: hashlib.blake2b(digest, person=b"holdout").digest())
    return {different[digest] for digest in ordered[:count]}


def _rows(file: Path, settings: Settings, chosen: set[int]) -> list[bytes]:
    """These rows as they stand in the file, one a line; with our names where the file has others."""
    kept = []
    for line in Source(file, settings):
        if line.number in chosen:
            row = parse(line.data)
            mapped = formats.map_columns(row, settings.column_map)
            whole = b"\n" not in line.data.strip() and mapped is row
            kept.append((line.data.strip() if whole else orjson.dumps(mapped)) + b"\n")
    return kept
