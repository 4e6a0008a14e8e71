"""What the daemon says when it begins another attempt."""

import asyncio
import json
from pathlib import Path

from daemon.core.attempts import ExitInfo
from daemon.core.records import now
from daemon.jobs import store
from tests.helpers_plots import a_good_job, context_of, examined_workspace, take_and_start


def test_how_the_attempt_before_it_ended_is_said_though_settling_came_too_early_to_see_it(tmp_path: Path) -> None:
    workspace = examined_workspace(tmp_path / "w")
    a_good_job(workspace)
    asyncio.run(take_and_start(context_of(workspace)))
    found = store.processing(workspace)
    assert found
    first = workspace.run(found.id).attempt(1)
    first.heartbeat.write_bytes(b"")
    ExitInfo(pid=7, code=None, signal=9, at=now()).save(first.exit)
    asyncio.run(take_and_start(context_of(workspace)))
    assert workspace.run(found.id).newest_attempt() == workspace.run(found.id).attempt(2)
    events = [json.loads(line) for line in workspace.events.read_text().splitlines()]
    (ended,) = [event for event in events if event["event"] == "attempt_ended"]
    assert (ended["attempt"], ended["ending"]) == (1, "killed")
