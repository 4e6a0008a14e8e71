"""The embedded model, made once, and benches that end what they started."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.bench import Bench, make_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def dropout_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with a dropout of 0.1 in its attention."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny_dropout", attention_dropout=0.1)


@pytest.fixture
def make_bench(tmp_path: Path, model: Path) -> Iterator[Callable[..., Bench]]:
    """Makes benches in this test's folder; their daemons and workers end with the test."""
    made: list[Bench] = []

    def make(name: str = "w", *, of: Path | None = None, **settings: Any) -> Bench:
        made.append(Bench.make(tmp_path / name, of or model, **settings))
        return made[-1]

    yield make
    for bench in made:
        bench.end()


@pytest.fixture
def make_demo(tmp_path: Path) -> Iterator[Callable[[], Bench]]:
    """Makes a demo workspace, as `training_daemon init DIR --demo` does."""
    made: list[Bench] = []

    def make() -> Bench:
        bench = Bench(tmp_path / f"demo{len(made)}")
        bench.command("training_daemon", "init", str(bench.root), "--demo", base_dir=False).check_returncode()
        made.append(bench)
        return bench

    yield make
    for bench in made:
        bench.end()
