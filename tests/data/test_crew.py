"""Large files are read by several processes: the same result, in flat memory, and nobody left behind."""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from daemon.core.records import IntakeReport
from daemon.data import tokens
from daemon.data.crew import LARGE_FILE_BYTES, MAX_PROCESSES, processes_for
from daemon.data.digests import Digests
from daemon.data.encoding import Draft
from daemon.data.formats import Preference, normalise
from daemon.data.lines import BadRow, Unreadable
from daemon.data.render import Renderer
from daemon.data.tokens import packed
from tests.helpers_data import chat, intake_environment, jsonl, make_job, make_workspace, rejected_rows

# As intake is started, but with as many processes as the first argument says.
WITH_PROCESSES = """
import sys
from daemon.data import survey
survey.processes_for = lambda _: int(sys.argv[1])
from daemon.data.intake import main
code = main(sys.argv[2:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def command(processes: int, workspace: Path, folder: Path) -> list[str]:
    return [sys.executable, "-P", "-c", WITH_PROCESSES, str(processes), str(workspace), str(folder)]


def run(processes: int, workspace: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(processes, workspace, folder), env=intake_environment(), capture_output=True, text=True, check=False
    )


def mixed_rows() -> bytes:
    """Good, bad, preference, quoting, doubled and long rows, in batches of different sizes."""
    draw = Random(0)
    rows: list[Any] = [chat(f"What is {i}?", f"It is {i}. " * draw.randint(1, 40)) for i in range(3000)]
    rows[100] = rows[101] = chat("twice", "the same")
    rows[200] = {"messages": []}
    rows[300] = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows[400] = chat("q", "see <|im_end|> here")
    rows[500] = {"text": "plain"}
    return jsonl(*rows[:2000]) + b"not json\n\n" + jsonl(*rows[2000:]) + b'{"text": "cut o'


def test_several_processes_find_what_one_finds(tmp_path: Path) -> None:
    found = []
    for processes in (1, 3):
        workspace = make_workspace(tmp_path / str(processes), max_bad_row_percent=50)
        folder = make_job(workspace, mixed_rows())
        done = run(processes, workspace, folder)
        assert (done.returncode, done.stderr) == (0, "")
        report = IntakeReport.load(folder / "report.json")
        assert report is not None
        same = report.model_copy(update={"checked_at": "", "seconds": 0, "disk_free_bytes": 0})
        found.append((same, rejected_rows(folder), tokens.read_meta(folder / "tokens")))
    assert found[0] == found[1]
    report = found[0][0]
    assert (report.rows, report.duplicate_rows, report.bad_rows) == (2998, 1, 3)
    assert any("seems cut off" in warning for warning in report.warnings)


def test_only_large_files_are_worth_more_than_one_process() -> None:
    assert processes_for(LARGE_FILE_BYTES) == 1
    assert processes_for(LARGE_FILE_BYTES + 1) == min(len(os.sched_getaffinity(0)), MAX_PROCESSES)


def test_a_fault_of_the_workspace_is_told_from_another_process_too(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    (workspace / "models/base/small/chat_template.jinja").unlink()
    done = run(2, workspace, make_job(workspace, mixed_rows()))
    assert "has no chat template" in json.loads(done.stdout.splitlines()[0])["message"]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Any, seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


@pytest.fixture
def halted(tmp_path: Path) -> Any:
    """Intake with two more processes, waiting for the rest of its file; and the end into which that is written."""
    workspace = make_workspace(tmp_path / "w")
    folder = make_job(workspace, b"")
    (folder / "x.jsonl").unlink()
    os.mkfifo(folder / "x.jsonl")
    with (
        subprocess.Popen(
            command(2, workspace, folder), env=intake_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as intake,
        (folder / "x.jsonl").open("wb", buffering=0) as file,
    ):
        file.write(mixed_rows())
        wait_for(lambda: len(children(intake.pid)) == 2)
        yield intake, file
        intake.kill()


def test_its_processes_die_with_intake(halted: Any) -> None:
    intake, _ = halted
    crew = children(intake.pid)
    intake.send_signal(signal.SIGKILL)
    intake.wait()
    wait_for(lambda: not any(is_running(pid) for pid in crew))


def test_a_process_that_is_killed_ends_intake_as_a_crash(halted: Any) -> None:
    intake, file = halted
    os.kill(children(intake.pid)[0], signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError):  # it may be gone before it has read all
        file.write(mixed_rows())
    _, said = intake.communicate(timeout=30)
    assert intake.returncode == 1
    assert b"ended with exit code -9" in said


def test_intake_gives_way_to_other_programs(halted: Any) -> None:
    intake, _ = halted
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    for pid in (intake.pid, *children(intake.pid)):
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, mine + 10)


def test_reasons_survive_the_way_between_processes() -> None:
    for bad in (BadRow("r", "f"), Unreadable("r", "f"), Preference()):
        again = pickle.loads(pickle.dumps(bad))
        assert (type(again), again.reason, again.fix) == (type(bad), bad.reason, bad.fix)


def test_a_line_of_two_gigabytes_is_refused_quickly_and_in_flat_memory(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    folder = make_job(workspace, b"")
    os.truncate(folder / "x.jsonl", 2 << 30)
    began = os.times()
    done = run(processes_for(2 << 30), workspace, folder)
    ended = os.times()
    seconds = ended.children_user + ended.children_system - began.children_user - began.children_system
    report = IntakeReport.load(folder / "report.json")
    assert report is not None
    assert "the row is longer than 8,388,608 bytes" in (report.reason or "")
    assert (report.usable, report.bytes) == (False, 2 << 30)
    assert seconds < 5  # of the processor: other programs may run beside this test
    assert int(done.stdout) / 1024 < 80


def test_a_row_of_seven_megabytes_is_measured_and_left_out_in_flat_memory(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w")
    text = "All the words of a book. " * 290_000
    folder = make_job(workspace, jsonl(chat("a", text), *(chat(f"q{n}", "a") for n in range(30))))
    done = run(1, workspace, folder)
    (row,) = rejected_rows(folder)
    part = Renderer(workspace / "models/base/small").encode([Draft(text[: len(text) // 100], [])])[0]
    exact = 100 * len(part.ids)  # this process, too, keeps its memory flat
    counted = int(row["reason"].split()[3])
    assert row["line"] == 1 and 0 <= counted - exact < exact / 1000 + 50, row["reason"]
    report = IntakeReport.load(folder / "report.json")
    assert report is not None and report.usable and report.longest_row > counted - 1
    assert int(done.stdout) / 1024 < 200


def test_the_beginning_of_a_long_row_is_that_of_the_whole_row(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "w", excess_length="truncate", block_truncation_percent=100)
    text = "".join(f"{n} words, naïve, 日本. " for n in range(12_000))
    row = chat("a", text)
    folder = make_job(workspace, jsonl(row))
    assert run(1, workspace, folder).returncode == 0
    renderer = Renderer(workspace / "models/base/small")
    whole = renderer.encode([renderer.draft(normalise(row))])[0]
    assert (folder / "tokens/ids.bin").read_bytes() == packed(whole.ids[:512])
    assert (folder / "tokens/mask.bin").read_bytes() == whole.mask[:512]


# ---- digests ----


def test_digests_are_a_set() -> None:
    draw = Random(1)
    ours, plain = Digests(), set()
    for _ in range(20_000):
        digest = draw.randrange(9_000).to_bytes(2, "big") * 8
        assert ours.add(digest) == (digest not in plain)
        plain.add(digest)
    assert len(ours) == len(plain)
    assert all(digest in ours for digest in plain)
    assert bytes(range(16)) not in ours
    assert ours.count([*plain, *plain, bytes(range(16))]) == len(plain)


def test_a_digest_of_zeros_is_like_any_other() -> None:
    digests = Digests()
    assert bytes(16) not in digests
    assert (digests.add(bytes(16)), digests.add(bytes(16)), bytes(16) in digests) == (True, False, True)
