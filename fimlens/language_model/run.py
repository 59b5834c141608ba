"""A model that `fimlens pretrain` trained: a checkpoint of its run directory."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import DTypeLike, PyTree
from tokenizers import Tokenizer

from fimlens.language_model import llama, tokenizer

PLAN_FILE, CHECKPOINTS = "plan.json", "checkpoints"


def read(path: Path, tokenizer_file: Path | None, dtype: DTypeLike) -> tuple[llama.Config, PyTree, Tokenizer | None]:
    """Read the last checkpoint of a run, or one checkpoint; arguments and errors are those of `load`."""
    run, step = (path.parents[1], int(path.name)) if path.parent.name == CHECKPOINTS else (path, None)
    plan = json.loads((run / PLAN_FILE).read_text())
    known = llama.CPU_CONFIGS | llama.CONFIGS
    if plan.get("model") not in known:
        raise ValueError(f"load: {run} is a run of the model {plan.get('model')!r}. Known are {', '.join(known)}.")
    config = replace(known[plan["model"]], tied=plan["tied"])
    found = None if tokenizer_file is None else tokenizer.read(tokenizer_file, config.vocabulary)
    weights = _weights((run / CHECKPOINTS).absolute(), step)
    if plan["scan"]:
        layers = weights["layers"]
        weights["layers"] = [jax.tree.map(lambda leaf, k=k: leaf[k], layers) for k in range(config.layers)]
    return config, jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), weights), found


def _weights(directory: Path, step: int | None) -> PyTree:
    """Read the weights of a step, by default of the last one."""
    # Read only: the run may still be going on, and a manager that writes would remove its unfinished checkpoints.
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(directory, item_handlers=ocp.PyTreeCheckpointHandler(), options=options) as manager:
        steps = manager.all_steps()
        if not steps or step not in (None, *steps):
            raise ValueError(f"load: {directory} has the checkpoints {', '.join(map(str, sorted(steps))) or 'of no step'}.")
        step = max(steps) if step is None else step
        # The weights alone: the optimizer's state may be several times as large.
        part = {"weights": manager.item_metadata(step)["weights"]}
        return manager.restore(step, args=ocp.args.PyTreeRestore(part, partial_restore=True))["weights"]
