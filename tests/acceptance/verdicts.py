"""What became of hostile inputs, and what is wrong with it; and a daemon watched from outside meanwhile."""

import hashlib
import json
import os
import stat
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from daemon import wishes
from daemon.core.paths import Workspace
from daemon.core.records import State
from tests.acceptance.bench import Bench, lines
from tests.helpers_hostile import Dropping, Entry, content, sidecar

STATES = {"accepted": ("high", "normal", "low", "processing", "completed"), "refused": ("failed",)}
ASK_SECONDS = 0.25


class Verdicts:
    """Finds, for each entry that was dropped, its job or the file that was left."""

    def __init__(self, bench: Bench, dropping: Dropping) -> None:
        self._bench = bench
        self._dropping = dropping

    def missing(self, entries: list[Entry]) -> list[str]:
        """The names of those that nothing was said of yet."""
        jobs = self._jobs()
        waited_for = [entry for entry in entries if entry.verdict != "left"]
        return [entry.said for entry in waited_for if not self._decided(entry, jobs)]

    def wrong(self, entries: list[Entry]) -> list[str]:
        """A sentence for each thing that is not as it should be."""
        jobs, events = self._jobs(), self._bench.events("left_alone")
        found = []
        for entry in entries:
            said = self._of_left(entry, events) if entry.verdict == "left" else self._of_job(entry, jobs)
            found += [f"{entry.mechanism}: {entry.said[:80]}: {what}" for what in said]
        return found

    def _jobs(self) -> dict[str, list[tuple[str, Path, dict[str, Any]]]]:
        """State, folder and record of every job, by the name that it is shown with."""
        found: dict[str, list[tuple[str, Path, dict[str, Any]]]] = {}
        for state in State:
            for job_id in self._bench.jobs(state):
                folder = self._bench.root / "queue" / state / job_id
                try:
                    job = json.loads((folder / "job.json").read_text())
                except FileNotFoundError:
                    continue  # it has just been moved
                found.setdefault(job["file"], []).append((state.value, folder, job))
        return found

    def _decided(self, entry: Entry, jobs: dict[str, list[tuple[str, Path, dict[str, Any]]]]) -> bool:
        """Whether every job of its name is checked, or failed."""
        decided = [state == "failed" or _is_usable(folder) for state, folder, _ in jobs.get(entry.said, [])]
        return sum(decided) >= self._dropping.names.count(entry.said)

    # ---- what became a job ----

    def _of_job(self, entry: Entry, jobs: dict[str, list[tuple[str, Path, dict[str, Any]]]]) -> list[str]:
        mine = [job for job in jobs.get(entry.said, []) if self._has_its_bytes(entry, job[1] / job[2]["data"])]
        if not mine:
            return [f"no job has its bytes (jobs of its name: {len(jobs.get(entry.said, []))})"]
        wanted = STATES[entry.verdict]
        state, folder, job = next((job for job in mine if job[0] in wanted), mine[0])
        if state not in wanted:
            return [f"should be {entry.verdict}, is {state}: {job['reason']}"]
        found = [] if self._sidecar_is_kept(entry, folder) else ["the settings beside it are not what they were"]
        report = json.loads((folder / "report.json").read_text()) if (folder / "report.json").exists() else {}
        rejected = {row["line"]: row for row in lines(folder / "rejected.jsonl")}
        if entry.verdict == "accepted":
            found += self._of_accepted(entry, job, report)
        elif entry.reason not in (job["reason"] or ""):
            found.append(f"the reason should say {entry.reason!r}, says {job['reason']!r}")
        if not job["remedy"] and entry.verdict == "refused":
            found.append("there is no remedy")
        return found + self._of_line(entry, job, report, rejected)

    def _of_accepted(self, entry: Entry, job: dict[str, Any], report: dict[str, Any]) -> list[str]:
        counts = tuple(report.get(key) for key in ("usable", "rows", "bad_rows", "too_long_rows"))
        wanted = (True, entry.rows, entry.bad, entry.long)
        found = [] if counts == wanted else [f"usable, good, bad and long rows should be {wanted}, are {counts}"]
        closed = self._dropping.closed.get(entry.file)
        if closed and datetime.fromisoformat(job["taken_in_at"]).timestamp() < closed - 0.01:
            found.append("it was taken in while it was being written")
        return found

    def _of_line(
        self, entry: Entry, job: dict[str, Any], report: dict[str, Any], rejected: dict[int, dict[str, Any]]
    ) -> list[str]:
        if entry.line is None:
            return []
        row = rejected.get(entry.line)
        if row is None:
            return [f"line {entry.line} should be refused; refused are {sorted(rejected)[:5]}: {job['reason']!r}"]
        found = []
        if entry.reason not in row["reason"] and entry.reason not in f"line {entry.line}":
            found.append(f"line {entry.line} should say {entry.reason!r}, says {row['reason']!r}")
        if not row["fix"]:
            found.append("the row has no fix")
        named = f"{report['numbered']} {entry.line}:"
        first = entry.line == min(rejected) and not report["too_long_rows"]
        if entry.verdict == "refused" and first and named not in job["reason"]:
            found.append(f"the reason should name {named!r}, says {job['reason']!r}")
        return found

    def _has_its_bytes(self, entry: Entry, data: Path) -> bool:
        if entry.kind in ("sparse", "written"):  # too large to be made once more: renamed, so it is the same file
            return data.stat().st_ino == self._dropping.inodes[entry.file]
        return data.is_file() and hash_of(data.read_bytes()) == hash_of(content(entry))

    def _sidecar_is_kept(self, entry: Entry, folder: Path) -> bool:
        kept = folder / "sidecar.yaml"
        if entry.sidecar_kind == "link":
            return kept.is_symlink() and os.readlink(kept) == entry.sidecar
        wanted = sidecar(entry)
        return kept.read_bytes() == wanted if wanted is not None else not kept.exists()

    # ---- what was left ----

    def _of_left(self, entry: Entry, events: list[dict[str, Any]]) -> list[str]:
        path = self._dropping.inbox / entry.file
        said = [event["message"] for event in events if event["message"].startswith(f"{entry.said} is ")]
        found = []
        if not os.path.lexists(path):
            found.append("it is no longer in the inbox")
        elif entry.kind in ("renamed", "hard_link", "unreadable") and path.read_bytes() != content(entry):
            found.append("its bytes were changed")
        elif entry.kind == "link" and (not path.is_symlink() or os.readlink(path) != content(entry).decode()):
            found.append("the link was changed")
        elif entry.kind == "folder" and (path / "inside.jsonl").read_bytes() != content(entry):
            found.append("what is in the folder was changed")
        elif entry.kind == "pipe" and not stat.S_ISFIFO(path.lstat().st_mode):
            found.append("the pipe was changed")
        if entry.reason and not (len(said) == 1 and entry.reason in said[0]):
            found.append(f"it should be said once that it {entry.reason!r}, was said: {said}")
        elif not entry.reason and said:
            found.append(f"nothing should be said, was said: {said}")
        return found


def _is_usable(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "report.json").read_text())["usable"])
    except FileNotFoundError:
        return False


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Watched:
    """A daemon asked again and again for a verb that it does not know, and its memory read meanwhile.

    It has to wake, read, answer and sync for each: the time until the answer is more than its loop's lag.
    """

    def __init__(self, bench: Bench) -> None:
        self._workspace = Workspace(bench.root)
        self._pid = bench.daemon_pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.seconds: list[float] = []
        self.megabytes_before = self.megabytes()
        self._thread.start()

    def megabytes(self, what: str = "VmRSS") -> float:
        """Resident: now, or at its highest with VmHWM."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        return int(status.split(f"{what}:")[1].split()[0]) / 1024

    def _ask(self) -> None:
        while not self._over.wait(ASK_SECONDS):
            began = time.monotonic()
            wish = wishes.send(self._workspace, "no-such-verb")
            answer = self._workspace.wishes / f"{wish.id}.answer.json"
            while not answer.exists() and not self._over.is_set():
                time.sleep(0.005)
            self.seconds.append(time.monotonic() - began)
            answer.unlink(missing_ok=True)

    def end(self) -> None:
        self._over.set()
        self._thread.join(60)


def waves(entries: list[Entry], count: int) -> list[list[Entry]]:
    """The entries in so many waves, none of which has a name twice; those that take long are in the first."""
    found: list[list[Entry]] = [[] for _ in range(count)]
    for number, entry in enumerate(entries):
        order = [(number * count // len(entries) + k) % count for k in range(count)]
        slow = [0] if entry.kind == "silent_writer" else []
        wave = next(w for w in [*slow, *order] if entry.file not in {e.file for e in found[w]})
        found[wave].append(entry)
    return found
