"""A disk that fills, loses its files' room or becomes read-only under a running daemon, again and again.

    python -m tests.helpers_full_disk [--points 200] [--seed 0] [--within 30]

A daemon trains on a small tmpfs that only it and this program see (`unshare -Urm`). At each point the disk is taken
away for 1 to 5 s, at a moment that the point's phase asks for, and given back; then the training has to go on by
itself. Where namespaces are refused, a library in front of the C library (LD_PRELOAD) says ENOSPC instead.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol

from daemon.core.paths import Workspace
from daemon.models import checkpoints
from tests.acceptance.bench import Bench, lines, rows
from tests.helpers_no_room import Preloaded

DISK_BYTES = 64 << 20
DISK_FILES = 4000
PHASES = ("save", "intake", "swap", "commit", "status")
RESTS = (0, 0, 1 << 12, 1 << 13, 1 << 14, 24 << 10, 48 << 10, 1 << 21)  # bytes left free; the last is half a checkpoint
ROOM_FOR_SWAP = (4 << 10, 8 << 10)  # room for the verdict, and too little for all that is recorded after the swap
EVERY_PHASE = 50  # of so many points some hit each phase
EPOCHS, ROWS = 40, 8  # one update an epoch
WAITING = 2  # files that always wait, so that there is always something to go on with
INSIDE = "FULL_DISK_INSIDE"


# ---- ways to take a disk away ----


class Disk(Protocol):
    """A disk that can be taken away."""

    name: str
    kinds: tuple[str, ...]  # of taking it away
    environment: dict[str, str]  # of the programs that are to notice

    def take(self, kind: str, rest: int) -> None: ...
    def give_back(self) -> None: ...


class Tmpfs:
    """A small tmpfs, mounted in a namespace of this program's own."""

    name = "tmpfs in a user namespace"
    kinds = ("bytes", "files", "read-only")

    def __init__(self, place: Path, model: Path) -> None:
        self.environment: dict[str, str] = {}
        mount("-t", "tmpfs", "-o", f"size={DISK_BYTES},nr_inodes={DISK_FILES}", "none", str(place))
        self._place, self._models = place, model
        self._ended: threading.Event | None = None
        self._filling: threading.Thread | None = None
        self._read_only = False

    def take(self, kind: str, rest: int) -> None:
        if kind == "read-only":
            # A whole disk with files open for writing refuses to become read-only; the folder of the models has none.
            mount("--bind", str(self._models), str(self._models))
            mount("-o", "remount,bind,ro", str(self._models), tries=200)  # refused while a file is being written
            self._read_only = True
            return
        fill = self._all_bytes if kind == "bytes" else self._all_files
        fill(rest)
        self._ended = ended = threading.Event()
        self._filling = threading.Thread(target=lambda: [fill(rest) for _ in iter(lambda: ended.wait(0.02), True)])
        self._filling.start()

    def give_back(self) -> None:
        if self._filling and self._ended:
            self._ended.set()
            self._filling.join()
            self._filling = None
        if self._read_only:
            subprocess.run(["umount", "-l", str(self._models)], check=True)
            self._read_only = False
        (self._place / "ballast").unlink(missing_ok=True)
        shutil.rmtree(self._place / "many", ignore_errors=True)

    def _all_bytes(self, rest: int) -> None:
        descriptor = os.open(self._place / "ballast", os.O_WRONLY | os.O_CREAT)
        with contextlib.closing(os.fdopen(descriptor, "wb", buffering=0)) as file:
            end = file.seek(0, os.SEEK_END)
            info = os.statvfs(self._place)
            more = info.f_bavail * info.f_frsize - rest
            with contextlib.suppress(OSError):  # others were quicker
                if more > 0:
                    os.posix_fallocate(descriptor, end, more)

    def _all_files(self, _: int) -> None:
        (self._place / "many").mkdir(exist_ok=True)
        with contextlib.suppress(OSError):
            while os.statvfs(self._place).f_ffree:
                (self._place / "many" / f"{time.monotonic_ns()}").touch()


def mount(*arguments: str, tries: int = 1) -> None:
    while subprocess.run(["mount", *arguments], check=tries == 1).returncode:
        tries -= 1
        time.sleep(0.02)


# ---- what happens at a point ----


@dataclass
class Told:
    """What the points have shown."""

    hit: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Story:
    """One daemon, and the files that it is to train."""

    def __init__(self, bench: Bench, disk: Disk, draw: Random, within: float) -> None:
        self.bench, self.disk, self.draw, self.within = bench, disk, draw, within
        self.workspace = Workspace(bench.root)
        self.dropped: dict[str, bytes] = {}
        self.told = Told()

    # ---- files ----

    def drop(self) -> None:
        number = len(self.dropped)
        data = "".join(json.dumps(row) + "\n" for row in rows(ROWS, start=number * ROWS)).encode()
        self.dropped[f"{number}.jsonl"] = data
        self.bench.drop(f"{number}.jsonl", data)

    def keep_busy(self) -> None:
        bench = self.bench
        while len(bench.jobs("normal")) + len(os.listdir(bench.root / "inbox")) < WAITING:
            self.drop()
            bench.wait(lambda: not os.listdir(bench.root / "inbox"), 60, "the file is taken in")

    # ---- a point ----

    def point(self, number: int) -> None:
        phase = PHASES[number % len(PHASES)]
        kind = self.draw.choice(("bytes", "bytes", "bytes", *self.disk.kinds))
        rest = self.draw.choice(RESTS if phase in ("save", "status") else RESTS[:5])  # records are small
        if phase == "commit":
            kind, rest = "bytes", self.draw.choice(ROOM_FOR_SWAP)
        self.keep_busy()
        began = time.time()
        with self.moment(phase):
            self.disk.take(kind, rest)
        held = time.monotonic() + self.draw.uniform(1, 5)
        self.ask_status(kind, rest)
        time.sleep(max(0.0, held - time.monotonic()))
        hit = self.what_was_hit(began)
        self.told.wrong += [f"point {number}: {words}" for words in self.torn()]
        progress = self.progress()
        self.disk.give_back()
        given = time.monotonic()
        self.wait_for_progress(progress, f"point {number}: {phase}, {kind}, {rest} bytes left")
        took = time.monotonic() - given
        self.told.slowest = max(self.told.slowest, took)
        self.told.kinds[kind] += 1
        self.told.hit.update(hit)
        words = ", ".join(sorted(hit)) or "-"
        print(f"{number:4} {phase:7} {kind:9} {rest:8} left  hit: {words:30} on after {took:.1f} s", flush=True)
        self.look()

    @contextlib.contextmanager
    def moment(self, phase: str) -> Iterator[None]:
        """The disk goes inside, at the time that the phase asks for."""
        bench = self.bench
        if phase == "intake":
            self.drop()
            time.sleep(self.draw.uniform(0, 0.4))
            yield
        elif phase in ("swap", "commit"):
            # What the daemon does at the end of a job takes milliseconds: it stands still until the disk is gone.
            job = self.wait_for_training()
            os.kill(bench.daemon_pid, signal.SIGSTOP)
            try:
                bench.wait(lambda: self.has_ended(job), 120, "the worker ends")
                yield
            finally:
                os.kill(bench.daemon_pid, signal.SIGCONT)
        else:
            self.wait_for_training()
            time.sleep(self.draw.uniform(0, 0.5))
            yield

    def wait_for_training(self) -> str:
        return str(self.bench.wait(lambda: self.bench.running()[1] and self.bench.running()[0], 120, "a file trains"))

    def has_ended(self, job: str) -> bool:
        newest = self.workspace.run(job).newest_attempt()
        return newest is not None and newest.exit.exists()

    def ask_status(self, kind: str, rest: int) -> None:
        """It answers; and where the disk takes nothing at all, it says so."""
        said = self.bench.command("training_controller", "status", "--json", timeout=60)
        if said.returncode:
            self.told.wrong.append(f"status ended with {said.returncode}: {said.stderr}")
            return
        error = json.loads(said.stdout)["error"] or {}
        if kind != "read-only" and rest < 1 << 16 and error.get("class") != "disk":
            self.told.wrong.append(f"the disk is taken away ({kind}, {rest} bytes left), and status says {error}")

    # ---- what the product has recorded ----

    def torn(self) -> list[str]:
        """Checkpoints that are not whole, although they have their name."""
        found = []
        for folder in checkpoints.every(self.workspace):
            with contextlib.suppress(FileNotFoundError):  # superseded in this moment
                wrong = checkpoints.damage(folder)
                found += [f"{folder.name}: {wrong}"] if wrong and folder.is_dir() else []
        return found

    def what_was_hit(self, began: float) -> set[str]:
        root, hit = self.bench.root, set()
        # An attempt that ended for the disk says so in its outcome, in exit.json, or by having neither.
        for job in self.bench.jobs("processing"):
            newest = self.workspace.run(job).newest_attempt()
            words = [f.read_text() for f in (newest.outcome, newest.exit) if f.exists()] if newest else []
            silent = newest and newest.heartbeat.exists() and not words and not self.bench.worker_pid()
            if silent or any('"disk_full"' in w or '"code": 33' in w for w in words):
                hit.add("save")
            elif any('"done"' in w for w in words):
                latest = checkpoints.latest(self.workspace)
                manifest = checkpoints.read(latest) if latest else None
                hit.add("commit" if manifest and manifest.job == job else "swap")
        unread = [j for j in self.bench.jobs("normal") if not (root / "queue/normal" / j / "report.json").exists()]
        if unread or os.listdir(root / "inbox"):
            hit.add("intake")
        if self.workspace.status.stat().st_mtime < began:
            hit.add("status")
        return hit

    def progress(self) -> tuple[int, tuple[str | None, int]]:
        return len(self.bench.jobs("completed")), self.bench.running()

    def wait_for_progress(self, before: tuple[int, tuple[str | None, int]], what: str) -> None:
        """Another file is completed, or updates are made: more than before, or in an attempt that came after it."""
        completed, (job, step) = before

        def goes_on() -> bool:
            done, (now, made) = self.progress()
            anew = self.bench.worker_pid() is not None and made > 0 and (now != job or made < step)
            return done > completed or made > step or anew

        self.bench.wait(goes_on, self.within, f"the training goes on: {what}")

    def look(self) -> None:
        """What has to hold at any time."""
        bench = self.bench
        assert bench.daemon and bench.daemon.poll() is None, f"the daemon has ended\n{bench.last_words()}"
        lines(bench.root / "status/events.jsonl")  # each is whole, or this raises
        latest = checkpoints.latest(self.workspace)
        for _ in range(2 if latest else 0):  # at the second look: it may have moved, and the first be superseded
            wrong = checkpoints.damage(checkpoints.latest(self.workspace) or bench.root)
            if wrong is None:
                break
        else:
            if latest:
                self.told.wrong.append(f"latest is damaged: {wrong}")
        self.told.wrong += [f"{job} has failed" for job in bench.jobs("failed") + bench.jobs("rejected")]

    # ---- the end ----

    def end(self) -> None:
        bench, wrong = self.bench, self.told.wrong
        bench.wait_for("completed", len(self.dropped), 600)
        wrong += [
            line for line in bench.command("training_models", "verify").stdout.splitlines() if "whole" not in line
        ]
        trained = Counter(
            line["file"] for line in lines(bench.root / "runs/ledger.jsonl") if line["outcome"] == "completed"
        )
        wrong += [f"{name} is recorded {count} times" for name, count in trained.items() if count != 1]
        for job in bench.jobs("completed"):
            folder = bench.root / "queue/completed" / job
            record = json.loads((folder / "job.json").read_text())
            if (folder / record["data"]).read_bytes() != self.dropped.get(record["file"]):
                wrong.append(f"{record['file']} has changed")
            told = json.loads(bench.command("training_queue", "audit", job, "--json").stdout)
            if [(s["first"], s["last"], s["times"]) for s in told["spans"]] != [(1, ROWS, EPOCHS)]:
                wrong.append(f"{record['file']}: {told['spans']}")
        events = Counter(event["event"] for event in bench.events())
        never = ("worker_killed", "intake_crashed", "checkpoint_damaged", "model_damaged")
        wrong += [f"event {name}: {events[name]}" for name in never if events[name]]
        wrong += [e["message"] for e in bench.events("attempt_ended") if e["ending"] not in ("done", "disk_full")]
        wrong += [e["message"] for e in bench.events("error") if e["reason"] != "disk"]
        starts = events["daemon_started"]
        if starts != 1:
            wrong.append(f"the daemon started {starts} times")


# ---- running ----


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    if os.environ.get(INSIDE) is None and (inside := _enter(arguments)) is not None:
        return inside
    place = Path(tempfile.mkdtemp(prefix="full-disk-"))
    try:
        return _run(options, place)
    finally:
        if os.environ.get(INSIDE):
            subprocess.run(["umount", "-l", str(place)], check=False)
        shutil.rmtree(place, ignore_errors=True)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--within", type=float, default=30.0, help="seconds in which the training has to go on")
    return parser.parse_args(arguments)


def _enter(arguments: list[str]) -> int | None:
    """Run this program in namespaces of its own; None where the machine refuses them."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-Urm", "true"], capture_output=True, check=False).returncode:
        return None
    command = ["unshare", "-Urm", sys.executable, "-m", "tests.helpers_full_disk", *arguments]
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, INSIDE: "1", "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, cwd=root, env=environment, check=False).returncode


def _run(options: argparse.Namespace, place: Path) -> int:
    root = place / "w"
    disk: Disk = Tmpfs(place, root / "current_model") if os.environ.get(INSIDE) else Preloaded(place, root)
    print(f"the disk: {disk.name}", flush=True)
    with tempfile.TemporaryDirectory() as beside:
        model = Path(beside) / "tiny"
        model.mkdir()
        subprocess.run([sys.executable, "-P", "-m", "daemon.worker.embedded", str(model)], check=True)
        bench = Bench.make(root, model, num_train_epochs=EPOCHS, save_steps=5, poll_interval=30, gate={"mode": "off"})
    bench.environment |= disk.environment
    story = Story(bench, disk, Random(options.seed), options.within)
    began = time.monotonic()
    try:
        bench.start()
        for number in range(options.points):
            story.point(number)
        story.end()
    finally:
        disk.give_back()
        bench.end()
    return _tell(story, options, time.monotonic() - began)


def _tell(story: Story, options: argparse.Namespace, seconds: float) -> int:
    told = story.told
    print(f"{options.points} points in {seconds:.0f} s, {len(story.dropped)} files; taken away: {dict(told.kinds)}")
    print(f"hit: {dict(told.hit)}; the training went on at most {told.slowest:.1f} s after the disk was back")
    # A disk that can only be wholly full has no room for a verdict either, so nothing comes as far as the commit.
    to_hit = [phase for phase in PHASES if phase != "commit" or len(story.disk.kinds) > 1]
    missed = [phase for phase in to_hit if not told.hit[phase]]
    if missed and options.points >= EVERY_PHASE:
        told.wrong.append(f"no point hit {', '.join(missed)}")
    print("\n".join(told.wrong) or "0 violations")
    return 1 if told.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
