"""Settled files become jobs, whatever they are called; what is still being written or is no file stays where it is."""

import os
import socket
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from daemon import wishes
from daemon.core.paths import Workspace
from daemon.core.records import Job, State
from daemon.jobs import inbox, store
from daemon.jobs.inbox import Dropped, Settling, being_written, dropped, finish_taking_in, take_in
from daemon.jobs.store import printable
from tests.helpers_disk import every_death
from tests.helpers_jobs import DATA, copies_of_data, make_workspace, states_of
from tests.helpers_processes import process, said, until

SETTLE_SECONDS = 0.2
WRITER = """
import sys
file = open(sys.argv[1], "ab")
print("open", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


def drop(workspace: Workspace, name: str | bytes = "x.jsonl", data: bytes = DATA) -> Path:
    path = workspace.inbox / os.fsdecode(name)
    path.write_bytes(data)
    return path


def take(workspace: Workspace, name: str | bytes = "x.jsonl") -> store.Found:
    return take_in(workspace, Dropped(drop(workspace, name), None))


def names(workspace: Workspace) -> list[str]:
    return [item.path.name for item in dropped(workspace)]


def long_ago(path: Path) -> None:
    os.utime(path, (time.time() - 4000,) * 2)


# ---- settled ----


def test_a_file_that_a_process_keeps_open_for_writing_is_not_settled_however_long_it_rests(
    workspace: Workspace,
) -> None:
    path = drop(workspace)
    with process(WRITER, path) as writer:
        assert said(writer) == "open"
        long_ago(path)
        assert being_written(path) is True
        assert not Settling().settled(path, SETTLE_SECONDS)
        writer.kill()
        writer.wait()
        assert being_written(path) is False
        assert Settling().settled(path, SETTLE_SECONDS)


def test_a_file_that_is_only_read_is_settled(workspace: Workspace) -> None:
    path = drop(workspace)
    long_ago(path)
    with path.open("rb"):
        assert Settling().settled(path, SETTLE_SECONDS)


def test_a_file_is_settled_once_it_has_rested_long_enough_and_not_before(workspace: Workspace) -> None:
    settling, path, began = Settling(), drop(workspace), time.monotonic()
    assert not settling.settled(path, SETTLE_SECONDS)
    until(lambda: settling.settled(path, SETTLE_SECONDS))
    assert time.monotonic() - began >= SETTLE_SECONDS * 0.9  # the two clocks differ by some ticks


def test_every_write_begins_the_rest_anew(workspace: Workspace) -> None:
    settling, path, settle_seconds = Settling(), drop(workspace), 1.0
    first_seen = time.monotonic()
    while time.monotonic() < first_seen + 1.2 * settle_seconds:
        path.write_bytes(path.read_bytes() + b"\n")
        assert not settling.settled(path, settle_seconds)


def test_a_file_renamed_into_place_is_settled_at_once(workspace: Workspace) -> None:
    outside = workspace.root / "made_elsewhere.jsonl"
    outside.write_bytes(DATA)
    long_ago(outside)
    os.rename(outside, workspace.inbox / "x.jsonl")
    assert Settling().settled(workspace.inbox / "x.jsonl", 2.0)


def test_a_file_from_the_future_settles_all_the_same(workspace: Workspace) -> None:
    settling, path = Settling(), drop(workspace)
    os.utime(path, (time.time() + 3600,) * 2)
    until(lambda: settling.settled(path, SETTLE_SECONDS))


def test_a_file_that_is_gone_is_not_settled(workspace: Workspace) -> None:
    assert not Settling().settled(workspace.inbox / "x.jsonl", 0)


# ---- what is looked at ----


@pytest.mark.parametrize(
    "name",
    [".x.jsonl", "x.jsonl.part", "x.tmp", "x.crdownload", ".x.jsonl.swp", "X.PART", "x.yaml", "x.YML", ".gitkeep"],
)
def test_hidden_unfinished_and_settings_files_are_left_alone(workspace: Workspace, name: str) -> None:
    drop(workspace, name)
    drop(workspace, "good.jsonl")
    assert names(workspace) == ["good.jsonl"]


def test_single_files_in_the_waiting_folders_have_their_priority_and_job_folders_are_no_files(
    workspace: Workspace,
) -> None:
    take(workspace)
    for priority in ("high", "normal", "low"):
        (workspace.queue / priority / f"{priority}.jsonl").write_bytes(DATA)
    assert [(item.path.name, item.priority) for item in dropped(workspace)] == [
        ("high.jsonl", "high"),
        ("normal.jsonl", "normal"),
        ("low.jsonl", "low"),
    ]


def test_a_missing_inbox_is_an_empty_one(tmp_path: Path) -> None:
    assert dropped(Workspace.at(tmp_path / "nothing")) == []


def test_links_folders_pipes_and_sockets_are_reported_and_left(workspace: Workspace) -> None:
    (workspace.inbox / "link").symlink_to("/etc/hostname")
    (workspace.inbox / "folder").mkdir()
    os.mkfifo(workspace.inbox / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(workspace.inbox / "socket"))
        kinds = {item.path.name: inbox.unusable(item.path) for item in dropped(workspace)}
    assert kinds == {name: f"a {name}, not a file" for name in ("link", "folder", "pipe", "socket")}
    assert inbox.unusable(Path("/dev/null")) == "a device, not a file"
    assert inbox.unusable(drop(workspace)) is None
    assert inbox.unusable(workspace.inbox / "gone") is None


def test_a_file_with_a_name_elsewhere_is_left_until_it_has_only_this_one(workspace: Workspace) -> None:
    path, outside = drop(workspace), workspace.root / "outside.jsonl"
    os.link(path, outside)
    assert "a hard link" in (inbox.unusable(path) or "")
    outside.unlink()
    assert inbox.unusable(path) is None


def test_a_file_that_add_was_killed_over_is_taken_in(workspace: Workspace) -> None:
    path = drop(workspace)
    os.link(path, workspace.inbox / ".data.123.abc.tmp")
    assert inbox.unusable(path) is None


READABLE = """
import os, sys
from pathlib import Path
from daemon.jobs import inbox
if os.geteuid() == 0:
    os.seteuid(65534)  # nobody
print(inbox.unusable(Path(sys.argv[1])))
"""


def test_a_file_that_the_daemon_may_not_read_is_left_and_holds_up_nothing() -> None:
    with TemporaryDirectory() as outside:  # pytest's own folder is closed to others
        os.chmod(outside, 0o755)
        path = Path(outside) / "x.jsonl"
        path.write_bytes(DATA)
        for mode, expected in ((0o000, "not readable for the daemon; permit it with chmod"), (0o444, "None")):
            path.chmod(mode)
            with process(READABLE, path) as child:
                assert said(child) == expected


def test_asking_about_a_pipe_does_not_wait_for_its_other_end(workspace: Workspace) -> None:
    os.mkfifo(workspace.inbox / "pipe")
    assert being_written(workspace.inbox / "pipe") is None


# ---- files -> jobs ----


def test_a_file_becomes_a_waiting_job_with_its_bytes_unchanged(workspace: Workspace) -> None:
    found = take(workspace, "My data.jsonl")
    assert (found.state, found.job.file, found.job.bytes) == (State.NORMAL, "My data.jsonl", len(DATA))
    assert found.data.read_bytes() == DATA
    assert sorted(f.name for f in found.folder.iterdir()) == ["My data.jsonl", store.RECORD]
    assert Job.load(found.folder / store.RECORD) == found.job
    assert os.listdir(workspace.inbox) == []


HOSTILE = {
    "a newline": b"a\nb.jsonl",
    "a leading dash": b"-rf.jsonl",
    "no utf-8": b"caf\xe9\xff.jsonl",
    "255 bytes": b"n" * 249 + b".jsonl",
    "255 bytes of emoji": "🦜".encode() * 62 + b".jsonl",
    "emoji": "🦜.jsonl".encode(),
    "a hostile suffix": b"x.\n\xff",
    "quotes": b"'; rm -rf $HOME; \".jsonl",
    "an escape sequence": b"\x1b[31mred.jsonl",
    "a right-to-left mark": "a\u202ejsonl.exe".encode(),
    "dots": b"a..jsonl",
    "a blank": b" .jsonl",
    **{name: name.encode() for name in ("job.json", "report.json", "rejected.jsonl", "tokens", "sidecar")},
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_file_of_any_name_becomes_a_job_that_can_be_found_and_shown(workspace: Workspace, name: bytes) -> None:
    found = take(workspace, name)
    assert found.data.read_bytes() == DATA
    assert copies_of_data(workspace) == 1
    assert Job.load(found.folder / store.RECORD) == found.job
    assert found.job.file.isprintable() and found.job.file.encode()
    assert store.find(workspace, found.job.file) == found
    assert found.folder.parent == workspace.state(State.NORMAL)
    assert found.data.parent == found.folder


def test_a_job_s_own_files_are_never_taken_for_its_data(workspace: Workspace) -> None:
    for name in ("job.json", "report.json", "rejected.jsonl", "tokens", "sidecar.yaml"):
        found = take(workspace, name)
        assert found.job.data not in (store.RECORD, store.REPORT, store.REJECTED_ROWS, store.TOKENS, "sidecar.yaml")


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"a\nb", r"a\nb"), (b"\xff", r"\xff"), ("é🦜".encode(), "é🦜"), (b"\x1b[31m", r"\x1b[31m"), (b"x y", "x y")],
)
def test_a_name_is_shown_in_one_printable_line(name: bytes, shown: str) -> None:
    assert printable(os.fsdecode(name)) == shown


def test_files_of_the_same_name_become_jobs_of_their_own(workspace: Workspace) -> None:
    first, second = take(workspace), take(workspace)
    assert first.id < second.id
    assert first.data.exists() and second.data.exists()


def test_an_empty_file_becomes_a_job_whose_report_will_say_so(workspace: Workspace) -> None:
    assert take_in(workspace, Dropped(drop(workspace, data=b""), None)).job.bytes == 0


def test_a_file_that_has_vanished_leaves_no_job(workspace: Workspace) -> None:
    with pytest.raises(FileNotFoundError):
        take_in(workspace, Dropped(workspace.inbox / "gone.jsonl", None))
    assert [f for s in State for f in workspace.state(s).iterdir()] == []


# ---- the settings beside ----


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_settings_beside_the_file_hold_for_its_job_and_come_with_it(workspace: Workspace, suffix: str) -> None:
    text = "{priority: high, label: night, epochs: 3, learning_rate: 0.0001, again: true}"
    (workspace.inbox / f"x{suffix}").write_text(text)
    found = take(workspace)
    job = found.job
    assert (found.state, job.priority, job.label, job.epochs) == (State.HIGH, "high", "night", 3)
    assert (job.learning_rate, job.again) == (0.0001, True)
    assert (found.folder / "sidecar.yaml").read_text() == text
    assert os.listdir(workspace.inbox) == []


def test_the_folder_in_which_a_file_was_put_wins_over_its_settings(workspace: Workspace) -> None:
    path = workspace.state(State.LOW) / "x.jsonl"
    path.write_bytes(DATA)
    path.with_suffix(".yaml").write_text("priority: high")
    assert take_in(workspace, Dropped(path, "low")).state is State.LOW


def test_empty_settings_are_none(workspace: Workspace) -> None:
    (workspace.inbox / "x.yaml").write_text("# nothing\n")
    assert take(workspace).state is State.NORMAL


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("priority: urgent", "priority"),
        ("epoch: 3", "epoch"),
        ("epochs: many", "epochs"),
        ("[1, 2]", "x.yaml"),
        ("just words", "x.yaml"),
        ("a: [", "x.yaml"),
        (b"\xff\xfe", "x.yaml"),
        ("!!python/object/apply:os.system ['touch pwned']", "x.yaml"),
        ("not_before: 2026-13-45", "month must be in 1..12"),
        ("not_before: !!timestamp soon", "not of the kind"),
        ("epochs: 0x_", "invalid literal"),
        ("again: !!bool maybe", "not of the kind"),
        ("learning_rate: .inf", "learning_rate"),
        ('label: "\\uD800"', "printable"),
        ('"\\e[31mred": 1', r"\x1b[31mred"),
        ("epochs: 1\nepochs: 2\n", "epochs stands twice"),
        ("a: &a [1]\nlabel: *a\n", "aliases"),
        ("a: " + "[" * 4000, "nested too deeply"),
        ("label: " + "x" * 5000, "longer than 4,096 bytes"),
    ],
)
def test_settings_that_are_not_understood_fail_the_job_with_the_reason_and_keep_its_data(
    workspace: Workspace, text: str | bytes, words: str
) -> None:
    (workspace.inbox / "x.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    found = take(workspace)
    assert found.state is State.FAILED
    assert words in (found.job.reason or "") and "known keys: priority" in (found.job.remedy or "")
    assert (found.data.read_bytes(), (found.folder / "sidecar.yaml").exists()) == (DATA, True)
    assert os.listdir(workspace.inbox) == []


def test_settings_that_are_a_link_are_refused_and_what_they_name_is_not_read(workspace: Workspace) -> None:
    secret = workspace.root / "secret"
    secret.write_text("label: not to be read\n")
    (workspace.inbox / "x.yaml").symlink_to(secret)
    found = take(workspace)
    assert (found.state, found.job.label) == (State.FAILED, None)
    assert "are a link" in (found.job.reason or "")
    assert secret.read_text() == "label: not to be read\n"


def test_settings_of_another_file_are_left_alone(workspace: Workspace) -> None:
    (workspace.inbox / "y.yaml").write_text("priority: high")
    assert take(workspace).state is State.NORMAL
    assert os.listdir(workspace.inbox) == ["y.yaml"]


# ---- after a crash ----


def test_hidden_files_beside_the_queue_are_no_jobs_begun(workspace: Workspace) -> None:
    for name in (".gitkeep", ".DS_Store"):
        (workspace.queue / name).write_text("")
    assert finish_taking_in(workspace) == []
    assert (workspace.queue / ".gitkeep").exists()


def test_a_begun_job_whose_record_is_damaged_keeps_its_data(workspace: Workspace) -> None:
    begun = workspace.queue / ".20260101T000000-0001-x"
    begun.mkdir()
    (begun / store.RECORD).write_text("{")
    (begun / "x.jsonl").write_bytes(DATA)
    assert finish_taking_in(workspace) == []
    assert copies_of_data(workspace) == 1


def test_settings_left_behind_are_not_brought_where_a_new_file_stands_beside_them(workspace: Workspace) -> None:
    found = take(workspace)
    os.rename(found.folder, workspace.queue / f".{found.id}")
    (workspace.inbox / "x.yaml").write_text("priority: high")
    drop(workspace)
    finish_taking_in(workspace)
    assert states_of(workspace, found.id) == [State.NORMAL]
    assert sorted(os.listdir(workspace.inbox)) == ["x.jsonl", "x.yaml"]


# ---- what a killed `training_queue add` leaves ----


def test_half_copies_of_a_killed_add_go_after_a_while_and_nothing_else_does(workspace: Workspace) -> None:
    for name in (".mine.tmp", ".data.jsonl.tmp", ".data.1.tmp"):
        long_ago(drop(workspace, name))
    left = 0
    for _ in every_death(lambda name: lambda: wishes.drop(workspace, source(workspace, name), {"priority": "high"})):
        for path in workspace.inbox.glob(".*"):
            long_ago(path)
        left += len(list(workspace.inbox.glob(".*"))) - 3
        inbox.clear_abandoned(workspace)
        assert sorted(f.name for f in workspace.inbox.glob(".*")) == [".data.1.tmp", ".data.jsonl.tmp", ".mine.tmp"]
    assert left > 0


def test_a_copy_that_is_still_being_made_stays(workspace: Workspace) -> None:
    copy = drop(workspace, ".data.4711.abcdef.tmp")
    inbox.clear_abandoned(workspace)
    assert copy.exists()


def source(workspace: Workspace, name: str) -> Path:
    path = workspace.root / f"{name}.jsonl"
    path.write_bytes(DATA)
    return path
