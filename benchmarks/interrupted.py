"""Trainings interrupted at random, beside the same undisturbed: whether weights and optimizer end byte for byte equal.

    python benchmarks/interrupted.py [--seeds 20] [--first 0]

Each seed chooses method, packing, epochs, five files that are trained one upon the other, and ten interruptions: worker
or daemon killed, daemon ended and started, executed anew, training paused, a file skipped and tried again. Dropout is
on, an update has two micro-batches. The folder of a seed that goes wrong is kept.
"""

import argparse
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # the commands run this checkout too

from tests.acceptance.bench import make_model  # noqa: E402
from tests.acceptance.interruptions import FILES, Case, Told, compare  # noqa: E402


def main(seeds: range) -> int:
    folder = Path(tempfile.mkdtemp(prefix="interrupted-"))
    model = make_model(folder / "model", attention_dropout=0.1)
    told = [run(Case.of(seed), model, folder / str(seed)) for seed in seeds]
    unequal = sum(not each.equal for each in told)
    done = sum(len(each.interrupted) for each in told)
    verdict = f"{unequal} not equal" if unequal else "all equal"
    print(f"{len(told)} seeds, {FILES * len(told)} files, {done} interruptions: {verdict}")
    if not unequal:
        shutil.rmtree(folder)
    return 1 if unequal else 0


def run(case: Case, model: Path, folder: Path) -> Told:
    """One seed and its line."""
    folder.mkdir()
    try:
        told = compare(case, model, folder)
    except AssertionError:
        print(f"{case}\n{traceback.format_exc()}\n  kept: {folder}", flush=True)
        return Told()
    said = "equal" if told.equal else f"NOT EQUAL, kept: {folder}"
    print(f"{case}; {', '.join(told.interrupted)}: {said}, {told.seconds:.0f} s", flush=True)
    if told.equal:
        shutil.rmtree(folder)
    return told


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    sys.exit(main(range(given.first, given.first + given.seeds)))
