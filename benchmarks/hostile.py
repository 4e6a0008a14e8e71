"""The hostile inputs of tests/hostile.yaml, one after the other: how long each takes, in how much memory, how it ends.

    python benchmarks/hostile.py FOLDER [WORD …]

FOLDER is new and holds all that is made: 3 GB with the heavy entries. With words only the entries are dropped whose
mechanism or name contains one; `heavy` stands for the heavy ones. The training is paused: this measures intake alone.
"""

import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.watched import LOOK_SECONDS, Memory, look
from tests.acceptance.bench import Bench
from tests.acceptance.verdicts import Verdicts, Watched
from tests.helpers_hostile import Dropping, Entry, entries, lacking, trained

PATIENCE_SECONDS = 3600


def main(folder: Path, words: list[str]) -> int:
    folder.mkdir(parents=True)
    bench = make_bench(folder)
    try:
        dropping = Dropping(bench.root / "inbox", folder / "outside")
        verdicts, watched = Verdicts(bench, dropping), Watched(bench)
        chosen = [entry for entry in entries() if is_meant(entry, words)]
        print(f"{'seconds':>8} {'intake MB':>9}  {'verdict':9} mechanism: name")
        wrong = [sentence for entry in chosen for sentence in measure(bench, dropping, verdicts, entry)]
        dropping.end()
        watched.end()
        say(watched, len(chosen), wrong)
    finally:
        bench.end()
    return 1 if wrong else 0


def make_bench(folder: Path) -> Bench:
    """A daemon whose training is paused, and which has trained the file that some entries repeat."""
    model = folder / "model"
    model.mkdir()
    subprocess.run([sys.executable, "-P", "-m", "daemon.worker.embedded", str(model)], check=True, capture_output=True)
    bench = Bench.make(folder / "w", model)
    bench.hold_out([{"prompt": "Held out?", "completion": "Held out."}])
    bench.start()
    bench.drop("first.jsonl", trained(""))
    bench.wait_for("completed")
    bench.command("training_controller", "pause").check_returncode()
    return bench


def is_meant(entry: Entry, words: list[str]) -> bool:
    return not words or any(word in f"{entry.mechanism} {entry.said}{' heavy' * entry.heavy}" for word in words)


def measure(bench: Bench, dropping: Dropping, verdicts: Verdicts, entry: Entry) -> list[str]:
    """Drop one entry, wait, print its line; what is wrong with its verdict."""
    if lack := lacking(entry, bench.root):
        print(f"{'':>8} {'':>9}  left out  {entry.mechanism}: {entry.said[:60]} ({lack})", flush=True)
        return []
    dropping.drop(entry)
    memory, began = Memory(), time.monotonic()
    while verdicts.missing([entry]) and time.monotonic() - began < PATIENCE_SECONDS:
        look(bench.root, memory)
        time.sleep(LOOK_SECONDS)
    seconds = time.monotonic() - began
    if entry.verdict == "left":
        time.sleep(3 * LOOK_SECONDS)
    peak = max(memory.of_process.values(), default=0)
    print(f"{seconds:8.1f} {peak:9.0f}  {entry.verdict:9} {entry.mechanism}: {entry.said[:60]}", flush=True)
    wrong = verdicts.wrong([entry])
    for sentence in wrong:
        print(f"{'':>20}WRONG {sentence}", flush=True)
    return wrong


def say(watched: Watched, count: int, wrong: list[str]) -> None:
    times = sorted(watched.seconds)
    print(f"{count} entries, {len(wrong)} wrong")
    print(
        f"the daemon: {watched.megabytes_before:.0f} MB before, {watched.megabytes():.0f} MB after, "
        f"{watched.megabytes('VmHWM'):.0f} MB at its highest; a wish is answered in "
        f"p50 {1000 * times[len(times) // 2]:.0f} ms, p99 {1000 * times[int(len(times) * 0.99)]:.0f} ms, "
        f"at most {1000 * times[-1]:.0f} ms ({len(times)} wishes)"
    )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]).absolute(), sys.argv[2:]))
