"""Intake, a subprocess: a job's data file -> report card, rejected rows, token cache; before, those of other data.

`python -P -m daemon.data.intake [--settings JSON] [--outside] WORKSPACE [JOB_FOLDER]` ends with 0 once report.json is
written, whatever it says, and with 21 where the workspace is at fault: then it prints {"message", "remedy", "reason"}
and the file is not judged. Without a job it makes the other caches only; without settings those of config.json are
in force. One at a time in a workspace; what an interrupted one left is made anew. With `--outside` the job's folder
lies outside of the workspace, nothing in the workspace is changed, and any number may run.
"""

import argparse
import gc
import json
import os
import resource
import sys
import time
from pathlib import Path

from daemon.core import config, files, room
from daemon.core.config import Settings
from daemon.core.errors import BadConfig, DaemonError, Exit, WorkerExit
from daemon.core.paths import JOB_RECORD, JOB_REJECTED_ROWS, JOB_REPORT, JOB_TOKENS, Workspace
from daemon.core.records import Job, RejectedRow
from daemon.data import suites, tokens
from daemon.data.card import write_report
from daemon.data.crew import die_with
from daemon.data.holdout import holdout_digests, holdout_files, holdout_folder, holdout_key, remove_old_caches
from daemon.data.judging import judge, warnings
from daemon.data.render import Renderer
from daemon.data.sources import Source
from daemon.data.survey import Survey
from daemon.data.tokens import TokensMeta, TokensWriter

MEMORY_LIMIT_BYTES = 4 << 30  # of address space
COLLECTED_OBJECTS = 100_000  # rows are many small objects without cycles; looking for those takes time
NICENESS = 10  # the daemon answers and the worker trains meanwhile


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    # Intake without its daemon would write into a job that the next daemon examines too.
    die_with(options.parent or os.getppid())
    limit_resources()
    workspace = Workspace.at(options.workspace)
    folder = Path(options.job_folder).absolute() if options.job_folder else None
    try:
        given = Settings.model_validate_json(options.settings) if options.settings else None
        if folder is not None and options.outside:
            examine_outside(workspace, folder)
        else:
            examine(workspace, folder, given)
    except DaemonError as error:
        return _blame_workspace(error.message, error.remedy)
    except OSError as error:
        if said := room.refusal(error):
            return _blame_workspace(f"Intake could not go on: the disk {said}.", room.REMEDY, "disk")
        return _blame_workspace(f"Intake could not go on: {error}.", "correct the permissions")
    return Exit.GOOD


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -P -m daemon.data.intake")
    parser.add_argument("--settings", help="JSON; otherwise those of config.json")
    parser.add_argument("--parent", type=int, help="the process that has to live; otherwise the one that is the parent")
    parser.add_argument("--outside", action="store_true", help="only look at the workspace")
    parser.add_argument("workspace")
    parser.add_argument("job_folder", nargs="?")
    return parser.parse_args(arguments)


def _blame_workspace(message: str, remedy: str, reason: str = "environment") -> int:
    sys.stdout.write(json.dumps({"message": message, "remedy": remedy, "reason": reason}) + "\n")
    return WorkerExit.BAD_CONFIG


def limit_resources() -> None:
    """A file that needs too much memory ends intake, not the machine."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    os.nice(NICENESS)
    gc.set_threshold(COLLECTED_OBJECTS)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a large file has several processes, and each has its core


def examine(workspace: Workspace, folder: Path | None, given: Settings | None = None) -> None:
    """The caches of the holdout and the suites where they are not there yet, then the job in `folder`."""
    settings = given or config.load(workspace.config)[0]
    renderer = Renderer(workspace.root / settings.base_model, settings.enable_thinking)
    holdout = prepare_holdout(workspace, settings, renderer)
    suites.prepare(workspace, settings, renderer)
    if folder is not None:
        _examine_job(workspace, folder, settings, renderer, holdout)


def examine_outside(workspace: Workspace, folder: Path) -> None:
    """The job in `folder`, with the workspace only looked at."""
    settings, _ = config.load(workspace.config)
    renderer = Renderer(workspace.root / settings.base_model, settings.enable_thinking)
    examine_job(workspace, folder, settings, renderer, holdout_digests(workspace, settings))


def _examine_job(
    workspace: Workspace, folder: Path, settings: Settings, renderer: Renderer, holdout: TokensMeta | None
) -> None:
    digests = tokens.read_digests(holdout_folder(workspace, holdout.key)) if holdout else set()
    examine_job(workspace, folder, settings, renderer, digests, holdout)


def examine_job(
    workspace: Workspace,
    folder: Path,
    settings: Settings,
    renderer: Renderer,
    held_out: set[bytes],
    holdout: TokensMeta | None = None,
) -> None:
    """report.json is written last. Nothing but the job's folder is changed, wherever it lies."""
    began = time.monotonic()
    job = _job(folder)
    settings = job_settings(job, settings)
    for name in (JOB_REPORT, JOB_REJECTED_ROWS, JOB_TOKENS):
        files.remove(folder / name)
    key = tokens.key(workspace.root / settings.base_model, settings)
    survey, meta, source = _survey(folder, job, settings, key, renderer, held_out)
    verdict = judge(survey.counts, settings)
    if verdict:
        files.remove(folder / JOB_TOKENS)
    report = write_report(
        *(workspace, job, settings, source, survey.counts, meta, verdict),
        warnings=warnings(survey.counts, settings, holdout, suites.count_shared(workspace, survey.seen)),
        seen=survey.seen,
        seconds=round(time.monotonic() - began, 3),
    )
    files.sync_file(folder / job.data)  # whoever dropped it may not have done so
    report.save(folder / JOB_REPORT)


def job_settings(job: Job, settings: Settings) -> Settings:
    """The workspace's settings with those of the file's sidecar."""
    return config.override(
        settings, num_train_epochs=job.epochs, learning_rate=job.learning_rate, column_map=job.column_map
    )


def _job(folder: Path) -> Job:
    job = Job.load(folder / JOB_RECORD)
    if job is None:
        raise BadConfig(f"{folder} is not a job's folder: it has no {JOB_RECORD}.", "drop the file into inbox/ again")
    return job


def _survey(
    folder: Path, job: Job, settings: Settings, key: str, renderer: Renderer, holdout: set[bytes]
) -> tuple[Survey, TokensMeta, Source]:
    listed = folder / JOB_REJECTED_ROWS

    def reject(row: RejectedRow) -> None:
        files.append_json(listed, row, durable=False)

    with files.stage(folder / JOB_TOKENS) as staged, TokensWriter(staged) as writer:
        survey = Survey(renderer, settings, writer, reject, holdout)
        source = survey.read(folder / job.data)
        meta = writer.finish(source.sha256, key, survey.counts.rows - writer.rows)
    if listed.exists():
        files.sync_file(listed)
    return survey, meta, source


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
        if survey.counts.unusable:
            raise BadConfig(f"The holdout cannot be read: {survey.counts.unusable}.", survey.counts.unusable.remedy)
        if not writer.rows:
            raise BadConfig(
                f"No row of the holdout in {workspace.validation} can be used "
                f"({survey.counts.first_bad or f'{survey.counts.too_long} rows are longer than max_length'}).",
                "correct its files, or remove them to train without validation",
            )
        return writer.finish(key, key, survey.counts.rows - writer.rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
