"""QLoRA: refused with a remedy where bitsandbytes is missing; with it, trained upon four bits and continued exactly."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open

from tests.acceptance.bench import Bench, lines, rows

BESIDE = Path(sys.prefix) / "beside"  # where bin/setup --dev puts what only some users have
QLORA = {"training_method": "qlora", "lora": {"dropout": 0.1}, "num_train_epochs": 3}


def test_without_bitsandbytes_it_is_refused_and_goes_on_when_config_is_mended(
    make_bench: Callable[..., Bench], model: Path, tmp_path: Path
) -> None:
    bench = make_bench(**QLORA).start()
    bench.drop("x.jsonl", rows(16))
    bench.wait(lambda: bench.status()["reason"] == "config", 30, "it is held")
    assert "qlora needs bitsandbytes" in bench.status()["error"]["message"]
    assert "pip install bitsandbytes" in bench.status()["error"]["remedy"]
    bench.configure(training_method="lora")
    bench.wait_for("completed", 1)
    init = ("training_daemon", "init", str(tmp_path / "other"), "--model", str(model), "--method", "qlora")
    refused = bench.command(*init, base_dir=False)
    assert refused.returncode and "pip install bitsandbytes" in refused.stderr
    assert not (tmp_path / "other/config.json").exists()


def trained(make_bench: Callable[..., Bench], name: str, killed_at: int | None) -> Bench:
    bench = make_bench(name, **QLORA)
    bench.environment["PYTHONPATH"] = f"{BESIDE}:{bench.environment.get('PYTHONPATH', '')}"
    bench.start().drop("x.jsonl", rows(60))
    if killed_at:
        bench.wait_for_step(killed_at)
        worker = bench.worker_pid()
        assert worker
        os.kill(worker, signal.SIGKILL)
    bench.wait_for("completed", 1)
    return bench


def test_with_it_an_adapter_learns_upon_four_bits_and_a_kill_changes_nothing(make_bench: Callable[..., Bench]) -> None:
    assert BESIDE.is_dir(), "bin/setup --dev installs it"
    whole, killed = trained(make_bench, "whole", None), trained(make_bench, "killed", 14)
    assert len(list((killed.root / "runs").glob("*/attempts/*"))) > 1, "it was interrupted"
    assert whole.manifest()["method"] == "qlora" and whole.manifest()["step"] == 23
    weights = [(bench.latest() / "adapter_model.safetensors").read_bytes() for bench in (whole, killed)]
    assert weights[0] == weights[1]
    with safe_open(whole.latest() / "adapter_model.safetensors", "pt") as adapter:
        learned = [float(adapter.get_tensor(name).abs().max()) for name in adapter.keys() if "lora_B" in name]  # noqa: SIM118
    assert learned and all(largest > 0 for largest in learned), "these begin at zero"
    adapted = json.loads((whole.latest() / "adapter_config.json").read_text())
    assert adapted["r"] == 16
    (started,) = [e for e in lines(whole.root / "runs" / whole.jobs("completed")[0] / "log.jsonl") if "weights" in e]
    assert started["weights"] == "four bits"
