"""The base model: brought into the workspace once, sealed by a hash of every file, never changed again."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from daemon.core import files
from daemon.core.attempts import FileSeal
from daemon.core.errors import BadData, DaemonError, NotFound, Refused, UsageError
from daemon.core.paths import Workspace
from daemon.core.records import Record
from daemon.models import weights

SEAL = "seal.json"
TOKENIZER = "tokenizer.json"
EMBEDDED = "tiny-qwen3"
# Any of these can run code when it is opened, or is of no use for training.
LEFT_OUT = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".py", ".gguf", ".onnx", ".h5", ".msgpack", ".ot")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Seal(Record):
    """`seal.json` beside the model's files: what they are, and one hash for all of them."""

    sha256: str
    source: str  # where the model came from, as it was named
    files: dict[str, FileSeal]


@dataclass(frozen=True)
class Installed:
    """A base model that lies in the workspace."""

    name: str
    folder: Path
    sha256: str
    bytes: int
    already_there: bool = False


def default_name(source: str) -> str:
    """The last part of a folder or hub id, as a safe name for a folder."""
    return re.sub(r"[^\w.-]+", "_", Path(source).expanduser().resolve().name).strip("._") or "model"


def install(workspace: Workspace, source: str, name: str | None = None) -> Installed:
    """Copy a local folder or download a hub id into models/base/<name>; the source is only read.

    Raises NotFound or BadData, with nothing left that would block another try.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        check(folder, source)
        return _bring(workspace, str(folder.resolve()), name or default_name(source), lambda to: _copy(folder, to))
    if folder.exists() or not _HUB_ID.fullmatch(source):
        state = "is no folder" if folder.exists() else "does not exist"
        raise NotFound(f"The model {source} {state}.", "name a folder with config.json, or a hub id such as ORG/NAME")
    return _bring(workspace, source, name or default_name(source), lambda to: _download(source, to))


def install_embedded(workspace: Workspace, name: str = EMBEDDED) -> Installed:
    """Make the tiny model of the demo, in a process of its own: it needs torch, and this one stays without."""
    return _bring(workspace, "embedded", name, _make_embedded)


def _bring(workspace: Workspace, source: str, name: str, fill: Callable[[Path], None]) -> Installed:
    if name != default_name(name):
        raise UsageError(f"{name} cannot name a model's folder.", f"for example: --name {default_name(name)}")
    target = workspace.base_models / name
    if target.exists():
        return _reuse(target, source)
    files.make_folder(workspace.base_models)
    try:
        with files.stage(target) as folder:
            fill(folder)
            check(folder, source)
            sealed = _write_seal(folder, source)
    except BaseException:
        files.remove(target.with_name(f"{files.STAGE_PREFIX}{name}"))
        raise
    return _describe(target, sealed)


def _reuse(target: Path, source: str) -> Installed:
    """An earlier try got as far as the model and no further: it is taken as it is, when it is the same and whole."""
    sealed = _read(target)
    if sealed.source != source:
        raise Refused(
            f"{target} holds another model, from {sealed.source}.", "choose another name for this one with --name"
        )
    verify(target)
    return _describe(target, sealed, already_there=True)


def _describe(target: Path, sealed: Seal, already_there: bool = False) -> Installed:
    total = sum(f.bytes for f in sealed.files.values())
    return Installed(target.name, target, sealed.sha256, total, already_there)


# ---- the seal ----


def seal(folder: Path) -> str:
    """The one hash over all files of a base model, read from its seal."""
    return _read(folder).sha256


def verify(folder: Path) -> None:
    """Hash every file again; BadData names the first that is not what it was."""
    for name, expected in _read(folder).files.items():
        path = folder / name
        if not path.is_file():
            raise BadData(f"{path} is missing.", _BRING_AGAIN)
        if path.stat().st_size != expected.bytes or files.hash_file(path) != expected.sha256:
            raise BadData(f"{path} has changed since it was brought here.", _BRING_AGAIN)


_BRING_AGAIN = "move this folder away and bring the model again with: training_daemon init"


def _read(folder: Path) -> Seal:
    try:
        sealed = Seal.load(folder / SEAL)
    except ValueError:
        raise BadData(f"{folder / SEAL} is damaged.", _BRING_AGAIN) from None
    if sealed is None:
        raise NotFound(f"There is no base model in {folder}.", "bring one with: training_daemon init DIR --model PATH")
    return sealed


def _write_seal(folder: Path, source: str) -> Seal:
    sealed = {f.name: FileSeal(bytes=f.stat().st_size, sha256=files.hash_file(f)) for f in _plain_files(folder)}
    lines = "".join(f"{name}\0{entry.sha256}\n" for name, entry in sealed.items())
    record = Seal(sha256=hashlib.sha256(lines.encode()).hexdigest(), source=source, files=sealed)
    record.save(folder / SEAL)
    return record


# ---- what a model folder must have ----


def check(folder: Path, source: str) -> None:
    """Refuse, with the reason, a folder that is no model that can be trained; `source` is its name in messages."""
    if not (folder / "config.json").is_file():
        raise BadData(f"{source} is no model: it has no config.json.", "name the folder that save_pretrained wrote")
    if not list(folder.glob("*.safetensors")):
        _refuse_without_weights(folder, source)
    if not (folder / TOKENIZER).is_file():
        raise BadData(
            f"{source} has no {TOKENIZER}.",
            "write one with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    weights.check(folder)


def _refuse_without_weights(folder: Path, source: str) -> None:
    if list(folder.glob("*model*.bin")) or list(folder.glob("consolidated*.pth")):
        raise BadData(
            f"{source} has its weights as .bin or .pth only: such files are pickles and can run code when opened.",
            "if you trust them, convert with transformers: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER), then name OTHER",
        )
    raise BadData(f"{source} has no weights: no *.safetensors.", "name the folder that save_pretrained wrote")


def _plain_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".") and f.name != SEAL)


# ---- the three sources ----


def _copy(source: Path, target: Path) -> None:
    for path in _plain_files(source):
        if path.suffix not in LEFT_OUT:
            files.copy(path, target / path.name)


def _download(hub_id: str, target: Path) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download  # its import costs what other commands need not pay
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        snapshot_download(
            hub_id, local_dir=target, allow_patterns=["*.json", "*.jinja", "*.safetensors", "*.txt", "*.model"]
        )
    except GatedRepoError:
        raise NotFound(f"The hub gives {hub_id} to registered users only.", "log in with: hf auth login") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise NotFound(
            f"There is no folder {hub_id} here and no model of that name on the hub.", "check the spelling"
        ) from None
    except (OSError, HfHubHTTPError) as error:
        raise NotFound(
            f"There is no folder {hub_id} here, and the hub could not be asked: {_first_line(error)}.",
            "check the path; for a hub id, check the network and try again",
        ) from None
    for inner in target.iterdir():
        if inner.is_dir():  # notes of the download, and variants for other programs
            files.remove(inner)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _make_embedded(target: Path) -> None:
    command = [sys.executable, "-P", "-m", "daemon.worker.embedded", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DaemonError(f"The embedded model could not be made: {last}.", "training_daemon doctor says what is amiss")
