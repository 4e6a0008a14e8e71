"""The examination behind `training_daemon doctor`: what training needs, looked at one by one, each with its remedy."""

import importlib.util
import json
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from daemon.cli.common import Face
from daemon.core import config, files, locks
from daemon.core.errors import DaemonError, Exit
from daemon.core.paths import Workspace

PACKAGES: tuple[str, ...] = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "tokenizers",
    "jinja2",
    "watchdog",
    "structlog",
)
PACKAGES += (
    "matplotlib",
    "pydantic",
    "typer",
    "rich",
    "orjson",
    "psutil",
    "yaml",
    "pynvml",
    "huggingface_hub",
    "safetensors",
)
PROBE_SECONDS = 300.0  # a large model on a slow disk
INOTIFY_SECONDS = 5.0
SAVED_BYTES = 12  # a parameter in a checkpoint: weight and two moments, float32


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    remedy: str | None = None


def examine(workspace: Workspace, shown: Face) -> int:
    """Look at everything, print it, and return the exit code."""
    checks = list(look(workspace))
    good = all(check.ok for check in checks)
    if shown.as_json:
        shown.say("", {"ok": good, "workspace": str(workspace.root), "checks": [asdict(c) for c in checks]})
    else:
        _show(checks)
    return int(Exit.GOOD if good else Exit.PROBLEM)


def look(workspace: Workspace) -> Iterator[Check]:
    """Every check that makes sense here; those of a workspace only where there is one."""
    yield _python()
    yield _packages()
    yield _gpu()
    if not workspace.config.is_file():
        yield from _probe(None)
        yield Check("workspace", True, f"none in {workspace.root} yet; training_daemon init DIR makes one")
        return
    settings, check = _config(workspace)
    yield check
    sizes = list(_probe(workspace.root / settings.base_model if settings else None))
    yield from sizes
    yield from _folders(workspace)
    yield _disk(workspace)
    yield _inotify(workspace)
    yield _daemon(workspace)


# ---- the machine ----


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    fits = sys.version_info >= (3, 11)
    return Check("Python", fits, f"{version}, {sys.executable}", None if fits else "install Python 3.11 or newer")


def _packages() -> Check:
    # find_spec looks without importing: torch alone would take seconds.
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return Check("packages", False, f"missing: {', '.join(missing)}", "bin/setup, or pip install training-daemon")
    return Check("packages", True, f"all {len(PACKAGES)} are there")


def _gpu() -> Check:
    """A machine without a GPU trains on the CPU; that is no fault."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        names = [
            f"{pynvml.nvmlDeviceGetName(h)} with {pynvml.nvmlDeviceGetMemoryInfo(h).free / 1e9:.0f} GB free"
            for h in handles
        ]
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return Check("GPU", True, f"none ({error}); training runs on the CPU")
    return Check("GPU", True, ", ".join(names) or "none; training runs on the CPU")


def _probe(model: Path | None) -> Iterator[Check]:
    """torch, and the model as training would load it, in a process of its own."""
    command = [sys.executable, "-P", "-m", "daemon.worker.probe", *([str(model)] if model else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS)
        found: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        yield Check("torch", False, f"no answer within {PROBE_SECONDS:.0f} s", "look whether the disk or the GPU hangs")
        return
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        yield Check("torch", False, last, "bin/setup; the environment may be half installed")
        return
    devices = ", ".join(found["devices"]) or "no CUDA device"
    yield Check("torch", True, f"{found['torch']}, {devices}")
    if "error" in found:
        yield Check(
            "model", False, found["error"], "move the folder away and bring the model again: training_daemon init"
        )
    elif "model" in found:
        sizes = found["model"]
        yield Check(
            "model", True, f"{sizes['architecture']}, {sizes['parameters']:,} parameters, in {sizes['seconds']} s"
        )


# ---- the workspace ----


def _config(workspace: Workspace) -> tuple[config.Settings | None, Check]:
    try:
        settings, notices = config.load(workspace.config)
    except DaemonError as error:
        return None, Check("config.json", False, error.message, error.remedy)
    return settings, Check("config.json", True, "; ".join(notices) or "valid")


def _folders(workspace: Workspace) -> Iterator[Check]:
    """Write, sync, rename and delete a file in each folder, as the daemon does all day."""
    refused = []
    for folder in workspace.folders():
        probe = folder / f".doctor-{uuid.uuid4().hex}"
        try:
            files.make_folder(folder)
            files.write(probe, b"")
            files.move(probe, probe.with_suffix(files.TEMPORARY_SUFFIX))
            files.remove(probe.with_suffix(files.TEMPORARY_SUFFIX))
        except OSError as error:
            refused.append(f"{folder}: {error.strerror}")
    if refused:
        yield Check("folders", False, "; ".join(refused), f"give yourself the right: chown -R $USER {workspace.root}")
    else:
        yield Check("folders", True, f"{len(workspace.folders())} can be written")


def _disk(workspace: Workspace) -> Check:
    """Two checkpoints have to fit: the one being written, beside the one that it will supersede."""
    free = shutil.disk_usage(workspace.root).free
    need = 2 * _checkpoint_bytes(workspace)
    found = f"{free / 1e9:.1f} GB free, two checkpoints need {need / 1e9:.1f} GB at most"
    return Check("disk", free > need, found, None if free > need else "free some space, or move the workspace")


def _checkpoint_bytes(workspace: Workspace) -> int:
    """Full training's checkpoint, if the weights are stored in two bytes each; the larger of the possible answers."""
    stored = sum(f.stat().st_size for f in workspace.base_models.glob("*/*.safetensors"))
    return stored // 2 * SAVED_BYTES


def _inotify(workspace: Workspace) -> Check:
    """Whether a file that is dropped wakes the daemon; without, it still looks every poll_interval seconds."""
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    seen = threading.Event()

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            seen.set()

    observer, probe = Observer(), workspace.wishes / f".doctor-{uuid.uuid4().hex}{files.TEMPORARY_SUFFIX}"
    try:
        observer.schedule(Handler(), str(workspace.wishes))
        observer.start()
        files.write(probe, b"")
        woken = seen.wait(INOTIFY_SECONDS)
        observer.stop()
        observer.join()
        files.remove(probe)
    except OSError as error:
        return Check("file events", False, str(error.strerror), "raise fs.inotify.max_user_watches with sysctl")
    remedy = "on a network disk the daemon looks every poll_interval seconds instead; make that small"
    return Check("file events", woken, "arrive" if woken else "none arrives", None if woken else remedy)


def _daemon(workspace: Workspace) -> Check:
    holder = locks.lock_holder(workspace.daemon_lock)
    running = locks.is_locked(workspace.daemon_lock)
    return Check("daemon", True, f"runs as process {(holder or {}).get('pid', '?')}" if running else "does not run")


def _show(checks: list[Check]) -> None:
    from rich.table import Table

    from daemon.cli.words import show

    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[bold red]problem[/]"
        table.add_row(mark, check.name, check.found + (f"\n[bold]remedy:[/] {check.remedy}" if check.remedy else ""))
    show(table)
    bad = sum(not check.ok for check in checks)
    show(f"{bad} problem{'s' if bad > 1 else ''} found" if bad else "this machine can train")
