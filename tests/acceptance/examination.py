"""A workspace looked at after everything: each file in the model once, each row as often as asked, and the replay."""

import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon import auditing
from daemon.core import files
from daemon.core.paths import Workspace
from tests.acceptance.bench import Bench, lines, rows, seal

ROWS, EPOCHS, ROWS_AN_UPDATE = 8, 2, 2
# Eight updates a file; saves are so frequent that one is under way half of the time.
SETTINGS = {
    "per_device_train_batch_size": ROWS_AN_UPDATE,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": EPOCHS,
    "save_steps": 2,
    "logging_steps": 4,
}
PATIENCE_SECONDS = 300.0  # without any news


@dataclass
class Findings:
    """What is not as it has to be, in words; all empty where all is well."""

    lost: list[str] = field(default_factory=list)  # files that are not trained, rows that were trained too seldom
    doubled: list[str] = field(default_factory=list)  # files or rows that were trained too often
    other: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[str]:
        return self.lost + self.doubled + self.other


def rows_of(number: int, seed: int) -> list[dict[str, Any]]:
    """A small file's rows, which no other number has."""
    return rows(ROWS, start=1000 * number + seed % 1000)


def examine(bench: Bench, dropped: dict[str, bytes]) -> Findings:
    """Files, ledger, lineage, and how often each row was trained, once all is completed."""
    found = Findings()
    jobs = {record(path)["file"]: path.parent for path in (bench.root / "queue").glob("*/*/job.json")}
    found.lost += [f"{name} is no completed job" for name in dropped if not _is_kept(jobs.get(name), dropped[name])]
    inbox, queue = bench.root / "inbox", bench.root / "queue"
    places = [*queue.glob("*/*"), *(path for path in queue.glob(".*") if path.is_dir()), *inbox.iterdir()]
    if len(places) != len(dropped):
        found.other.append(f"{len(dropped)} files were dropped; in queue and inbox lie {len(places)} things")
    manifest = bench.manifest()
    ledger = [line["job"] for line in lines(bench.root / "runs/ledger.jsonl") if line["outcome"] == "completed"]
    _compare(found, "the lineage", [trained["job"] for trained in manifest["lineage"]], jobs)
    _compare(found, "the ledger", ledger, jobs)
    steps = len(dropped) * ROWS * EPOCHS // ROWS_AN_UPDATE
    if manifest["step"] != steps:
        found.other.append(f"the model has {manifest['step']} updates, {steps} were to be made")
    for name in dropped:
        _examine_rows(bench, name, jobs.get(name), found)
    return found


def _is_kept(folder: Path | None, content: bytes) -> bool:
    """The job is completed, and its data as it was dropped."""
    if folder is None or folder.parent.name != "completed":
        return False
    return (folder / record(folder / "job.json")["data"]).read_bytes() == content


def _compare(found: Findings, where: str, named: list[str], jobs: dict[str, Path]) -> None:
    expected, counts = Counter(folder.name for folder in jobs.values()), Counter(named)
    found.lost += [f"{where} lacks {job}" for job in expected - counts]
    found.doubled += [f"{where} has {job} {counts[job]} times" for job in counts - expected]


def _examine_rows(bench: Bench, name: str, folder: Path | None, found: Findings) -> None:
    """Each row as often as asked: by the worker's own note, and by the audit, which reads more than that."""
    note = bench.root / "runs" / folder.name / "consumed.bin" if folder else None
    if folder is None or note is None or not note.exists():
        found.lost.append(f"{name}: nothing says which rows were trained")
        return
    times = Counter(number for (number,) in struct.iter_unpack("<I", note.read_bytes()))
    seldom = [line for line in range(1, ROWS + 1) if times[line] < EPOCHS]
    often = [line for line, count in times.items() if count > EPOCHS or not 1 <= line <= ROWS]
    told = auditing.audit(Workspace(bench.root), folder.name).by_times()
    found.lost += [f"{name}: rows {seldom} were trained too seldom"] if seldom else []
    found.doubled += [f"{name}: rows {often} were trained too often"] if often else []
    found.other += [f"{name}: the audit says {told}"] if told != {EPOCHS: ROWS} else []


# ---- the replay ----


def replay(root: Path, model: Path, tortured: Bench, dropped: dict[str, bytes]) -> str:
    """Train the lineage of a model once more, undisturbed, in a workspace of its own; the seal of what comes out."""
    bench = Bench.make(root, model, **SETTINGS)
    try:
        bench.launch()
        for place, trained in enumerate(tortured.manifest()["lineage"]):
            bench.drop(f"{place:04d}_{trained['file']}", dropped[trained["file"]])
        count, done = len(dropped), 0
        while done < count:
            done = len(bench.wait_for("completed", done + 1, PATIENCE_SECONDS))
        hashes = [[t["sha256"] for t in b.manifest()["lineage"]] for b in (tortured, bench)]
        assert hashes[0] == hashes[1], "the replay trains the same files in the same order"
        return seal(bench.latest())
    finally:
        bench.end()


def record(path: Path) -> dict[str, Any]:
    """What stands in a JSON file; nothing where it is not there."""
    return files.read_json(path) or {}
