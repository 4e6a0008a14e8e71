"""A hundred SIGKILLs at daemon, worker and fork server in every phase: nothing is lost, and the model cannot tell."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.acceptance.bench import Bench
from tests.acceptance.examination import EPOCHS, ROWS
from tests.acceptance.toll import PHASES, TARGETS, closing, table, wrong
from tests.acceptance.torture import torture_side_by_side

KILLS, FILES = 100, 24


@pytest.mark.timeout(3600)  # four minutes on two quiet cores
def test_a_hundred_kills(tmp_path: Path, model: Path) -> None:
    outcomes = torture_side_by_side(tmp_path, model, kills=KILLS, files=FILES, workspaces=2, seed=1)
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    print(f"{table(kills)}\n{closing(outcomes)}")
    assert not wrong(outcomes)
    assert [outcome.seal for outcome in outcomes] == [outcome.replay_seal for outcome in outcomes]
    assert len(kills) >= KILLS and {kill.target for kill in kills} == set(TARGETS)
    hits = Counter(kill.phase for kill in kills)
    assert all(hits[phase] >= KILLS / 10 for phase in PHASES), hits
    audit = Bench(tmp_path / "w0/tortured").command("training_queue", "audit", "file0007.jsonl", "--json")
    assert json.loads(audit.stdout)["rows_by_times"] == {str(EPOCHS): ROWS}
