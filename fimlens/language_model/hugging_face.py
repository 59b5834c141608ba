"""A model in a Hugging Face directory: config.json, *.safetensors and tokenizer.json. Nothing is unpickled."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import DTypeLike, PyTree
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from fimlens.language_model import llama, tokenizer
from fimlens.language_model.weights import Stored, assemble

ARCHITECTURES = ("llama", "mistral")
# What the plain model does. A config.json that says otherwise would give other logits.
IMPLEMENTED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "rope_scaling": "default",
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
FLOATS = ("F64", "F32", "F16", "BF16")


def read(path: Path, tokenizer_file: Path | None, dtype: DTypeLike) -> tuple[llama.Config, PyTree, Tokenizer]:
    """Read a directory; arguments and errors are those of `load`."""
    config = read_config(path / "config.json")
    found = tokenizer.read(tokenizer_file or path / "tokenizer.json", config.vocabulary)
    stored = dict(_tensors(path))
    if config.tied:
        stored.pop("lm_head.weight", None)  # a copy of the embedding, in some files
    return config, assemble(path, config, names(config), stored, dtype), found


def read_config(path: Path) -> llama.Config:
    """Return the sizes that a config.json states.

    Raises:
        ValueError: it cannot be read, or is of a model that `llama` does not compute.
    """
    about = _read_json(path)
    if about.get("model_type") not in ARCHITECTURES:
        raise ValueError(
            f"load: {path} is of the architecture {about.get('model_type')!r}. Supported are {' and '.join(ARCHITECTURES)}."
        )
    # Transformers 5 has the rotary base and its scaling in one entry, and earlier versions in two.
    rotary = about.get("rope_parameters") or about.get("rope_scaling") or {}
    stated = about | rotary | {"rope_scaling": rotary.get("rope_type", rotary.get("type", "default"))}
    for name, value in IMPLEMENTED.items():
        if stated.get(name, value) != value:
            raise ValueError(f"load: {path} has {name} = {stated[name]!r}, and only {value!r} is implemented.")
    try:
        return llama.Config(
            vocabulary=about["vocab_size"],
            hidden=about["hidden_size"],
            mlp=about["intermediate_size"],
            heads=about["num_attention_heads"],
            layers=about["num_hidden_layers"],
            tied=about.get("tie_word_embeddings", False),
            kv_heads=about.get("num_key_value_heads"),
            head_size=about.get("head_dim"),
            rotary_base=stated.get("rope_theta", 10000.0),
            norm_eps=about.get("rms_norm_eps", 1e-6),
        )
    except KeyError as error:
        raise ValueError(f"load: {path} has no {error}.") from error


def names(config: llama.Config) -> PyTree:
    """Return the name in a Hugging Face file of each parameter."""

    def layer(k: int) -> PyTree:
        attention, mlp = f"model.layers.{k}.self_attn", f"model.layers.{k}.mlp"
        return {
            "attention_norm": f"model.layers.{k}.input_layernorm.weight",
            "attention": {
                "query": f"{attention}.q_proj.weight",
                "key": f"{attention}.k_proj.weight",
                "value": f"{attention}.v_proj.weight",
                "output": f"{attention}.o_proj.weight",
            },
            "mlp_norm": f"model.layers.{k}.post_attention_layernorm.weight",
            "mlp": {name: f"{mlp}.{name}_proj.weight" for name in ("gate", "up", "down")},
        }

    layers = [layer(k) for k in range(config.layers)]
    every = {"embedding": "model.embed_tokens.weight", "layers": layers, "norm": "model.norm.weight"}
    return every if config.tied else every | {"head": "lm_head.weight"}


def _tensors(path: Path) -> Iterator[tuple[str, Stored]]:
    """Yield the tensors of all shards by name, none of them read yet."""
    index = path / "model.safetensors.index.json"
    files = sorted(set(_read_json(index).get("weight_map", {}).values())) if index.is_file() else ["model.safetensors"]
    for file in files:
        if not (path / file).is_file():
            raise ValueError(
                f"load: there is no {path / file}. Other formats, such as .bin and .pt, are not read, since unpickling runs "
                "code; save_pretrained(..., safe_serialization=True) of transformers writes safetensors."
            )
        try:
            tensors = safe_open(path / file, framework="np")
        except SafetensorError as error:
            raise ValueError(f"load: {path / file} cannot be read ({error}).") from error
        for name in tensors.keys():  # noqa: SIM118  (it cannot be iterated itself)
            if name.endswith("rotary_emb.inv_freq"):
                continue  # the rotary angles, which early versions of transformers stored and later ones compute
            about = tensors.get_slice(name)
            if about.get_dtype() not in FLOATS:
                raise ValueError(f"load: {name} in {path / file} is {about.get_dtype()}; weights are {', '.join(FLOATS)}.")
            yield name, Stored(tuple(about.get_shape()), partial(tensors.get_tensor, name))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__} in place of an object")
    except (OSError, ValueError) as error:
        raise ValueError(f"load: {path} cannot be read ({error}).") from error
    return found
