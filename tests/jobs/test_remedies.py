"""What the next attempt does otherwise: every ending, and what is carried on."""

from typing import Any

import pytest

from daemon.core.attempts import Assignment, Manifest, RateChange
from daemon.core.config import Settings
from daemon.jobs.recovery import Ending
from daemon.jobs.remedies import inherited_rows, remedied, slower

SETTINGS = {"model_name": "m", "base_model": "b", "per_device_train_batch_size": 5, "gradient_accumulation_steps": 2}
HALF = RateChange(from_step=10, factor=0.5)
NOTHING = {"micro_batch_rows": None, "rate_changes": (), "no_generation_because": None, "left_out": ()}


def before(**given: Any) -> Assignment:
    facts = dict.fromkeys(("job", "file", "data_sha256", "workspace", "tokens", "base_model", "base_model_sha256"), "x")
    none = dict.fromkeys(("holdout", "holdout_key", "parent", "resume", "before"))
    numbers = {"attempt": 1, "base_step": 0, "rows": 9, "total_steps": 9}
    return Assignment(**{**facts, **none, **numbers, "settings": SETTINGS, "parent_lineage": [], **given})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ending", "differs"),
    [
        (Ending.KILLED, {}),
        (Ending.PAUSED, {}),
        (Ending.OUT_OF_MEMORY, {"micro_batch_rows": 2}),
        (Ending.NOT_FINITE, {"rate_changes": (RateChange(from_step=20, factor=0.5),)}),
        (Ending.GENERATION_HUNG, {"no_generation_because": "it hung"}),
    ],
)
def test_each_ending_has_its_remedy(ending: Ending, differs: dict[str, Any]) -> None:
    assert remedied(before(), ending, "it hung", 20, []) == NOTHING | differs


def test_what_was_found_before_is_kept() -> None:
    found = {"micro_batch_rows": 3, "rate_changes": (HALF,), "no_generation_because": "it hung"}
    assert remedied(before(**found), Ending.KILLED, "killed", 20, []) == NOTHING | found


def test_the_rows_are_halved_again_and_never_less_than_one() -> None:
    rows = [
        remedied(before(micro_batch_rows=n), Ending.OUT_OF_MEMORY, "", 0, [])["micro_batch_rows"] for n in (4, 3, 1)
    ]
    assert rows == [2, 1, 1]


@pytest.mark.parametrize(("first_step", "kept"), [(30, (HALF,)), (10, ()), (4, ())])
def test_the_rate_is_halved_from_where_it_goes_on(first_step: int, kept: tuple[RateChange, ...]) -> None:
    assert slower((HALF,), first_step) == (*kept, RateChange(from_step=first_step, factor=0.25))


def test_rows_are_left_out_that_ended_two_attempts() -> None:
    poisoned = [(1, 2, 2, 3), (3, 4), (4, 5, 3)]
    assert remedied(before(), Ending.KILLED, "", 0, poisoned)["left_out"] == (3, 4)


@pytest.mark.parametrize(
    ("asked", "found", "inherited"),
    [(5, 2, 2), (8, 2, 2), (4, 2, None), (5, 5, None), (8, 8, None), (None, None, None)],
)
def test_the_lineage_remembers_until_more_is_asked(asked: int | None, found: int | None, inherited: int | None) -> None:
    manifest = Manifest.model_construct(micro_batch_asked=asked, micro_batch_rows=found)
    assert inherited_rows(Settings.model_validate(SETTINGS), manifest) == inherited
