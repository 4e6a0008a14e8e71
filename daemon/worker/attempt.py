"""Run one assignment and write its outcome; every exception becomes an exit code here and nowhere else."""

import faulthandler
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import psutil
import torch
from transformers.utils import logging

from daemon.core import locks
from daemon.core.attempts import Assignment, Outcome
from daemon.core.errors import BadConfig, BadData, WorkerExit
from daemon.core.heartbeat import Heartbeat
from daemon.core.paths import Attempt, Workspace
from daemon.core.records import now
from daemon.worker.callbacks import Orders
from daemon.worker.finite import NotFinite
from daemon.worker.train import Result, train

PROTOCOL = 1  # of the files between daemon and worker


def run(folder: Path) -> int:
    """Run the attempt in `folder`, in a process of its own; returns the exit code."""
    attempt = Attempt(folder)
    assignment = Assignment.load(attempt.assignment)
    assert assignment, f"{attempt.assignment} is written before the attempt is handed over"
    workspace = Workspace(Path(assignment.workspace))
    _redirect_output(workspace.run(assignment.job).worker_log)
    try:
        lock = locks.Lock(workspace.worker_lock)
    except BlockingIOError:
        return WorkerExit.BUSY
    lock.describe(_identity(attempt))
    if workspace.run(assignment.job).newest_attempt() != attempt:
        return WorkerExit.BUSY  # a newer attempt was made while this one waited
    logging.disable_progress_bar()  # worker.log is for people to read afterwards
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    outcome = _outcome(attempt, assignment)
    outcome.save(attempt.outcome)
    print(f"── attempt {attempt.number} ended: {outcome.kind}: {outcome.message}", flush=True)
    return outcome.code


def _outcome(attempt: Attempt, assignment: Assignment) -> Outcome:
    heartbeat = Heartbeat(attempt.heartbeat)
    try:
        return _in_words(train(assignment, attempt, heartbeat, Orders(attempt)))
    except Exception as error:
        traceback.print_exc()
        code, message, remedy = explain(error, Path(assignment.workspace))
        return Outcome(kind=code.name.lower(), code=code, message=message, remedy=remedy, job_step=0, at=now())


def _in_words(result: Result) -> Outcome:
    return Outcome(
        kind=result.code.name.lower(),
        code=result.code,
        message=result.message,
        checkpoint=result.checkpoint.name if result.checkpoint else None,
        job_step=result.job_step,
        at=now(),
    )


def explain(error: Exception, workspace: Path) -> tuple[WorkerExit, str, str | None]:
    """Exit code, cause and remedy of an exception; by type and by the state of the machine, never by its text."""
    if isinstance(error, BadData):
        return WorkerExit.BAD_DATA, error.message, error.remedy
    if isinstance(error, BadConfig):
        return WorkerExit.BAD_CONFIG, error.message, error.remedy
    if isinstance(error, NotFinite):
        return WorkerExit.NOT_FINITE, str(error), "look at these rows; try a lower learning_rate"
    if isinstance(error, torch.OutOfMemoryError):
        return WorkerExit.OUT_OF_MEMORY, str(error), "lower per_device_train_batch_size or max_length in config.json"
    # torch.save hides ENOSPC behind a RuntimeError, so the disk itself is asked.
    if isinstance(error, OSError | RuntimeError) and psutil.disk_usage(str(workspace)).free < 2**20:
        return WorkerExit.DISK_FULL, f"the disk is full: {error}", "free some space; the training goes on by itself"
    if isinstance(error, torch.AcceleratorError):
        return WorkerExit.GPU, str(error), "see runs/<job>/worker.log and nvidia-smi"
    return WorkerExit.BUG, f"{type(error).__name__}: {error}", "the traceback stands in runs/<job>/worker.log"


def _identity(attempt: Attempt) -> dict[str, object]:
    process = psutil.Process()
    return {
        "pid": process.pid,
        "start_time": process.create_time(),
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "attempt": str(attempt.root),
        "protocol": PROTOCOL,
        "since": now(),
    }


def _redirect_output(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    print(f"── {time.strftime('%Y-%m-%d %H:%M:%S')} process {os.getpid()}", flush=True)
