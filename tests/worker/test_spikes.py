"""A loss far above the usual one is noted once; falling and noisy losses are not."""

import random

from daemon.worker.spikes import LEAST_UPDATES, Spikes


def spikes(losses: list[float]) -> list[int]:
    watch = Spikes()
    return [place for place, loss in enumerate(losses) if watch.usual(loss) is not None]


def test_one_far_above_is_found_with_the_usual_loss() -> None:
    watch = Spikes()
    for n in range(30):
        assert watch.usual(2.0 + 0.01 * (n % 5)) is None
    assert watch.usual(4.0) == 2.02


def test_what_follows_a_spike_belongs_to_it() -> None:
    assert spikes([1.0, 1.01] * 15 + [5.0] * 10 + [1.0] * 30 + [5.0]) == [30, 70]


def test_noise_a_slow_rise_and_the_first_updates_are_none() -> None:
    draw = random.Random(1)
    assert spikes([draw.gauss(2.0, 0.4) for _ in range(2000)]) == []
    assert spikes([1 + n / 50 for n in range(500)]) == []
    assert spikes([1.0] * (LEAST_UPDATES - 1) + [9.0]) == []
