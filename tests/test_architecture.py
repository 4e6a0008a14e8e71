"""The house stands as docs/architecture.md draws it: who may import whom, and where the disk may be changed."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "daemon"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in FILES}

# Which parts of the package each part may import, beside itself; lazy imports count.
MAY_IMPORT = {
    "core": set(),
    "data": {"core"},
    "jobs": {"core", "data"},
    "models": {"core"},
    "service": {"core", "data", "jobs", "models"},
    "worker": {"core", "data", "jobs", "models"},
    "views": {"core", "data", "jobs", "models"},
    "wishes": {"core", "jobs", "views"},
    "checking": {"core", "data", "jobs"},
    "auditing": {"core", "data", "jobs", "models"},
    "cli": {"core", "views", "wishes", "checking", "auditing"},
    "web": {"core", "views", "wishes", "checking", "auditing"},
}
# The command that makes workspaces and starts the daemon has to name them; a report card says what a model will need.
ALSO = {"daemon.cli.training_daemon": {"models", "service"}, "daemon.data.card": {"models"}}
HEAVY = {"torch", "transformers", "numpy", "peft", "accelerate", "datasets", "trl", "ray", "safetensors"}
HEAVY |= {"matplotlib"}
CHANGES_THE_DISK = {"unlink", "rename", "replace", "rmtree", "rmdir", "removedirs", "mkdir", "makedirs", "symlink_to"}
CHANGES_THE_DISK |= {"hardlink_to", "touch", "write_text", "write_bytes", "truncate", "copyfile", "copytree", "copy2"}
# Names that are harmless of anything else than these modules.
CHANGES_THE_DISK_OF = {"os": {"write", "pwrite", "writev", "link", "symlink", "ftruncate", "posix_fallocate", "mknod"}}
CHANGES_THE_DISK_OF |= {"shutil": {"copy", "move", "copyfileobj"}, "tempfile": {"mkstemp", "NamedTemporaryFile"}}
WRITING_MODES = set("wx+")  # a log opened to append, as a child's output, can lose nothing
LONGEST_FILE = 300
LONGEST_FUNCTION = 60


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[str]:
    """The full names of everything imported anywhere in a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_imported(path: Path) -> set[str]:
    """The modules of ours that a file imports."""
    found = set()
    for name in imports(path):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found |= {name} - {"", "daemon"}
    return found


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def named(module: str) -> str:
    return module.removeprefix("daemon.")


@pytest.mark.parametrize("module", MODULES, ids=named)
def test_a_part_imports_only_what_lies_below_it(module: str) -> None:
    allowed = MAY_IMPORT.get(part(module), set()) | ALSO.get(module, set()) | {part(module)}
    used = {part(name) for name in modules_imported(MODULES[module])}
    assert used <= allowed, f"{module} imports {sorted(used - allowed)}"


def test_every_part_of_the_package_has_its_rule() -> None:
    assert {part(module) for module in MODULES} - {""} <= set(MAY_IMPORT)


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: modules_imported(path) - {module} for module, path in MODULES.items()}
    assert list(TopologicalSorter(graph).static_order())


def test_every_package_file_is_empty() -> None:
    assert [f for f in PACKAGE.rglob("__init__.py") if f.read_text()] == []
    assert {f.parent for f in FILES} == {f.parent for f in PACKAGE.rglob("__init__.py")}


@pytest.mark.parametrize("module", MODULES, ids=named)
def test_asyncio_lives_in_service_and_torch_in_worker(module: str) -> None:
    used = {name.split(".")[0] for name in imports(MODULES[module])}
    assert part(module) in ("service", "web") or "asyncio" not in used
    assert part(module) == "worker" or not used & HEAVY


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    tops = {module.split(".")[0] for module in MODULES}
    assert not tops & sys.stdlib_module_names
    assert not [d for d in ("queue", "inbox", "status") if list((ROOT / d).glob("*.py"))]


@pytest.mark.parametrize("module", MODULES, ids=named)
def test_files_and_functions_stay_short(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= LONGEST_FILE
    for node in ast.walk(tree(MODULES[module])):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, f"{module}.{node.name}"


@pytest.mark.parametrize("module", MODULES, ids=named)
def test_every_module_says_in_a_docstring_what_it_is(module: str) -> None:
    path = MODULES[module]
    assert path.name == "__init__.py" or ast.get_docstring(tree(path))


DOORS = {
    "daemon.core.files",
    "daemon.core.locks",  # a lock file is opened to be held; what it says decides nothing
    "daemon.core.heartbeat",  # maps a page of memory, which is no write that could be torn
    "daemon.data.tokens",  # too many small writes for one call each; it writes inside files.stage
}
# What a worker's libraries write, they write inside files.stage; these are its own lines.
OF_A_WORKER = {
    "__main__.py: .write_text",  # /proc: a number for the kernel
    "attempt.py: os.open",  # worker.log, as its own output
    "saving.py: path.open",  # for torch.save, inside files.stage
}
BEHIND_THE_DOOR = [module for module in MODULES if module not in DOORS]


@pytest.mark.parametrize("module", BEHIND_THE_DOOR, ids=named)
def test_the_disk_is_changed_through_one_door(module: str) -> None:
    found = {re.sub(r":\d+", ":", change) for change in changes_of_the_disk(MODULES[module])}
    assert found - (OF_A_WORKER if part(module) == "worker" else set()) == set()


def test_what_a_worker_may_do_by_itself_is_what_it_does() -> None:
    found = {
        re.sub(r":\d+", ":", change)
        for module in BEHIND_THE_DOOR
        if part(module) == "worker"
        for change in changes_of_the_disk(MODULES[module])
    }
    assert found == OF_A_WORKER


@pytest.mark.parametrize(
    "line",
    [
        "path.unlink()",
        "os.rename(a, b)",
        "shutil.move(a, b)",
        "os.write(3, b'')",
        "open(a, 'w')",
        "path.open('x')",
        "path.replace(b)",
        "path.touch()",
        "os.open(a, os.O_WRONLY)",
        "path.write_bytes(b'')",
        "os.symlink(a, b)",
    ],
)
def test_a_change_beside_the_door_is_found(line: str, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(line)
    assert len(list(changes_of_the_disk(tmp_path / "x.py"))) == 1


def changes_of_the_disk(path: Path) -> Iterator[str]:
    """Calls that write, rename or delete by themselves; those of the door are called as files.…"""
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        name, owner = called(node.func)
        # Path.replace takes one argument; str.replace takes two, and dataclasses.replace names.
        harmless = name == "replace" and owner != "os" and (len(node.args) != 1 or bool(node.keywords))
        if owner in ("files", "store") or harmless or "devnull" in ast.unparse(node):
            continue
        if name in CHANGES_THE_DISK | CHANGES_THE_DISK_OF.get(owner, set()) or (name == "open" and writes(node, owner)):
            yield f"{path.name}:{node.lineno} {owner}.{name}"


def called(function: ast.expr) -> tuple[str, str]:
    """The name that is called, and that of the variable or module before its dot."""
    if isinstance(function, ast.Attribute):
        return function.attr, function.value.id if isinstance(function.value, ast.Name) else ""
    return (function.id, "") if isinstance(function, ast.Name) else ("", "")


def writes(call: ast.Call, owner: str) -> bool:
    """Whether an open() asks to write: by its mode, or by the flags of os.open."""
    given = [*call.args, *(k.value for k in call.keywords if k.arg == "mode")]
    if owner == "os":
        return "O_RDONLY" not in ast.unparse(call)
    modes = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str) and len(a.value) <= 3]
    return any(WRITING_MODES & set(mode) for mode in modes)


@pytest.mark.parametrize("module", ["daemon.service.main", "daemon.views", "daemon.wishes", "daemon.data.intake"])
def test_neither_daemon_nor_intake_nor_commands_load_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
