"""Who reads the status file beside a busy writer always has a whole one in hand, with every key that is promised."""

from collections.abc import Callable

import pytest

from tests.acceptance.bench import Bench, rows
from tests.helpers_readers import busy, judge, read_together

READS, READERS, STATUSES = 5000, 2, 5


def test_five_thousand_reads_find_a_whole_status(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(num_train_epochs=10**6, logging_steps=1).start()
    bench.drop("long.jsonl", rows(8))
    bench.drop("waits.jsonl", rows(8, start=100))
    bench.wait_for_step(1)
    bench.wait(lambda: list(bench.root.glob("queue/normal/*/report.json")), 60, "the second file is read")
    path = bench.root / "status/training_status.json"
    with busy(bench), path.open("rb") as held:
        mine = held.read()
        told = read_together(bench.root, READS, READERS, versions=STATUSES)
        bench.wait(lambda: path.read_bytes() != mine, 30, "another status")
        held.seek(0)
        assert held.read() == mine, "what a reader has open is replaced, not written over"
    assert set(told["found"]) == {"good"} and told["found"]["good"] >= READS
    assert told["versions"] >= STATUSES, "the writer was not busy"


@pytest.mark.parametrize(("data", "said"), [(b"", "unparsable"), (b'{"status"', "unparsable"), (b"{}", "incomplete")])
def test_a_reader_knows_what_is_not_whole(data: bytes, said: str) -> None:
    assert judge(data) == said
