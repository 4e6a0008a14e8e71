"""The sections of config.json: settings that belong together, under one key."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from daemon.core.errors import BadConfig

Positive = Annotated[int, Field(gt=0)]


class Strict(BaseModel):
    """Settings, of which an unknown one is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Lora(Strict):
    """Low-rank adapters, as in peft's LoraConfig."""

    r: Positive = 16
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    target_modules: str | list[str] = "all-linear"


class Gate(Strict):
    """What a trained model must show before `latest` moves to it, and who decides."""

    mode: Literal["auto", "judge", "human", "off"] = "auto"
    max_regression: float = 0.05  # of the holdout loss, against the accepted model
    max_regression_over_best: float = 0.10  # against the best model accepted so far
    judge_command: list[str] = []  # program and arguments, run in the workspace
    judge_timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600


def check_gate(gate: Gate, source: str) -> None:
    """Refuse a gate that could never decide."""
    if gate.mode == "judge" and not (gate.judge_command and gate.judge_command[0]):
        raise BadConfig(
            f"{source}: gate.mode is judge, and gate.judge_command names no program to ask.",
            'name it, for instance "judge_command": ["./judge.sh"]; or let people decide: "mode": "human"',
        )
