"""Ask, wait, insist: who can end is waited for; who cannot is killed with all it started, and its stacks are kept."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.core import locks
from tests.acceptance.bench import Bench, rows
from tests.helpers_processes import fork_servers_of, process, said

STUCK = Path(__file__).with_name("stuck")
ROOT = Path(__file__).parents[2]
EPOCHS = 10  # of ten updates each
# Holds a workspace's lock, and says that it is somebody else.
IMPOSTOR = """
import json, sys
from pathlib import Path
from daemon.core import locks
lock = locks.Lock(Path(sys.argv[1]))
lock.describe(json.loads(sys.argv[2]))
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def train(make_bench: Callable[..., Bench]) -> Callable[[str], Bench]:
    """Starts a bench whose worker trains at leisure, and can be made to hang or to save slowly."""

    def start(name: str) -> Bench:
        bench = make_bench(name, num_train_epochs=EPOCHS)
        folder = bench.root.parent / f"{name}_stuck"
        folder.mkdir()
        bench.environment |= {"PYTHONPATH": f"{STUCK}:{ROOT}", "STUCK_FOLDER": str(folder)}
        make(bench, "leisure")
        bench.start()
        bench.drop("x.jsonl", rows(80))
        bench.wait_for_step(12, seconds=240)
        return bench

    return start


def make(bench: Bench, what: str) -> Path:
    path = bench.root.parent / f"{bench.root.name}_stuck" / what
    path.touch()
    return path


def hang(bench: Bench) -> int:
    """Let the worker hang; the process that it has started before."""
    make(bench, "hang")
    child = bench.root.parent / f"{bench.root.name}_stuck" / "child"
    bench.wait(lambda: child.exists() and child.read_text(), 30, "the worker hangs")
    return int(child.read_text())


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def asked(bench: Bench, *arguments: str) -> subprocess.Popen[str]:
    command = [
        str(bench.commands / "training_controller"),
        *arguments,
        "--timeout",
        "200",
        "--base-dir",
        str(bench.root),
    ]
    return subprocess.Popen(command, env=bench.environment, stdout=subprocess.PIPE, text=True)


def completes(bench: Bench) -> bool:
    """Whether the file is trained to its end, each row as often as asked."""
    make(bench, "leisure").unlink()
    bench.wait_for("completed")
    audit = json.loads(bench.command("training_queue", "audit", "x.jsonl", "--json").stdout)
    return bool(audit["rows_by_times"] == {str(EPOCHS): 80})


def test_who_saves_is_waited_for_who_sleeps_is_woken_and_who_hangs_is_killed(train: Callable[[str], Bench]) -> None:
    saves = train("saves")
    slow = make(saves, "slow")
    saved = asked(saves, "pause")
    sleeps = train("sleeps")
    sleeper = sleeps.worker_pid()
    assert sleeper
    os.kill(sleeper, signal.SIGSTOP)
    woken = asked(sleeps, "pause")
    hangs = train("hangs")
    child, hung = hang(hangs), hangs.worker_pid()
    assert hung
    ended = asked(hangs, "pause")

    assert "verified" in woken.communicate(timeout=100)[0] and not sleeps.events("worker_killed")
    sleeps.wait(
        lambda: [e["ending"] for e in sleeps.events("attempt_ended")] == ["paused"], 30, "what it was asked for"
    )
    hangs.wait(lambda: hangs.events("worker_killed"), 120, "the worker that hangs is killed")
    assert saves.worker_pid() and not saves.events("worker_killed"), "asked first, it was waited for longer"
    slow.unlink()
    assert "verified" in saved.communicate(timeout=100)[0]
    assert not saves.events("worker_told_again", "worker_killed")

    ended.communicate(timeout=100)
    told, killed = hangs.events("worker_told_again", "worker_killed")
    assert (told["rung"], killed["rung"]) == ("insist", "kill")
    assert killed["stacks"] == f"runs/{killed['job']}/attempts/1/stacks.txt"
    assert "hang_in_a_library" in (hangs.root / killed["stacks"]).read_text()
    hangs.wait(lambda: not lives(hung) and not lives(child), 30, "nothing of it is left")
    assert hangs.status()["status"] == "paused"


def test_a_second_sigterm_ends_a_worker_that_hangs_and_its_children_at_once(train: Callable[[str], Bench]) -> None:
    """Nobody but the daemon is left to do it: the fork server is dead, and the daemon is another one."""
    bench = train("w")
    child, worker = hang(bench), bench.worker_pid()
    assert worker and bench.daemon
    server = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    bench.kill_daemon()
    bench.start()
    bench.daemon.terminate()
    bench.wait(lambda: bench.status()["status"] == "stopping" or bench.daemon.poll() is not None, 30, "it is asked")
    assert lives(worker)
    bench.daemon.terminate()
    assert bench.daemon.wait(30) == 0
    (killed,) = bench.events("worker_killed")
    assert "hang_in_a_library" in (bench.root / killed["stacks"]).read_text()
    bench.wait(lambda: not lives(worker) and not lives(child), 30, "nothing of it is left")
    (bench.root.parent / "w_stuck/hang").unlink()
    bench.start()
    assert completes(bench)


def test_a_stranger_in_the_lock_file_is_never_signalled(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    path = bench.root / "status/worker.lock"
    path.parent.mkdir(exist_ok=True)
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        try:
            attempt = str(bench.root / "runs/x/attempts/1")
            named = {"pid": stranger.pid, "start_ticks": 1, "boot_id": locks.boot_id(), "attempt": attempt}
            path.write_text(json.dumps(named))  # left by a worker of before the reboot
            bench.start()
            bench.drop("x.jsonl", rows(8))
            bench.wait_for("completed")
            assert bench.end_daemon() == 0
            assert stranger.poll() is None

            with process(IMPOSTOR, path, json.dumps(named)) as impostor:
                assert said(impostor) == "held"
                bench.start()
                assert bench.end_daemon(signals=2) == 0
                assert (stranger.poll(), impostor.poll()) == (None, None)
            assert bench.events("worker_unknown") and not bench.events("worker_killed")
        finally:
            stranger.kill()


def test_the_ladder_of_one_workspace_ends_nobody_of_another(train: Callable[[str], Bench]) -> None:
    mine, other = train("mine"), train("other")
    hang(mine)
    pid = other.worker_pid()
    assert pid and mine.daemon
    mine.daemon.terminate()
    mine.wait(lambda: list(mine.root.glob("runs/*/attempts/1/control.json")), 30, "it is asked")
    mine.daemon.terminate()
    assert mine.daemon.wait(30) == 0
    assert mine.events("worker_killed") and other.worker_pid() in (pid, None)
    assert completes(other)
    assert not other.events("worker_killed", "worker_told_again")
    assert len(list(other.root.glob("runs/*/attempts/*"))) == 1


def test_a_fork_server_that_cannot_start_is_said_and_holds_the_queue(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    broken = bench.root.parent / "broken/torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    bench.environment["PYTHONPATH"] = f"{broken.parent}:{ROOT}"
    bench.start()
    bench.drop("x.jsonl", rows(8))
    bench.wait(lambda: bench.status()["reason"] == "environment", 60, "the environment is named")
    status = bench.status()
    assert status["status"] == "paused" and status["error"]["class"] == "environment"
    assert "libcudart.so.13" in status["error"]["message"] and "doctor" in status["error"]["remedy"]
    log = bench.root / "logs/fork_server.log"
    bench.wait(lambda: log.read_text().count("ImportError: libcudart") > 1, 60, "it is tried again")
    assert len(list(bench.root.glob("runs/*/attempts/*"))) <= 1, "an attempt is made only for one that is ready"
    assert len(bench.events("error")) == 1 and bench.jobs("failed") == []
    broken.rename(bench.root.parent / "mended")  # with the bytecode that Python has left in it
    bench.wait_for("completed")
    assert bench.status()["error"] is None


def test_a_fork_server_that_is_killed_while_it_starts_is_started_again_without_a_word(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench().start()
    bench.drop("x.jsonl", rows(8))
    (first,) = bench.wait(lambda: fork_servers_of(bench.daemon_pid), 30, "the fork server starts")
    os.kill(first, signal.SIGKILL)
    bench.wait_for("completed")
    assert bench.events("error") == []


def test_a_worker_leaves_no_process_behind_however_it_ends(train: Callable[[str], Bench]) -> None:
    """Killed from outside, by the kernel for instance: its parent ends what it had started."""
    bench = train("w")
    child, worker = hang(bench), bench.worker_pid()
    assert worker
    (bench.root.parent / "w_stuck/hang").unlink()
    os.kill(worker, signal.SIGKILL)
    bench.wait(lambda: not lives(child), 30, "the child is gone")
    assert completes(bench)
