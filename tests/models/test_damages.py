"""Damages of every kind, at random: each is noticed before the next job, and the newest whole model is used."""

from pathlib import Path

from benchmarks.damages import KINDS, rounds

COUNT = 150  # a thousand with: python benchmarks/damages.py


def test_every_damage_is_noticed_and_the_newest_whole_model_is_used(tmp_path: Path) -> None:
    told = rounds(tmp_path, COUNT, seed=1)
    assert told.wrong == []
    assert {words.split(":")[0] for words in told.counts} >= {kind.__name__ for kind in KINDS}
    assert sum(count for words, count in told.counts.items() if words.endswith("latest")) > 20
