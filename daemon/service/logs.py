"""The daemon's own log: one file a day, a sentence for people with an event name for machines."""

import contextlib
import logging
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from daemon.core import files

DAYS_KEPT = 14


class DailyFile(logging.FileHandler):
    """daemon_YYYYMMDD.log, changed at midnight UTC; older ones than DAYS_KEPT go."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        super().__init__(self._today(), encoding="utf-8", delay=True)

    def _today(self) -> Path:
        return self._folder / f"daemon_{datetime.now(UTC):%Y%m%d}.log"

    def emit(self, record: logging.LogRecord) -> None:
        """What the disk does not take is lost here; events.jsonl brings it later."""
        with contextlib.suppress(OSError):
            today = str(self._today())
            if today != self.baseFilename:
                self.close()
                self.baseFilename = today
                self._forget_old()
            super().emit(record)

    def _forget_old(self) -> None:
        oldest = f"daemon_{datetime.now(UTC) - timedelta(days=DAYS_KEPT):%Y%m%d}.log"
        for path in self._folder.glob("daemon_*.log"):
            if path.name < oldest:
                files.remove(path)


def set_up_logging(folder: Path, *, quiet: bool) -> None:
    """Everything into the day's file, and, unless quiet, on standard error for the terminal or the journal."""
    renderer = structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"])
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handlers: list[logging.Handler] = [DailyFile(folder)]
    if not quiet:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
                foreign_pre_chain=shared,
            )
        )
    logging.raiseExceptions = False  # a full disk would be told again for each line
    root = logging.getLogger()
    root.handlers = handlers
    root.setLevel(logging.INFO)
    logging.getLogger("watchdog").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
