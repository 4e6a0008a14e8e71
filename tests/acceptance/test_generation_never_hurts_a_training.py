"""A model that hangs or fails while it generates is trained all the same, to the very weights that it would have."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.bench import Bench, rows
from tests.acceptance.troubled import endings, final_seal, train, trained_times, troubled

# A healthy answer takes a tenth of the time that is given, and one that never ends twice as long.
SETTINGS = {"eval_steps": 4, "max_watching_percent": 100, "generation_timeout_seconds": 2, "max_new_tokens": 24}
KINDS = ("hangs in Python", "never ends", "fails", "hangs in C")


@pytest.fixture(scope="module", params=["full", "lora"])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model: Any) -> Any:
    """The method, and the seal of a training without any generation."""
    bench = Bench.make(tmp_path_factory.mktemp("w") / "w", model)
    try:
        bench = troubled(lambda *_, **settings: configured(bench, settings), "w", {}, **SETTINGS, eval_examples=0)
        bench.configure(training_method=request.param)
        bench.hold_out(rows(4, 5000))
        bench.start()
        train(bench)
        return request.param, final_seal(bench)
    finally:
        bench.end()


def configured(bench: Bench, settings: dict[str, Any]) -> Bench:
    bench.configure(**settings)
    return bench


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_and_ends_with_the_same_weights(
    make_bench: Callable[..., Bench], undisturbed: tuple[str, str], kind: str
) -> None:
    method, expected = undisturbed
    trouble = {"generation": kind, "generation_from": 8}
    bench = troubled(make_bench, "w", trouble, **SETTINGS, training_method=method)
    bench.hold_out(rows(4, 5000))
    bench.start()
    job = train(bench)
    assert final_seal(bench) == expected
    assert set(trained_times(bench).values()) == {1}
    evaluations = bench.log(job, "eval")
    answers = {e["job_step"]: [x["model_output"] for x in e["examples"]] for e in evaluations}
    assert None not in answers[0] + answers[4]
    assert set(answers[8] + answers[12] + answers[15]) == {None}
    assert all(e["validation_loss"] is not None for e in evaluations)
    failures = [e["generation_failure"] for e in evaluations if e["generation_failure"]]
    if kind == "hangs in C":
        assert endings(bench) == ["generation_hung", "done"]
        stacks = (bench.root / f"runs/{job}/attempts/1/stacks.txt").read_text()
        assert "Timeout" in stacks and "in generate" in stacks
        assert "inside a library" in str(bench.events("attempt_ended")[0]["message"])
        return
    assert endings(bench) == ["done"]
    assert len(failures) == 3
    assert all("cannot generate" in f if kind == "fails" else "not within 2 s" in f for f in failures)
    assert [e["job_step"] for e in bench.log(job, "event") if e["event"] == "generation_off"] == [15]
    assert bench.status()["generation_timeouts"] in (3, None)
