"""Every command on the pages, typed as it stands there; a page whose commands fail is wrong."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.acceptance.bench import COMMANDS, ENVIRONMENT, Bench, as_bytes, rows
from tests.helpers_wheels import Environment, build

ROOT = Path(__file__).parents[2]
TYPING_SECONDS = 20  # a person types slowly: what is not there yet may come until then


def blocks(page: str, language: str = "sh") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)


def commands(page: str) -> list[str]:
    """The lines of all shell blocks, without remarks, without what only prepares a checkout."""
    found = [re.sub(r"\s+#.*", "", line) for block in blocks(page) for line in block.splitlines()]
    return [line for line in found if line and not line.startswith(("bin/setup", "bin/demo", "bin/test", "export"))]


def table_commands(page: str) -> list[str]:
    """The commands in the table's second column."""
    rows = re.findall(r"^\|[^|]+\|([^|]+)\|", (ROOT / page).read_text(), re.M)
    return [command for cell in rows for command in re.findall(r"`([^`]+)`", cell) if command.startswith("training_")]


class Typist:
    """Types into a shell in one folder; ends the daemons that were started with `&`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{COMMANDS}:{os.environ['PATH']}"
        self.environment = {**ENVIRONMENT, "PATH": path, "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
        self.background: list[subprocess.Popen[bytes]] = []

    def type(self, line: str) -> str:
        if line.endswith("&"):
            words = line.rstrip("& ")
            with (self.folder / "daemon.log").open("ab") as log:
                shell = subprocess.Popen(
                    ["bash", "-c", f"exec {words}"], cwd=self.folder, env=self.environment, stdout=log, stderr=log
                )
            self.background.append(shell)
            return ""
        until = time.monotonic() + TYPING_SECONDS
        while True:
            typed = subprocess.run(
                ["bash", "-c", line], cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
            )
            if typed.returncode == 0:
                return typed.stdout
            assert time.monotonic() < until, f"$ {line}\n{typed.stdout}{typed.stderr}"
            time.sleep(0.2)

    def end(self) -> None:
        for shell in self.background:
            if shell.poll() is None:
                shell.terminate()
            shell.wait(60)


@pytest.fixture
def typist(tmp_path: Path) -> Iterator[Typist]:
    someone = Typist(tmp_path)
    yield someone
    someone.end()


def test_the_tutorial(typist: Typist) -> None:
    said = [typist.type(line) for line in commands("docs/tutorial.md")]
    assert any('"right": 8' in text or '"right": 7' in text for text in said)
    assert typist.background[0].wait(60) == 0


def test_the_readme_with_a_model_of_ones_own(typist: Typist, model: Path) -> None:
    downloads = typist.folder / "downloads"
    downloads.mkdir()
    (downloads / "Qwen3-0.6B").symlink_to(model)
    (typist.folder / "my-data.jsonl").write_bytes(b'{"prompt": "Who?", "completion": "Me."}\n')
    (typist.folder / "bin").symlink_to(COMMANDS)
    for line in commands("README.md"):
        typist.type(line)
    typist.type("training_queue wait my-data.jsonl --base-dir ~/my-model")


def test_how_to_bring_a_model(typist: Typist, model: Path) -> None:
    (typist.folder / "downloads").mkdir()
    (typist.folder / "downloads/Qwen3-0.6B").symlink_to(model)
    local, hub, demo = commands("docs/how-to/models.md")
    typist.type(local)
    offline = subprocess.run(["bash", "-c", hub], env=typist.environment, capture_output=True, text=True, check=False)
    assert offline.returncode == 5, "the folder is a workspace by now"
    typist.type(demo)
    for command in re.findall(r"`(training_daemon doctor[^`]+)`", (ROOT / "docs/how-to/models.md").read_text()):
        typist.type(command)


def test_how_to_decide_which_model_is_accepted(make_bench: object) -> None:
    bench: Bench = make_bench()  # type: ignore[operator]
    page = (ROOT / "docs/how-to/gate.md").read_text()
    human, judge = (json.loads(line) for line in re.findall(r"^    (\{.*\})$", page, re.M))
    (program,) = blocks("docs/how-to/gate.md", "python")
    (bench.root / "judge.py").write_text(program)
    (bench.root / "judge.sh").write_text(f"#!/bin/sh\nexec {sys.executable} judge.py\n")
    (bench.root / "judge.sh").chmod(0o755)
    bench.hold_out(rows(8, start=5000))
    bench.configure(**human)
    bench.start()
    typist = Typist(bench.root)
    for number, verb in enumerate(("approve", "reject", "skip")):
        name = f"{verb}.jsonl"
        bench.drop(name, rows(8, start=100 * number))
        bench.wait(lambda: bench.status()["reason"] == "approval", 300, f"{verb} waits")
        for command in table_commands("docs/how-to/gate.md"):
            if not command.startswith("training_controller") or command.split()[1] in ("status", verb):
                typist.type(command.replace("FILE", name))
        bench.wait(lambda: not bench.jobs("processing"), 300, f"{verb} is obeyed")
    assert [len(bench.jobs(state)) for state in ("completed", "rejected", "skipped")] == [1, 1, 1]
    bench.configure(**judge)
    bench.drop("judged.jsonl", rows(8, start=900))
    bench.wait_for("completed", 2, seconds=300)
    assert "checked" in (bench.root / f"runs/{bench.jobs('completed')[1]}/judge.log").read_text()


def test_how_to_upgrade(make_bench: object, tmp_path: Path) -> None:
    bench: Bench = make_bench()  # type: ignore[operator]
    here = Environment(tmp_path / "venv", build(tmp_path, "1.0"))
    pip = here.commands / "pip"
    pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m pip --python {here.commands}/python "$@"\n')
    pip.chmod(0o755)
    bench.commands = here.commands
    bench.environment.pop("PYTHONPATH", None)
    bench.start()
    build(bench.root / "dist", "1.1")
    typist = Typist(bench.root)
    typist.environment |= {"PATH": f"{here.commands}:{os.environ['PATH']}", "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"}
    typist.environment.pop("PYTHONPATH", None)
    for line in commands("docs/how-to/upgrade.md"):
        typist.type(line)
    bench.wait(lambda: [e["version"] for e in bench.events("daemon_started")] == ["1.0", "1.1"], 30, "the new version")


def test_how_to_load_the_trained_model(make_bench: object, tmp_path: Path) -> None:
    bench: Bench = make_bench("my-model")  # type: ignore[operator]
    bench.start()
    bench.drop("x.jsonl", rows(8))
    bench.wait_for("completed")
    typist = Typist(bench.root)
    for command in table_commands("docs/how-to/models.md"):
        typist.type(command)
    (code,) = blocks("docs/how-to/models.md", "python")
    subprocess.run(
        [sys.executable, "-c", code], cwd=bench.root.parent, env=ENVIRONMENT, check=True, capture_output=True
    )


def test_how_to_look_at_data_first(make_bench: object, typist: Typist) -> None:
    bench: Bench = make_bench(max_length=4096)  # type: ignore[operator]
    typist.environment["TRAINING_BASE_DIR"] = str(bench.root)
    (typist.folder / "my-data.jsonl").write_bytes(as_bytes(rows(60)))
    page = (ROOT / "docs/how-to/data.md").read_text()
    typed = [typist.type(line) for line in re.findall(r"^    (training_queue .*)", page, re.M)]
    assert "60 good" in typed[0]
    assert "⟦" in typed[1]
    assert len((bench.root / "data/validation/my-data.jsonl").read_bytes().splitlines()) == 20


def test_the_rows_on_the_page_are_good_ones(make_bench: object, typist: Typist) -> None:
    bench: Bench = make_bench()  # type: ignore[operator]
    page = (ROOT / "docs/how-to/data.md").read_text()
    cells = re.findall(r"^\| `.*\| `(\{.*?\})`", page, re.M)
    turns = next(block for block in blocks("docs/how-to/data.md", "json") if "messages" in block)
    path = typist.folder / "page.jsonl"
    path.write_text("\n".join([*cells, turns.replace("\n", " ")]) + "\n")
    said = bench.command("training_queue", "validate", str(path), "--json")
    report = json.loads(said.stdout)["report"]
    assert (said.returncode, report["rows"], len(report["format"].split(", "))) == (0, 7, 6)


def test_how_to_read_the_results(make_bench: object, tmp_path: Path) -> None:
    bench: Bench = make_bench()  # type: ignore[operator]
    (suite,) = blocks("docs/how-to/results.md", "json")
    (bench.root / "data/benchmarks/mine.jsonl").write_text(suite)
    bench.start()
    bench.drop("x.jsonl", rows(8))
    (job,) = bench.wait_for("completed")
    typist = Typist(bench.root)
    said = [typist.type(command.replace("ID", "x.jsonl")) for command in table_commands("docs/how-to/results.md")]
    for name in ("report.md", "results.yaml", "curves.png"):
        assert f"runs/{job}/{name}" in said[0]
    mine = yaml.safe_load((bench.root / "runs" / job / "results.yaml").read_text())["metrics"]["mine"]
    assert (mine["rows"], mine["left_out_rows"], mine["questions"], mine.get("reason")) == (4, 0, 3, None)
    named = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/how-to/results.md").read_text(), re.M)
    left = [name for cell in named for name in re.findall(r"`([\w.]+\.\w+)`", cell)]
    assert len(left) == 6 and all((bench.root / "runs" / job / name).is_file() for name in left)


def test_how_to_fill_the_queue_and_control_the_training(make_demo: object, tmp_path: Path) -> None:
    bench: Bench = make_demo()  # type: ignore[operator]
    typist = Typist(bench.root)
    bench.start()
    for name in ("capitals", "urgent"):
        (bench.root / f"{name}.jsonl").write_text(
            (bench.root / "samples/capitals.jsonl").read_text().replace("Tell", name)
        )
    bench.drop("spoiled.jsonl", "no row\n")
    bench.wait_for("failed")
    typist.type("training_controller pause")  # so that what is added waits
    for line in re.findall(r"^    (training_queue add.*)", (ROOT / "docs/how-to/queue.md").read_text(), re.M):
        typist.type(line)
    meant = {"retry": "spoiled.jsonl", "remove": "urgent.jsonl"}
    for command in table_commands("docs/how-to/queue.md"):
        if not command.startswith("training_queue wait"):
            verb = command.split()[1:2]
            command = command.replace("FILE", "capitals.jsonl")
            typist.type(command.replace("ID", meant.get("".join(verb), "capitals.jsonl")))
    for command in table_commands("docs/how-to/control.md"):
        if command.split()[1:2] not in (["stop"], ["approve"], ["reject"]):
            typist.type(command)
        if command == "training_controller resume":
            bench.wait_for("processing")
    typist.type("training_controller stop --now")
    assert bench.daemon and bench.daemon.wait(30) == 0
