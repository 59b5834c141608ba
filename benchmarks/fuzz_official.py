"""The original PyTorch codes on the sequences of benchmarks/fuzz.py, which says what is counted.

    pip install -e '.[official]'
    python benchmarks/fuzz_official.py [NAME ...] [--sequences 146] [--kind sparse] [--json FILE]

Options are those of fimlens in fuzz.py, and otherwise the codes' own. An exception counts as not finite.
"""

import warnings
from collections.abc import Callable
from typing import Any

import fuzz
import jax
import numpy as np
from official import PAIRS, RACS, torch_class

RANK, INTERVAL = fuzz.SIZES["rank"], fuzz.SIZES["update_interval"]
SOAP = {"precondition_frequency": INTERVAL, "weight_decay": 0.0}
GALORE = {"rank": RANK, "update_proj_gap": INTERVAL, "proj_type": "std"}
CODES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "SOAP": (torch_class("pytorch_optimizer", "SOAP"), SOAP),
    "SOAP, short side alone": (torch_class("pytorch_optimizer", "SOAP"), SOAP | {"max_precondition_dim": min(fuzz.SHAPE)}),
    "Muon of PyTorch": (PAIRS["Muon of PyTorch"].theirs, {"weight_decay": 0.0}),
    "Muon of Jordan": (PAIRS["Muon of Jordan"].theirs, {}),
    "GaLore": (PAIRS["GaLore"].theirs, GALORE | {"scale": 0.3}),
    "Fira": (PAIRS["Fira"].theirs, GALORE | {"alpha": 0.3}),
    "Apollo": (PAIRS["Apollo"].theirs, GALORE | {"scale": 1, "proj": "random", "scale_type": "channel"}),
    "Alice": (torch_class(RACS, "Alice"), {"rank": RANK, "leading_basis": fuzz.SIZES["leading"], "update_interval": INTERVAL}),
    "RACS": (torch_class(RACS, "RACS"), {}),
    "Adafactor of PyTorch": (PAIRS["Adafactor of PyTorch"].theirs, {}),
    "Adafactor of Transformers": (PAIRS["Adafactor of Transformers"].theirs, {"relative_step": False}),
    "Shampoo": (torch_class("pytorch_optimizer", "Shampoo"), {"preconditioning_compute_steps": INTERVAL}),
}


def sizes_of_their_updates(name: str, dtype: str) -> Callable[[jax.Array], tuple[np.ndarray, np.ndarray]]:
    """As `fuzz.sizes_of_updates`, of a code and not of its state."""
    import torch

    torch.set_num_threads(1)
    make, options = CODES[name]
    weights = torch.tensor(np.asarray(jax.random.normal(jax.random.key(0), fuzz.SHAPE))).to(getattr(torch, dtype))

    def sizes(sequence: np.ndarray) -> np.ndarray:
        W, largest = torch.nn.Parameter(weights.clone()), np.full(len(sequence), np.nan)
        tx = make([W], lr=1.0, **options)
        for t, G in enumerate(sequence):
            W.grad = torch.tensor(G).to(W.dtype)
            try:
                tx.step()
            except (RuntimeError, ValueError):
                break
            largest[t] = (W.detach() - weights).abs().max()
            W.data.copy_(weights)  # each update is of the same weights, as in fuzz.py
        return np.where(np.isfinite(largest), largest, np.nan)

    def program(G: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        return np.stack([sizes(sequence) for sequence in np.asarray(G, np.float32)]), np.ones(len(G), bool)

    return program


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    fuzz.main(CODES, sizes_of_their_updates, ["float32"], __doc__)
