"""Daemon killed, executed anew, upgraded: the training goes on; where the protocol has changed, from a checkpoint."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from daemon.core.attempts import PROTOCOL
from daemon.core.records import now
from tests.acceptance.bench import Bench, rows, seal
from tests.helpers_processes import fork_servers_of
from tests.helpers_wheels import Environment, build

STUCK = Path(__file__).with_name("stuck")
ROWS, EPOCHS = 603, 2  # 151 updates
SETTINGS = {"num_train_epochs": EPOCHS, "logging_steps": 1}
GAP_SECONDS = 2.0


class Story:
    """One training: its daemon killed, then upgraded three times, the last two to other protocols."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench, self.folder = bench, folder
        self.windows: list[tuple[str, str]] = []
        self.workers: list[int | None] = []
        self.waiting: dict[str, Any] = {}
        self.versions = ["1.0", "1.1", "2.0", "3.0"]

    def run(self) -> None:
        bench = self.bench
        wheels = [build(self.folder, v, later) for v, later in zip(self.versions, (0, 0, 1, 2), strict=True)]
        environment = Environment(self.folder / "venv", wheels[0])
        bench.commands = environment.commands
        bench.environment |= {"PYTHONPATH": str(STUCK), "STUCK_FOLDER": str(self.folder)}
        (leisure := self.folder / "leisure").touch()
        bench.start()
        bench.drop("x.jsonl", rows(ROWS))
        bench.wait_for_step(12, seconds=240)
        self.workers.append(bench.worker_pid())
        self.disturb(self.kill_and_start)
        environment.install(wheels[1])
        self.disturb(lambda: self.hang_up("1.1"))
        environment.install(wheels[2])
        self.hang_up("2.0")
        self.wait_for_attempt(2)
        environment.install(wheels[3])
        self.end_worker_and_server()
        bench.wait(lambda: bench.status()["reason"] == "environment", 240, "that versions differ is said")
        self.waiting = bench.status()
        self.hang_up("3.0")
        leisure.unlink()
        bench.wait_for("completed", seconds=250)

    def disturb(self, deed: Callable[[], None]) -> None:
        begin = now()
        deed()
        self.windows.append((begin, now()))
        self.workers.append(self.bench.worker_pid())

    def kill_and_start(self) -> None:
        self.bench.kill_daemon()
        self.bench.start()

    def hang_up(self, version: str) -> None:
        """SIGHUP, as `systemctl reload` sends it, until a daemon of that version has begun."""
        assert self.bench.daemon
        self.bench.daemon.send_signal(signal.SIGHUP)
        begun = [*self.begun(), version]
        self.bench.wait(lambda: self.begun() == begun, 240, f"a daemon of version {version}")

    def begun(self) -> list[str]:
        return [event["version"] for event in self.bench.events("daemon_started")]

    def wait_for_attempt(self, number: int) -> None:
        page = f"runs/*/attempts/{number}/heartbeat"
        self.bench.wait(lambda: list(self.bench.root.glob(page)), 240, f"attempt {number}")
        self.bench.wait_for_step(1, seconds=240)

    def end_worker_and_server(self) -> None:
        """As the kernel does where memory runs out: what is started next is of the package that lies there now."""
        worker = self.bench.worker_pid()
        assert worker
        for pid in (parent(worker), worker):
            os.kill(pid, signal.SIGKILL)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(scope="module")
def story(dropout_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("upgrades")
    bench = Bench.make(folder / "w", dropout_model, **SETTINGS)
    try:
        told = Story(bench, folder)
        told.run()
        yield told
    finally:
        bench.end()


@pytest.fixture(scope="module")
def undisturbed(dropout_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench.make(tmp_path_factory.mktemp("calm") / "w", dropout_model, **SETTINGS)
    try:
        bench.start()
        bench.drop("x.jsonl", rows(ROWS))
        bench.wait_for("completed", seconds=250)
        yield bench
    finally:
        bench.end()


def job(bench: Bench) -> str:
    (only,) = bench.jobs("completed")
    return only


def test_the_worker_stays_the_same_while_its_daemon_is_killed_and_upgraded(story: Story) -> None:
    assert story.workers[0] and story.workers == [story.workers[0]] * 3
    assert story.begun() == ["1.0", "1.0", "1.1", "2.0", "3.0"]


def test_no_gap_between_steps_tells_of_the_change(story: Story) -> None:
    """Two seconds; where the machine is busy, ten times what steps take there anyway."""
    steps = [line for line in story.bench.log(job(story.bench), "log") if line["attempt"] == 1]
    assert [line["job_step"] for line in steps] == list(range(1, len(steps) + 1))
    gaps = [(a["time"], b["time"], seconds(a["time"], b["time"])) for a, b in pairwise(steps)]
    during = [any(a <= end and b >= begin for begin, end in story.windows) for a, b, _ in gaps]
    within = [gap for (_, _, gap), inside in zip(gaps, during, strict=True) if inside]
    others = [gap for (_, _, gap), inside in zip(gaps, during, strict=True) if not inside]
    assert within and max(within) <= max(GAP_SECONDS, 10 * max(others))


def seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()


def test_a_worker_of_another_protocol_saves_and_the_next_goes_on_there(story: Story) -> None:
    (changed,) = story.bench.events("protocol_changed")
    assert f"protocol {PROTOCOL}, this daemon {PROTOCOL + 1}" in changed["message"]
    attempts = story.bench.root / "runs" / job(story.bench) / "attempts"
    outcome = json.loads((attempts / "1/outcome.json").read_text())
    assert (outcome["kind"], outcome["code"]) == ("stopped", 11)
    assignment = json.loads((attempts / "2/assignment.json").read_text())
    assert assignment["resume"] == f"current_model/{outcome['checkpoint']}"
    assert not story.bench.events("worker_told_again", "worker_killed")


def test_a_package_of_another_protocol_than_its_daemon_is_said_and_no_job_fails(story: Story) -> None:
    assert (story.waiting["status"], story.waiting["error"]["class"]) == ("paused", "environment")
    assert "another version" in story.waiting["error"]["message"]
    assert f"kill -HUP {story.waiting['pid']}" in story.waiting["error"]["remedy"]
    ends = dict.fromkeys(event["ending"] for event in story.bench.events("attempt_ended"))
    assert list(ends) == ["stopped", "vanished", "other_protocol", "done"]


def test_what_comes_out_is_as_if_nothing_had_been(story: Story, undisturbed: Bench) -> None:
    assert seal(story.bench.latest()) == seal(undisturbed.latest())
    audit = json.loads(story.bench.command("training_queue", "audit", "x.jsonl", "--json").stdout)
    assert audit["rows_by_times"] == {str(EPOCHS): ROWS}


def test_signals_that_come_while_the_daemon_executes_itself_anew_are_heard_afterwards(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench().start()
    assert bench.daemon
    for number, again in ((signal.SIGHUP, 1), (signal.SIGTERM, 3)):
        bench.daemon.send_signal(signal.SIGHUP)
        bench.wait(lambda again=again: len(bench.events("daemon_restarts")) == again, 30, "it executes itself anew")
        bench.daemon.send_signal(number)  # nobody listens now
        if number is signal.SIGHUP:
            bench.wait(lambda: len(bench.events("daemon_started")) == 3, 60, "and once more")
    assert bench.daemon.wait(60) == 0
    assert bench.events()[-1]["event"] == "daemon_stopped"


def test_a_worker_whose_daemon_and_fork_server_are_dead_is_adopted_to_its_end(make_bench: Callable[..., Bench]) -> None:
    """Nobody writes exit.json any more: what the worker itself has written last is enough."""
    bench = make_bench(num_train_epochs=10).start()
    bench.drop("x.jsonl", rows(80))
    bench.wait_for_step(5, seconds=240)
    worker = bench.worker_pid()
    assert worker and bench.daemon
    os.kill(parent(worker), signal.SIGKILL)
    bench.kill_daemon()
    bench.start()
    assert bench.worker_pid() in (worker, None)
    (name,) = bench.wait_for("completed")
    attempt = bench.root / "runs" / name / "attempts/1"
    assert (attempt / "outcome.json").exists() and not (attempt / "exit.json").exists()
    assert len(list(attempt.parent.iterdir())) == 1


def test_an_attempt_handed_over_twice_is_trained_once(make_bench: Callable[..., Bench]) -> None:
    """The first daemon dies when its order lies unread in the pipe of a fork server that sleeps, and wakes later."""
    bench = make_bench(num_train_epochs=10, settle_seconds=1).start()
    assert bench.daemon
    bench.drop("x.jsonl", rows(80))
    (server,) = bench.wait(lambda: fork_servers_of(bench.daemon_pid), 30, "the fork server starts")
    os.kill(server, signal.SIGSTOP)
    bench.wait(lambda: bench.status()["job"], 60, "the order is written: it is before the job is published")
    bench.kill_daemon()
    bench.start()
    bench.wait_for_step(3, seconds=240)
    os.kill(server, signal.SIGCONT)
    bench.wait(lambda: list(bench.root.glob("runs/*/attempts/1/exit.json")), 60, "the first order is read")
    (name,) = bench.wait_for("completed")
    first = json.loads((bench.root / "runs" / name / "attempts/1/exit.json").read_text())
    assert first["code"] == 41, "it did nothing"
    audit = json.loads(bench.command("training_queue", "audit", "x.jsonl", "--json").stdout)
    assert audit["rows_by_times"] == {"10": 80}
