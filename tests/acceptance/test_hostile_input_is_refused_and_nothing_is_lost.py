"""Every input of tests/hostile.yaml gets the verdict that is written there, while a training goes on undisturbed."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.bench import Bench, lines, rows
from tests.acceptance.verdicts import Verdicts, Watched, waves
from tests.helpers_hostile import Dropping, Entry, entries, lacking, trained

WAVES = 4
WAVE_SECONDS = 400  # for some eighty files on a loaded machine
STEPS_IN_A_WAVE = 5


def test_the_list_is_long_and_says_of_each_entry_what_has_to_become_of_it() -> None:
    listed = entries()
    short = [entry for entry in listed if not entry.heavy]
    assert len(short) >= 200
    assert len({entry.mechanism for entry in short}) >= 60
    assert {entry.verdict for entry in listed} == {"accepted", "refused", "left"}
    for entry in listed:
        assert entry.reason or entry.verdict != "refused", f"{entry.said} is refused for no reason"
        assert entry.rows or entry.verdict != "accepted", f"{entry.said} is accepted without rows"
        assert (entry.bad + entry.long == 0) or entry.line, f"{entry.said} has a bad row without its line"


@pytest.fixture
def bench(model: Path, tmp_path: Path) -> Iterator[Bench]:
    """A daemon that has trained one file, and now trains another that will not end by itself."""
    bench = Bench.make(tmp_path / "w", model, save_steps=1000, num_train_epochs=1)
    bench.hold_out([{"prompt": "Held out?", "completion": "Held out."}])
    bench.start()
    bench.drop("first.jsonl", trained(""))
    bench.wait_for("completed")
    (bench.root / "inbox/endless.yaml").write_text("epochs: 100000\n")
    bench.drop("endless.jsonl", rows(200))
    bench.wait_for_step(1)
    yield bench
    bench.end()


def possible(folder: Path) -> list[Entry]:
    """The short list without what cannot be made here, which is said."""
    found = []
    for entry in entries():
        if lack := lacking(entry, folder):
            warnings.warn(f"{entry.said} is left out: {lack}", Left, stacklevel=2)
        elif not entry.heavy:
            found.append(entry)
    return found


class Left(UserWarning):
    """An entry is left out."""


@pytest.fixture
def dropping(bench: Bench, tmp_path: Path) -> Iterator[Dropping]:
    dropping = Dropping(bench.root / "inbox", tmp_path / "outside")
    yield dropping
    dropping.end()


@pytest.mark.timeout(2400)
@pytest.mark.filterwarnings("default::UserWarning")
def test_each_gets_its_verdict_and_daemon_training_and_data_are_as_if_nothing_had_been(
    bench: Bench, dropping: Dropping, tmp_path: Path
) -> None:
    listed = possible(tmp_path)
    verdicts, watched = Verdicts(bench, dropping), Watched(bench)
    (endless,) = bench.jobs("processing")
    dropped: list[Entry] = []
    for number, wave in enumerate(waves(listed, WAVES)):
        _, step = bench.running()
        for entry in wave:
            dropping.drop(entry)
        if number == 1:
            drop_good_file(bench)
        dropped += wave
        wait_for_verdicts(bench, verdicts, dropped)
        bench.wait_for_step(step + STEPS_IN_A_WAVE)
    watched.end()
    wrong = verdicts.wrong(dropped)
    assert not wrong, "\n".join(wrong)
    assert bench.jobs("processing") == [endless]
    check_daemon(bench, watched)
    check_outside(bench, tmp_path)
    check_good_file(bench)


def wait_for_verdicts(bench: Bench, verdicts: Verdicts, dropped: list[Entry]) -> None:
    until = time.monotonic() + WAVE_SECONDS
    while missing := verdicts.missing(dropped):
        assert time.monotonic() < until, f"no verdict on {missing}\n{bench.last_words()}"
        time.sleep(1)


def drop_good_file(bench: Bench) -> None:
    (bench.root / "inbox/good.yaml").write_text("priority: high\n")
    bench.drop("good.jsonl", rows(24, start=5000))


def check_daemon(bench: Bench, watched: Watched) -> None:
    """The bounds hold on a loaded machine; measured alone, a wish is answered within some 20 ms."""
    assert bench.daemon and bench.daemon.poll() is None and bench.status()["pid"] == bench.daemon_pid
    assert watched.megabytes() < watched.megabytes_before + 60
    assert watched.megabytes("VmHWM") < 300
    times = sorted(watched.seconds)
    assert len(times) >= 20
    assert times[len(times) // 2] < 0.5
    assert times[-1] < 10
    assert bench.status()["error"] is None
    assert not [event for event in bench.events() if event["event"] in ("intake_crashed", "step_failed")]


def check_outside(bench: Bench, tmp_path: Path) -> None:
    """Nothing was run, written or read that lies elsewhere, and nothing that is said steers a terminal."""
    assert (tmp_path / "outside/secret.jsonl").read_text() == '{"text": "a secret"}\n'
    assert [*tmp_path.rglob("pwned"), *tmp_path.rglob("escaped.jsonl")] == []
    for arguments in (["list", "--all"], ["show", "columns_that_steer.jsonl"], ["show", "sidecar_steers.jsonl"]):
        said = bench.command("training_queue", *arguments)
        assert said.returncode == 0
        assert [c for c in said.stdout if not c.isprintable() and c != "\n"] == []
    shown = bench.command("training_controller", "status").stdout
    assert [c for c in shown if not c.isprintable() and c != "\n"] == []


def check_good_file(bench: Bench) -> None:
    """The file that was dropped among them is trained next, each row once."""
    assert bench.command("training_controller", "skip").returncode == 0
    bench.wait(lambda: list(bench.root.glob("queue/completed/*/good.jsonl")), 120, "the good file is trained")
    (job,) = [line for line in lines(bench.root / "runs/ledger.jsonl") if line["file"] == "good.jsonl"]
    assert (job["outcome"], job["rows"], job["steps"]) == ("completed", 24, 3)  # of eight rows each
    contained = bench.manifest()["lineage"][-1]
    assert (contained["job"], contained["rows"], contained["epochs"]) == (job["job"], 24, 1)
