"""Reads of the status file while a daemon trains, obeys wishes and writes it as often as it can.

    python benchmarks/status_reads.py [--reads 100000] [--readers 2]

Each read is parsed, and its keys are compared with those promised. Exit code 1 where one was unparsable, incomplete or
missing.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.acceptance.bench import Bench, rows  # noqa: E402 - from this checkout
from tests.helpers_readers import busy, read_together  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reads", type=int, default=100_000)
    parser.add_argument("--readers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "tiny"
        model.mkdir()
        subprocess.run([sys.executable, "-P", "-m", "daemon.worker.embedded", str(model)], check=True)
        bench = Bench.make(Path(place) / "w", model, num_train_epochs=10**6, logging_steps=1)
        try:
            bench.start().drop("long.jsonl", rows(8))
            bench.drop("waits.jsonl", rows(8, start=100))
            bench.wait_for_step(1)
            bench.wait(lambda: list(bench.root.glob("queue/normal/*/report.json")), 60, "the second file is read")
            with busy(bench):
                told = read_together(bench.root, options.reads, options.readers)
        finally:
            bench.end()
    found, reads = told["found"], sum(told["found"].values())
    print(f"{reads:,} reads by {options.readers} processes in {told['seconds']:.1f} s: {dict(found)}")
    print(f"{reads / told['seconds']:,.0f} reads/s; {told['versions']} different statuses were seen")
    return 0 if found == {"good": reads} else 1


if __name__ == "__main__":
    sys.exit(main())
