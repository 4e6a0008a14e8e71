"""Checkpoints as transactions: damage is noticed wherever it is, the newest good one counts, `latest` never goes."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.core.attempts import CheckpointName, FileSeal
from daemon.core.paths import Workspace
from daemon.models import checkpoints
from tests.helpers_jobs import make_workspace, put_checkpoint

FILES = ("model.safetensors", "optimizer.pt", "adapter/weights.bin", checkpoints.CONSUMED, checkpoints.MANIFEST)


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def one_bit_turned(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def one_byte_longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def a_folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = (missing, truncated, emptied, zeroed, one_bit_turned, one_byte_longer, a_folder_instead)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


def in_trash(workspace: Workspace) -> list[str]:
    return sorted(f.name for grave in workspace.trash.iterdir() for f in grave.iterdir() if f.is_dir())


def steps(workspace: Workspace) -> list[int]:
    return [int(f.name.removeprefix("checkpoint-")) for f in checkpoints.every(workspace)]


# ---- damage ----


def test_a_checkpoint_as_it_was_written_has_no_damage(workspace: Workspace) -> None:
    assert checkpoints.damage(put_checkpoint(workspace, 10)) is None


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES[:-1])
def test_every_damage_to_every_file_is_noticed_and_named(
    workspace: Workspace, name: str, damage: Callable[[Path], None]
) -> None:
    folder = put_checkpoint(workspace, 10)
    damage(folder / name)
    assert (checkpoints.damage(folder) or "").startswith(f"{name} ")


def test_a_file_cut_short_is_named_with_both_sizes(workspace: Workspace) -> None:
    folder = put_checkpoint(workspace, 10)
    whole = (folder / "optimizer.pt").stat().st_size
    truncated(folder / "optimizer.pt")
    assert checkpoints.damage(folder) == f"optimizer.pt has {whole // 2} bytes instead of {whole}"


@pytest.mark.parametrize("damage", [missing, truncated, emptied, zeroed, one_byte_longer])
def test_every_damage_to_the_manifest_is_noticed(workspace: Workspace, damage: Callable[[Path], None]) -> None:
    folder = put_checkpoint(workspace, 10)
    damage(folder / checkpoints.MANIFEST)
    assert checkpoints.damage(folder) == "its manifest is missing or damaged"


def test_a_changed_manifest_is_not_the_checkpoint_that_others_name(workspace: Workspace) -> None:
    folder = put_checkpoint(workspace, 10)
    named = checkpoints.name_of(folder)
    one_bit_turned(folder / checkpoints.MANIFEST)
    assert checkpoints.name_of(folder) != named


def test_the_seal_covers_every_file_but_the_manifest(workspace: Workspace) -> None:
    folder = put_checkpoint(workspace, 10)
    assert set(checkpoints.seal_files(folder)) == set(FILES) - {checkpoints.MANIFEST}
    manifest = checkpoints.read(folder)
    assert manifest and manifest.files == checkpoints.seal_files(folder)


# ---- order ----


def test_checkpoints_are_ordered_by_step_as_a_number(workspace: Workspace) -> None:
    for step in (10, 9, 100, 2):
        put_checkpoint(workspace, step)
    assert steps(workspace) == [2, 9, 10, 100]


def test_what_only_looks_like_a_checkpoint_is_none(workspace: Workspace) -> None:
    for name in (".stage-checkpoint-5", "checkpoint-", "checkpoint-5.bak", "xcheckpoint-5", "checkpoint-5x"):
        (workspace.current_model / name).mkdir()
    workspace.latest.symlink_to("checkpoint-9")
    put_checkpoint(workspace, 9)
    assert steps(workspace) == [9]


def test_without_a_model_folder_there_is_nothing(tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path / "nothing")
    assert checkpoints.every(workspace) == []
    assert checkpoints.latest(workspace) is None


def test_accepting_moves_latest_and_nothing_else(workspace: Workspace) -> None:
    for step in (9, 10):
        checkpoints.accept(workspace, put_checkpoint(workspace, step))
        assert checkpoints.latest(workspace) == workspace.checkpoint(step)
        assert workspace.latest.resolve() == workspace.checkpoint(step)
    assert steps(workspace) == [9, 10]


def test_latest_is_relative_so_that_a_workspace_can_be_moved(workspace: Workspace) -> None:
    checkpoints.accept(workspace, put_checkpoint(workspace, 9))
    assert os.readlink(workspace.latest) == "checkpoint-9"


# ---- where to go on ----


def test_training_goes_on_from_the_newest_checkpoint_of_the_job(workspace: Workspace) -> None:
    for step in (9, 10, 2):
        put_checkpoint(workspace, step)
    assert checkpoints.resume_point(workspace, "j", None) == (workspace.checkpoint(10), [])


@pytest.mark.parametrize("damage", [missing, truncated, zeroed, one_bit_turned])
def test_a_damaged_newest_checkpoint_is_set_aside_aloud_and_the_one_before_counts(
    workspace: Workspace, damage: Callable[[Path], None]
) -> None:
    for step in (8, 9, 10, 11):
        put_checkpoint(workspace, step)
    for step in (10, 11):
        damage(workspace.checkpoint(step) / "optimizer.pt")
    resume, problems = checkpoints.resume_point(workspace, "j", None)
    assert resume == workspace.checkpoint(9)
    assert [p.split()[0] for p in problems] == ["checkpoint-11", "checkpoint-10"]
    assert all("optimizer.pt" in p for p in problems)
    assert (in_trash(workspace), steps(workspace)) == (["checkpoint-10", "checkpoint-11"], [8, 9])


def test_where_every_checkpoint_is_damaged_the_job_starts_at_its_first_row(workspace: Workspace) -> None:
    missing(put_checkpoint(workspace, 9) / "model.safetensors")
    resume, problems = checkpoints.resume_point(workspace, "j", None)
    assert (resume, len(problems)) == (None, 1)


def test_only_the_job_s_own_checkpoints_upon_this_parent_count(workspace: Workspace) -> None:
    parent = checkpoints.name_of(put_checkpoint(workspace, 5, job="earlier"))
    another = CheckpointName(checkpoint="checkpoint-5", manifest_sha256="0" * 64)
    put_checkpoint(workspace, 6, parent=parent)
    put_checkpoint(workspace, 7, parent=another)
    put_checkpoint(workspace, 8, parent=None)
    put_checkpoint(workspace, 9, job="another", parent=parent)
    assert checkpoints.resume_point(workspace, "j", parent) == (workspace.checkpoint(6), [])
    assert checkpoints.resume_point(workspace, "nobody", parent) == (None, [])


def test_what_lies_above_the_point_to_go_on_from_is_set_aside(workspace: Workspace) -> None:
    for step in (9, 10, 11):
        put_checkpoint(workspace, step)
    checkpoints.accept(workspace, workspace.checkpoint(9))
    assert checkpoints.clear_the_way(workspace, workspace.checkpoint(10)) == ["checkpoint-11"]
    assert checkpoints.clear_the_way(workspace, None) == ["checkpoint-10"]
    assert (steps(workspace), in_trash(workspace)) == ([9], ["checkpoint-10", "checkpoint-11"])


def test_without_an_accepted_model_everything_is_set_aside(workspace: Workspace) -> None:
    put_checkpoint(workspace, 9)
    assert checkpoints.clear_the_way(workspace, None) == ["checkpoint-9"]


# ---- what goes ----


def test_discarding_a_job_s_checkpoints_leaves_what_is_accepted_or_older_and_those_of_others(
    workspace: Workspace,
) -> None:
    for step, job in ((8, "j"), (9, "j"), (10, "j"), (11, "another")):
        put_checkpoint(workspace, step, job=job)
    checkpoints.accept(workspace, workspace.checkpoint(9))
    assert checkpoints.discard_of_job(workspace, "j", "rejected") == ["checkpoint-10"]
    assert (steps(workspace), in_trash(workspace)) == ([8, 9, 11], ["checkpoint-10"])


@pytest.mark.parametrize(
    ("accepted", "keep", "left"),
    [(None, 2, [10, 100]), (9, 2, [9, 10, 100]), (100, 1, [100]), (2, 1, [2, 100]), (10, 9, [2, 9, 10, 100])],
)
def test_pruning_keeps_the_newest_by_number_and_latest(
    workspace: Workspace, accepted: int | None, keep: int, left: list[int]
) -> None:
    for step in (100, 2, 10, 9):  # also by the clock: the oldest folder is the highest step
        put_checkpoint(workspace, step)
    if accepted:
        checkpoints.accept(workspace, workspace.checkpoint(accepted))
    gone = checkpoints.prune(workspace, keep)
    assert steps(workspace) == left
    assert gone == [f"checkpoint-{step}" for step in (2, 9, 10, 100) if step not in left]
    assert in_trash(workspace) == []


def test_a_digest_of_parts_does_not_depend_on_their_order() -> None:
    first, second = checkpoints.lineage_digest({"a": "1", "b": "2"}), checkpoints.lineage_digest({"b": "2", "a": "1"})
    assert first == second != checkpoints.lineage_digest({"a": "2", "b": "1"})


def unreadable(path: Path) -> None:
    """Reading this file fails with EIO, as on a disk that has lost the bytes."""
    path.unlink()
    path.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        path.read_bytes()


def test_a_file_that_the_disk_cannot_read_is_damage(workspace: Workspace) -> None:
    folder = put_checkpoint(workspace, 10)
    unreadable(folder / "optimizer.pt")
    manifest = checkpoints.read(folder)
    assert manifest
    seal = FileSeal(bytes=(folder / "optimizer.pt").stat().st_size, sha256="0" * 64)
    manifest.model_copy(update={"files": {"optimizer.pt": seal}}).save(folder / checkpoints.MANIFEST)
    assert checkpoints.damage(folder) == f"a file of it cannot be read: {os.strerror(errno.EIO)}"
    assert checkpoints.resume_point(workspace, "j", None)[0] is None
    assert in_trash(workspace) == ["checkpoint-10"]


def test_a_manifest_that_the_disk_cannot_read_is_damage(workspace: Workspace) -> None:
    folder = put_checkpoint(workspace, 10)
    unreadable(folder / checkpoints.MANIFEST)
    assert checkpoints.damage(folder) == "its manifest is missing or damaged"


def test_a_checkpoint_that_could_not_be_looked_at_is_not_called_damaged(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> str:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    folder = put_checkpoint(workspace, 10)
    monkeypatch.setattr(checkpoints.files, "hash_file", refuse)
    with pytest.raises(OSError):
        checkpoints.resume_point(workspace, "j", None)
    assert folder.is_dir()
