"""The queue in folders: the order of waiting, the names of jobs, and the one way from state to state."""

from itertools import product
from pathlib import Path

import pytest

from daemon.core.errors import NotFound, Refused, UsageError
from daemon.core.paths import Workspace
from daemon.core.records import Job, State
from daemon.jobs import store
from tests.helpers_jobs import copies_of_data, make_workspace, put_job, states_of

HIGH, NORMAL, LOW, PROCESSING, COMPLETED, FAILED, REJECTED, SKIPPED = State
# From each state, where to; written out, not computed.
ALLOWED = {
    HIGH: {NORMAL, LOW, PROCESSING, FAILED, SKIPPED},
    NORMAL: {HIGH, LOW, PROCESSING, FAILED, SKIPPED},
    LOW: {HIGH, NORMAL, PROCESSING, FAILED, SKIPPED},
    PROCESSING: {HIGH, NORMAL, LOW, COMPLETED, FAILED, REJECTED, SKIPPED},
    COMPLETED: {HIGH, NORMAL, LOW},  # where the model that contained it is damaged
    FAILED: {HIGH, NORMAL, LOW},
    REJECTED: {HIGH, NORMAL, LOW},
    SKIPPED: {HIGH, NORMAL, LOW},
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path)


@pytest.mark.parametrize(("source", "target"), list(product(State, State)), ids=str)
def test_every_move_is_as_the_table_says(workspace: Workspace, source: State, target: State) -> None:
    found = put_job(workspace, source)
    if target in ALLOWED[source]:
        moved = store.move(workspace, found, target, "because", "do this")
        assert (moved.state, moved.job.reason, moved.job.remedy) == (target, "because", "do this")
        assert Job.load(moved.folder / store.RECORD) == moved.job
        assert moved.job.moved_at
    else:
        with pytest.raises(Refused) as caught:
            store.move(workspace, found, target)
        assert all(state in caught.value.remedy for state in ALLOWED[source] or {"nowhere"})
    assert states_of(workspace, found.id) == [target if target in ALLOWED[source] else source]
    assert copies_of_data(workspace) == 1


@pytest.mark.parametrize(
    ("source", "target", "priority"),
    [(NORMAL, HIGH, "high"), (LOW, PROCESSING, "low"), (FAILED, LOW, "low"), (PROCESSING, NORMAL, "normal")],
)
def test_a_job_remembers_the_priority_with_which_it_last_waited(
    workspace: Workspace, source: State, target: State, priority: str
) -> None:
    assert store.move(workspace, put_job(workspace, source), target).job.priority == priority


def test_a_move_never_replaces_another_job(workspace: Workspace) -> None:
    found = put_job(workspace, NORMAL)
    (workspace.state(FAILED) / found.id).mkdir()
    with pytest.raises(FileExistsError):
        store.move(workspace, found, FAILED)
    assert found.data.exists()


def test_jobs_wait_by_priority_and_then_by_age(workspace: Workspace) -> None:
    put = {file: state for state in (LOW, NORMAL, HIGH) for file in (f"b_{state}.jsonl", f"a_{state}.jsonl")}
    for file, state in put.items():
        put_job(workspace, state, file)
    waiting = [found.job.file for found in store.waiting(workspace)]
    assert waiting == [f"{n}_{s}.jsonl" for s in ("high", "normal", "low") for n in "ba"]
    assert store.processing(workspace) is None


def test_ids_sort_by_age_when_the_clock_was_set_back(workspace: Workspace) -> None:
    (workspace.state(COMPLETED) / "20991231T235959-0007-from_the_future").mkdir()
    ids = []
    for _ in range(3):
        ids.append(put_job(workspace, NORMAL).id)
    assert ids == sorted(ids)
    assert ids[0] == "20991231T235959-0008-x"


def test_ids_sort_by_age_beyond_ten_thousand_in_a_second(workspace: Workspace) -> None:
    (workspace.state(COMPLETED) / "20991231T235959-9999-full").mkdir()
    assert [put_job(workspace, NORMAL).id for _ in range(2)] == ["21000101T000000-0001-x", "21000101T000000-0002-x"]


@pytest.mark.parametrize("place", ["queue/.20991231T235959-0007-x", "runs/20991231T235959-0007-x"])
def test_an_id_is_never_used_twice_wherever_it_left_a_trace(workspace: Workspace, place: str) -> None:
    (workspace.root / place).mkdir()
    assert store.new_id(workspace, "x.jsonl").startswith("20991231T235959-0008-")


def test_ids_of_now_are_of_now(workspace: Workspace) -> None:
    (workspace.state(NORMAL) / "zzz-not-an-id").mkdir()
    (workspace.state(COMPLETED) / "20200101T000000-0007-old").mkdir()
    made = store.new_id(workspace, "x.jsonl")
    assert store.ID.match(made) and made[:4] != "2020" and made[16:20] == "0001"


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("My Data (final).jsonl", "my_data_final"),
        ("Füße.jsonl", "fue"),
        ("数据.jsonl", "file"),
        ("-rf.jsonl", "rf"),
        ("../../etc.jsonl", "file"),
        ("a\nb.jsonl", "a_b"),
        ("x" * 300, "x" * store.SLUG_LENGTH),
        ("", "file"),
    ],
)
def test_a_slug_is_safe_in_the_name_of_a_folder(name: str, slug: str) -> None:
    assert store.slug(name) == slug


def test_a_job_is_found_by_id_by_file_name_and_by_a_unique_beginning(workspace: Workspace) -> None:
    found = put_job(workspace, FAILED, "other.jsonl")
    for text in (found.id, "other.jsonl", found.id[:20]):
        assert store.find(workspace, text) == found


def test_of_two_jobs_of_one_name_the_newest_is_meant(workspace: Workspace) -> None:
    newest = [put_job(workspace, state, "same.jsonl") for state in (LOW, HIGH, COMPLETED)][-1]
    assert store.find(workspace, "same.jsonl") == newest


def test_an_ambiguous_beginning_is_refused_with_the_candidates(workspace: Workspace) -> None:
    ids = [put_job(workspace, NORMAL).id for _ in range(2)]
    with pytest.raises(UsageError) as caught:
        store.find(workspace, ids[0][:8])
    assert all(one in caught.value.message for one in ids)


def test_a_whole_id_is_never_ambiguous(workspace: Workspace) -> None:
    short = put_job(workspace, NORMAL, "x.jsonl")
    longer = put_job(workspace, NORMAL, id=short.id + "_y")
    assert store.find(workspace, short.id) == short
    assert store.find(workspace, longer.id) == longer


def test_what_is_not_there_is_not_found(workspace: Workspace) -> None:
    put_job(workspace, NORMAL)
    with pytest.raises(NotFound, match="no job nothing"):
        store.find(workspace, "nothing")


def test_folders_without_a_readable_record_and_hidden_ones_are_no_jobs(workspace: Workspace) -> None:
    put_job(workspace, NORMAL, id=".20260101T000000-0001-being_made")
    for name in ("empty", "damaged"):
        (workspace.state(NORMAL) / name).mkdir()
    (workspace.state(NORMAL) / "damaged" / store.RECORD).write_text("{")
    (workspace.state(NORMAL) / "file").write_text("x")
    found = put_job(workspace, NORMAL)
    assert store.jobs(workspace) == [found]


def test_counts_are_those_of_the_folders(workspace: Workspace) -> None:
    for state in (HIGH, HIGH, FAILED):
        put_job(workspace, state)
    assert {k: v for k, v in store.counts(workspace).items() if v} == {"high": 2, "failed": 1}
    assert set(store.counts(workspace)) == set(State)


def test_an_empty_folder_is_an_empty_queue(tmp_path: Path) -> None:
    workspace = Workspace.at(tmp_path / "nothing")
    assert store.waiting(workspace) == []
    assert sum(store.counts(workspace).values()) == 0
