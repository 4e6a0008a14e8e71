"""Settings: usual names are understood, unknown ones refused with the nearest; what the daemon owns stays its own."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daemon.core import config, sections
from daemon.core.arguments import ALIASES, OWNED, training_argument_names
from daemon.core.config import Settings, load, parse
from daemon.core.errors import BadConfig, Exit

LEAST = {"model_name": "small", "base_model": "models/base/small"}


def settings(**given: Any) -> Settings:
    return parse({**LEAST, **given}, "config.json")[0]


def notices(**given: Any) -> list[str]:
    return parse({**LEAST, **given}, "config.json")[1]


def refusal(**given: Any) -> BadConfig:
    with pytest.raises(BadConfig) as caught:
        parse({**LEAST, **given}, "config.json")
    return caught.value


SAMPLES: dict[str, Any] = {"excess_length_strategy": "truncate", "lr_scheduler": "constant", "model_name_or_path": "m"}


@pytest.mark.parametrize(("alias", "name"), [pair for pair in ALIASES.items() if pair[1] not in OWNED])
def test_an_alias_sets_what_it_stands_for_and_is_said_aloud(alias: str, name: str) -> None:
    value = SAMPLES.get(alias, 1e-5 if name == "learning_rate" else 3)
    made, said = parse({k: v for k, v in LEAST.items() if k != name} | {alias: value}, "config.json")
    assert {**made.training_args, **made.model_dump()}[name] == value
    assert said == [f"config.json: {alias} is understood as {name}"]


@pytest.mark.parametrize(("alias", "name"), [pair for pair in ALIASES.items() if pair[1] in OWNED])
def test_an_alias_of_what_the_daemon_owns_is_refused_like_it(alias: str, name: str) -> None:
    assert refusal(**{alias: 3}).message == refusal(**{name: 3}).message


def test_a_key_by_its_own_name_is_no_notice() -> None:
    assert notices(max_length=10, learning_rate=1e-5) == []


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("max_lenght", "max_length"), ("learningrate", "learning_rate"), ("warmup_step", "warmup_steps"), ("lrr", "lr")],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_name(key: str, nearest: str) -> None:
    error = refusal(**{key: 1})
    assert error.exit == Exit.BAD_CONFIG
    assert error.message == f"config.json: unknown key {key}."
    assert error.remedy == f"did you mean {nearest}?"


@pytest.mark.parametrize("command", [[], [""]])
def test_a_judge_without_a_command_is_refused_and_so_is_one_without_time(command: list[str]) -> None:
    error = refusal(gate={"mode": "judge", "judge_command": command})
    assert "names no program to ask" in error.message
    assert "./judge.sh" in error.remedy
    assert "gate.judge_timeout_seconds" in refusal(gate={"judge_timeout_seconds": 0}).message


def test_an_unknown_key_like_no_other_is_refused_with_the_list() -> None:
    assert "docs/reference/config.md" in refusal(zzzz_zzzz=1).remedy


@pytest.mark.parametrize(
    ("given", "where", "remedy"),
    [
        ({"lora": {"alhpa": 1}}, "lora.alhpa", "did you mean alpha?"),
        ({"gate": {"mod": "off"}}, "gate.mod", "did you mean mode?"),
        ({"gate": {"zzzz": 1}}, "gate.zzzz", "remove it"),
        ({"training_args": {"weight_deca": 0.1}}, "weight_deca", "did you mean weight_decay?"),
    ],
)
def test_an_unknown_key_inside_another_is_refused_alike(given: dict[str, Any], where: str, remedy: str) -> None:
    error = refusal(**given)
    assert f"unknown key {where}." in error.message
    assert error.remedy == remedy


@pytest.mark.parametrize("name", OWNED)
def test_what_the_daemon_owns_is_refused_with_the_reason_wherever_it_stands(name: str) -> None:
    for error in (refusal(**{name: 1}), refusal(training_args={name: 1})):
        assert f"{name} is decided by the daemon: {OWNED[name]}" in error.message
        assert error.remedy == f"remove {name}"


def test_what_is_owned_exists_in_the_installed_trainer() -> None:
    assert set(OWNED) <= training_argument_names()


def test_training_arguments_are_taken_by_their_own_names_at_either_place() -> None:
    made = settings(weight_decay=0.1, training_args={"adam_beta1": 0.8})
    assert made.training_args == {"weight_decay": 0.1, "adam_beta1": 0.8}


def test_a_setting_of_ours_inside_training_args_is_sent_to_the_top_level() -> None:
    assert refusal(training_args={"learning_rate": 1}).remedy == "move learning_rate to the top level"


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"max_length": 0}, "max_length"),
        ({"max_length": "long"}, "max_length"),
        ({"training_method": "magic"}, "training_method"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"max_bad_row_percent": 101}, "max_bad_row_percent"),
        ({"num_train_epochs": 1.5}, "num_train_epochs"),
        ({"lora": {"dropout": 1}}, "lora.dropout"),
        ({"training_args": []}, "training_args"),
        ({"gate": None}, "gate"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_name(given: dict[str, Any], key: str) -> None:
    error = refusal(**given)
    assert error.message.startswith(f"config.json: {key} is ")
    assert error.remedy == f"correct {key}"


def test_a_missing_key_is_named() -> None:
    with pytest.raises(BadConfig, match="base_model is missing"):
        parse({"model_name": "small"}, "config.json")


@pytest.mark.parametrize(
    ("micro", "accumulation", "effective", "rows_an_update", "rows_a_micro_batch"),
    [
        ("auto", "auto", None, 16, 4),
        ("auto", "auto", 7, 7, 4),
        ("auto", "auto", 2, 2, 2),
        (8, "auto", None, 16, 8),
        (8, "auto", 4, 4, 4),
        ("auto", 4, None, 16, 4),
        ("auto", 3, 16, 16, 6),
        ("auto", 32, 16, 16, 1),
        (2, 3, None, 6, 2),
        (2, 3, 6, 6, 2),
        (1, 1, None, 1, 1),
    ],
)
def test_batch_arithmetic(
    micro: int | str, accumulation: int | str, effective: int | None, rows_an_update: int, rows_a_micro_batch: int
) -> None:
    made = settings(
        per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, effective_batch_size=effective
    )
    assert (made.update_rows, made.micro_batch_rows) == (rows_an_update, rows_a_micro_batch)


def test_three_batch_numbers_that_do_not_agree_are_refused() -> None:
    error = refusal(per_device_train_batch_size=2, gradient_accumulation_steps=3, effective_batch_size=16)
    assert "(6)" in error.message
    assert '"auto"' in error.remedy


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial"])
def test_a_scheduler_that_needs_an_end_is_refused_for_a_lineage_and_taken_for_a_job(name: str) -> None:
    assert "lr_schedule_scope" in refusal(lr_scheduler_type=name).remedy
    assert settings(lr_scheduler_type=name, lr_schedule_scope="job").lr_scheduler_type == name


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "inverse_sqrt"])
def test_a_scheduler_without_an_end_serves_a_lineage(name: str) -> None:
    assert settings(lr_scheduler_type=name).lr_scheduler_type == name


@pytest.mark.parametrize(
    ("given", "rate", "warned"),
    [
        ({}, 2e-5, False),
        ({"training_method": "lora"}, 2e-4, False),
        ({"learning_rate": 1e-4}, 1e-4, False),
        ({"learning_rate": 2e-4}, 2e-4, True),
        ({"learning_rate": 2e-4, "training_method": "lora"}, 2e-4, False),
    ],
)
def test_the_rate_follows_the_method_and_a_high_one_is_said_aloud(
    given: dict[str, Any], rate: float, warned: bool
) -> None:
    assert settings(**given).rate == rate
    assert bool(notices(**given)) is warned


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LEAST, "max_length": 10}))
    return path


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("TRAINING_LEARNING_RATE", "1e-4", "learning_rate", 1e-4),
        ("TRAINING_MAX_LENGTH", "20", "max_length", 20),
        ("TRAINING_MODEL_NAME", "another", "model_name", "another"),
        ("TRAINING_DETERMINISTIC", "true", "deterministic", True),
        ("TRAINING_GATE", '{"mode": "off"}', "gate", sections.Gate(mode="off")),
    ],
)
def test_an_environment_variable_wins_over_the_file(file: Path, variable: str, text: str, key: str, value: Any) -> None:
    assert getattr(load(file, {variable: text})[0], key) == value


def test_other_environment_variables_are_left_alone(file: Path) -> None:
    others = {"TRAINING_BASE_DIR": "/x", "TRAINING_ROOM": "3", "MAX_LENGTH": "30", "XTRAINING_MAX_LENGTH": "30"}
    assert load(file, others) == load(file, {})


def test_a_bad_environment_variable_is_refused(file: Path) -> None:
    with pytest.raises(BadConfig, match="max_length"):
        load(file, {"TRAINING_MAX_LENGTH": "long"})


@pytest.mark.parametrize(("text", "words"), [("{", "cannot be read"), ("[]", "not a JSON object"), (b"\xff", "read")])
def test_a_file_that_is_no_settings_is_refused_with_its_path(file: Path, text: str | bytes, words: str) -> None:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadConfig, match=words) as caught:
        load(file, {})
    assert str(file) in caught.value.message


def test_without_a_file_the_remedy_is_init(tmp_path: Path) -> None:
    with pytest.raises(BadConfig) as caught:
        load(tmp_path / "config.json", {})
    assert "training_daemon init" in caught.value.remedy


def test_override_replaces_what_is_given_and_nothing_else() -> None:
    made = settings(max_length=10)
    assert config.override(made, max_length=None, num_train_epochs=2) == settings(max_length=10, num_train_epochs=2)


def test_settings_do_not_change_and_survive_being_written_down() -> None:
    made = settings(lora={"r": 4}, training_args={"weight_decay": 0.1})
    with pytest.raises(ValueError, match="frozen"):
        made.max_length = 3  # type: ignore[misc]
    assert Settings.model_validate(json.loads(made.model_dump_json())) == made


def test_the_names_of_training_arguments_are_known_without_loading_the_trainer() -> None:
    imports = "import sys, daemon.core.config; from daemon.core.arguments import *"
    code = f"{imports}; print(len(training_argument_names()), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert re.fullmatch(r"\d{2,} False", done.stdout.strip())
