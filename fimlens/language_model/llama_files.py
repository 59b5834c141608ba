"""How Hugging Face keeps a LLaMA-family decoder: the entries of its config.json, and the names of its tensors."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import PyTree

from fimlens.language_model import llama
from fimlens.language_model.llama import init as init
from fimlens.language_model.weights import Stored

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


def stated(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a config.json, under the same names for every version of transformers."""
    # Transformers 5 has the rotary base and its scaling in one entry, and earlier versions in two.
    rotary = about.get("rope_parameters") or about.get("rope_scaling") or {}
    return {**about, **rotary, "rope_scaling": rotary.get("rope_type", rotary.get("type", "default"))}


def own(about: Mapping[str, Any], stored: dict[str, Stored]) -> dict[str, Stored]:
    """Return the tensors that are the model's own."""
    # Some files hold a copy of a tied embedding.
    return {name: tensor for name, tensor in stored.items() if name != "lm_head.weight" or not about.get("tie_word_embeddings")}


def config(about: Mapping[str, Any], stored: Mapping[str, Stored]) -> llama.Config:
    """Return the sizes. Raises KeyError where one is missing."""
    return llama.Config(
        vocabulary=about["vocab_size"],
        hidden=about["hidden_size"],
        mlp=about["intermediate_size"],
        heads=about["num_attention_heads"],
        layers=about["num_hidden_layers"],
        tied=about.get("tie_word_embeddings", False),
        kv_heads=about.get("num_key_value_heads"),
        head_size=about.get("head_dim"),
        rotary_base=about.get("rope_theta", 10000.0),
        norm_eps=about.get("rms_norm_eps", 1e-6),
    )


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
