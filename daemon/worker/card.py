"""The model card in a checkpoint: README.md, as hubs and people look for it; a pure function of the manifest."""

from daemon.core.attempts import Assignment, Manifest, Trained
from daemon.core.config import Settings

NAME = "README.md"


def card(manifest: Manifest, assignment: Assignment, settings: Settings) -> str:
    """What the weights are and what has made them. What was measured of them stands in the run's folder."""
    adapter = settings.adapter
    what = f"{'a LoRA adapter upon' if adapter else 'a full fine-tune of'} {settings.model_name}"
    return "\n".join(
        [
            "---",
            f"library_name: {'peft' if adapter else 'transformers'}",
            "pipeline_tag: text-generation",
            "tags: [training-daemon]",
            "---",
            "",
            f"# {settings.model_name}, step {manifest.step}",
            "",
            f"These weights are {what} after {manifest.step:,} updates."
            + ("" if manifest.final else f" The file {assignment.file} is not trained to its end in them."),
            "",
            "| trained on | rows | epochs | updates | sha256 |",
            "| --- | --- | --- | --- | --- |",
            *(_row(entry) for entry in manifest.lineage),
            "",
            f"- base model: `{assignment.base_model}`, sha256 `{manifest.base_model}`",
            f"- method: {_method(settings)}",
            f"- learning rate: {settings.rate:g}, {settings.lr_scheduler_type}; {settings.update_rows} rows an update",
            f"- grown from: {manifest.parent.checkpoint if manifest.parent else 'the base model'}",
            f"- what was measured: `runs/{manifest.job}/results.yaml` of the workspace, and `report.md` beside it",
            f"- made with: {', '.join(f'{name} {version}' for name, version in sorted(manifest.versions.items()))}",
            "",
        ]
    )


def _row(entry: Trained) -> str:
    file = entry.file.replace("|", "\\|")
    return f"| {file} | {entry.rows:,} | {entry.epochs} | {entry.steps:,} | `{entry.sha256[:16]}…` |"


def _method(settings: Settings) -> str:
    if not settings.adapter:
        return "full fine-tuning"
    name = "QLoRA (base in four bits)" if settings.training_method == "qlora" else "LoRA"
    return f"{name}, r {settings.lora.r}, alpha {settings.lora.alpha}, dropout {settings.lora.dropout:g}"
