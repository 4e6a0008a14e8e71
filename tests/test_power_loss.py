"""The power fails after every call to the disk, and any part of what was not synced is lost: nothing that counts is."""

import errno
import inspect
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import structlog

from daemon.core import files
from daemon.core.errors import Exit
from daemon.data import intake
from daemon.jobs import inbox, store
from daemon.models import base, checkpoints
from daemon.service import main, settling
from daemon.service import wishes as obeying
from tests.helpers_disk import disk_with
from tests.helpers_door import call_sites
from tests.helpers_plots import PLOTS
from tests.helpers_powerloss import Recorder, watching
from tests.helpers_stories import Explored, Plot, explore, explore_again, explore_killed

ROOT = Path(__file__).parent.parent
LEAST_STATES = 5000
AGAIN, KILLED = 1, 2  # states from which the power fails a second time, and calls at which the daemon is killed first
TRAINING_SECONDS = 480
# A log that the demo's own daemon writes by itself; the demo only opens it.
NOT_DURABLE = {"cli/demo.py files.disk.open"}


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A place for many small trees, in memory where the machine has such a place."""
    shared = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="power-loss-", dir=shared if os.access(shared, os.W_OK) else None))
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """What the daemon says would be said ten thousand times."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


def train(home: Path) -> Explored:
    result = home / "result.json"
    given = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.helpers_worker_plot", str(home / "training"), str(result)]
    done = subprocess.run(
        command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=TRAINING_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    values = json.loads(result.read_text())
    return Explored(**values | {"sites": {(file, line) for file, line in values["sites"]}})


def everything(plot: Plot, home: Path) -> Explored:
    found = explore(plot, home / "w") + explore_again(plot, home / "w", AGAIN)
    return found + explore_killed(plot, home / "w", KILLED) if plot.of_daemon else found


class Seen:
    """What all plots together have found."""

    total = Explored(0, 0, [], set())
    plots = 0


@pytest.mark.parametrize("name", [*PLOTS, "train"])
def test_whatever_a_loss_of_power_takes_nothing_is_lost_doubled_or_half_there(name: str, home: Path) -> None:
    found = train(home) if name == "train" else everything(PLOTS[name], home)
    assert found.violations == []
    assert found.different > 1
    Seen.total, Seen.plots = Seen.total + found, Seen.plots + 1


def test_every_call_that_changes_the_disk_was_tried_in_thousands_of_states(capsys: pytest.CaptureFixture[str]) -> None:
    if Seen.plots < len(PLOTS) + 1:
        pytest.skip("counts what the tests above have found; run this file as a whole")
    with capsys.disabled():
        print(f"\n{Seen.total.states} states of the disk, {Seen.total.different} of them different, 0 violations")
    assert Seen.total.states >= LEAST_STATES
    missed = [str(site) for site in call_sites() if not site.is_hit(Seen.total.sites)]
    assert [site for site in missed if _without_line(site) not in NOT_DURABLE] == []


def _without_line(site: str) -> str:
    place, words = site.split(" ", 1)
    return f"{place.rsplit(':', 1)[0]} {words}"


def test_the_list_of_calls_that_need_not_be_tried_names_only_calls_that_there_are() -> None:
    assert {_without_line(str(site)) for site in call_sites()} >= NOT_DURABLE
    assert len(call_sites()) > 80


# ---- the model itself ----


def surviving(root: Path, act: Callable[[], object]) -> list[list[dict[str, bytes]]]:
    """After each call, what may be on the disk: every combination of files and bytes."""
    with watching(root) as recorder:
        act()
    return [_shown(recorder, number) for number in range(recorder.points)]


def _shown(recorder: Recorder, number: int) -> list[dict[str, bytes]]:
    shown = []
    for state in recorder.states(number):
        if state.number > number:
            break
        tree = {path: state.tree.contents.get(node, b"") for path, node in state.tree.walk()}
        shown.append({path: data for path, data in tree.items() if isinstance(data, bytes)})
    return shown


def test_what_is_not_synced_may_be_there_in_every_combination(tmp_path: Path) -> None:
    def write() -> None:
        descriptor = files.disk.open(tmp_path / "x", os.O_WRONLY | os.O_CREAT)
        files.disk.write(descriptor, b"abcd")
        os.close(descriptor)

    end = surviving(tmp_path, write)[-1]
    shown = {state.get("x") for state in end}
    assert shown == {None, b"", b"ab", b"\0\0cd", b"abcd"}


def test_bytes_last_by_their_file_and_names_by_their_folder(tmp_path: Path) -> None:
    def write() -> None:
        descriptor = files.disk.open(tmp_path / "x", os.O_WRONLY | os.O_CREAT)
        files.disk.write(descriptor, b"abcd")
        files.disk.fsync(descriptor)
        os.close(descriptor)

    assert [state.get("x") for state in surviving(tmp_path, write)[-1]] == [None, b"abcd"]
    assert surviving(tmp_path, lambda: files.sync_folder(tmp_path))[-1] == [{"x": b"abcd"}]


def test_a_rename_happens_whole_or_not_and_lasts_once_both_folders_are_synced(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/x").write_bytes(b"x")

    def shown(act: Callable[[], object]) -> list[set[str]]:
        return [{path for path in state if "/" in path} for state in surviving(tmp_path, act)[-1]]

    assert shown(lambda: files.disk.rename(tmp_path / "a/x", tmp_path / "b/x")) == [{"a/x"}, {"b/x"}]
    assert shown(lambda: files.move(tmp_path / "b/x", tmp_path / "a/x")) == [{"a/x"}]


def test_names_that_go_may_come_back(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    assert surviving(tmp_path, lambda: files.disk.unlink(tmp_path / "x"))[-1] == [{"x": b"x"}, {}]


def test_what_libraries_write_beside_the_door_is_seen(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), watching(tmp_path) as recorder, files.stage(tmp_path / "t") as staged:
        (staged / "weights").write_bytes(b"abcd")
        files.disk.mkdir(staged / "deep")
        raise ZeroDivisionError
    recorder.end()
    assert {data for state in recorder.states() for data in state.tree.contents.values()} >= {b"", b"abcd", b"ab"}


# ---- planted faults: each of them has to be noticed ----


@contextmanager
def planted(module: ModuleType, name: str, right: str, wrong: str) -> Iterator[None]:
    """A function of a module with some of its lines replaced."""
    function = getattr(module, name)
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    assert source.count(right) == 1, f"{name} has changed: plant the fault anew"
    exec(compile(source.replace(right, wrong), f"<{name} with a fault>", "exec"), module.__dict__)
    try:
        yield
    finally:
        setattr(module, name, function)


SWAP_FIRST = """    new = context.workspace.current_model / Outcome.load(attempt.outcome).checkpoint
    checkpoints.accept(context.workspace, new)
    verdict = _verdict(context, found, attempt)
"""
COPY = """    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    disk.rmtree(source) if source.is_dir() else disk.unlink(source)
"""
FAULTS: dict[str, tuple[ModuleType, str, str, str, str]] = {  # module, function, right, wrong, and where it is noticed
    "no fsync of a file": (files, "write", "            disk.fsync(descriptor)\n", "", "store.move"),
    "no fsync of the folder of a file": (files, "write", "    sync_folder(path.parent)\n", "", "change a setting"),
    "no fsync of a line": (
        files,
        "append_json",
        "        if durable:\n            disk.fsync(descriptor)\n",
        "",
        "settling.end",
    ),
    "no fsync of a copy": (files, "copy", "                disk.fsync(descriptor)\n", "", "add"),
    "no fsync of the target's folder": (files, "move", "    sync_folder(target.parent)\n", "", "store.move"),
    "no fsync of the source's folder": (
        files,
        "move",
        "    if source.parent != target.parent:\n        sync_folder(source.parent)\n",
        "",
        "store.move",
    ),
    "no fsync of a link's folder": (files, "swap_link", "    sync_folder(link.parent)\n", "", "complete"),
    "no fsync of staged files": (
        files,
        "stage",
        "                sync_file(Path(inner) / name)\n",
        "                pass\n",
        "read",
    ),
    "no fsync of a hidden tree": (
        files,
        "remove",
        "                sync_folder(path.parent)  # else",
        "                pass  # else",
        "complete",
    ),
    "no fsync of a new folder": (files, "make_folder", "    sync_folder(path.parent)\n", "", "start"),
    "a move that copies": (files, "move", "    disk.rename(source, target)\n", COPY, "store.move"),
    "written in place": (
        files,
        "write",
        '    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")\n',
        "    temporary = path\n",
        "change a setting",
    ),
    "data before the record": (
        inbox,
        "take_in",
        "    job.save(folder / store.RECORD)\n    files.move(item.path, folder / job.data)\n",
        "    files.move(item.path, folder / job.data)\n    job.save(folder / store.RECORD)\n",
        "inbox.take_in",
    ),
    "moved before the facts": (
        store,
        "move",
        "    job.save(found.folder / RECORD)\n    target = workspace.state(state) / found.folder.name\n"
        "    files.move(found.folder, target)\n",
        "    target = workspace.state(state) / found.folder.name\n    files.move(found.folder, target)\n"
        "    job.save(target / RECORD)\n",
        "store.move",
    ),
    "latest before the gate": (
        settling,
        "settle",
        "    verdict = _verdict(context, found, attempt)\n",
        SWAP_FIRST,
        "complete",
    ),
    "the ledger after the move": (
        settling,
        "end",
        "    ledger.record(context.workspace, line)\n    context.clear",
        "    store.move(context.workspace, found, state, reason, remedy)\n"
        "    ledger.record(context.workspace, line)\n    return\n    context.clear",
        "settling.end",
    ),
    "a wish taken away before its answer": (
        obeying,
        "obey",
        "            answer.save(answer_of(path))\n            files.remove(path)\n",
        "            files.remove(path)\n            answer.save(answer_of(path))\n",
        "obey",
    ),
    "the report before the data": (
        intake,
        "examine_job",
        "    for name in (JOB_REPORT, JOB_REJECTED_ROWS, JOB_TOKENS):\n",
        "    for name in (JOB_TOKENS, JOB_REJECTED_ROWS, JOB_REPORT):\n",
        "read",
    ),
    "pruned in place": (
        checkpoints,
        "prune",
        "        trash.delete(workspace, folder)\n",
        "        files.disk.rmtree(folder)\n",
        "complete",
    ),
    "a model that is not staged": (
        base,
        "_bring",
        "        with files.stage(target) as folder:\n",
        "        files.make_folder(folder := target)\n        if True:\n",
        "init",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_noticed(fault: str, home: Path) -> None:
    module, name, right, wrong, noticed_by = FAULTS[fault]
    with planted(module, name, right, wrong):
        module.__dict__.setdefault("shutil", shutil)
        found = explore(PLOTS[noticed_by], home / "planted", stop_at=1)
    assert found.violations, fault


def test_a_ledger_line_that_a_killed_daemon_left_unsynced_is_not_trusted(home: Path) -> None:
    """Without the sync at a start the next daemon takes for done what a loss of power can undo."""
    with planted(files, "sync_filesystem", "        disk.syncfs(descriptor)\n", "        pass\n"):
        found = explore_killed(PLOTS["complete"], home / "planted", 40)
    assert found.violations


def test_a_daemon_does_not_start_upon_what_the_disk_has_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(name: str, call: Callable[[], object], _: object) -> object:
        if name == "syncfs":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call()

    workspace = PLOTS["run once"].make(home / "refused")
    with disk_with(refuse):
        assert main.run(workspace, once=True) == Exit.PROBLEM
    assert os.strerror(errno.EIO) in capsys.readouterr().err
    assert not workspace.events.exists()


def test_a_daemon_syncs_what_it_finds_before_it_changes_anything(home: Path) -> None:
    plot = PLOTS["run once"]
    with disk_with(lambda name, call, _: call()):
        workspace = plot.make(home / "whole")
    for folder in (workspace.status_folder, *workspace.folders()):
        files.make_folder(folder)
    calls: list[str] = []
    with disk_with(lambda name, call, _: (calls.append(name), call())[1]):
        plot.act(workspace)
    assert calls[0] == "syncfs"
