"""A new workspace: folders, model and data first, config.json last, so that a workspace that exists is whole."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.core import config, files
from daemon.core.errors import Refused
from daemon.core.paths import Workspace
from daemon.models import base, estimate, methods


@dataclass(frozen=True)
class Made:
    """What init did."""

    workspace: Workspace
    model: base.Installed
    settings: dict[str, Any]
    estimate: estimate.Estimate
    completed: bool  # config.json was there already, and only what it names was brought


def from_model(workspace: Workspace, source: str, name: str | None, method: estimate.Method | None) -> Made:
    """A workspace for a model of the user's, with settings that fit it and this machine."""
    chosen = name or base.default_name(source)

    def settings(sizes: estimate.Estimate) -> dict[str, Any]:
        return {"model_name": chosen, "base_model": _relative(chosen), **sizes.settings()}

    return _make(workspace, chosen, lambda: base.install(workspace, source, chosen), settings, {}, method)


def from_embedded(workspace: Workspace, settings: dict[str, Any], data: Mapping[str, str]) -> Made:
    """A workspace with the embedded model, these settings, and these texts in files under these paths."""
    name = str(settings["model_name"])
    whole = {"model_name": name, "base_model": _relative(name), **settings}
    return _make(
        workspace,
        name,
        lambda: base.install_embedded(workspace, name),
        lambda _: whole,
        data,
        settings["training_method"],
    )


def _make(
    workspace: Workspace,
    name: str,
    install: Callable[[], base.Installed],
    settings: Callable[[estimate.Estimate], dict[str, Any]],
    data: Mapping[str, str],
    method: estimate.Method | None,
) -> Made:
    methods.check(method or "full")
    there = _settings_there(workspace, name)
    _refuse_files_in_the_way(workspace)
    model = install()
    for folder in workspace.folders():
        files.make_folder(folder)
    sizes = estimate.estimate(model.folder, method)
    for path, text in data.items():
        _write_data(workspace.root / path, text)
    values = there or settings(sizes)
    config.parse(values, str(workspace.config))  # never write what would be refused
    if there is None:
        files.write_json(workspace.config, values)
    return Made(workspace, model, values, sizes, completed=there is not None)


def _settings_there(workspace: Workspace, name: str) -> dict[str, Any] | None:
    """The settings of a workspace that lacks only its model, this one; None where there is no workspace yet."""
    if not workspace.config.exists():
        return None
    settings, _ = config.load(workspace.config, environment={})
    if (workspace.root / settings.base_model / base.SEAL).is_file():
        raise Refused(
            f"{workspace.root} is a workspace already, with the model {settings.model_name}.",
            "name another folder; this one stays as it is",
        )
    if settings.base_model != _relative(name):
        raise Refused(
            f"{workspace.config} names {settings.base_model}, which is missing, and not {_relative(name)}.",
            f"bring that one with --name {Path(settings.base_model).name}, or name another folder",
        )
    values = files.read_json(workspace.config)
    assert values is not None
    return values


def _refuse_files_in_the_way(workspace: Workspace) -> None:
    for folder in workspace.folders():
        for path in (folder, *folder.parents):
            if path.exists() and not path.is_dir():
                raise Refused(f"{path} is in the way: it is not a folder.", "name another folder for the workspace")


def _write_data(path: Path, text: str) -> None:
    # What people have put under this name is theirs.
    if not path.exists():
        files.make_folder(path.parent)
        files.write(path, text)


def _relative(name: str) -> str:
    return f"models/base/{name}"
