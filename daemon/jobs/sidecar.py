"""The settings beside a data file, read in the daemon's loop: nothing in them may cost it time or memory."""

import stat
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from daemon.core.config import check_column_map
from daemon.core.errors import BadConfig, BadData
from daemon.core.records import Sidecar
from daemon.data.sources import kind_of_file
from daemon.jobs.store import printable

SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 1 << 12  # the parser takes up to 0.1 s for so much, and it runs in the daemon's loop
MAX_DEPTH = 8  # the parser's time grows with the square of it
MAX_REASON = 300  # characters: a key may be as long as the file


class _Loader(yaml.SafeLoader):
    """YAML without what makes much of little text (aliases, deep nesting), and without keys that stand twice."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read here; write the value itself")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError("they are nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twins = [key for key in keys if isinstance(key, str) and keys.count(key) > 1]
        if twins:
            raise yaml.YAMLError(f"the key {twins[0]} stands twice")
        return super().construct_mapping(node, deep)


def sidecar_paths(path: Path) -> list[Path]:
    """The settings beside a data file, if there are any: x.yaml, beside x.jsonl.gz also x.jsonl.yaml."""
    ending = kind_of_file(path.name) or path.suffix
    stems = dict.fromkeys((path.name[: len(path.name) - len(ending)], path.stem))
    beside = [path.with_name(stem + suffix) for stem in stems if stem for suffix in SUFFIXES]
    return [file for file in beside if _is_one(file)][:1]


def _is_one(path: Path) -> bool:
    """A link counts, to be refused: taken for none, the file would be trained with other settings than meant."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def sidecar_of(path: Path) -> tuple[Sidecar, BadData | None]:
    """The settings beside a data file, and why they are not understood, where that is so."""
    for beside in sidecar_paths(path):
        try:
            return read_sidecar(beside), None
        except BadData as trouble:
            return Sidecar(), trouble
    return Sidecar(), None


def read_sidecar(beside: Path) -> Sidecar:
    """The settings in a file. Raises BadData."""
    name = printable(beside.name)
    try:
        sidecar = Sidecar.model_validate(_load(beside))
        check_column_map(sidecar.column_map or {}, name)
        sidecar.model_dump_json()  # half a surrogate pair cannot be stored
    except BadConfig as error:
        raise BadData(error.message, f"{error.remedy}; drop the file again beside a corrected {name}") from None
    except Exception as error:  # whatever YAML's constructors raise for a date or number that is none
        known = ", ".join(Sidecar.model_fields)
        raise BadData(
            f"the settings beside the file, {name}, are not understood: {_first(error)}",
            f"drop the file again beside a corrected {name} (known keys: {known})",
        ) from None
    return sidecar


def _load(beside: Path) -> Any:
    """What the YAML says. Raises ValueError, and nearly anything else."""
    if beside.is_symlink():
        raise ValueError("they are a link; put the file itself there")
    with beside.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"they are longer than {MAX_BYTES:,} bytes")
    value = yaml.load(data.decode("utf-8"), _Loader)
    return {} if value is None else value


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
    elif isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        said = f"line {error.problem_mark.line + 1}: {error.problem}"
    elif isinstance(error, yaml.YAMLError | ValueError):
        said = str(error).partition("\n")[0]
    else:  # such as the KeyError of a truth value that is none
        said = "a value is not of the kind that its form or its mark (!!…) says"
    return printable(said)[:MAX_REASON]
