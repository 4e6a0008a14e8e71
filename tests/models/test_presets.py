"""What is chosen where nobody has set it, and that what was set is taken."""

from pathlib import Path
from typing import Any

import pytest

from daemon.core.config import Settings, override
from daemon.models import estimate, presets
from daemon.models.estimate import Machine

LARGE = Machine("card", 80 * 2**30, gpu=True)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "machine", lambda: Machine("main memory", 8 * 2**30))


def chosen(model: Path, rows: int = 100, longest_row: int = 64, **given: Any) -> dict[str, Any]:
    settings = Settings(model_name="m", base_model="m", **given)
    return presets.chosen(settings, model, rows=rows, longest_row=longest_row)


@pytest.mark.usefixtures("machine")
def test_without_a_preset_only_the_rows_at_a_time_are_chosen(model_folder: Path) -> None:
    assert chosen(model_folder) == {"per_device_train_batch_size": 4}
    assert chosen(model_folder, per_device_train_batch_size=2) == {}
    assert chosen(model_folder, gradient_accumulation_steps=2) == {}


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("rows", "epochs"), [(1, 3), (1_000, 3), (1_001, 2), (20_000, 2), (20_001, 1), (10**9, 1)])
def test_the_preset_follows_the_number_of_rows(rows: int, epochs: int, model_folder: Path) -> None:
    assert chosen(model_folder, rows, preset="auto")["num_train_epochs"] == epochs


@pytest.mark.usefixtures("machine")
def test_what_is_set_is_not_chosen(model_folder: Path) -> None:
    found = chosen(model_folder, preset="auto", num_train_epochs=1, eval_steps=7)
    assert found == {"effective_batch_size": 8, "logging_steps": 5, "per_device_train_batch_size": 4}
    both = chosen(model_folder, preset="auto", per_device_train_batch_size=2, gradient_accumulation_steps=5)
    assert "effective_batch_size" not in both, "the product is how many rows an update has"
    sidecar = override(Settings(model_name="m", base_model="m", preset="auto"), num_train_epochs=9)
    assert "num_train_epochs" not in presets.chosen(sidecar, model_folder, rows=1, longest_row=1)


def test_the_rows_at_a_time_are_those_that_fit(model_folder: Path) -> None:
    assert estimate.fitting_rows(model_folder, "full", 64, 32, LARGE) == 32
    assert estimate.fitting_rows(model_folder, "full", 64, 1000, LARGE) == estimate.GPU_ROWS
    assert estimate.fitting_rows(model_folder, "full", 64, 3, LARGE) == 3
    small = Machine("card", 2**28, gpu=True)
    assert estimate.fitting_rows(model_folder, "full", 100_000, 32, small) == 1, "one is the least there is"
    few = estimate.fitting_rows(model_folder, "full", 512, 64, small)
    assert 1 < few < 64 and few & (few - 1) == 0


def test_a_model_that_cannot_be_read_leaves_it_open(tmp_path: Path) -> None:
    assert chosen(tmp_path) == {}
