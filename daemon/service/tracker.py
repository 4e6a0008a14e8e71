"""events.jsonl and training_status.json: what happened, and what is."""

import asyncio
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiofiles
import structlog

from daemon.core import files, room
from daemon.core.paths import Workspace
from daemon.core.records import now

RECENT_EXAMPLES = 8
MOST_UNSAID = 1000


class Tracker:
    """Writes the events, and the status whenever it has changed, at most once a second unless it matters at once."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._log = structlog.get_logger("daemon")
        self._published: dict[str, Any] | None = None
        self._published_at = 0.0
        self._unsaid: list[dict[str, Any]] = []  # events that a full disk did not take, oldest first
        self._lost = 0  # and those beyond MOST_UNSAID
        self.started_at = now()

    def event(self, name: str, message: str, **facts: Any) -> None:
        """A sentence for people with a name for machines, kept in events.jsonl and in the day's log.

        Where the disk does not take it, it is said as soon as it can be: no step of the daemon fails for it.
        """
        self._log.info(message, event_name=name, **facts)
        if len(self._unsaid) < MOST_UNSAID:
            self._unsaid.append({"time": now(), "event": name, "message": message, **facts})
        else:
            self._lost += 1
        self.say()

    def say(self) -> None:
        """Write the events that are not written yet."""
        try:
            while self._unsaid:
                files.append_json(self._workspace.events, self._unsaid[0])
                del self._unsaid[0]
                if self._lost and not self._unsaid:
                    words = f"{self._lost} events were lost while the disk took nothing"
                    self._unsaid = [{"time": now(), "event": "events_lost", "message": words}]
                    self._lost = 0
        except OSError as error:
            if room.refusal(error) is None:
                raise

    def publish(self, status: dict[str, Any], *, quiet_seconds: float) -> None:
        """Write the status where it has changed, or where the last one is `quiet_seconds` old."""
        lasting = {k: v for k, v in status.items() if k not in FLEETING}
        pressing = self._published is None or any(lasting[k] != self._published.get(k) for k in PRESSING)
        age = time.monotonic() - self._published_at
        if not pressing and age < (1.0 if lasting != self._published else quiet_seconds):
            return
        files.write_json(self._workspace.status, status)
        self._published, self._published_at = lasting, time.monotonic()


# What changes all the time by itself is no reason to write; what people wait for is written at once.
FLEETING = ("updated_at", "resources", "components")
PRESSING = ("status", "reason", "queue", "job", "error", "accepted_step")


@dataclass
class RunLog:
    """The run's log.jsonl, read as it grows; knows the newest facts of each kind."""

    path: Path
    last: dict[str, Any] | None = None  # the newest line of any kind
    log: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    started: dict[str, Any] | None = None
    generation_timeouts: int = 0
    longest_save_seconds: float = 0.0
    examples: list[dict[str, Any]] = field(default_factory=list)
    _offset: int = 0

    async def follow(self) -> None:
        """Read what has been added since the last call; a line without its end waits."""
        try:
            async with aiofiles.open(self.path, "rb") as content:
                await content.seek(self._offset)
                added = await content.read()
        except FileNotFoundError:
            return
        whole = added.rfind(b"\n") + 1
        self._offset += whole
        for line in added[:whole].splitlines():
            value = files.parse_line(line)
            if value is not None:
                self._take(value)

    def _take(self, line: dict[str, Any]) -> None:
        self.last = line
        if line["kind"] == "log":
            self.log = line
        elif line["kind"] == "eval":
            self.evaluation = line
            self.generation_timeouts += line["generation_timeouts"]
            self.examples = (self.examples + line["examples"])[-RECENT_EXAMPLES:]
        elif line.get("event") == "started":
            self.started = line
        elif line.get("event") == "saved":
            self.longest_save_seconds = max(self.longest_save_seconds, line["seconds"])


async def resources(folder: Path) -> dict[str, Any]:
    """GPUs, memory and disk as they are now. Slow drivers must not stop the loop, hence the thread."""
    return await asyncio.to_thread(_resources, folder)


def _resources(folder: Path) -> dict[str, Any]:
    import psutil

    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(folder))
    return {
        "gpus": _gpus(),
        "ram_used_bytes": memory.used,
        "ram_total_bytes": memory.total,
        "disk_free_bytes": disk.free,
    }


def _gpus() -> list[dict[str, Any]]:
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [_gpu(pynvml, index, handle) for index, handle in enumerate(handles)]
    except pynvml.NVMLError:
        return []


def _gpu(nvml: Any, index: int, handle: Any) -> dict[str, Any]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "index": index,
        "name": nvml.nvmlDeviceGetName(handle),
        "memory_used_bytes": memory.used,
        "memory_total_bytes": memory.total,
        "utilization_percent": nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "power_w": round(nvml.nvmlDeviceGetPowerUsage(handle) / 1000, 1),
    }


def process_id() -> int:
    return os.getpid()
