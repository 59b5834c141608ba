"""Train a byte-level language model in Flax NNX with Alice. The only call of fimlens is `fl.alice`.

    python plain_flax.py                     # on the sources of Python's standard library
    python plain_flax.py --text book.txt     # on your own text
    python plain_flax.py --optimizer adam    # with optax.adamw, from the same weights and on the same batches

The held-out loss falls from 6.09 to about 2.17 nats per byte in 300 steps; with AdamW it falls to about 2.31. On two cores that
were busy with other work, Alice took 269 s and AdamW 175 s, compilation included.
"""

import argparse
import sysconfig
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fimlens as fl

CONTEXT, BATCH, WIDTH, HEADS, LAYERS = 64, 16, 64, 4, 2


def optimizer(name: str, steps: int) -> optax.GradientTransformation:
    """Return Alice or Adam, with a warm-up over a tenth of the steps and a cosine decay to a tenth of the peak rate."""
    peak = {"alice": 0.08, "adam": 0.01}[name]
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps, peak / 10)
    if name == "adam":
        return optax.adamw(rate)
    # Alice is made for the matrices of layers. fl.alice gives it these, and gives Adam all other leaves: vectors, and leaves
    # whose names say embedding, norm or head. So names matter: if "head" were called "last", Alice would get it too. `route`
    # overrides the names. A kernel (inputs, outputs) is a matrix. So is a kernel of nnx.MultiHeadAttention or nnx.Conv; others
    # with more axes need axes=fl.Axes(...).
    return fl.alice(
        rate,  # for Alice; Adam has 0.3 times this rate, unless you give adam_learning_rate
        rank=WIDTH // 4,  # directions of a matrix's shorter side in which Alice stores moments
        leading=WIDTH // 12,  # of these, the directions that stay at a refresh; new ones replace the others
        update_interval=20,  # steps between refreshes; 200 in the paper, whose runs are longer
    )


class Layer(nnx.Module):
    """A layer: causal attention, then an MLP, each added to its input."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        norm, linear = partial(nnx.RMSNorm, WIDTH, rngs=rngs), partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.query, self.key, self.value, self.output = (linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = linear(WIDTH, 4 * WIDTH), linear(4 * WIDTH, WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        normed = self.attention_norm(x)
        heads = (project(normed).reshape(*x.shape[:2], HEADS, -1) for project in (self.query, self.key, self.value))
        x += self.output(jax.nn.dot_product_attention(*heads, is_causal=True).reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.mlp_norm(x))))


class LanguageModel(nnx.Module):
    """A language model that computes the scores of each next byte."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.byte_embedding = nnx.Embed(256, WIDTH, rngs=rngs)
        self.position_embedding = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.layers = nnx.List(Layer(rngs) for _ in range(LAYERS))
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 256, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.byte_embedding(tokens) + self.position_embedding(jnp.arange(CONTEXT))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def loss(model: LanguageModel, windows: jax.Array) -> jax.Array:
    """Return the mean cross-entropy of a byte given those before it in its window, in nats."""
    logits = model(windows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()


@partial(nnx.jit, donate_argnums=(0, 1))  # donated: the new parameters and state take the memory of the old
def step(model: LanguageModel, optimizer: nnx.Optimizer, windows: jax.Array) -> None:
    optimizer.update(model, nnx.grad(loss)(model, windows))


def draw(text: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Draw random windows of a text. Each has one byte more than the context, since the last byte is only predicted."""
    starts = random.integers(len(text) - CONTEXT, size=(size, 1))
    return text[starts + np.arange(CONTEXT + 1)].astype(np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--optimizer", choices=["alice", "adam"], default="alice")
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    files = [args.text] if args.text else sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)
    train, held_out = np.split(text, [len(text) * 9 // 10])
    if len(held_out) <= CONTEXT:
        parser.error(f"--text: {len(text)} bytes are too few. Give {10 * CONTEXT + 10} or more.")

    model, held_out_loss = LanguageModel(nnx.Rngs(0)), nnx.jit(loss)
    tx = nnx.Optimizer(model, optimizer(args.optimizer, args.steps), wrt=nnx.Param)
    random, start = np.random.default_rng(0), time.perf_counter()
    unseen = draw(held_out, 256, random)
    for t in range(args.steps + 1):
        if t > 0:
            step(model, tx, draw(train, BATCH, random))
        if t % max(args.steps // 6, 1) == 0:
            print(f"step {t:4}  held-out loss {held_out_loss(model, unseen):.3f}  {time.perf_counter() - start:4.0f} s")


if __name__ == "__main__":
    main()
