"""SIGKILL in every phase of a job's life, a workspace full of them; then the proof that nothing of it can be seen.

What was hit is told by the product's own events after each kill (see story.py), never by what was aimed at.
"""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

from daemon.core.paths import Workspace
from daemon.models import checkpoints
from tests.acceptance.bench import Bench, as_bytes, seal
from tests.acceptance.examination import PATIENCE_SECONDS, SETTINGS, examine, record, replay, rows_of
from tests.acceptance.story import WORKING, Story
from tests.acceptance.toll import PHASES, TARGETS, Kill, Outcome
from tests.helpers_processes import children_of, command_of, send_sigkill, start_time_of, state_of

# Of all kills, so many are aimed at each phase. A new fork server imports for five seconds: where one is needed after
# the kill, a little more than the tenth that has to be.
SHARES = {"intake": 0.105, "claim": 0.105, "gate and swap": 0.105, "settle": 0.105, "training": 0.28, "saving": 0.28}
SELDOM = 0.03  # the chance of a kill in any other phase
BACKLOG = 2  # files that wait or are trained at one time
LOOK_SECONDS = 0.002
SAID_FILES = 10  # between two words of how far it is
DOOR_SECONDS = 0.015  # that a file is on its way into the queue, about
WORKER_KILLS = 2  # of the worker alone without progress; the third costs the file its place in the queue, rightly


def torture_side_by_side(
    root: Path, model: Path, *, kills: int, files: int, workspaces: int, seed: int
) -> list[Outcome]:
    """So many kills over at least so many files, shared among workspaces at the same time."""
    stop = threading.Event()

    def torture_one(place: int) -> Outcome:
        try:
            share = -(-kills // workspaces), -(-files // workspaces)
            return torture(root / f"w{place}", model, *share, seed + place, stop)
        except BaseException:
            stop.set()  # the others need not go on
            raise

    with ThreadPoolExecutor(workspaces) as together:
        try:
            return list(together.map(torture_one, range(workspaces)))
        finally:
            stop.set()


def torture(root: Path, model: Path, kills: int, files: int, seed: int, stop: threading.Event) -> Outcome:
    """One workspace: the kills, the examination, the replay."""
    root.mkdir(parents=True)
    bench = Bench.make(root / "tortured", model, **SETTINGS)
    torturer = Torturer(bench, kills, files, seed, stop)
    began = time.monotonic()
    try:
        torturer.run()
    finally:
        torturer.end()
    seconds = time.monotonic() - began
    found = examine(bench, torturer.dropped)
    outcome = Outcome(torturer.kills, len(torturer.dropped), found, seconds, seal(bench.latest()))
    if not outcome.found.all:
        began = time.monotonic()
        outcome.replay_seal = replay(root / "calm", model, bench, torturer.dropped)
        outcome.replay_seconds = time.monotonic() - began
    return outcome


class Torturer:
    """Feeds a workspace with files and kills its processes, until both are enough and all is trained."""

    def __init__(self, bench: Bench, kills: int, files: int, seed: int, stop: threading.Event) -> None:
        self.bench, self.draw, self._stop = bench, Random(seed), stop
        self.wanted_kills, self.wanted_files, self.seed = kills, files, seed
        self.story = Story(bench.root)
        self.dropped: dict[str, bytes] = {}
        self.kills: list[Kill] = []
        self._counts: Counter[str] = Counter()
        self._servers: dict[int, str] = {}  # pid -> start time, of every fork server seen
        self._completed = 0
        self._news_at = time.monotonic()

    # ---- the loop ----

    def run(self) -> None:
        self.bench.launch()
        self._feed()
        while not self._over():
            opened = self.story.follow()
            assert not self.story.alarms, self.story.alarms
            for job, phase in opened:
                if self._strike(job, phase):
                    break
            if opened:
                self._news_at = time.monotonic()
                self._feed()
            assert time.monotonic() - self._news_at < PATIENCE_SECONDS, f"it hangs\n{self.bench.last_words()}"
            assert not self._stop.is_set(), "ended, because another workspace was"
            time.sleep(LOOK_SECONDS)

    def end(self) -> None:
        self.bench.end()
        for pid in self._living_servers():
            send_sigkill(pid)

    def _over(self) -> bool:
        assert len(self.dropped) <= 2 * self.wanted_files + 20, f"some phase is hardly ever hit: {self._counts}"
        return self._enough_kills() and self._completed == len(self.dropped) >= self.wanted_files

    def _enough_kills(self) -> bool:
        return len(self.kills) >= self.wanted_kills and not any(self._lacking(phase) for phase in PHASES)

    def _lacking(self, phase: str) -> bool:
        return self._counts[phase] < self.wanted_kills / 10

    def _feed(self) -> None:
        """Drop the next file where few wait, as long as more are wanted."""
        self._completed = len(self.bench.jobs("completed"))
        enough = len(self.dropped) >= self.wanted_files and self._enough_kills()
        if enough or len(self.dropped) - self._completed >= BACKLOG:
            return
        self.drop(rows_of(len(self.dropped), self.seed))
        if self.draw.random() < self._chance("intake") / 4:
            self._strike_at_the_door()

    def drop(self, content: list[dict[str, Any]]) -> None:
        name = f"file{len(self.dropped):04d}.jsonl"
        self.dropped[name] = as_bytes(content)
        if len(self.dropped) % SAID_FILES == 0:
            print(f"{self.bench.root}: {len(self.kills)} kills over {self._completed} files", flush=True)
        self.bench.drop(name, content)

    # ---- when ----

    def _strike(self, job: str, phase: str) -> bool:
        """Perhaps kill something while this phase lasts; whether that was done."""
        chance = self._chance("intake" if phase == "reading" else phase)
        if self.draw.random() >= chance or self.story.jobs[job].phase != phase:
            return False  # the latter: both its events were read in one look
        until = time.monotonic() + self.draw.uniform(0, self.story.seconds.get(phase, 0.02))
        while time.monotonic() < until:
            time.sleep(max(0.0, min(LOOK_SECONDS, until - time.monotonic())))
            if any(news[0] == job for news in self.story.follow()):
                return False  # it is over
        self.kill(self._choose(phase))
        return True

    def _strike_at_the_door(self) -> None:
        """Kill the daemon while a file is on its way from the inbox into the queue."""
        until = time.monotonic() + 2
        while time.monotonic() < until and not self.story.taking_in():
            time.sleep(LOOK_SECONDS / 10)
        time.sleep(self.draw.uniform(0, DOOR_SECONDS))
        self.kill("daemon")

    def _chance(self, phase: str) -> float:
        """Of a kill, now that this phase has been opened: as much as it lags behind the files."""
        if self._enough_kills():
            return 0.0
        if phase not in SHARES:
            return SELDOM
        if self._completed >= self.wanted_files and self._lacking(phase):
            return 0.9
        share = min(1.0, (self._completed + 1) / self.wanted_files)
        behind = SHARES[phase] * self.wanted_kills * share - self._counts[phase]
        return min(0.9, 0.3 + 0.3 * behind) if behind > 0 else SELDOM

    # ---- what ----

    def _choose(self, phase: str) -> str:
        if phase in WORKING and self.bench.worker_pid():
            target = self.draw.choices(TARGETS, (0.07, 0.79, 0.06, 0.08))[0]
        else:
            target = self.draw.choices(TARGETS, (0.3, 0.0, 0.1, 0.6))[0]
        return "daemon" if target == "worker" and self._worker_kills() >= WORKER_KILLS else target

    def _worker_kills(self) -> int:
        """How often the worker alone was killed since the job last began at another place than now."""
        attempts = (path for job in self.bench.jobs("processing") for path in self._attempts(job))
        count, newest = 0, None
        for folder in attempts:
            beginning = record(folder / "assignment.json").get("resume")
            if newest not in (None, (beginning,)):
                break
            newest = (beginning,)
            count += record(folder / "exit.json").get("signal") is not None
        return count

    def _attempts(self, job: str) -> list[Path]:
        """The folders of a job's attempts, the newest first."""
        folder = self.bench.root / "runs" / job / "attempts"
        return sorted(folder.glob("*"), key=lambda path: int(path.name), reverse=True)

    def kill(self, target: str) -> None:
        """One salvo. The fork server goes before its worker: else it would still say how that ended."""
        self._bury()
        worker, servers = self.bench.worker_pid(), self._living_servers()
        forked = [pid for server in servers for pid in children_of(server)]
        chosen: dict[str, list[int]] = {
            "daemon": [self.bench.daemon_pid],
            "worker": [worker] if worker else [],
            "fork server": servers,
            "all": [*servers, *forked, *([worker] if worker else []), self.bench.daemon_pid],
        }
        victims = dict.fromkeys(chosen[target])
        if len(victims) < (2 if target == "all" else 1):
            return
        for pid in victims:
            send_sigkill(pid)
        for pid in victims:
            self._wait_for_death(pid)
        daemon = self.bench.daemon_pid in victims
        hit_worker = worker is not None and (worker in victims or target == "fork server")
        self._note(self.story.hit(worker=hit_worker, daemon=daemon), target)
        if daemon:
            self._look_at_the_ruins()
            self.story.daemon_runs = False
            self.bench.launch()
            self._perhaps_at_its_start()

    def _perhaps_at_its_start(self) -> None:
        if self.draw.random() < SELDOM:
            time.sleep(self.draw.uniform(0, 0.6))
            self.kill("daemon")

    def _wait_for_death(self, pid: int) -> None:
        if pid == self.bench.daemon_pid:
            assert self.bench.daemon
            self.bench.daemon.wait()
        until = time.monotonic() + 30
        while state_of(pid) not in (None, "Z", "X"):
            assert time.monotonic() < until, f"process {pid} does not die"
            time.sleep(0.0005)

    def _note(self, phase: str, target: str) -> None:
        self.kills.append(Kill(phase, target))
        self._counts[phase] += 1

    def _living_servers(self) -> list[int]:
        """Fork servers, those of killed daemons among them."""
        for pid in children_of(self.bench.daemon_pid):
            if b"daemon.worker" in command_of(pid):
                self._servers.setdefault(pid, start_time_of(pid))
        self._servers = {pid: start for pid, start in self._servers.items() if start_time_of(pid) == start}
        return list(self._servers)

    def _bury(self) -> None:
        """End the fork servers of daemons long dead: each imports for seconds only to find that nobody needs it."""
        mine = children_of(self.bench.daemon_pid)
        orphans = [pid for pid in self._living_servers() if pid not in mine and not children_of(pid)]
        for pid in orphans[:-1]:
            send_sigkill(pid)

    # ---- what must hold at every moment ----

    def _look_at_the_ruins(self) -> None:
        """No daemon runs: each file lies in one place, and the accepted model is as it was saved."""
        root = self.bench.root
        places = [*(root / "inbox").iterdir(), *(root / "queue").glob("*/*/file*"), *(root / "queue").glob(".*/file*")]
        found = Counter(path.name for path in places)
        when, expected = f"after kill {len(self.kills)}", Counter(list(self.dropped))
        assert found == expected, f"{when}: not there: {expected - found}; in several places: {found - expected}"
        latest = checkpoints.latest(Workspace(root))
        damage = checkpoints.damage(latest) if latest else None
        assert damage is None, f"{when}: the accepted model is damaged: {damage}"
