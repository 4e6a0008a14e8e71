"""The ladder as tables: how long each rung lasts, and what counts as being on the way to the end."""

import pytest

from daemon.core.heartbeat import Beat, Phase
from daemon.service.stopping import ASK_SECONDS, GRACE_SECONDS, VAIN_SECONDS, Rung, Sign, advances, due

ASK, INSIST, KILL, IN_VAIN = Rung


@pytest.mark.parametrize(
    ("rung", "quiet_seconds", "longest_save", "hurry", "then"),
    [
        (ASK, 0, 0, False, ASK),
        (ASK, ASK_SECONDS - 0.1, 0, False, ASK),
        (ASK, ASK_SECONDS, 0, False, INSIST),
        (ASK, ASK_SECONDS, 600, False, INSIST),  # insisting harms nobody: it need not wait for a save
        (INSIST, GRACE_SECONDS - 0.1, 0, False, INSIST),
        (INSIST, GRACE_SECONDS, 0, False, KILL),
        (INSIST, GRACE_SECONDS, 5, False, KILL),  # three such saves fit into the least grace
        (INSIST, GRACE_SECONDS, 7, False, INSIST),
        (INSIST, 299.9, 100, False, INSIST),
        (INSIST, 300, 100, False, KILL),
        (KILL, VAIN_SECONDS - 0.1, 100, False, KILL),
        (KILL, VAIN_SECONDS, 100, False, IN_VAIN),
        (IN_VAIN, 10**6, 0, False, IN_VAIN),
        (ASK, 0, 600, True, INSIST),
        (INSIST, 0.5, 600, True, INSIST),  # the stacks are written meanwhile
        (INSIST, 1.0, 600, True, KILL),
        (KILL, 1.0, 0, True, KILL),
    ],
)
def test_how_long_each_rung_lasts(
    rung: Rung, quiet_seconds: float, longest_save: float, hurry: bool, then: Rung
) -> None:
    assert due(rung, quiet_seconds, longest_save, hurry) is then


def sign(phase: Phase = Phase.TRAIN, step: int = 10, batches: int = 0, traffic: int = 0) -> Sign:
    return Sign(Beat(phase, step, batches, 0, 0, batches), traffic)


NO_BEAT = Sign(None, 0)
TRAIN, SAVE = Phase.TRAIN, Phase.SAVE


@pytest.mark.parametrize(
    ("before", "now", "on_its_way"),
    [
        (sign(), sign(), False),
        (sign(), sign(batches=1), True),  # a long update of many micro-batches
        (sign(), sign(step=11), True),
        (sign(step=12, batches=1), sign(step=12, batches=2), True),
        (sign(step=12), sign(step=13), False),  # it trains on and on: it has not heard
        (sign(step=99), sign(step=99, batches=1), False),
        (sign(), sign(traffic=9), False),  # in training, a thread that writes a log proves nothing
        (sign(SAVE), sign(SAVE), False),
        (sign(SAVE), sign(SAVE, traffic=1), True),
        (sign(SAVE, step=99), sign(SAVE, step=99, traffic=1), True),
        (sign(Phase.LOAD), sign(Phase.LOAD, traffic=1), True),
        (NO_BEAT, NO_BEAT, False),
        (NO_BEAT, Sign(None, 1), True),
        (NO_BEAT, sign(step=10), True),
    ],
)
def test_what_counts_as_being_on_the_way_to_the_end(before: Sign, now: Sign, on_its_way: bool) -> None:
    assert advances(sign(step=10), before, now) is on_its_way
