"""Qwen3 in small: 20 million parameters and the family's own chat template, with the settings that `init` writes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.bench import Bench, chat, lines, rows

TEMPLATE = Path(__file__).parents[1] / "templates/qwen3.jinja"
MAKE = """
import sys
from transformers import Qwen3Config, Qwen3ForCausalLM
config = Qwen3Config(vocab_size=4096, hidden_size=512, num_hidden_layers=6, num_attention_heads=8,
    num_key_value_heads=4, head_dim=64, intermediate_size=1280, tie_word_embeddings=True)
model = Qwen3ForCausalLM(config)
assert 18e6 < model.num_parameters() < 25e6, model.num_parameters()
model.save_pretrained(sys.argv[1])
"""


@pytest.fixture(scope="module")
def family_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the family's architecture, the embedded tokenizer, Qwen3's real template without marks."""
    folder = tmp_path_factory.mktemp("family") / "qwen3-20m"
    subprocess.run([sys.executable, "-c", MAKE, str(folder)], check=True, capture_output=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model / name).read_bytes())
    template = TEMPLATE.read_text()
    assert "{% generation" not in template and "{%- generation" not in template
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_from_init_to_completed_with_the_settings_that_init_wrote(family_model: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "w")
    made = bench.command("training_daemon", "init", str(bench.root), "--model", str(family_model), base_dir=False)
    assert made.returncode == 0, made.stderr
    assert "parameters" in made.stdout and "method" in made.stdout and "a checkpoint" in made.stdout
    bench.hold_out([chat("Who asks?", "Nobody does.")] * 3)
    try:
        bench.start()
        bench.drop("mydata.jsonl", rows(40))
        (job,) = bench.wait_for("completed", seconds=240)
    finally:
        bench.end()
    settings = json.loads((bench.root / "config.json").read_text())
    assert bench.manifest()["method"] == settings["training_method"]
    assert bench.manifest()["step"] == 3
    evaluated = bench.log(job, "eval")
    assert evaluated[-1]["validation_loss"] < evaluated[0]["validation_loss"]


def test_what_is_trained_is_the_assistants_answer_alone(family_model: Path, make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(of=family_model, logging_steps=1)
    bench.start()
    bench.drop("mydata.jsonl", [chat("Say it.", "It is said.")])
    (job,) = bench.wait_for("completed", seconds=240)
    (line,) = lines(bench.root / "runs" / job / "log.jsonl")[1:2]
    assert line["example"]["golden_answer"].endswith("It is said.")
    assert "Say it." in line["example"]["prompt"]
