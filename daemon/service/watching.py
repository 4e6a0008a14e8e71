"""File events wake the loop; the timer of the loop is the net under them."""

from collections.abc import Callable

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from daemon.core.paths import Workspace
from daemon.core.records import WAITING_STATES


class _Wake(FileSystemEventHandler):
    """Any change in a watched folder wakes the loop; which one, the loop sees for itself."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type not in ("opened", "closed_no_write"):
            self._wake()


def watch(workspace: Workspace, wake: Callable[[], None]) -> BaseObserver:
    """File events for what people and other processes drop, and for config.json and .stop in the root."""
    observer = Observer()
    folders = (workspace.root, workspace.inbox, workspace.wishes, *(workspace.state(s) for s in WAITING_STATES))
    for folder in folders:
        observer.schedule(_Wake(wake), str(folder))
    observer.start()
    return observer
