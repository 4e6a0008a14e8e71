"""Runs a command that must outlive neither its time nor the process that started this one, with all of its group.

Standard input: a line of JSON with the command, its seconds and its input; the end of input is the end of the starter.
Standard output: a line of JSON, how the command ended. Standard error: what it said, in bounds.
It does not cover a program that leaves the process group.
"""

import contextlib
import ctypes
import io
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from typing import Any

GRACE_SECONDS = 5.0  # from SIGTERM to SIGKILL
MOST_BYTES = 1 << 20  # of what the command says
LAST_BYTES = 2000  # of which the last line is handed on
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # as the starter's thread may have had them
    given = json.loads(sys.stdin.buffer.readline())
    said = run(given["command"], given["seconds"], given["text"])
    with contextlib.suppress(BrokenPipeError):  # the starter has gone
        io.FileIO(1, "w", closefd=False).write(json.dumps(said).encode() + b"\n")


def run(command: list[str], seconds: float, text: str) -> dict[str, Any]:
    """Run a command with this input until it ends, its time is up, or the starter has gone."""
    try:
        leash = Leash(command, text)
    except OSError as error:
        return {"error": f"{command[0]}: {error.strerror}"}
    ended = leash.watch(seconds, starter=True)
    leash.end(gently=not ended)
    return {"code": leash.process.returncode, "timed_out": not ended, "last_words": leash.last_words}


class Leash:
    """One running command."""

    def __init__(self, command: list[str], text: str) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_the_leash,  # no thread runs yet
        )
        assert self.process.stdout
        self._output = self.process.stdout.fileno()
        os.set_blocking(self._output, False)
        self._pidfd = os.pidfd_open(self.process.pid)
        self._log, self._logged, self._last = io.FileIO(2, "w", closefd=False), 0, b""
        threading.Thread(target=self._feed, args=(text,), daemon=True).start()

    @property
    def last_words(self) -> str:
        words = [line.strip() for line in self._last.decode(errors="replace").splitlines()]
        return next((line for line in reversed(words) if line), "")

    def watch(self, seconds: float, *, starter: bool) -> bool:
        """Pass on what the command says until it has ended; False where its time is up or the `starter` has gone."""
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as seen:
            for descriptor in (self._output, self._pidfd, *((0,) if starter else ())):
                seen.register(descriptor, selectors.EVENT_READ)
            while (left := until - time.monotonic()) > 0:
                ready = {key.fd for key, _ in seen.select(left)}
                if self._output in ready and not self._pass_on():
                    seen.unregister(self._output)
                if self._pidfd in ready:
                    self._pass_on()
                    return True
                if 0 in ready and not os.read(0, 1):
                    return False
        return False

    def end(self, *, gently: bool) -> None:
        """End all that is left of the group. The number of its first process is ours until that is waited for."""
        if gently:
            self._signal(signal.SIGTERM)
            self.watch(GRACE_SECONDS, starter=False)
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _feed(self, text: str) -> None:
        assert self.process.stdin
        with contextlib.suppress(OSError):  # it need not read its input
            self.process.stdin.write(text.encode())
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def _pass_on(self) -> bool:
        """Write what the command has said by now, as far as there is room for it; whether more may come."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._output, 1 << 16):
                self._last = (self._last + chunk)[-LAST_BYTES:]
                room, self._logged = max(0, MOST_BYTES - self._logged), self._logged + len(chunk)
                with contextlib.suppress(OSError):  # a full disk
                    self._log.write(chunk[:room])
            return False
        return True


def _die_with_the_leash() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
