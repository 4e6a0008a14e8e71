"""Intake, a subprocess: a job's data file -> report card, rejected rows, token cache; the holdout's cache before.

`python -P -m daemon.data.intake WORKSPACE [JOB_FOLDER]` ends with 0 once report.json is written, whatever it says, and
with 21 where the workspace is at fault: then it prints {"message", "remedy"} and the file is not judged. Without a job
it makes the holdout's cache only.
One at a time in a workspace; what an interrupted one left is made anew.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from math import ceil
from pathlib import Path

from daemon.core import config, files
from daemon.core.config import Settings
from daemon.core.errors import BadConfig, DaemonError, Exit, WorkerExit
from daemon.core.paths import JOB_RECORD, JOB_REJECTED_ROWS, JOB_REPORT, JOB_TOKENS, Workspace
from daemon.core.records import IntakeReport, Job, RejectedRow, now
from daemon.data import notices, tokens
from daemon.data.holdout import holdout_files, holdout_folder, holdout_key, remove_old_caches
from daemon.data.lines import LineReader
from daemon.data.render import Renderer
from daemon.data.survey import Counts, Survey
from daemon.data.tokens import TokensMeta, TokensWriter

MEMORY_LIMIT_BYTES = 4 << 30  # of address space
TOKENIZER_THREADS = 4  # each thread's arenas count against the limit
SUFFIX = ".jsonl"
_PR_SET_PDEATHSIG = 1

Verdict = tuple[str, str] | None  # reason and remedy where the file may not be trained


def main(arguments: list[str]) -> int:
    die_with_parent()
    limit_resources()
    if len(arguments) not in (1, 2):
        sys.stderr.write("usage: python -P -m daemon.data.intake WORKSPACE [JOB_FOLDER]\n")
        return Exit.USAGE
    try:
        examine(Workspace.at(arguments[0]), Path(arguments[1]).absolute() if len(arguments) == 2 else None)
    except DaemonError as error:
        return _blame_workspace(error.message, error.remedy)
    except OSError as error:
        return _blame_workspace(f"Intake could not go on: {error}.", "free disk space or correct the permissions")
    return Exit.GOOD


def _blame_workspace(message: str, remedy: str) -> int:
    sys.stdout.write(json.dumps({"message": message, "remedy": remedy}) + "\n")
    return WorkerExit.BAD_CONFIG


def die_with_parent() -> None:
    """Intake without a daemon would write into a job that the next daemon examines too."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(Exit.PROBLEM)


def limit_resources() -> None:
    """A file that needs too much memory ends intake, not the machine."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    os.environ["RAYON_NUM_THREADS"] = str(min(TOKENIZER_THREADS, len(os.sched_getaffinity(0))))
    os.environ["TOKENIZERS_PARALLELISM"] = "true"


def examine(workspace: Workspace, folder: Path | None) -> None:
    """The holdout's cache where it is not there yet, then the job in `folder`."""
    settings, _ = config.load(workspace.config)
    renderer = Renderer(workspace.root / settings.base_model, settings.enable_thinking)
    holdout = prepare_holdout(workspace, settings, renderer)
    if folder is not None:
        _examine_job(workspace, folder, settings, renderer, holdout)


def _examine_job(
    workspace: Workspace, folder: Path, settings: Settings, renderer: Renderer, holdout: TokensMeta | None
) -> None:
    """report.json is written last."""
    began = time.monotonic()
    job = _job(folder)
    for name in (JOB_REPORT, JOB_REJECTED_ROWS, JOB_TOKENS):
        files.remove(folder / name)
    key = tokens.key(workspace.root / settings.base_model, settings)
    if verdict := judge_name(job.data):
        report = _report(job, settings, key, began, Counts(), None, _skim(folder / job.data), verdict, [])
    else:
        digests = tokens.read_digests(holdout_folder(workspace, holdout.key)) if holdout else set()
        counts, meta, reader = _survey(folder, job, settings, key, renderer, digests)
        verdict = judge(counts, settings)
        if verdict:
            files.remove(folder / JOB_TOKENS)
        report = _report(job, settings, key, began, counts, meta, reader, verdict, warnings(counts, settings, holdout))
    report.save(folder / JOB_REPORT)


def _job(folder: Path) -> Job:
    job = Job.load(folder / JOB_RECORD)
    if job is None:
        raise BadConfig(f"{folder} is not a job's folder: it has no {JOB_RECORD}.", "drop the file into inbox/ again")
    return job


def _survey(
    folder: Path, job: Job, settings: Settings, key: str, renderer: Renderer, holdout: set[bytes]
) -> tuple[Counts, TokensMeta, LineReader]:
    listed = folder / JOB_REJECTED_ROWS

    def reject(row: RejectedRow) -> None:
        files.append_json(listed, row, durable=False)

    with files.stage(folder / JOB_TOKENS) as staged, TokensWriter(staged) as writer:
        survey = Survey(renderer, settings, writer, reject, holdout)
        reader = survey.read(folder / job.data)
        meta = writer.finish(reader.sha256, key, survey.counts.rows - writer.rows)
    if listed.exists():
        files.sync_file(listed)
    return survey.counts, meta, reader


def _skim(path: Path) -> LineReader:
    """Only the size and hash."""
    reader = LineReader(path, files.CHUNK)
    for _ in reader:
        pass
    return reader


# ---- the holdout ----


def prepare_holdout(workspace: Workspace, settings: Settings, renderer: Renderer) -> TokensMeta | None:
    """The holdout's token cache, made where it is not there yet; None where there is no holdout."""
    key = holdout_key(workspace, settings)
    if key is None:
        return None
    folder = holdout_folder(workspace, key)
    remove_old_caches(workspace, keep=folder)
    if tokens.check(folder, key, key) is None:
        meta = tokens.read_meta(folder)
        assert meta is not None
        return meta
    files.remove(folder)
    with files.stage(folder) as staged, TokensWriter(staged) as writer:
        survey = Survey(renderer, settings, writer, lambda _: None, set())
        for file in holdout_files(workspace):
            survey.read(file)
        if not writer.rows:
            raise BadConfig(
                f"No row of the holdout in {workspace.validation} can be used "
                f"({survey.counts.first_bad or f'{survey.counts.too_long} rows are longer than max_length'}).",
                "correct its files, or remove them to train without validation",
            )
        return writer.finish(key, key, survey.counts.rows - writer.rows)


# ---- the verdict ----


def judge_name(name: str) -> Verdict:
    """Only JSON Lines is read."""
    if name.lower().endswith(SUFFIX):
        return None
    remedy = (
        f"unpack it and drop the {SUFFIX} file"
        if name.lower().endswith((".gz", ".zip", ".xz", ".zst"))
        else (f"write it as JSON Lines (one JSON object a line) into a file whose name ends in {SUFFIX}")
    )
    return f"{Path(name).suffix or 'a file without ending'} is not a kind of file that can be read", remedy


def judge(counts: Counts, settings: Settings) -> Verdict:
    """Why the file may not be trained, and the remedy; None where it may."""
    again = "and drop the file again"
    if not counts.rows:
        return "the file is empty", "drop a file with at least one row"
    if _share(counts.too_long, counts) > settings.block_truncation_percent:
        fits, all_fit = counts.fitting_length(settings.warn_truncation_percent), max(counts.too_long_lengths)
        return (
            f"{_of(counts.too_long, counts)} rows are longer than max_length {settings.max_length}; "
            f"{settings.block_truncation_percent:g} % may be",
            f"set max_length to {fits} in config.json"
            + (f" ({all_fit} for every row to fit)" if all_fit > fits else "")
            + f", or shorten the rows, {again}",
        )
    if _share(counts.bad, counts) > settings.max_bad_row_percent:
        return (
            f"{_of(counts.bad, counts)} rows are bad, {settings.max_bad_row_percent:g} % may be; "
            f"the first is {counts.first_bad}",
            f"correct the rows listed in {JOB_REJECTED_ROWS} {again}",
        )
    if not sum(counts.formats.values()):
        first = counts.first_bad or ("all of them are in the holdout" if counts.in_holdout else "all are too long")
        return f"no row can be trained: {first}", f"correct the rows listed in {JOB_REJECTED_ROWS} {again}"
    return None


def warnings(counts: Counts, settings: Settings, holdout: TokensMeta | None) -> list[str]:
    found = []
    if _share(counts.too_long, counts) > settings.warn_truncation_percent:
        done = "cut" if settings.excess_length == "truncate" else "left out"
        found.append(f"{_of(counts.too_long, counts)} rows are longer than max_length {settings.max_length} and {done}")
    if counts.cut_off:
        found.append("the last line is not whole: the file seems cut off")
    found += notices.warnings(counts.notes, settings.enable_thinking)
    if holdout and holdout.left_out_rows:
        found.append(f"{holdout.left_out_rows} rows of the holdout in data/validation are bad or too long and not used")
    return found


def _share(part: int, counts: Counts) -> float:
    return 100 * part / counts.rows if counts.rows else 0.0


def _of(part: int, counts: Counts) -> str:
    return f"{part} of {counts.rows} ({_share(part, counts):.3g} %)"


def _report(
    job: Job,
    settings: Settings,
    key: str,
    began: float,
    counts: Counts,
    meta: TokensMeta | None,
    reader: LineReader,
    verdict: Verdict,
    said: list[str],
) -> IntakeReport:
    rows = meta.rows if meta else 0
    return IntakeReport(
        usable=verdict is None,
        file=job.file,
        sha256=reader.sha256,
        bytes=reader.bytes,
        format=counts.format,
        rows=rows,
        bad_rows=counts.bad,
        too_long_rows=counts.too_long,
        holdout_rows=counts.in_holdout,
        duplicate_rows=counts.duplicates,
        tokens=meta.tokens if meta else 0,
        trained_tokens=meta.trained_tokens if meta else 0,
        longest_row=counts.longest,
        estimated_steps=ceil(rows * (job.epochs or settings.num_train_epochs) / settings.update_rows),
        cache_key=None if verdict else key,
        reason=verdict[0] if verdict else None,
        remedy=verdict[1] if verdict else None,
        warnings=said,
        checked_at=now(),
        seconds=round(time.monotonic() - began, 3),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
