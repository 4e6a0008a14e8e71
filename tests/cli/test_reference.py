"""What is not documented fails: settings, sidecar, aliases, exit codes."""

import json
from pathlib import Path

import pytest

from daemon.core.arguments import ALIASES, OWNED
from daemon.core.config import Settings
from daemon.core.errors import Exit, WorkerExit
from daemon.core.records import Sidecar
from daemon.core.sections import Gate, Lora

REFERENCE = Path(__file__).parent.parent.parent / "docs/reference"


@pytest.mark.parametrize("keys", [Settings.model_fields, Lora.model_fields, Gate.model_fields, Sidecar.model_fields])
def test_every_setting_is_described(keys):
    page = (REFERENCE / "config.md").read_text()
    assert [key for key in keys if f"`{key}`" not in page] == []


@pytest.mark.parametrize("names", [ALIASES, OWNED])
def test_every_name_of_another_program_is_listed_as_understood_or_refused(names):
    page = (REFERENCE / "config.md").read_text()
    assert [name for name in names if f"`{name}`" not in page] == []


def test_the_defaults_on_the_page_are_those_of_the_code():
    rows = [
        line.split("|")[1:3] for line in (REFERENCE / "config.md").read_text().splitlines() if line.startswith("| `")
    ]
    shown = {key.strip(" `"): default.strip(" `") for key, default in rows}
    scalar = {k: f.default for k, f in Settings.model_fields.items() if isinstance(f.default, int | float | str)}
    defaults = {key: json.dumps(default).strip('"') for key, default in scalar.items()}
    assert {key: shown[key] for key in scalar} == defaults


@pytest.mark.parametrize("code", [*Exit, *WorkerExit])
def test_every_exit_code_is_described(code):
    assert f"| {int(code)} |" in (REFERENCE / "exit-codes.md").read_text()
