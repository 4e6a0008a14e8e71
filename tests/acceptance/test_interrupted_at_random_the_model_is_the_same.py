"""Five files, interrupted ten times at random: weights, optimizer and generators end as if nothing had been.

`benchmarks/interrupted.py` does the same with other seeds.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.bench import Bench, rows
from tests.acceptance.interruptions import INTERRUPTIONS, KINDS, Case, compare, succeed

SEEDS = (45, 1439)  # with few rows; between them all that a seed may choose
PAUSES = 3


@pytest.mark.timeout(1200)  # a minute each on two quiet cores
@pytest.mark.parametrize("seed", [pytest.param(seed, id=f"{Case.of(seed).method}-{seed}") for seed in SEEDS])
def test_interrupted_at_random(seed: int, dropout_model: Path, tmp_path: Path) -> None:
    told = compare(Case.of(seed), dropout_model, tmp_path)
    assert told.equal
    assert len(told.interrupted) == INTERRUPTIONS
    assert all(any(said.startswith(kind) for said in told.interrupted) for kind in KINDS)


def test_between_them_the_seeds_choose_all_that_matters() -> None:
    one, other = (Case.of(seed) for seed in SEEDS)
    assert {one.method, other.method} == {"full", "lora"}
    assert {one.packing, other.packing} == {one.together, other.together} == {True, False}
    assert {one.epochs, other.epochs} == {1, 2}


def test_a_pause_takes_less_than_two_seconds(make_bench: Callable[..., Bench]) -> None:
    """The best of three: the machine may have other things to do."""
    bench, seconds = make_bench(num_train_epochs=50).start(), []
    bench.drop("long.jsonl", rows(100))
    for pause in range(PAUSES):
        bench.wait_for_step(10 + 20 * pause)
        bench.wait(bench.worker_pid, 30, "a worker")
        began = time.monotonic()
        succeed(bench, "training_controller", "pause")
        seconds.append(time.monotonic() - began)
        assert bench.worker_pid() is None
        succeed(bench, "training_controller", "resume")
    assert min(seconds) < 2, seconds
