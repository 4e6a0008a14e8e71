"""The story that `training_daemon demo` tells: real commands, a real workspace, and only what they said."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from daemon.cli import demo_data
from daemon.cli.demo_screen import draw_answers, figure, headline, show_line
from daemon.cli.words import show
from daemon.core import files, locks
from daemon.core.attempts import Evaluation
from daemon.core.errors import DaemonError, Exit, Refused, TimedOut
from daemon.core.paths import Workspace
from daemon.core.records import LedgerLine, Verdict

PAUSE_AT_STEP = 30  # of the first file: far enough to see the loss fall, far from the end
PATIENCE_SECONDS = 240.0  # for anything that is waited for
LOOK_SECONDS = 0.1
STOP_SECONDS = 30.0
BEFORE_AT_MOST, AFTER_AT_LEAST = 1, 7  # right answers of eight
FILES = (demo_data.MAIN_FILE, demo_data.LATER_FILE, demo_data.URGENT_FILE)

# Small matrices gain nothing from threads, and spinning threads make two cores slow.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


def tell(directory: Path | None) -> int:
    """Tell it in `directory`, or in a new folder; returns the exit code."""
    started = time.monotonic()
    workspace = Workspace.at(directory or _free_folder())
    story = Story(workspace)
    story.make_workspace()
    before = story.ask_golden("Before training: eight questions to the model as it was made", story.base_model())
    with story.daemon():
        story.drop_two_files()
        story.pause_and_jump_the_queue()
        story.follow_to_the_end()
        story.stop_daemon()
    after = story.ask_golden("After training: the same questions to current_model/latest", workspace.latest)
    story.show_results(before, after)
    return story.conclude(before, after, time.monotonic() - started)


def _free_folder() -> Path:
    """./demo, or the first of demo-2, demo-3, … that is not taken."""
    names = ["demo", *(f"demo-{n}" for n in range(2, 1000))]
    free = next((name for name in names if not os.path.lexists(name)), None)
    if free is None:
        raise Refused("There are a thousand demos here.", "delete some, or name a folder: training_daemon demo DIR")
    return Path(free)


class Story:
    """One workspace, one daemon, one screen."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._place = _shortest(workspace.root)
        self._environment = {**ENVIRONMENT, **os.environ}
        self._process: subprocess.Popen[bytes] | None = None
        self._jobs: dict[str, str] = {}
        self._lines_shown: dict[str, int] = {}

    # ---- the chapters ----

    def make_workspace(self) -> None:
        headline("A workspace with a tiny model that knows nothing")
        self._command("training_daemon", "init", self._place, "--demo", base_dir=False)

    def base_model(self) -> Path:
        settings = json.loads(self._workspace.config.read_text())
        return self._workspace.root / str(settings["base_model"])

    def ask_golden(self, title: str, model: Path) -> dict[str, Any]:
        """Plain transformers in a new process answers; nothing of the training is used."""
        headline(title)
        golden = self._workspace.benchmarks / "capitals.jsonl"
        command = [sys.executable, "-P", "-m", "daemon.worker.answer", str(model), str(golden)]
        done = subprocess.run(command, capture_output=True, text=True, env=self._environment)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise DaemonError(f"{model} could not be asked: {last}", "training_daemon doctor says what is amiss")
        answers: dict[str, Any] = json.loads(done.stdout)
        show(draw_answers(answers), Text(f"{answers['right']} of {answers['total']} right", style="bold"))
        return answers

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """The daemon as a process of its own; it never outlives the story."""
        headline("The daemon")
        log = self._workspace.logs / "demo.log"
        command = [sys.executable, "-P", "-m", "daemon.cli.training_daemon", "--base-dir", str(self._workspace.root)]
        output = files.disk.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        process = subprocess.Popen(
            [*command, "run"], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environment
        )
        os.close(output)
        self._process = process
        try:
            typed = f"$ {_spelled('training_daemon')} --base-dir {self._place} &"
            show(Text(typed, style="bold"), f"what it says goes to {_shortest(log)}")
            self._wait_for("the daemon", lambda: locks.is_locked(self._workspace.daemon_lock))
            yield
        finally:
            if process.poll() is None:
                process.terminate()  # it saves, then ends
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()

    def drop_two_files(self) -> None:
        headline("Two files are dropped into the inbox; one of them has two bad rows")
        for name in (demo_data.MAIN_FILE, demo_data.LATER_FILE):
            self._drop(name)
        folder = self._job_folder(demo_data.LATER_FILE)
        report = files.read_json(folder / "report.json") or {}
        show(f"{demo_data.LATER_FILE}: {report.get('rows')} rows are good, {report.get('bad_rows')} are refused:")
        for row in files.read_lines(folder / "rejected.jsonl"):
            show(f"  line {row['line']}: {row['reason']}\n    fix: {row['fix']}\n    {row['row'][:100]}")

    def pause_and_jump_the_queue(self) -> None:
        headline(f"{demo_data.MAIN_FILE} is in training; then a pause")
        self._follow(demo_data.MAIN_FILE, lambda: self._step(demo_data.MAIN_FILE) >= PAUSE_AT_STEP)
        self._command("training_controller", "pause")
        headline("Meanwhile an urgent file arrives: it goes before the other that waits")
        urgent = str(Path(self._place) / "samples" / demo_data.URGENT_FILE)
        self._command("training_queue", "add", urgent, "--priority", "high")
        self._command("training_queue", "list")
        headline("Resume, at the exact row")
        self._command("training_controller", "resume")

    def follow_to_the_end(self) -> None:
        self._follow(demo_data.MAIN_FILE, lambda: self._ended(demo_data.MAIN_FILE))
        for name in (demo_data.URGENT_FILE, demo_data.LATER_FILE):
            self._job_folder(name)
            headline(f"{name} is in training")
            self._follow(name, lambda name=name: self._ended(name))  # type: ignore[misc]

    def stop_daemon(self) -> None:
        headline("The daemon is stopped")
        self._command("training_controller", "stop")
        assert self._process is not None
        self._process.wait(STOP_SECONDS)

    def show_results(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        headline("Results, in the order in which the files were trained")
        table = Table(box=None, pad_edge=False)
        for column in ("file", "rows", "updates", "outcome", "validation loss", "verdict"):
            table.add_column(column)
        for line in self._ledger():
            run = self._workspace.run(line.job)
            attempt, verdict = run.newest_attempt(), Verdict.load(run.verdict)
            measured = Evaluation.load(attempt.evaluation) if attempt else None
            loss = f"{figure(measured.before)} → {figure(measured.after)}" if measured else "–"
            passed = "–" if verdict is None else "accepted" if verdict.passed else f"refused: {verdict.reason}"
            table.add_row(line.file, str(line.rows), str(line.steps), line.outcome, loss, passed)
        show(table)
        show(f"golden answers: {before['right']} of {before['total']} → {after['right']} of {after['total']}")
        show(f"the model: {_shortest(self._workspace.latest)} → {os.readlink(self._workspace.latest)}")
        for line in self._ledger():
            show(f"results: {_shortest(self._workspace.run(line.job).results)}")

    def conclude(self, before: dict[str, Any], after: dict[str, Any], seconds: float) -> int:
        headline("Now yours")
        show(
            f"{_spelled('training_daemon')} --base-dir {self._place} &        start the daemon again",
            f"cp my-data.jsonl {self._place}/inbox/        drop a file of your own; each line is for example",
            '    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
            "    (on another subject so small a model forgets the capitals; a real one has a gate against that)",
            f"{_spelled('training_controller')} stop --base-dir {self._place}        end the daemon",
            f"{_spelled('training_daemon')} init ~/my-model --model PATH|HUB_ID        a workspace for your own model",
        )
        unfinished = {
            name for name in FILES if name not in {o.file for o in self._ledger() if o.outcome == "completed"}
        }
        good = before["right"] <= BEFORE_AT_MOST and after["right"] >= AFTER_AT_LEAST and not unfinished
        show(f"\nthe demo took {seconds:.0f} s")
        if good:
            return int(Exit.GOOD)
        missing = f"; not completed: {', '.join(sorted(unfinished))}" if unfinished else ""
        raise DaemonError(
            f"The demo did not come out as it should: {before['right']} answers right before, {after['right']} after"
            f"{missing}.",
            f"look into {self._place}/logs and {self._place}/runs",
        )

    # ---- what the chapters are made of ----

    def _command(self, name: str, *arguments: str, base_dir: bool = True) -> None:
        """Show a command, run it, let it speak for itself."""
        options = ["--base-dir", self._place] if base_dir else []
        show(Text("$ " + " ".join([_spelled(name), *arguments, *options]), style="bold"))
        sys.stdout.flush()
        command = [sys.executable, "-P", "-m", f"daemon.cli.{name}", *arguments, *options]
        done = subprocess.run(command, env=self._environment)
        if done.returncode:
            raise DaemonError(f"{name} {arguments[0]} ended with {done.returncode}.", "its own words are above")

    def _drop(self, name: str) -> None:
        source = Path(self._place) / "samples" / name
        show(Text(f"$ cp {source} {self._place}/inbox/", style="bold"))
        subprocess.run(["cp", str(source), str(self._workspace.inbox)], check=True)
        self._job_folder(name)

    def _job_folder(self, name: str) -> Path:
        """Where the job of a file lies now, once its rows have been checked."""
        self._wait_for(f"{name} to be checked", lambda: self._find(name) is not None)
        found = self._find(name)
        assert found is not None
        self._jobs[name] = found.name
        return found

    def _find(self, name: str) -> Path | None:
        for record in self._workspace.queue.glob("*/*/job.json"):
            value = files.read_json(record)
            if value and value["file"] == name and (record.parent / "report.json").exists():
                return record.parent
        return None

    def _ledger(self) -> list[LedgerLine]:
        return [LedgerLine.model_validate(line) for line in files.read_lines(self._workspace.ledger)]

    def _ended(self, name: str) -> bool:
        return self._jobs[name] in {line.job for line in self._ledger()}

    def _log(self, name: str) -> list[dict[str, Any]]:
        return files.read_lines(self._workspace.run(self._jobs[name]).log)

    def _step(self, name: str) -> int:
        return max((line["job_step"] for line in self._log(name) if line["kind"] == "log"), default=0)

    def _follow(self, name: str, until: Callable[[], bool]) -> None:
        """Show the lines of a training as they are written, until something is true."""

        def look() -> bool:
            enough = until()  # asked first: what was written before is shown as well
            lines = self._log(name)
            for line in lines[self._lines_shown.get(name, 0) :]:
                show_line(line)
            self._lines_shown[name] = len(lines)
            return enough

        self._wait_for(f"the training of {name}", look)

    def _wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if self._process is not None and self._process.poll() is not None:
                log = (self._workspace.logs / "demo.log").read_text().strip().splitlines()
                raise DaemonError(f"The daemon has ended: {(log or ['it said nothing'])[-1]}", "training_daemon doctor")
            if time.monotonic() > until:
                raise TimedOut(f"{what} took longer than {PATIENCE_SECONDS:.0f} s.", f"look into {self._place}/logs")
            time.sleep(LOOK_SECONDS)


def _shortest(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _spelled(name: str) -> str:
    """How a command is typed here: by its name where the shell finds it, else by its launcher in the checkout."""
    launcher = Path(sys.prefix).parent / "bin" / name
    return _shortest(launcher) if shutil.which(name) is None and launcher.exists() else name
