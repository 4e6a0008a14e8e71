"""SIGKILLs at a working daemon, its worker and its fork server, in every phase of a job's life; then the examination.

    python benchmarks/torture.py [--kills 1000] [--files 500] [--workspaces 2] [--seed 0] [--keep FOLDER]

Each workspace gets its share of the files and kills. A tenth of all kills, at least, hits each phase: intake, claim,
training, saving, gate and swap, settle; which one a kill has hit is told by the daemon's events. At last each file has
to be in the model once, each row as often as asked, and the lineage, trained anew without a kill, has to come to the
same bytes. Exit code 1 where anything is wrong. The worker alone is killed twice at most without progress: at the
third time the file would be taken for the cause, rightly.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # the commands run this checkout too

from tests.acceptance.toll import Outcome, closing, table, wrong  # noqa: E402
from tests.acceptance.torture import torture_side_by_side  # noqa: E402


def main() -> int:
    given = arguments()
    with tempfile.TemporaryDirectory(prefix="torture-") as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        share = {"kills": given.kills, "files": given.files, "workspaces": given.workspaces, "seed": given.seed}
        outcomes = torture_side_by_side(folder, make_model(folder), **share)
        say(outcomes, time.monotonic() - began)
    return 1 if wrong(outcomes) else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--workspaces", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder that holds all that is made, and stays")
    return parser.parse_args()


def make_model(folder: Path) -> Path:
    model = folder / "model"
    model.mkdir()
    subprocess.run([sys.executable, "-P", "-m", "daemon.worker.embedded", str(model)], check=True, capture_output=True)
    return model


def say(outcomes: list[Outcome], seconds: float) -> None:
    print(table([kill for outcome in outcomes for kill in outcome.kills]))
    for sentence in wrong(outcomes):
        print(f"WRONG {sentence}")
    tortured, replayed = max(o.seconds for o in outcomes), max(o.replay_seconds for o in outcomes)
    print(f"{seconds / 60:.1f} minutes: {tortured / 60:.1f} of torture, {replayed / 60:.1f} of replay")
    print(closing(outcomes), flush=True)


if __name__ == "__main__":
    sys.exit(main())
