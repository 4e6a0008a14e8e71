"""`training_daemon init` and `doctor`: a workspace is made whole, or not at all, and says what is amiss."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.core import config, files
from daemon.core.errors import BadData
from daemon.core.paths import Workspace
from daemon.models import base, estimate

ROOT = Path(__file__).parent.parent
Done = subprocess.CompletedProcess[str]


def call(*arguments: object) -> Done:
    """`training_daemon` as a person would call it; the hub is out of reach."""
    given = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-m", "daemon.cli.training_daemon", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=given, timeout=120)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace.at(tmp_path_factory.mktemp("init") / "demo")
    done = call("init", workspace.root, "--demo")
    assert done.returncode == 0, done.stderr
    return workspace


@pytest.fixture
def source(demo: Workspace, tmp_path: Path) -> Path:
    """A model folder as a user has it, with files that are of no use here beside it."""
    folder = tmp_path / "my model"
    shutil.copytree(demo.base_models / base.EMBEDDED, folder)
    (folder / base.SEAL).unlink()
    (folder / "training_args.bin").write_bytes(b"pickle")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {f.name: files.hash_file(f) for f in folder.iterdir()}


def test_a_demo_workspace_has_every_folder_and_valid_settings(demo: Workspace) -> None:
    assert all(folder.is_dir() for folder in demo.folders())
    settings, _ = config.load(demo.config)
    assert base.seal(demo.root / settings.base_model)
    assert len((demo.validation / "holdout.jsonl").read_text().splitlines()) >= 20
    assert len(list((demo.root / "samples").iterdir())) == 3
    assert list(demo.inbox.iterdir()) == []


def test_the_root_of_the_repository_is_a_demo_workspace_without_its_model(demo: Workspace, tmp_path: Path) -> None:
    assert (ROOT / "config.json").read_bytes() == demo.config.read_bytes()
    root = Workspace.at(tmp_path)
    shutil.copy(ROOT / "config.json", root.config)
    before = root.config.stat().st_mtime_ns
    assert call("init", root.root, "--demo").returncode == 0
    assert root.config.stat().st_mtime_ns == before
    assert base.seal(root.base_models / base.EMBEDDED) == base.seal(demo.base_models / base.EMBEDDED)


def test_a_second_init_is_refused_and_changes_nothing(demo: Workspace) -> None:
    before = sorted(demo.root.rglob("*"))
    done = call("init", demo.root, "--demo")
    assert done.returncode == 5
    assert "workspace already" in done.stderr
    assert sorted(demo.root.rglob("*")) == before


def test_a_local_model_is_copied_and_sealed_and_its_source_left_as_it_was(source: Path, tmp_path: Path) -> None:
    before = hashes(source)
    done = call("init", tmp_path / "w", "--model", source, "--json")
    assert done.returncode == 0, done.stderr
    assert hashes(source) == before
    copied = tmp_path / "w" / "models/base/my_model"
    assert set(hashes(copied)) == {*before, base.SEAL} - {"training_args.bin"}
    base.verify(copied)
    assert json.loads(done.stdout)["settings"] == json.loads((tmp_path / "w/config.json").read_text())


def test_init_says_what_it_chose_and_why(source: Path, tmp_path: Path) -> None:
    said = call("init", tmp_path / "w", "--model", source, "--method", "lora", "--name", "mine").stdout
    for word in ("mine", "lora: as asked", "memory", "a checkpoint", "written a day", "learning rate 0.0002", "batch"):
        assert word in said
    settings, _ = config.load(tmp_path / "w/config.json")
    assert (settings.training_method, settings.base_model) == ("lora", "models/base/mine")


def test_any_change_of_a_sealed_model_is_noticed(source: Path, tmp_path: Path) -> None:
    folder = base.install(Workspace.at(tmp_path / "w"), str(source)).folder
    base.verify(folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BadData, match="has changed"):
        base.verify(folder)


@pytest.mark.parametrize("name", ["/nowhere/model", "nobody/such-model"])
def test_a_model_that_does_not_exist_is_named_with_a_remedy_and_blocks_no_second_try(
    name: str, source: Path, tmp_path: Path
) -> None:
    done = call("init", tmp_path / "w", "--model", name, "--name", "mine")
    assert done.returncode == 4
    assert name in done.stderr and "remedy:" in done.stderr and "Traceback" not in done.stderr
    assert call("init", tmp_path / "w", "--model", source, "--name", "mine").returncode == 0


def lose(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_off(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1_000_000)


BROKEN = [(lose("config.json"), "no config.json"), (lose("tokenizer.json"), "no tokenizer.json")]
BROKEN += [(lose("model.safetensors"), "no weights"), (only_pickle, "run code"), (cut_off, "1000000 bytes")]


@pytest.mark.parametrize(("damage", "reason"), BROKEN, ids=[reason for _, reason in BROKEN])
def test_a_folder_that_is_no_whole_model_is_refused_with_the_reason(
    damage: Callable[[Path], None], reason: str, source: Path, tmp_path: Path
) -> None:
    damage(source)
    with pytest.raises(BadData, match=reason) as refused:
        base.install(Workspace.at(tmp_path / "w"), str(source))
    assert refused.value.remedy
    assert not (tmp_path / "w" / "models").exists()


def test_the_estimate_counts_the_models_own_parameters(demo: Workspace) -> None:
    sizes = estimate.estimate(demo.base_models / base.EMBEDDED)
    assert sizes.parameters == 508_992
    assert sizes.checkpoint_bytes == 12 * sizes.parameters
    assert sizes.method == "full"
    assert sizes.micro_batch_rows * sizes.accumulation == estimate.UPDATE_ROWS


def test_a_model_too_large_for_the_machine_gets_an_adapter(demo: Workspace) -> None:
    small = estimate.Machine("a small GPU", 10_000_000)
    sizes = estimate.estimate(demo.base_models / base.EMBEDDED, on=small)
    assert sizes.method == "lora"
    assert "a small GPU" in sizes.reason
    assert sizes.micro_batch_rows == 1


def test_doctor_finds_nothing_wrong_with_a_good_workspace(demo: Workspace) -> None:
    done = call("doctor", "--base-dir", demo.root, "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert done.returncode == 0, checks
    assert "508,992 parameters" in checks["model"]["found"]
    assert {"Python", "packages", "GPU", "torch", "folders", "disk", "file events", "daemon"} <= set(checks)


def test_doctor_names_what_is_wrong_with_a_remedy(demo: Workspace, tmp_path: Path) -> None:
    broken = Workspace.at(shutil.copytree(demo.root, tmp_path / "w"))
    os.truncate(broken.base_models / base.EMBEDDED / "model.safetensors", 1000)
    done = call("--base-dir", broken.root, "doctor", "--json")
    bad = [check for check in json.loads(done.stdout)["checks"] if not check["ok"]]
    assert done.returncode == 1
    assert [check["name"] for check in bad] == ["model"]
    assert bad[0]["remedy"]
