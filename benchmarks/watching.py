"""What watching costs: the same training with watching off, with the numbers only, and with all of it.

    python benchmarks/watching.py [--rounds 5] [--updates 480]

1,000 rows in the holdout, four examples. Each training is one file of the real daemon with its worker, in a workspace
of its own, one kind after the other in turn; timed from outside by the page of its heartbeat, from the first update to
the last, in seconds of the clock and of the worker's processor. The first and the last evaluation, which the gate
needs, lie outside. Exit code 1 where the numbers take 1 % or more, all watching 5 % or more, or
status/monitoring_costs.json says something else by more than a fifth.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # the commands run this checkout too

from benchmarks.throughput import SHAPES, make_model, rows  # noqa: E402
from daemon.core import heartbeat  # noqa: E402
from tests.acceptance.bench import Bench  # noqa: E402

NEVER = 10**6
KINDS: dict[str, dict[str, int]] = {
    "off": {"logging_steps": NEVER, "eval_steps": NEVER},
    "numbers": {"logging_steps": 10, "eval_steps": NEVER},
    "all": {"logging_steps": 10, "eval_steps": 200},
}
LIMITS = {"numbers": 1.01, "all": 1.05}
UPDATE_ROWS, HOLDOUT_ROWS = 16, 1000
AGREEMENT = 0.2  # of what was measured from outside
FLOOR_PERCENT = 0.3  # below which two measurements of a cost do not disagree
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Timed:
    clock: float  # seconds
    processor: float
    costs: dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=480)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="watching-") as scratch:
        root = Path(scratch)
        make_model(root / "model", SHAPES["small"])
        texts = [json.dumps(row) for row in rows(given.updates * UPDATE_ROWS + HOLDOUT_ROWS, SHAPES["small"])]
        found: dict[str, list[Timed]] = {kind: [] for kind in KINDS}
        for round_ in range(given.rounds):
            for kind in KINDS:
                timed = train(root / f"{kind}{round_}", root / "model", kind, texts, given.updates)
                found[kind].append(timed)
                watched = timed.costs["watching_percent"]
                print(
                    f"{kind:8} {timed.clock:7.2f} s  {timed.processor:7.2f} s of the processor  {watched:5.2f} %",
                    flush=True,
                )
    return say(found)


def say(found: dict[str, list[Timed]]) -> int:
    wrong = []
    for kind, limit in LIMITS.items():
        pairs = list(zip(found[kind], found["off"], strict=True))
        clock = median(one.clock / off.clock for one, off in pairs)
        processor = median(one.processor / off.processor for one, off in pairs)
        percent = median(one.costs["watching_percent"] for one in found[kind])
        print(f"{kind}: {clock:.4f} times by the clock, {processor:.4f} by the processor (limit {limit})")
        outside = 100 * (1 - 1 / processor)
        print(f"   monitoring_costs.json says {percent:.2f} %, measured from outside {outside:.2f} %")
        if processor >= limit:
            wrong.append(f"{kind} costs too much")
        if abs(percent - outside) > max(AGREEMENT * outside, FLOOR_PERCENT):
            wrong.append(f"{kind}: monitoring_costs.json disagrees")
    for sentence in wrong:
        print(f"WRONG {sentence}")
    return 1 if wrong else 0


def train(root: Path, model: Path, kind: str, texts: list[str], updates: int) -> Timed:
    bench = Bench.make(
        root,
        model,
        training_method="full",
        max_length=512,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        learning_rate=1e-4,
        eval_examples=4,
        max_new_tokens=32,
        save_steps=NEVER,
        save_min_seconds=NEVER,
        gate={"mode": "off"},
        **KINDS[kind],
    )
    (root / "data/validation/holdout.jsonl").write_text("\n".join(texts[-HOLDOUT_ROWS:]) + "\n")
    bench.start()
    try:
        bench.drop("x.jsonl", "\n".join(texts[: updates * UPDATE_ROWS]) + "\n")
        began = at_step(bench, 1)
        ended = at_step(bench, updates)
        bench.wait_for("completed", 1, 600)
        costs = json.loads((root / "status/monitoring_costs.json").read_text())
        return Timed(ended[0] - began[0], ended[1] - began[1], costs)
    finally:
        bench.end()


def at_step(bench: Bench, step: int) -> tuple[float, float]:
    """When the worker has made so many updates: by the clock, and by its own processor seconds."""
    while True:
        for page in bench.root.glob("runs/*/attempts/1/heartbeat"):
            beat = heartbeat.read(page)
            if beat and beat.job_step >= step and (worker := bench.worker_pid()):
                return time.monotonic(), processor_seconds(worker)
        time.sleep(0.002)


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


if __name__ == "__main__":
    sys.exit(main())
