"""How Hugging Face keeps BERT and RoBERTa: the entries of a config.json, and the names of the tensors."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import PyTree

from fimlens.language_model import encoder
from fimlens.language_model.encoder import init as init
from fimlens.language_model.weights import Stored

ARCHITECTURES = ("bert", "roberta")
# What the plain model does. A config.json that says otherwise would give other states.
IMPLEMENTED = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "quantization_config": None,
}


def stated(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entries of a config.json, which are the same in every version of transformers."""
    return about


def own(about: Mapping[str, Any], stored: dict[str, Stored]) -> dict[str, Stored]:
    """Return the encoder's tensors under the names of transformers' BertModel, without the heads of other tasks."""
    prefix = f"{about['model_type']}."
    if any(name.startswith(prefix) for name in stored):  # the file is of an encoder with a head, and names both
        stored = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    # The first BERT files are translated from TensorFlow, whose norms have a gamma and a beta.
    endings = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    for old, new in endings.items():
        stored = {name.replace(old, new): tensor for name, tensor in stored.items()}
    return stored


def config(about: Mapping[str, Any], stored: Mapping[str, Stored]) -> encoder.Config:
    """Return the sizes. Raises KeyError where one is missing."""
    return encoder.Config(
        vocabulary=about["vocab_size"],
        hidden=about["hidden_size"],
        mlp=about["intermediate_size"],
        heads=about["num_attention_heads"],
        layers=about["num_hidden_layers"],
        positions=about["max_position_embeddings"],
        types=about["type_vocab_size"],
        first_position=about.get("pad_token_id", 1) + 1 if about["model_type"] == "roberta" else 0,
        pooler="pooler.dense.weight" in stored,
        norm_eps=about.get("layer_norm_eps", 1e-12),
    )


def names(config: encoder.Config) -> PyTree:
    """Return the name in a Hugging Face file of each parameter."""

    def both(name: str) -> PyTree:
        return {"weight": f"{name}.weight", "bias": f"{name}.bias"}

    def layer(k: int) -> PyTree:
        at = f"encoder.layer.{k}"
        inputs = {name: both(f"{at}.attention.self.{name}") for name in ("query", "key", "value")}
        return {
            "attention": inputs | {"output": both(f"{at}.attention.output.dense")},
            "attention_norm": both(f"{at}.attention.output.LayerNorm"),
            "mlp": {"up": both(f"{at}.intermediate.dense"), "down": both(f"{at}.output.dense")},
            "mlp_norm": both(f"{at}.output.LayerNorm"),
        }

    tables = {"token": "word", "position": "position", "type": "token_type"}
    embedding = {name: f"embeddings.{long}_embeddings.weight" for name, long in tables.items()}
    every = {
        "embedding": embedding | {"norm": both("embeddings.LayerNorm")},
        "layers": [layer(k) for k in range(config.layers)],
    }
    return every | {"pooler": both("pooler.dense")} if config.pooler else every
