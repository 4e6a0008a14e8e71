"""The one door of deletion: it refuses what must not go, and keeps for a while what people delete."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.core.errors import Refused
from daemon.core.paths import Workspace
from daemon.models import checkpoints, trash
from tests.helpers_jobs import make_workspace, put_checkpoint

Deed = Callable[[Workspace, Path], object]
DEEDS: dict[str, Deed] = {
    "discard": lambda workspace, path: trash.discard(workspace, path, "test"),
    "delete": trash.delete,
}
PROTECTED = (
    "current_model/latest",
    "current_model/checkpoint-9",
    "current_model",
    "models/base",
    "models",
    ".",
    "..",
    "../outside",
    "current_model/../current_model/checkpoint-9",
    "current_model/../../outside",
    "models/base/small",
    "models/base/small/model.safetensors",
    "current_model/checkpoint-9/model.safetensors",
    "link_to_outside/file",
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = make_workspace(tmp_path / "w")
    checkpoints.accept(workspace, put_checkpoint(workspace, 9))
    (workspace.base_models / "small").mkdir()
    (workspace.base_models / "small" / "model.safetensors").write_text("weights")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("mine")
    (workspace.root / "link_to_outside").symlink_to(tmp_path / "outside")
    return workspace


def everything(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*"))


@pytest.mark.parametrize("deed", DEEDS.values(), ids=DEEDS)
@pytest.mark.parametrize("path", PROTECTED)
def test_the_base_the_accepted_model_and_what_is_outside_are_refused(
    workspace: Workspace, path: str, deed: Deed
) -> None:
    before = everything(workspace.root.parent)
    with pytest.raises(Refused, match="protected"):
        deed(workspace, workspace.root / path)
    assert everything(workspace.root.parent) == before


def test_before_the_first_accepted_model_checkpoints_can_go(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    trash.delete(workspace, put_checkpoint(workspace, 9))
    assert checkpoints.every(workspace) == []


def test_what_is_discarded_lies_whole_in_the_trash_with_whence_and_why(workspace: Workspace) -> None:
    grave = trash.discard(workspace, put_checkpoint(workspace, 10), "damaged: optimizer.pt is missing")
    assert checkpoints.damage(grave / "checkpoint-10") is None
    note = json.loads((grave / "trashed.json").read_text())
    assert (note["from"], note["reason"]) == ("current_model/checkpoint-10", "damaged: optimizer.pt is missing")
    assert grave.parent == workspace.trash


def test_things_of_one_name_do_not_meet_in_the_trash(workspace: Workspace) -> None:
    for _ in range(50):
        trash.discard(workspace, put_checkpoint(workspace, 10), "again")
    assert len([f for f in workspace.trash.rglob("checkpoint-10") if checkpoints.damage(f) is None]) == 50


def test_a_link_goes_and_what_it_names_stays(workspace: Workspace) -> None:
    grave = trash.discard(workspace, workspace.root / "link_to_outside", "by hand")
    assert (grave / "link_to_outside").is_symlink()
    trash.delete(workspace, grave / "link_to_outside")
    assert (workspace.root.parent / "outside" / "file").read_text() == "mine"


def test_what_is_deleted_is_gone_for_good(workspace: Workspace) -> None:
    trash.delete(workspace, put_checkpoint(workspace, 10))
    assert checkpoints.every(workspace) == [workspace.checkpoint(9)]
    assert everything(workspace.trash) == []
    trash.delete(workspace, workspace.checkpoint(10))  # no error where it is gone


def test_leftovers_go_and_everything_else_stays(workspace: Workspace) -> None:
    for name in (".stage-checkpoint-10", ".checkpoint-8.tmp"):
        (workspace.current_model / name).mkdir()
    (workspace.current_model / ".latest.4242.tmp").symlink_to("checkpoint-9")
    (workspace.current_model / ".keep").write_text("")
    trash.clear_leftovers(workspace.current_model)
    assert sorted(f.name for f in workspace.current_model.iterdir()) == [".keep", "checkpoint-9", "latest"]
    assert checkpoints.damage(workspace.checkpoint(9)) is None
