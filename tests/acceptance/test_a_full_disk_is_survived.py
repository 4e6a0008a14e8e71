"""The disk is taken away from a daemon that trains, and given back: nothing is lost, and it goes on by itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.bench import ENVIRONMENT

ROOT = Path(__file__).parent.parent.parent
WITHIN_SECONDS = 120  # a busy machine; benchmarks/full_disk.py asks for 30


@pytest.mark.timeout(1200)
def test_at_ten_points_nothing_is_lost_and_the_training_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "tests.helpers_full_disk", "--points", "10", "--within", str(WITHIN_SECONDS)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    with capsys.disabled():
        print("\n" + "\n".join(line for line in done.stdout.splitlines() if line.startswith(("the disk", "hit"))))
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.endswith("0 violations\n")


READ_ONLY = """
import json, subprocess, sys
from pathlib import Path
from daemon import views
from daemon.core import locks
from daemon.core.paths import Workspace
from tests.helpers_jobs import make_workspace

workspace = make_workspace(Path(sys.argv[1]))
held = locks.Lock(workspace.daemon_lock)
subprocess.run(["mount", "--bind", sys.argv[1], sys.argv[1]], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", sys.argv[1]], check=True)
shown = views.status(Workspace(workspace.root))
print(json.dumps([shown["daemon_running"], shown["error"] and shown["error"]["class"]]))
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode != 0,
    reason="nothing can be mounted here",
)
def test_a_workspace_that_the_reader_may_not_write_is_read(tmp_path: Path) -> None:
    """A mount that is read-only for the reader alone says nothing of the daemon's disk."""
    command = ["unshare", "-Urm", sys.executable, "-c", READ_ONLY, str(tmp_path / "w")]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [True, None]
