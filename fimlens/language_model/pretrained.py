"""Load a language model as people have it: a Hugging Face directory, a GGUF file, or a run of `fimlens pretrain`."""

from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import DTypeLike, PyTree

from fimlens.language_model import encoder, llama

PLAN_FILE, CHECKPOINTS = "plan.json", "checkpoints"  # in the directory of a training


class Pretrained(NamedTuple):
    """A trained model: what `load` returns.

    Attributes:
        config: the sizes, for the functions of `fimlens.language_model.llama`, or of `fimlens.language_model.encoder`.
        params: the parameters, named as `init` names them there: layers/0/attention/query etc., each (inputs, outputs).
        tokenizer: a `tokenizers.Tokenizer`, or None for a model of bytes.
    """

    config: llama.Config | encoder.Config
    params: PyTree
    tokenizer: Any


def load(
    path: str | PathLike[str], *, tokenizer: str | PathLike[str] | None = None, dtype: DTypeLike = jnp.float32
) -> Pretrained:
    """Load a LLaMA-family model, BERT or RoBERTa, to ask questions about its gradients or to fine-tune it.

    It needs pip install 'fimlens[models]'.

    Nothing is unpickled and nothing is fetched. A model that would compute something else here is refused, with the reason.

    Args:
        path: a Hugging Face directory (config.json, *.safetensors, tokenizer.json); a .gguf file, whose weights may be
            quantised; a directory of `fimlens pretrain`; or one of its checkpoints, as in RUN/checkpoints/400.
        tokenizer: a tokenizer.json to take instead of the model's own.
        dtype: dtype of the parameters.

    Raises:
        ValueError: there is no model at `path`, a part of it is missing or cannot be read, or its architecture or a feature is
            not implemented. Also: a tensor is missing, left over or of another shape, or the tokenizer has tokens that the
            model does not.
        ImportError: a package is missing that reads this kind of file.

    Examples:
        >>> load("smollm2.bin")
        Traceback (most recent call last):
        ValueError: load: smollm2.bin is no .gguf file, and no directory with a config.json or a plan.json.
    """
    path = Path(path)
    reader, extra = _reader(path)
    try:
        read = import_module(f"fimlens.language_model.{reader}").read
    except ImportError as error:
        raise ImportError(f"load: {error}. {path} needs pip install 'fimlens[{extra}]'.") from error
    return Pretrained(*read(path, None if tokenizer is None else Path(tokenizer), dtype))


def _reader(path: Path) -> tuple[str, str]:
    """Return the module that reads a path, and the extra that it needs."""
    if path.suffix == ".gguf" and path.is_file():
        return "gguf_file", "models"
    if (path / "config.json").is_file():
        return "hugging_face", "models"
    if (run_of(path) / PLAN_FILE).is_file():
        return "run", "train"
    raise ValueError(f"load: {path} is no .gguf file, and no directory with a config.json or a {PLAN_FILE}.")


def run_of(path: Path) -> Path:
    """Return the directory of a run, from that directory or from one of its checkpoints."""
    return path.parents[1] if path.parent.name == CHECKPOINTS else path
