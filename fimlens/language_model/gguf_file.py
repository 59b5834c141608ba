"""A model in one GGUF file, the format of llama.cpp: metadata, tokenizer, and weights that may be quantised."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from jaxtyping import DTypeLike, Float, PyTree
from tokenizers import Tokenizer

from fimlens.language_model import llama, tokenizer
from fimlens.language_model.weights import Stored, assemble

# The metadata of an architecture "llama" that `_config` reads, and that which changes no logits.
READ = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
        "attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length", "rope.freq_base",
        "rope.dimension_count", "vocab_size", "context_length", "tensor_data_layout")  # fmt: skip


def read(path: Path, tokenizer_file: Path | None, dtype: DTypeLike) -> tuple[llama.Config, PyTree, Tokenizer]:
    """Read a file; arguments and errors are those of `load`."""
    try:
        file = gguf.GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(f"load: {path} cannot be read ({error}).") from error
    metadata = {name: field.contents() for name, field in file.fields.items()}
    stored = {each.name: Stored(tuple(map(int, each.shape[::-1])), partial(_values, each)) for each in file.tensors}
    config = _config(path, metadata, stored)
    found = (
        tokenizer.from_gguf(path, metadata, config.vocabulary)
        if tokenizer_file is None
        else tokenizer.read(tokenizer_file, config.vocabulary)
    )
    for name, (shape, values) in stored.items():
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            stored[name] = Stored(shape, partial(_halves, values, config.head_width))
    return config, assemble(path, config, llama.init, names(config), stored, dtype), found


def _config(path: Path, metadata: Mapping[str, Any], stored: Mapping[str, Stored]) -> llama.Config:
    """Return the sizes that the metadata state; refuse what `llama` does not compute."""
    if metadata.get("general.architecture") != "llama":
        raise ValueError(f"load: {path} is of the architecture {metadata.get('general.architecture')!r}. Supported is llama.")
    about = {name.removeprefix("llama."): value for name, value in metadata.items() if name.startswith("llama.")}
    unknown = {name: value for name, value in about.items() if name not in READ and value not in (0, "none")}
    if "rope_freqs.weight" in stored:
        unknown["rope_freqs.weight"] = "a tensor"
    if unknown:
        some = ", ".join(f"{name} = {value!r}" for name, value in unknown.items())
        raise ValueError(f"load: {path} has {some}, which is not implemented.")
    try:
        config = llama.Config(
            vocabulary=stored["token_embd.weight"].shape[0],
            hidden=about["embedding_length"],
            mlp=about["feed_forward_length"],
            heads=about["attention.head_count"],
            layers=about["block_count"],
            tied="output.weight" not in stored,
            kv_heads=about.get("attention.head_count_kv"),
            head_size=about.get("attention.key_length"),
            rotary_base=about.get("rope.freq_base", 10000.0),
            norm_eps=about["attention.layer_norm_rms_epsilon"],
        )
    except KeyError as error:
        raise ValueError(f"load: {path} has no {error}.") from error
    for name in ("attention.value_length", "rope.dimension_count"):
        if about.get(name, config.head_width) != config.head_width:
            raise ValueError(
                f"load: {path} has {name} = {about[name]}, and only that of a head, {config.head_width}, is implemented."
            )
    return config


def names(config: llama.Config) -> PyTree:
    """Return the name in a GGUF file of each parameter."""

    def layer(k: int) -> PyTree:
        attention = {name: f"blk.{k}.attn_{short}.weight" for name, short in (("query", "q"), ("key", "k"), ("value", "v"))}
        return {
            "attention_norm": f"blk.{k}.attn_norm.weight",
            "attention": attention | {"output": f"blk.{k}.attn_output.weight"},
            "mlp_norm": f"blk.{k}.ffn_norm.weight",
            "mlp": {name: f"blk.{k}.ffn_{name}.weight" for name in ("gate", "up", "down")},
        }

    layers = [layer(k) for k in range(config.layers)]
    every = {"embedding": "token_embd.weight", "layers": layers, "norm": "output_norm.weight"}
    return every if config.tied else every | {"head": "output.weight"}


def _values(tensor: gguf.ReaderTensor) -> Float[np.ndarray, "..."]:
    return gguf.dequantize(tensor.data, tensor.tensor_type)


def _halves(values: Callable[[], np.ndarray], width: int) -> Float[np.ndarray, "outputs inputs"]:
    """Return the rows of each head with the first number of every rotary pair before all second ones.

    GGUF has the two numbers of a pair side by side, and `llama.rotary` has them half a head apart.
    """
    rows = values()
    return rows.reshape(-1, width // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
