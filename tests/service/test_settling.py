"""Which endings speak against the file."""

from pathlib import Path

import pytest

from daemon.core import files
from daemon.core.attempts import Control, ExitInfo
from daemon.core.paths import Run
from daemon.core.records import now
from daemon.service import progress


@pytest.mark.parametrize(("asked_to_end", "failed"), [(False, True), (True, False)])
def test_a_killed_worker_is_a_failed_attempt_unless_it_had_been_asked_to_end(
    asked_to_end: bool, failed: bool, tmp_path: Path
) -> None:
    attempt = Run(tmp_path / "j").attempt(1)
    files.make_folder(attempt.root)
    attempt.heartbeat.touch()
    ExitInfo(pid=7, code=None, signal=9, at=now()).save(attempt.exit)
    if asked_to_end:
        Control(action="pause", reason="user").save(attempt.control)
    assert progress.failed(attempt) is failed
