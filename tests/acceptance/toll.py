"""What a torture has come to: which kills hit which phase, what was found, and how it is said."""

from collections import Counter
from dataclasses import dataclass

from tests.acceptance.examination import Findings

PHASES = ("intake", "claim", "training", "saving", "gate and swap", "settle")
TARGETS = ("daemon", "worker", "fork server", "all")


@dataclass(frozen=True)
class Kill:
    phase: str
    target: str


@dataclass
class Outcome:
    """What the torture of one workspace has come to."""

    kills: list[Kill]
    files: int
    found: Findings
    seconds: float
    seal: str
    replay_seconds: float = 0.0
    replay_seal: str | None = None  # None where there was no replay, because something was found before


def table(kills: list[Kill]) -> str:
    """How many kills hit which phase, by what was killed."""
    counts = Counter((kill.phase, kill.target) for kill in kills)
    others = sorted({kill.phase for kill in kills} - set(PHASES))
    said = [f"{'':20}" + "".join(f"{target:>13}" for target in (*TARGETS, "together"))]
    for phase in (*PHASES, *others):
        each = [counts[phase, target] for target in TARGETS]
        said.append(f"{phase:20}" + "".join(f"{count:13}" for count in (*each, sum(each))))
    return "\n".join(said)


def closing(outcomes: list[Outcome]) -> str:
    """The figures of all workspaces in one line."""
    kills, files = sum(len(o.kills) for o in outcomes), sum(o.files for o in outcomes)
    lost, doubled = sum(len(o.found.lost) for o in outcomes), sum(len(o.found.doubled) for o in outcomes)
    replayed = all(o.replay_seal for o in outcomes)
    equal = "equal" if all(o.seal == o.replay_seal for o in outcomes) else "NOT equal" if replayed else "not compared"
    seals = ", ".join(o.seal[:12] for o in outcomes)
    said = f"{kills} kills, {files} files: {lost} lost, {doubled} trained twice"
    return f"{said}; model {equal} to the replay of its lineage (sha256 {seals})"


def wrong(outcomes: list[Outcome]) -> list[str]:
    """All that speaks against the product; a phase that was hit too seldom has ended the torture before."""
    said = [sentence for o in outcomes for sentence in o.found.all]
    unequal = [o for o in outcomes if o.replay_seal not in (None, o.seal)]
    return said + [f"the replay of the lineage of {o.seal} has come to {o.replay_seal}" for o in unequal]
