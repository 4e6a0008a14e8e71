"""The door's calls, found in the source: which lines of the package change the disk."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from tests.helpers_powerloss import PACKAGE, Site

DOOR = PACKAGE / "core/files.py"


@dataclass(frozen=True)
class CallSite:
    """A call that makes something last."""

    file: str
    first: int
    last: int
    words: str

    def is_hit(self, sites: set[Site]) -> bool:
        return any(file == self.file and self.first <= line <= self.last for file, line in sites)

    def __str__(self) -> str:
        return f"{self.file}:{self.first} {self.words}"


def door_functions() -> set[str]:
    """The functions of the door that reach the disk's own calls, directly or by way of others."""
    functions = {f.name: f for f in ast.parse(DOOR.read_text()).body if isinstance(f, ast.FunctionDef)}
    uses = {name: set(_names(function)) for name, function in functions.items()}
    changing: set[str] = {"disk"}
    while more := {name for name, used in uses.items() if used & changing} - changing:
        changing |= more
    return changing - {"disk"}


def _names(function: ast.FunctionDef) -> Iterator[str]:
    yield from (node.id for node in ast.walk(function) if isinstance(node, ast.Name) and node.id != function.name)


def call_sites() -> list[CallSite]:
    """Every call of the door in the package, and every record that is saved, which is one too."""
    changing = door_functions()
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path == DOOR:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _is_durable(node, changing):
                words = ast.unparse(node.func)
                found.append(CallSite(str(path.relative_to(PACKAGE)), node.lineno, node.end_lineno or 0, words))
    return sorted(found, key=str)


def _is_durable(call: ast.Call, changing: set[str]) -> bool:
    function = call.func
    if not isinstance(function, ast.Attribute):
        return False
    owner = ast.unparse(function.value)
    if owner == "files":
        return function.attr in changing
    # A record is saved by its path alone; torch and the trainer's own saver are given more.
    saves = function.attr == "save" and len(call.args) == 1 and not call.keywords
    return owner == "files.disk" or (saves and owner not in ("self", "torch"))
