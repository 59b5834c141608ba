"""A model that `fimlens finetune` trained: its plan and the weights of a checkpoint."""

import json
from os import PathLike
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from fimlens.finetune.plan import Finetuning
from fimlens.finetune.task import Task
from fimlens.language_model import llama
from fimlens.language_model.pretrained import PLAN_FILE, run_of
from fimlens.language_model.run import read_weights


def read(path: str | PathLike[str]) -> tuple[Finetuning, PyTree]:
    """Read the last checkpoint of a fine-tuning, or the given one, to ask the lens about it or to predict.

    Args:
        path: the directory of the run, or one of its checkpoints, as in RUN/checkpoints/400.

    Returns:
        The plan, and the weights, which `plan.loss` and `plan.outputs` take. Every layer's parameters are leaves of their own.

    Raises:
        ValueError: there is no such run or checkpoint.
    """
    path = Path(path)
    try:
        about = json.loads((run_of(path) / PLAN_FILE).read_text())
        task = {name: tuple(value) if isinstance(value, list) else value for name, value in about["task"].items()}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"finetune: {path} is no run of fimlens finetune ({error}). Give the directory of one.") from error
    fields = {name: about[name] for name in about if name not in ("task", "text")}
    plan, weights = Finetuning(**fields | {"task": Task(**task), "scan": False}), read_weights(path)
    stacked = about["scan"] and "layers" in weights
    return plan, jax.tree.map(jnp.asarray, llama.unstack_layers(weights) if stacked else weights)
