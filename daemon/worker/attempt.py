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

from daemon.core import files, locks, room
from daemon.core.attempts import PROTOCOL, Assignment, Outcome
from daemon.core.errors import BadConfig, BadData, WorkerExit
from daemon.core.heartbeat import Heartbeat
from daemon.core.paths import Attempt, Workspace
from daemon.core.records import now
from daemon.worker.callbacks import Orders
from daemon.worker.finite import NotFinite
from daemon.worker.memory import is_exhausted
from daemon.worker.train import LESS_MEMORY, Result, train


def run(folder: Path) -> int:
    """Run the attempt in `folder`, in a process of its own; returns the exit code."""
    try:
        return _run(Attempt(folder))
    except Exception as error:
        if room.refusal(error) is None:
            raise
        traceback.print_exc()
        return WorkerExit.DISK_FULL  # the code has to say it all: there is no room for an outcome


def _run(attempt: Attempt) -> int:
    given = files.read_json(attempt.assignment)
    assert given, f"{attempt.assignment} is written before the attempt is handed over"
    if given.get("protocol", 1) != PROTOCOL:
        return WorkerExit.OTHER_PROTOCOL  # before anything of it is understood in a wrong way
    assignment = Assignment.model_validate(given)
    workspace = Workspace(Path(assignment.workspace))
    _redirect_output(workspace.run(assignment.job).worker_log)
    # Before the lock says whom to signal: without their handlers both signals would end this process.
    orders = Orders(attempt)
    _answer_with_stacks(attempt.stacks)
    try:
        lock = locks.Lock(workspace.worker_lock)
    except BlockingIOError:
        return WorkerExit.BUSY
    lock.describe(_identity(attempt))
    if workspace.run(assignment.job).newest_attempt() != attempt:
        return WorkerExit.BUSY  # a newer attempt was made while this one waited
    logging.disable_progress_bar()  # worker.log is for people to read afterwards
    faulthandler.enable()
    outcome = _outcome(attempt, assignment, orders)
    outcome.save(attempt.outcome)
    print(f"── attempt {attempt.number} ended: {outcome.kind}: {outcome.message}", flush=True)
    return outcome.code


def _outcome(attempt: Attempt, assignment: Assignment, orders: Orders) -> Outcome:
    try:
        heartbeat = Heartbeat(attempt.heartbeat)
        return _in_words(train(assignment, attempt, heartbeat, orders))
    except Exception as error:
        traceback.print_exc()
        code, message, remedy = explain(error)
        lines = error.lines if isinstance(error, NotFinite) else ()
        kind = code.name.lower()
        return Outcome(kind=kind, code=code, message=message, remedy=remedy, job_step=0, lines=lines, at=now())


def _in_words(result: Result) -> Outcome:
    return Outcome(
        kind=result.code.name.lower(),
        code=result.code,
        message=result.message,
        remedy=result.remedy,
        checkpoint=result.checkpoint.name if result.checkpoint else None,
        job_step=result.job_step,
        at=now(),
    )


def explain(error: Exception) -> tuple[WorkerExit, str, str | None]:
    """Exit code, cause and remedy of an exception; by its type and by what lies behind it, never by its text."""
    if isinstance(error, BadData):
        return WorkerExit.BAD_DATA, error.message, error.remedy
    if isinstance(error, BadConfig):
        return WorkerExit.BAD_CONFIG, error.message, error.remedy
    if isinstance(error, NotFinite):
        return WorkerExit.NOT_FINITE, str(error), "look at these rows; try a lower learning_rate"
    if is_exhausted(error):
        return WorkerExit.OUT_OF_MEMORY, str(error).split("\n")[0], LESS_MEMORY
    if said := room.refusal(error):
        return WorkerExit.DISK_FULL, f"the disk {said}: {error}", room.REMEDY
    if isinstance(error, torch.AcceleratorError):
        return WorkerExit.GPU, str(error), "see runs/<job>/worker.log and nvidia-smi"
    return WorkerExit.BUG, f"{type(error).__name__}: {error}", "the traceback stands in runs/<job>/worker.log"


def _identity(attempt: Attempt) -> dict[str, object]:
    return {
        **locks.this_process(),
        "start_time": psutil.Process().create_time(),  # for people
        "attempt": str(attempt.root),
        "protocol": PROTOCOL,
        "since": now(),
    }


def _answer_with_stacks(path: Path) -> None:
    """Let SIGUSR1 write what every thread is doing: in C, so that it works where Python hangs."""
    stacks = path.open("ab")  # now: a process that hangs opens no file; held by the handler until the end
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)


def _redirect_output(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    print(f"── {time.strftime('%Y-%m-%d %H:%M:%S')} process {os.getpid()}", flush=True)
