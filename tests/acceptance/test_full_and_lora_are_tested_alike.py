"""What is shown of one method of training is shown of the other: the thread, exactness, what disturbs a training."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
FILES = (
    "test_a_dropped_file_becomes_a_trained_model.py",
    "test_a_training_leaves_results_and_curves.py",
    "test_every_row_is_trained_exactly_as_often_as_asked.py",
    "test_generation_never_hurts_a_training.py",
    "test_interrupted_at_random_the_model_is_the_same.py",
    "test_numbers_that_are_not_finite_stay_out.py",
    "test_out_of_memory_costs_no_row.py",
    "test_the_gate_decides_what_is_accepted.py",
    "test_what_a_skipped_file_has_learned_can_be_kept.py",
)


def test_their_counts_are_equal() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *FILES]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=True)
    counts: dict[str, dict[str, int]] = {file: defaultdict(int) for file in FILES}
    for name in done.stdout.splitlines():
        test, _, case = name.removesuffix("]").partition("[")
        for method in {"full", "lora"} & set(case.split("-")):
            counts[Path(test.split("::")[0]).name][method] += 1
    assert all(found["full"] == found["lora"] > 0 for found in counts.values()), counts
