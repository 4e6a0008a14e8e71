"""The one door of writes: whole or not at all, durable, whichever call to the disk is the last one or fails."""

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon.core import files
from tests.helpers_disk import CALLS, disk_with, every_death, every_failure, recorded

OLD, NEW = b"old " * 1000, b"new " * 3000
TREE = {"a.bin": OLD, "deep/b.bin": NEW, "deep/er/c.bin": b""}


def contents(folder: Path) -> dict[str, Any]:
    """What a reader sees: every name that is no leftover, links by their target, JSON lines that are whole."""
    hidden = set(files.leftovers(folder))
    seen: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path in hidden:
            continue
        if path.is_symlink():
            seen[path.name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            seen[path.name] = contents(path)
        elif path.suffix != ".jsonl":
            seen[path.name] = path.read_bytes()
        elif lines := files.read_lines(path):
            seen[path.name] = lines
    return seen


def make_tree(folder: Path) -> None:
    for name, data in TREE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def nothing(folder: Path) -> None:
    pass


def move(folder: Path) -> None:
    if (folder / "from/tree").exists():
        files.move(folder / "from/tree", folder / "to/tree")


def place(folder: Path) -> None:
    """As files come into the inbox: a copy beside, then its name; where it has it already, all is done."""
    copy = folder / f".copy.{secrets.token_hex(3)}.tmp"
    files.copy(folder / "source", copy)
    try:
        files.place(copy, folder / "x")
    except FileExistsError:
        files.remove(copy)


def stage(folder: Path) -> None:
    if not (folder / "tree").exists():
        with files.stage(folder / "tree") as staged:
            make_tree(staged)


def copy(folder: Path) -> None:
    if not (folder / "copies").exists():
        with files.stage(folder / "copies") as staged:
            files.copy(folder / "x", staged / "x")


def moving(folder: Path) -> None:
    make_tree(folder / "from/tree")
    (folder / "from/another").mkdir()
    (folder / "to").mkdir()


def linked(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
    (folder / "latest").symlink_to("one")


Step = Callable[[Path], None]
OPERATIONS: dict[str, tuple[Step, Step]] = {  # what was there before, and what is done
    "write a new file": (nothing, lambda f: files.write(f / "x", NEW)),
    "write over a file": (lambda f: _put(f / "x", OLD), lambda f: files.write(f / "x", NEW)),
    "write_json": (lambda f: _put(f / "x.json", b"{}"), lambda f: files.write_json(f / "x.json", {"é": [1, None]})),
    "append_json to nothing": (nothing, lambda f: _append(f / "x.jsonl", {"n": 1})),
    "append_json to lines": (lambda f: _put(f / "x.jsonl", b'{"n": 0}\n'), lambda f: _append(f / "x.jsonl", {"n": 1})),
    "append_json to a torn line": (lambda f: _put(f / "x.jsonl", b'{"n"'), lambda f: _append(f / "x.jsonl", {"n": 1})),
    "move": (moving, move),
    "place": (lambda f: _put(f / "source", NEW), place),
    "swap_link to a new name": (nothing, lambda f: files.swap_link(f / "latest", "one")),
    "swap_link to another target": (linked, lambda f: files.swap_link(f / "latest", "two")),
    "stage with nested folders": (nothing, stage),
    "copy": (lambda f: _put(f / "x", NEW), copy),
    "remove a file": (lambda f: _put(f / "x", OLD), lambda f: files.remove(f / "x")),
    "remove a link, not what it names": (linked, lambda f: files.remove(f / "latest")),
    "remove a tree": (lambda f: make_tree(f / "tree"), lambda f: files.remove(f / "tree")),
}


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _append(path: Path, line: dict[str, Any]) -> None:
    """Repeated after a crash: only where the line is not there."""
    if line not in files.read_lines(path):
        files.append_json(path, line)


@pytest.fixture(params=OPERATIONS)
def operation(request: pytest.FixtureRequest) -> tuple[Step, Step]:
    return OPERATIONS[request.param]


class Case:
    """One operation in a folder of its own for every death or failure."""

    def __init__(self, root: Path, operation: tuple[Step, Step]) -> None:
        self._root, (self._prepare, self._act) = root, operation
        self.make("whole")()
        self.new = contents(root / "whole")
        self.make("untouched")
        self.old = contents(root / "untouched")
        assert self.old != self.new

    def make(self, name: str) -> Callable[[], None]:
        folder = self._root / name
        folder.mkdir()
        self._prepare(folder)
        return lambda: self._act(folder)

    def is_old_or_new_and_can_be_repeated(self, name: str) -> None:
        folder = self._root / name
        assert contents(folder) in (self.old, self.new), name
        self._act(folder)
        assert contents(folder) == self.new, name
        for path in files.leftovers(folder):
            files.remove(path)
        assert sorted(os.listdir(folder)) == sorted(os.listdir(self._root / "whole")), name


def test_after_a_death_at_any_call_a_reader_sees_old_or_new_and_repeating_succeeds(
    operation: tuple[Step, Step], tmp_path: Path
) -> None:
    case = Case(tmp_path, operation)
    for name in every_death(case.make):
        case.is_old_or_new_and_can_be_repeated(name)


def test_a_call_that_fails_reaches_the_caller_and_leaves_old_or_new(
    operation: tuple[Step, Step], tmp_path: Path
) -> None:
    case = Case(tmp_path, operation)
    for name in every_failure(case.make, passed_over=frozenset({"clone"})):  # without reflinks the bytes are copied
        case.is_old_or_new_and_can_be_repeated(name)


def test_nothing_unsynced_is_renamed_and_nothing_stays_unsynced(operation: tuple[Step, Step], tmp_path: Path) -> None:
    prepare, act = operation
    prepare(tmp_path)
    recorder = recorded(tmp_path, lambda: act(tmp_path))
    assert recorder.faults == []
    assert recorder.unsynced == []


def test_the_operations_above_use_every_call_that_changes_a_disk(tmp_path: Path) -> None:
    used = set()
    for number, (prepare, act) in enumerate(OPERATIONS.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        prepare(folder)
        with disk_with(lambda name, call, _: (used.add(name), call())[1]):
            act(folder)
    # The one changes nothing that could be seen; the other takes back what a full disk has cut off.
    assert used == set(CALLS) - {"syncfs", "truncate"}


def test_leftovers_are_found_wherever_a_writer_dies_and_never_anything_else(tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    for name in (".hidden", "x.tmp", "stage-x", ".tmp.json"):
        (tmp_path / name).write_bytes(NEW)
    assert files.leftovers(tmp_path) == []
    for name in every_death(lambda name: lambda: files.write(tmp_path / f"{name}.json", NEW)):
        for path in files.leftovers(tmp_path):
            assert path.name.startswith(f".{name}.json.")
            files.remove(path)


def test_folders_are_made_from_the_top_and_a_death_in_between_is_made_good(tmp_path: Path) -> None:
    for name in every_death(lambda name: lambda: files.make_folder(tmp_path / name / "b/c")):
        files.make_folder(tmp_path / name / "b/c")
        assert (tmp_path / name / "b/c").is_dir()
    assert recorded(tmp_path, lambda: files.make_folder(tmp_path / "a/b/c")).unsynced == []


def test_a_tree_can_be_removed_although_an_earlier_removal_of_that_name_was_cut_short(tmp_path: Path) -> None:
    def removal(_: str) -> Callable[[], None]:
        make_tree(tmp_path / "tree")
        return lambda: files.remove(tmp_path / "tree")

    for _ in every_death(removal):
        removal("")()
        assert os.listdir(tmp_path) == []


def test_move_and_place_refuse_to_replace(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).write_text(name)
    for refuse in (files.move, files.place):
        with pytest.raises(FileExistsError):
            refuse(tmp_path / "x", tmp_path / "y")
    assert {f.name: f.read_text() for f in tmp_path.iterdir()} == {"x": "x", "y": "y"}


def test_a_stage_that_is_left_by_an_error_is_never_seen(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.stage(tmp_path / "tree") as staged:
        make_tree(staged)
        raise ZeroDivisionError
    assert contents(tmp_path) == {}
    assert files.leftovers(tmp_path) == [tmp_path / ".stage-tree"]


def test_json_is_strict(tmp_path: Path) -> None:
    for refuse in (files.write_json, files.append_json):
        with pytest.raises(ValueError, match="JSON"):
            refuse(tmp_path / "x", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def test_what_is_no_object_is_refused_and_what_is_missing_is_none(tmp_path: Path) -> None:
    assert files.read_json(tmp_path / "x.json") is None
    for text in ("[1]", "{", ""):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError):
            files.read_json(tmp_path / "x.json")


def test_a_line_that_is_not_utf_8_or_not_whole_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"n": 1}\n\xff\xfe\n[2]\n{"n": 3}\n{"n": ')
    files.append_json(tmp_path / "x.jsonl", {"n": 5})
    assert [line["n"] for line in files.read_lines(tmp_path / "x.jsonl")] == [1, 3, 5]


def test_a_hash_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert files.hash_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_records_are_written_for_people(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x.json", {"name": "é"})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"name": "é"}
    assert "é" in text and text.endswith("}\n")
