"""A workspace on the bench: made, run, disturbed and read by the installed commands."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMMANDS = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
# Small and explicit: a worker that makes an update in some ten milliseconds, and saves often.
SETTINGS: dict[str, Any] = {
    "max_length": 512,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 5,
    "logging_steps": 5,
    "eval_steps": 1000,
    "eval_examples": 2,
    "save_steps": 10,
    "save_min_seconds": 0,
    "max_new_tokens": 16,
    "poll_interval": 2,
    "settle_seconds": 0.1,
}
COUNTRIES = ("France", "Japan", "Italy", "Spain", "Egypt", "Kenya", "Peru", "Cuba", "Norway", "Chad", "Mali", "Oman")


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Chats that all differ; of different lengths, so that padding matters."""
    return [
        chat(f"What is {n} in {COUNTRIES[n % 12]}?", f"It is {n}" + " and more" * (n % 7) + ".")
        for n in range(start, start + count)
    ]


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def make_model(folder: Path, **config: Any) -> Path:
    """The embedded model in a new folder, with these keys in its config.json."""
    folder.mkdir()
    subprocess.run([sys.executable, "-P", "-m", "daemon.worker.embedded", str(folder)], check=True, capture_output=True)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


class Bench:
    """One workspace, and at most one daemon that this object has started."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.daemon: subprocess.Popen[bytes] | None = None
        self.environment = dict(ENVIRONMENT)
        self.commands = COMMANDS

    # ---- setting up ----

    @classmethod
    def make(cls, root: Path, model: Path, **settings: Any) -> "Bench":
        """A workspace around a copy of `model`, with the bench's settings under those given."""
        bench = cls(root)
        bench.command("training_daemon", "init", str(root), "--model", str(model), base_dir=False).check_returncode()
        bench.configure(**{**SETTINGS, **settings})
        return bench

    def configure(self, **settings: Any) -> None:
        """Change keys of config.json; None removes one."""
        path = self.root / "config.json"
        values = {**json.loads(path.read_text()), **settings}
        beside = path.with_name(".config.tmp")
        beside.write_text(json.dumps({k: v for k, v in values.items() if v is not None}, indent=1))
        beside.rename(path)

    def drop(self, name: str, content: list[dict[str, Any]] | str | bytes) -> Path:
        """Put a file into the inbox, whole at once."""
        target = self.root / "inbox" / name
        beside = target.with_name(f".{name}")
        beside.write_bytes(as_bytes(content))
        beside.rename(target)
        return target

    def hold_out(self, content: list[dict[str, Any]]) -> None:
        (self.root / "data/validation/holdout.jsonl").write_bytes(as_bytes(content))

    # ---- running ----

    def start(self) -> "Bench":
        self.launch()
        self.wait(lambda: self.status().get("pid") == self.daemon_pid, 30, "the daemon says that it runs")
        return self

    def launch(self) -> None:
        """Start the daemon's process, and wait for nothing."""
        log = (self.root.parent / f"{self.root.name}.log").open("ab")
        with log:
            self.daemon = subprocess.Popen(
                [self.commands / "training_daemon", "--base-dir", str(self.root), "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd="/",
            )

    @property
    def daemon_pid(self) -> int:
        assert self.daemon
        return self.daemon.pid

    def end(self) -> None:
        """End what this bench has started: the daemon asks its worker to save and goes."""
        if self.daemon and self.daemon.poll() is None:
            self.daemon.terminate()
            try:
                self.daemon.wait(60)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait()
        worker = self.worker_pid()
        if worker:
            os.kill(worker, signal.SIGKILL)

    def kill_daemon(self) -> None:
        assert self.daemon
        self.daemon.kill()
        self.daemon.wait()

    def end_daemon(self, signals: int = 1) -> int:
        """End the daemon by so many SIGTERMs, one after the other was seen; its exit code."""
        assert self.daemon
        for _ in range(signals):
            self.daemon.terminate()
            time.sleep(0.2)  # two at once would be one
        return self.daemon.wait(60)

    def worker_pid(self) -> int | None:
        """The living worker, as its lock file names it."""
        path = self.root / "status/worker.lock"
        try:
            holder = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            return None
        try:
            command = Path(f"/proc/{holder['pid']}/cmdline").read_bytes()
        except FileNotFoundError:
            return None
        return holder["pid"] if b"daemon.worker" in command and self._holds_lock(holder["pid"], path) else None

    def _holds_lock(self, pid: int, path: Path) -> bool:
        folder = Path(f"/proc/{pid}/fd")
        try:
            return any(os.readlink(f) == str(path) for f in folder.iterdir())
        except OSError:
            return False

    def command(
        self, name: str, *arguments: str, base_dir: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run an installed command on this workspace."""
        return subprocess.run(
            self.words(name, *arguments, base_dir=base_dir),
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment,
            cwd="/",
            check=False,
        )

    def words(self, name: str, *arguments: str, base_dir: bool = True) -> list[str]:
        """The command line of an installed command on this workspace."""
        return [str(self.commands / name), *arguments, *(["--base-dir", str(self.root)] if base_dir else [])]

    # ---- reading ----

    def wait(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """The condition's first true value; fails with the daemon's last words after `seconds`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            value = condition()
            if value:
                return value
            time.sleep(0.01)
        raise AssertionError(f"not within {seconds} s: {what}\n{self.last_words()}")

    def last_words(self) -> str:
        logs = [self.root.parent / f"{self.root.name}.log", *sorted(self.root.glob("runs/*/worker.log"))[-1:]]
        return "\n".join("\n".join(f.read_text(errors="replace").splitlines()[-15:]) for f in logs if f.exists())

    def status(self) -> dict[str, Any]:
        path = self.root / "status/training_status.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def events(self, *names: str) -> list[dict[str, Any]]:
        return [e for e in lines(self.root / "status/events.jsonl") if not names or e["event"] in names]

    def jobs(self, state: str) -> list[str]:
        folder = self.root / "queue" / state
        return sorted(f.name for f in folder.iterdir() if not f.name.startswith(".")) if folder.exists() else []

    def log(self, job: str, *kinds: str) -> list[dict[str, Any]]:
        return [x for x in lines(self.root / "runs" / job / "log.jsonl") if not kinds or x["kind"] in kinds]

    def wait_for(self, state: str, count: int = 1, seconds: float = 120) -> list[str]:
        """Wait until so many jobs lie in a state; their ids."""
        self.wait(lambda: len(self.jobs(state)) >= count, seconds, f"{count} jobs in {state}")
        return self.jobs(state)

    def wait_for_step(self, step: int, seconds: float = 60) -> str:
        """Wait until the running job's heartbeat has come so far; the job's id."""

        def reached() -> str | None:
            job, now = self.running()
            return job if job and now >= step else None

        return str(self.wait(reached, seconds, f"step {step} of a job"))

    def running(self) -> tuple[str | None, int]:
        """The job whose heartbeat beats, and its step; None and 0 where there is none."""
        from daemon.core import heartbeat

        for job in self.jobs("processing"):
            attempts = self.root / "runs" / job / "attempts"
            pages = sorted(attempts.glob("*/heartbeat"), key=lambda p: int(p.parent.name))
            beat = heartbeat.read(pages[-1]) if pages else None
            if beat:
                return job, beat.job_step
        return None, 0

    def latest(self) -> Path:
        return (self.root / "current_model/latest").resolve()

    def manifest(self, folder: Path | None = None) -> dict[str, Any]:
        return json.loads(((folder or self.latest()) / "manifest.json").read_text())


def as_bytes(content: list[dict[str, Any]] | str | bytes) -> bytes:
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    return content.encode() if isinstance(content, str) else content


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line]


def seal(folder: Path) -> str:
    """One hash over the weights and the optimizer's state, byte for byte."""
    weights = next(p for p in (folder / "model.safetensors", folder / "adapter_model.safetensors") if p.exists())
    return hashlib.sha256(weights.read_bytes() + (folder / "optimizer.pt").read_bytes()).hexdigest()
