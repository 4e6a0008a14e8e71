"""The heartbeat page: what a reader sees is always one whole beat, while and after the worker writes."""

from pathlib import Path

import pytest

from daemon.core import heartbeat
from daemon.core.heartbeat import PAGE_BYTES, Beat, Heartbeat, Phase
from tests.helpers_processes import process, until

READS = 20_000
WRITER = """
import itertools, sys
from pathlib import Path
from daemon.core.heartbeat import Heartbeat, Phase
beats = Heartbeat(Path(sys.argv[1]))
for number in itertools.count(1):
    beats.beat(Phase(1 + number % 5), job_step=number << 20, micro_batches=1 << 20, tokens=1 << 20, bytes_saved=1 << 20)
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "heartbeat"


def whole(beat: Beat) -> bool:
    """The writer above sets every figure to the same number, and the phase to what follows from it."""
    same = beat.job_step == beat.micro_batches == beat.tokens == beat.bytes_saved
    return same and beat.phase == (1 + (beat.job_step >> 20) % 5 if beat.job_step else Phase.LOAD)


def test_a_reader_never_sees_a_torn_page_at_full_speed(page: Path) -> None:
    with process(WRITER, page):
        until(lambda: heartbeat.read(page))
        read = [beat for _ in range(READS) if (beat := heartbeat.read(page))]
    assert len(read) > READS / 2, "a writer at full speed must not hide from its reader"
    assert [beat for beat in read if not whole(beat)] == []
    assert [beat.job_step for beat in read] == sorted(beat.job_step for beat in read)
    assert read[-1].job_step > read[0].job_step


def test_the_last_beat_of_a_killed_worker_can_be_read(page: Path) -> None:
    with process(WRITER, page) as writer:
        until(lambda: (beat := heartbeat.read(page)) and beat.job_step)
        writer.kill()
        writer.wait()
        last = heartbeat.read(page)
    assert last is None or whole(last)  # None: killed in the middle of a beat


def test_there_is_no_beat_before_the_first(page: Path) -> None:
    assert heartbeat.read(page) is None
    for data in (b"", bytes(PAGE_BYTES), b"something else altogether" * 100):
        page.write_bytes(data)
        assert heartbeat.read(page) is None


def test_beats_add_up_and_keep_what_they_do_not_name(page: Path) -> None:
    beats = Heartbeat(page)
    first = heartbeat.read(page)
    beats.beat(Phase.TRAIN, job_step=3, micro_batches=1, tokens=100)
    beats.beat(micro_batches=2, tokens=50, bytes_saved=7)
    seen = heartbeat.read(page)
    assert first and seen
    assert (first.phase, first.job_step, first.tokens) == (Phase.LOAD, 0, 0)
    assert (seen.phase, seen.job_step, seen.micro_batches, seen.tokens, seen.bytes_saved) == (Phase.TRAIN, 3, 3, 150, 7)
    assert seen.monotonic_ns > first.monotonic_ns
    assert beats.phase is Phase.TRAIN
    assert page.stat().st_size == 4096


def test_figures_of_months_of_training_fit(page: Path) -> None:
    Heartbeat(page).beat(tokens=10**15, bytes_saved=10**17)
    seen = heartbeat.read(page)
    assert seen and (seen.tokens, seen.bytes_saved) == (10**15, 10**17)
