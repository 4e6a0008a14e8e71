"""With what a model is calculated: what is chosen, what is refused, and that float16 passes over no row."""

import importlib.machinery
from pathlib import Path
from typing import Any

import pytest
import torch

from daemon.core import files
from daemon.core.config import Settings
from daemon.core.errors import BadConfig
from daemon.worker import arithmetic
from daemon.worker.arithmetic import Arithmetic, LossScale
from tests.helpers_training import ROWS, At, Going, make_attempt, make_place, run

FP16 = {"training_args": {"fp16": True}}


def chosen(**settings: Any) -> Arithmetic:
    return arithmetic.choose(Settings(model_name="m", base_model="m", **settings))


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, *packages: str, bf16: bool = True) -> None:
    """Let the choice believe in one; nothing is calculated there."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: bf16)
    spec = importlib.machinery.ModuleSpec("found", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec if name in packages else None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_processor_calculates_in_float32_with_what_torch_has() -> None:
    assert chosen() == Arithmetic("float32", None, "torch")


@pytest.mark.parametrize(("bf16", "numbers"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_calculates_in_what_it_has(bf16: bool, numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, bf16=bf16)
    assert chosen() == Arithmetic(numbers, None, "torch")  # type: ignore[arg-type]


def test_what_is_installed_is_used_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, "flash_attn", "liger_kernel")
    assert chosen() == Arithmetic("bfloat16", "flash_attention_2", "liger")


def test_what_is_set_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, "flash_attn", "liger_kernel")
    asked = chosen(attn_implementation="sdpa", training_args={"bf16": False, "use_liger_kernel": False})
    assert asked == Arithmetic("float32", "sdpa", "torch")
    assert chosen(training_args={"fp16": True}).numbers == "float16"


@pytest.mark.parametrize(
    ("given", "said"),
    [({"bf16": True, "fp16": True}, "both bf16 and fp16"), ({"use_liger_kernel": True}, "needs a GPU")],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_cannot_be_had_is_refused(given: dict[str, bool], said: str) -> None:
    with pytest.raises(BadConfig, match=said):
        chosen(training_args=given)


def test_kernels_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch)
    with pytest.raises(BadConfig, match="liger-kernel, which is not here"):
        chosen(training_args={"use_liger_kernel": True})


def test_flash_attention_is_refused_where_numbers_are_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, "flash_attn")
    with pytest.raises(BadConfig, match="bfloat16 or float16 only"):
        chosen(attn_implementation="flash_attention_2", training_args={"bf16": False})


# ---- float16 ----


def last_state(root: Path) -> tuple[bytes, bytes]:
    newest = max((root / "current_model").glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    return (newest / "model.safetensors").read_bytes(), (newest / "optimizer.pt").read_bytes()


def trained(root: Path, *, first_scale: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.setattr(arithmetic, "FIRST_SCALE", first_scale)
    training = make_attempt(make_place(root), **FP16)
    factors: list[float] = []
    training._trainer.add_callback(At(1, lambda: factors.append(training._trainer.loss_scale.factor)))
    run(training)
    return training, factors[0]


def test_an_update_that_does_not_fit_is_calculated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    too_high, settled = trained(tmp_path / "high", first_scale=2.0**40, monkeypatch=monkeypatch)
    assert 1 < settled < 2.0**40, "the scale was lowered until gradients fitted"
    assert too_high._trainer.guard.skipped == 0 and len(too_high._trainer.consumed) // 4 == ROWS
    _, fitting = trained(tmp_path / "fit", first_scale=settled, monkeypatch=monkeypatch)
    assert fitting == settled
    assert last_state(tmp_path / "high") == last_state(tmp_path / "fit"), "as if it had fitted at once"


def test_float16_is_really_used_and_its_scale_goes_on(tmp_path: Path) -> None:
    whole = make_attempt(make_place(tmp_path / "whole"), **FP16)
    kinds = set()
    layer = whole._model.get_submodule("model.layers.0.mlp.down_proj")
    layer.register_forward_hook(lambda module, given, out: kinds.add(out.dtype) if module.training else None)
    run(whole)
    assert kinds == {torch.float16}
    assert {parameter.dtype for parameter in whole._model.parameters()} == {torch.float32}

    workspace = make_place(tmp_path / "parts")
    first = make_attempt(workspace, save_steps=2, save_min_seconds=0, **FP16)
    first._trainer.loss_scale.factor, first._trainer.loss_scale._good = 2.0**8, 77
    first._trainer.add_callback(At(2, lambda: setattr(first._trainer.control, "should_training_stop", True)))
    first.run()
    first.saver.close()
    second = make_attempt(
        workspace, Going(resume="current_model/checkpoint-2"), save_steps=2, save_min_seconds=0, **FP16
    )
    assert second._trainer.loss_scale.state == {"factor": 2.0**8, "good": 79}


def test_a_scale_grows_and_is_not_blamed_for_what_no_scale_mends() -> None:
    scale, parameter = LossScale("float16", {"factor": 8.0, "good": 1999}), torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 16.0)
    assert scale.unscale([parameter], torch.tensor(1.0)) and parameter.grad.tolist() == [2, 2]
    assert scale.state == {"factor": 16.0, "good": 0}
    parameter.grad = torch.full((2,), float("nan"))
    assert scale.unscale([parameter], torch.tensor(float("nan"))), "a loss that is no number is none at any scale"
    lowered = 0
    while not scale.unscale([parameter], torch.tensor(1.0)):
        lowered += 1
    assert lowered == 4 and scale.factor == 1.0, "16, 8, 4, 2, 1: the guard decides then"


def test_float32_has_no_scale() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([float("inf"), 1.0])
    scale = LossScale("float32")
    assert scale.unscale([parameter], torch.tensor(1.0)) and scale.state is None and scale.factor == 1.0


# ---- compiled ----


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it itself
def test_the_layers_are_compiled_and_learn_the_same(tmp_path: Path) -> None:
    losses = {}
    for name, arguments in {
        "plain": {},
        "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    }.items():
        training = make_attempt(make_place(tmp_path / name), training_args=arguments, logging_steps=1)
        run(training)
        log = list(files.read_lines(tmp_path / name / "runs/job/log.jsonl"))
        started = next(line for line in log if line.get("event") == "started")
        losses[name] = [line["loss"] for line in log if line["kind"] == "log"]
        assert bool(started["compiled"]) is bool(arguments)
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-4)
    from torch._dynamo.utils import counters

    assert counters["stats"]["unique_graphs"], "something was compiled"
