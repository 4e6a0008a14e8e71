"""Every file format as it was once written must load forever; newer writers do not break older readers."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from daemon.core import attempts, records
from daemon.core.records import ENDED_STATES, MOVES, WAITING_STATES, Job, Record, Sidecar, State
from daemon.data import suites, tokens
from daemon.models import base

GOLDEN = Path(__file__).parent.parent / "golden"
FORMATS: dict[str, type[BaseModel]] = {
    name: thing
    for module in (records, attempts, tokens, suites, base)
    for name, thing in vars(module).items()
    if isinstance(thing, type) and issubclass(thing, Record) and thing is not Record
} | {"Sidecar": Sidecar}


def golden(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return value


def known_part(dumped: Any, written: Any) -> Any:
    """As much of a dumped record as the golden file knows: fields may have been added since."""
    if isinstance(dumped, dict) and isinstance(written, dict):
        return {key: known_part(value, written[key]) for key, value in dumped.items() if key in written}
    if isinstance(dumped, list) and isinstance(written, list):
        return [known_part(*pair) for pair in zip(dumped, written, strict=True)]
    return dumped


def test_there_is_one_golden_file_for_every_record() -> None:
    assert {f.stem for f in GOLDEN.glob("*.json")} == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_record_as_it_was_once_written_loads_with_the_same_values(name: str) -> None:
    record = FORMATS[name].model_validate(golden(name))
    assert known_part(record.model_dump(mode="json"), golden(name)) == golden(name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_golden_file_names_every_field_of_its_first_version(name: str) -> None:
    required = {field for field, info in FORMATS[name].model_fields.items() if info.is_required()}
    assert required <= set(golden(name))


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"Sidecar"}))
def test_a_reader_ignores_fields_that_it_does_not_know(name: str, tmp_path: Path) -> None:
    kind: Any = FORMATS[name]

    class OfALaterRelease(kind):  # type: ignore[misc]
        of_a_later_release: list[int] = [1]  # noqa: RUF012 - a field

    OfALaterRelease.model_validate(golden(name)).save(tmp_path / "x.json")
    assert "of_a_later_release" in (tmp_path / "x.json").read_text()
    assert kind.load(tmp_path / "x.json") == kind.model_validate(golden(name))


def test_what_people_write_is_refused_where_it_is_not_known() -> None:
    with pytest.raises(ValidationError, match="prioritee"):
        Sidecar.model_validate({"prioritee": "high"})


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"Sidecar"}))
def test_a_record_is_saved_and_loaded_unchanged(name: str, tmp_path: Path) -> None:
    kind: Any = FORMATS[name]
    record = kind.model_validate(golden(name))
    record.save(tmp_path / "x.json")
    assert kind.load(tmp_path / "x.json") == record
    assert json.loads((tmp_path / "x.json").read_text())["schema_version"] == 1


def test_a_record_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Job.model_validate(golden("Job")).id = "another"  # type: ignore[misc]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"id": 3}', "\x00" * 50])
def test_a_damaged_record_is_a_value_error_and_a_missing_one_is_none(text: str, tmp_path: Path) -> None:
    assert Job.load(tmp_path / "job.json") is None
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(ValueError):
        Job.load(tmp_path / "job.json")


def test_times_are_utc_in_milliseconds() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", records.now())


def test_every_state_waits_trains_or_has_ended() -> None:
    assert sorted((*WAITING_STATES, State.PROCESSING, *ENDED_STATES)) == sorted(State)
    assert set(MOVES) == set(State)
