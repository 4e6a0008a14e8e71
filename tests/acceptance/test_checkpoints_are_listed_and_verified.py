"""`training_models` lists what was saved, and finds a single wrong bit in it."""

import json
from collections.abc import Callable

from tests.acceptance.bench import Bench, rows


def test_a_wrong_bit_is_found_and_named(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(num_train_epochs=1, gate={"mode": "off"})
    empty = bench.command("training_models")
    assert (empty.returncode, empty.stdout) == (0, "no checkpoint yet: nothing was trained\n")
    assert bench.command("training_models", "verify").returncode == 0
    bench.start()
    for number in range(2):
        bench.drop(f"{number}.jsonl", rows(16, start=100 * number))
        bench.wait_for("completed", number + 1)

    listed = json.loads(bench.command("training_models", "checkpoints", "--json").stdout)
    assert [(one["file"], one["final"], one["accepted"]) for one in listed] == [
        ("0.jsonl", True, False),
        ("1.jsonl", True, True),
    ]
    folder = bench.latest()
    assert (
        listed[1]["bytes"]
        == sum(f.stat().st_size for f in folder.iterdir()) - (folder / "manifest.json").stat().st_size
    )
    whole = bench.command("training_models", "verify")
    assert (whole.returncode, whole.stdout) == (0, f"{listed[0]['checkpoint']}: whole\n{folder.name}: whole\n")

    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    damaged = bench.command("training_models", "verify", "latest")
    assert (damaged.returncode, damaged.stdout) == (
        1,
        f"{folder.name}: model.safetensors has changed since it was saved\n",
    )
    (folder / "manifest.json").unlink()
    assert f"{folder.name:<20} its manifest is missing" in bench.command("training_models").stdout


def test_a_name_that_is_none_is_told(make_bench: Callable[..., Bench]) -> None:
    done = make_bench().command("training_models", "verify", "checkpoint-7")
    assert done.returncode == 4 and "training_models checkpoints shows them" in done.stderr
