"""The judge: a command of the user's, asked about one trained model at a time, followed and never waited for."""

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from daemon.core.attempts import Case
from daemon.core.paths import Attempt
from daemon.core.sections import Gate
from daemon.jobs.gate import Heard
from daemon.jobs.store import printable

LONGEST_WORDS = 300
KILLED = Heard(error="the process that watched it was killed")


@dataclass(frozen=True)
class Running:
    """A judge that was asked; its process is that of the leash."""

    about: Attempt
    process: asyncio.subprocess.Process
    output: asyncio.Task[bytes]


class Judge:
    """At most one of this daemon. It ends with its time and with the daemon, however that ends, and is asked anew."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._asked: Running | None = None
        self._called_off = False

    @property
    def running(self) -> bool:
        """Whether its process lives; one that was called off may need a moment to end."""
        return self._asked is not None and not self._asked.output.done()

    def is_asked(self, about: Attempt) -> bool:
        """Whether it was asked about this attempt and has not answered yet."""
        return self.running and not self._called_off and self._asked is not None and self._asked.about == about

    def heard(self, about: Attempt) -> Heard | None:
        """How it ended; None while it runs, was called off, or was not asked about this attempt."""
        if self._asked is None or self._asked.about != about or self._called_off or self.running:
            return None
        output = self._asked.output.result()
        if not output:
            return KILLED
        heard = Heard(**json.loads(output))
        return Heard(heard.code, heard.timed_out, heard.error, printable(heard.last_words)[:LONGEST_WORDS])

    async def ask(self, about: Attempt, gate: Gate, case: Case, workspace: Path, log: Path) -> None:
        """Begin to ask it; its words are added to the log."""
        assert not self.running, "one at a time"
        given = {"command": gate.judge_command, "seconds": gate.judge_timeout_seconds, "text": case.model_dump_json()}
        with log.open("ab") as words:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "daemon.core.leash"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=words,
                cwd=workspace,
                start_new_session=True,
            )
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(given).encode() + b"\n")
        output = asyncio.create_task(_output(process, process.stdout))
        output.add_done_callback(lambda _: self._wake())
        self._asked, self._called_off = Running(about, process, output), False

    def call_off(self) -> None:
        """Let it end; what it says no longer counts."""
        self._called_off = True
        if self._asked and self._asked.process.stdin:
            self._asked.process.stdin.close()  # the leash ends it then

    async def close(self) -> None:
        """The daemon ends, and the judge before it."""
        self.call_off()
        if self._asked:
            await self._asked.output


async def _output(process: asyncio.subprocess.Process, stdout: asyncio.StreamReader) -> bytes:
    output = await stdout.read()
    await process.wait()
    return output
