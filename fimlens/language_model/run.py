"""A model that `fimlens pretrain` trained: a checkpoint of its run directory."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import DTypeLike, PyTree

from fimlens.language_model import llama
from fimlens.language_model.pretrained import CHECKPOINTS, PLAN_FILE, run_of


def read(path: Path, tokenizer_file: Path | None, dtype: DTypeLike) -> tuple[llama.Config, PyTree, Any]:
    """Read the last checkpoint of a run, or the given one; arguments and errors are those of `load`."""
    run = run_of(path)
    plan = json.loads((run / PLAN_FILE).read_text())
    if "task" in plan:
        raise ValueError(f"load: {run} is a run of fimlens finetune. fimlens.finetune.run.read reads it.")
    known = llama.CPU_CONFIGS | llama.CONFIGS
    if plan.get("model") not in known:
        raise ValueError(f"load: {run} is a run of the model {plan.get('model')!r}. Known are {', '.join(known)}.")
    config = replace(known[plan["model"]], tied=plan["tied"])
    found = None
    if tokenizer_file is not None:
        from fimlens.language_model import tokenizer  # a model of bytes needs no such package

        found = tokenizer.read(tokenizer_file, config.vocabulary)
    weights = read_weights(path)
    weights = llama.unstack_layers(weights) if plan["scan"] else weights
    return config, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), weights), found


def read_weights(path: Path) -> PyTree:
    """Read the weights of the last checkpoint of a run, or of the given one."""
    run = run_of(path)
    directory, name = (run / CHECKPOINTS).absolute(), None if run == path else path.name
    # Read only: the run may still be going on, and a manager that writes would remove its unfinished checkpoints.
    options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
    with ocp.CheckpointManager(directory, item_handlers=ocp.PyTreeCheckpointHandler(), options=options) as manager:
        steps = sorted(manager.all_steps())
        chosen = steps[-1:] if name is None else [step for step in steps if str(step) == name]
        if not chosen:
            known = ", ".join(map(str, steps)) or "none"
            raise ValueError(f"load: {directory} has no checkpoint {name or 'yet'}. It has {known}.")
        # The weights alone: the optimizer's state may be several times as large.
        part = {"weights": manager.item_metadata(chosen[0])["weights"]}
        to_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), part)
        restored = manager.restore(chosen[0], args=ocp.args.PyTreeRestore(part, to_numpy, partial_restore=True))
        return restored["weights"]
