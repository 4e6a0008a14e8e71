"""TrainingArguments of transformers: their names, what they are called elsewhere, and those that the daemon decides."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

# Usual names of other trainers and of older releases, and ours.
ALIASES = {
    "batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "cutoff_len": "max_length",
    "sequence_len": "max_length",
    "max_seq_length": "max_length",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "model_name_or_path": "base_model",
    "excess_length_strategy": "excess_length",
    "gradient_checkpointing": "activation_checkpointing",
    "evaluation_strategy": "eval_strategy",
    "group_by_length": "train_sampling_strategy",
    "no_cuda": "use_cpu",
}

# TrainingArguments that the daemon decides itself, each with the reason it gives.
OWNED = {
    "max_steps": "the number of updates follows from the rows, so that each is trained exactly as often as asked",
    "output_dir": "checkpoints live in current_model/, where they are verified",
    "resume_from_checkpoint": "the daemon resumes from the newest verified checkpoint by itself",
    "save_strategy": "checkpoints are transactions of the daemon; see save_steps and save_min_seconds",
    "save_only_model": "without the optimizer a training cannot be continued exactly",
    "save_on_each_node": "checkpoints are transactions of the daemon",
    "data_seed": "the order of the rows is derived from seed and the job",
    "ignore_data_skip": "the order of the rows is one stream with an offset; nothing is skipped or repeated",
    "train_sampling_strategy": "the order of the rows is one stream with an offset",
    "remove_unused_columns": "a batch holds just what the model needs",
    "dataloader_pin_memory": "batches come from a memory-mapped cache in the training process",
    "dataloader_num_workers": "batches come from a memory-mapped cache in the training process",
    "dataloader_drop_last": "dropping the last batch would leave rows untrained",
    "load_best_model_at_end": "the gate decides which model is accepted",
    "auto_find_batch_size": "it would train rows twice; out of memory is answered by the daemon",
    "eval_strategy": "eval_steps says when to evaluate",
    "eval_on_start": "the accepted model is measured before the first step",
    "logging_strategy": "logging_steps says when to log",
    "disable_tqdm": "progress stands in the status",
    "logging_nan_inf_filter": "it shows a NaN loss as 0.0",
    "enable_jit_checkpoint": "its checkpoints do not continue exactly; SIGTERM saves at a step's end instead",
}


@cache
def training_argument_names() -> frozenset[str]:
    """The fields of TrainingArguments, read from the source of transformers: importing it takes seconds."""
    package = importlib.util.find_spec("transformers")
    if package is None or not package.submodule_search_locations:
        return frozenset()
    source = Path(package.submodule_search_locations[0]) / "training_args.py"
    tree = ast.parse(source.read_text())
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "TrainingArguments")
    return frozenset(n.target.id for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name))
