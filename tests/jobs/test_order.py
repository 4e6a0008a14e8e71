"""Who may start: files that wait for another or for a time are held back, aloud, and let the others pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon import views
from daemon.core import files, locks
from daemon.core.paths import Workspace
from daemon.core.records import Job, Sidecar, State
from daemon.jobs import inbox, order, store

NOW = "2026-06-01T12:00:00.000Z"
ID = "20260101T000000-0001-a"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.at(tmp_path / "w")
    for folder in made.folders():
        files.make_folder(folder)
    return made


def drop(workspace: Workspace, name: str, **sidecar: Any) -> store.Found:
    """A file taken in with these settings beside it, as JSON, which is YAML."""
    path = workspace.inbox / name
    path.write_text("{}")
    if sidecar:
        files.write_json(path.with_suffix(".yaml"), sidecar)
    return inbox.take_in(workspace, inbox.Dropped(path, None))


def a_job(**changes: Any) -> Job:
    return Job(id="20260102T000000-0001-b", file="b.jsonl", data="b.jsonl", bytes=1, taken_in_at=NOW, **changes)


@pytest.mark.parametrize(
    ("job", "earlier", "kind", "words"),
    [
        (a_job(), None, "ready", ""),
        (a_job(not_before=NOW), None, "ready", ""),
        (a_job(not_before="2026-06-01T12:00:00.001Z"), None, "waits", "until 2026-06-01T12:00:00.001Z"),
        (a_job(after=ID), State.COMPLETED, "ready", ""),
        (a_job(after=ID), State.NORMAL, "waits", f"for {ID} to be completed"),
        (a_job(after=ID), State.PROCESSING, "waits", f"for {ID} to be completed"),
        (a_job(after=ID), State.FAILED, "never", f"{ID}, after which this file was to be trained, is failed"),
        (a_job(after=ID), State.REJECTED, "never", "is rejected"),
        (a_job(after=ID), State.SKIPPED, "never", "is skipped"),
        (a_job(after=ID), None, "never", "was removed"),
        (a_job(after="a.jsonl"), None, "waits", "for a.jsonl, which is not there yet"),
    ],
)
def test_who_may_start_is_a_rule_of_few_lines(job: Job, earlier: State | None, kind: str, words: str) -> None:
    found = order.judge(job, NOW, earlier)
    assert found.kind == kind
    assert words in found.words
    assert bool(found.remedy) == (kind == "never")


@pytest.mark.parametrize("named", [lambda job: job.id, lambda job: job.id[:20], lambda job: job.file])
def test_the_job_to_wait_for_is_known_by_id_beginning_or_file_name(
    workspace: Workspace, named: Callable[[Job], str]
) -> None:
    first = drop(workspace, "a.jsonl")
    assert drop(workspace, "b.jsonl", after=named(first.job)).job.after == first.id


def test_a_name_that_comes_later_is_waited_for_and_then_held_on_to(workspace: Workspace) -> None:
    second = drop(workspace, "b.jsonl", after="a.jsonl")
    assert order.standing(workspace, second, NOW).words == "for a.jsonl, which is not there yet"
    first = drop(workspace, "a.jsonl")
    assert inbox.pin_after(workspace, second.job).after == first.id
    assert order.standing(workspace, second, NOW).kind == "waits"


def test_a_file_that_names_itself_waits_for_another_of_that_name(workspace: Workspace) -> None:
    alone = drop(workspace, "a.jsonl", after="a.jsonl")
    assert order.standing(workspace, alone, NOW).words == "for a.jsonl, which is not there yet"
    again = drop(workspace, "a.jsonl", after="a.jsonl")
    assert again.job.after == alone.id


def test_the_list_says_what_is_waited_for_and_who_is_next(workspace: Workspace) -> None:
    files.write_json(workspace.config, {"model_name": "m", "base_model": "b"})
    lock = locks.Lock(workspace.daemon_lock)
    first = drop(workspace, "a.jsonl", not_before="2999-01-01")
    drop(workspace, "b.jsonl", after=first.id)
    drop(workspace, "c.jsonl")
    drop(workspace, "d.jsonl")
    waits = {row["file"]: row["waits_for"] for row in views.queue(workspace)}
    lock.release()
    assert waits["a.jsonl"].startswith("until 2999-01-01") or waits["a.jsonl"].startswith("until 2998-12-31")
    assert waits["b.jsonl"] == f"for {first.id} to be completed"
    assert (waits["c.jsonl"], waits["d.jsonl"]) == ("next", "1 before it")


@pytest.mark.parametrize(
    ("sidecar", "said"),
    [
        ("epochs: 0", "epochs: Input should be greater than 0"),
        ("learning_rate: -1", "learning_rate: Input should be greater than 0"),
        ("not_before: soon", "not_before: Invalid isoformat string"),
        ("column_map: {prompt: q, compeltion: a}", "column_map names the column compeltion, which no format has"),
        ("colum_map: {}", "colum_map: Extra inputs"),
        ("- a list", "valid dictionary"),
        ("{", "line 1: "),
    ],
)
def test_a_sidecar_that_cannot_be_understood_fails_its_file_aloud(
    workspace: Workspace, sidecar: str, said: str
) -> None:
    path = workspace.inbox / "a.jsonl"
    path.write_text("{}")
    path.with_suffix(".yaml").write_text(sidecar)
    found = inbox.take_in(workspace, inbox.Dropped(path, None))
    assert (found.state, said in (found.job.reason or "")) == (State.FAILED, True), found.job.reason
    assert "a corrected a.yaml" in (found.job.remedy or "")
    assert "did you mean completion?" in (found.job.remedy or "") or "compeltion" not in sidecar


def test_times_are_understood_as_people_write_them() -> None:
    assert Sidecar(not_before="2026-01-31T12:00:00+02:00").not_before == "2026-01-31T10:00:00.000Z"
    assert Sidecar(not_before=None).not_before is None


@pytest.mark.parametrize("name", ["ü\n.jsonl.gz", "-x .csv.gz", "\udcff.parquet", "ü.txt"])
def test_a_file_with_an_odd_name_keeps_the_ending_that_says_how_to_read_it(workspace: Workspace, name: str) -> None:
    found = drop(workspace, name)
    assert found.job.data == f"data{name[name.index('.') :]}"


@pytest.mark.parametrize("beside", ["a.yaml", "a.yml", "a.jsonl.yaml"])
def test_a_packed_file_has_its_settings_beside_it_under_either_name(workspace: Workspace, beside: str) -> None:
    (workspace.inbox / beside).write_text("label: mine\n")
    found = drop(workspace, "a.jsonl.gz")
    assert (found.job.label, found.job.data) == ("mine", "a.jsonl.gz")
    assert list(workspace.inbox.iterdir()) == []
