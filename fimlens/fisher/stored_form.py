"""The Fisher of samples that are too many for memory: kept in a file, and read a block at a time wherever they are summed."""

import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from fimlens.fisher.fisher import Linear
from fimlens.fisher.limits import DENSE_BYTES, require_real_array
from fimlens.fisher.sample_form import SampleFisher
from fimlens.fisher.samples import Samples, mean_over
from fimlens.linalg.decompositions import eigh

COPIES = 6  # arrays of the size of a block that a sum has in memory at once
SMALLEST, LARGEST = 1e-18, 1e15  # gradients whose squares, and sums of them, are numbers of float32


@dataclass(frozen=True, eq=False)
class Store:
    """Samples on disk, or in any array of the host that is read by indices. Two are equal only if they are one.

    Attributes:
        samples: (N, m, n), such as a `numpy.memmap`.
        block: how many are read at once.
    """

    samples: Any
    block: int

    def read(self, chosen: Int[Array | np.ndarray, " k"]) -> Float[np.ndarray, "k m n"]:
        """Return samples by their numbers; zeros for the number -1."""
        chosen = np.asarray(chosen)
        found = np.zeros((len(chosen), *self.samples.shape[1:]), np.float32)
        found[chosen >= 0] = self.samples[chosen[chosen >= 0]]
        return found

    def read_rows(
        self, rows: int, chosen: Int[Array | np.ndarray, " k"], first: Int[Array | np.ndarray, ""]
    ) -> Float[np.ndarray, "k rows n"]:
        """Return some rows of samples, from the row `first`; zeros below the last."""
        part = self.samples[:, int(first) : int(first) + rows][np.asarray(chosen)]
        found = np.zeros((len(part), rows, part.shape[2]), np.float32)
        found[:, : part.shape[1]] = part
        return found


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class StoredFisher(Samples):
    """F = (1/k) sum of factor g g^T over k chosen samples of a store. Every question reads them once, in float32.

    What `map` returns is applied to each block as it is read, and lives inside one program.
    """

    store: Store = field(metadata={"static": True})
    chosen: Int[Array, " k"]
    factor: Float[Array, ""]
    linear: Linear | None = field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        sides = self.store.samples.shape[1:]
        return sides if self.linear is None else jax.eval_shape(self.linear, jax.ShapeDtypeStruct(sides, self.dtype)).shape

    @property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(jnp.float32)

    def _form(self) -> str:
        return f"from {len(self)} stored samples"

    def __len__(self) -> int:
        return self.chosen.shape[0]

    def _blocks(self) -> Int[Array, "blocks block"]:
        """The numbers of the samples, block by block; the last is filled with -1."""
        return jnp.pad(self.chosen, (0, -len(self) % self.store.block), constant_values=-1).reshape(-1, self.store.block)

    def _read(self, chosen: Int[Array, " block"]) -> Float[Array, "block m n"]:
        found = jax.ShapeDtypeStruct((self.store.block, *self.store.samples.shape[1:]), self.dtype)
        G = jax.pure_callback(self.store.read, found, chosen, vmap_method="sequential") * jnp.sqrt(self.factor)
        return G if self.linear is None else jax.vmap(self.linear)(G)

    def _mean(self, total: Callable[[Float[Array, "block m n"]], Any]) -> Any:
        return mean_over(self._blocks(), lambda chosen: total(self._read(chosen)), len(self))

    def scan(self, step: Callable[[Any, Float[Array, "m n"], Any], Any], carry: Any, beside: Array) -> Any:
        blocks = self._blocks()
        entries = jnp.pad(beside, (0, blocks.size - len(self))).reshape(blocks.shape)

        def one(carry: Any, sample: tuple) -> tuple[Any, None]:
            number, G, entry = sample
            return jax.lax.cond(number < 0, lambda: carry, lambda: step(carry, G, entry)), None

        def block(carry: Any, part: tuple) -> tuple[Any, None]:
            chosen, entries = part
            return jax.lax.scan(one, carry, (chosen, self._read(chosen), entries))

        return jax.lax.scan(lambda carry, part: (block(carry, part)[0], None), carry, (blocks, entries))[0]

    def take(self, chosen: Int[np.ndarray, " k"]) -> "StoredFisher":
        return self.changed(chosen=self.chosen[chosen], normalisation=f"mean over {len(chosen)} gradients")

    def left_singular(self) -> Float[Array, "m m"]:
        return eigh(self.left())[1][:, ::-1]

    def right_singular(self) -> Float[Array, "n n"]:
        return eigh(self.right())[1][:, ::-1]

    def map(self, linear: Linear) -> "StoredFisher":
        own = self.linear
        return self.changed(linear=linear if own is None else lambda G: linear(own(G)))

    def scaled(self, factor: Float[ArrayLike, ""]) -> "StoredFisher":
        return self.changed(factor=self.factor * factor, normalisation=f"{self.normalisation}, scaled")

    def dense(self, *, max_bytes: int = DENSE_BYTES) -> Float[Array, "mn mn"]:
        raise ValueError("Fisher.dense: samples on disk are too large for a dense Fisher. Take fewer, in memory.")

    def mean_squares(self) -> Float[Array, " k"]:
        read = jax.jit(lambda chosen: jnp.mean(jnp.square(self._read(chosen)), (1, 2)))
        return jnp.concatenate([read(block) for block in self._blocks()])[: len(self)]

    def gram(self) -> Float[Array, "k k"]:
        return self._gram_in_bands() if self.linear is None else self._gram_in_blocks()

    def _gram_in_bands(self) -> Float[Array, "k k"]:
        """Return a sum over bands of rows, so that each entry is read once."""
        N, m, n = self.store.samples.shape
        rows = max(1, self.store.block * m // N)
        found = jax.ShapeDtypeStruct((len(self), rows, n), self.dtype)

        def add(total: Float[Array, "k k"], first: Int[Array, ""]) -> tuple[Float[Array, "k k"], None]:
            band = jax.pure_callback(partial(self.store.read_rows, rows), found, self.chosen, first, vmap_method="sequential")
            band = band.reshape(len(self), -1)
            return total + jnp.matmul(band, band.T, precision="highest"), None

        return jax.lax.scan(add, jnp.zeros((len(self), len(self))), jnp.arange(0, m, rows))[0] * self.factor

    def _gram_in_blocks(self) -> Float[Array, "k k"]:
        """Return the products of each block with each: a map mixes rows, so it needs whole samples."""
        blocks = self._blocks()

        def products(one: Int[Array, " block"]) -> Float[Array, "block k"]:
            G = self._read(one)
            found = jax.lax.map(
                lambda other: jnp.tensordot(G, self._read(other), ((1, 2), (1, 2)), precision="highest"), blocks
            )
            return jnp.concatenate(found, axis=1)

        return jax.lax.map(products, blocks).reshape(blocks.size, blocks.size)[: len(self), : len(self)]

    def _norm_squared(self, unit: Float[Array, ""]) -> Float[Array, ""]:
        return jnp.sum(jnp.square(self.gram() / (len(self) * unit)))

    def _spectrum(self) -> Float[Array, " k"]:
        return eigh(self.gram() / len(self))[0]


def keep(call: str, blocks: Iterable[Any], max_bytes: int) -> np.ndarray:
    """Collect blocks of gradients: in memory up to `max_bytes`, beyond that in a temporary file, which ends with the array.

    Raises:
        TypeError: these are no blocks of real numbers.
        ValueError: there are no blocks, their shapes differ, or the disk is full.
    """
    if isinstance(blocks, Mapping) or not isinstance(blocks, Iterable):
        kind = type(blocks).__name__
        raise TypeError(f"{call}: expected the gradients of one matrix, (N, m, n), or blocks of them (k, m, n); got a {kind}")
    sides, count = None, 0
    with tempfile.TemporaryFile() as file:
        for block in map(np.asarray, blocks):
            require_real_array(call, block)
            if block.ndim != 3 or 0 in block.shape[1:] or (sides is not None and block.shape[1:] != sides):
                expected = "k gradients (k, m, n)" if sides is None else f"gradients of shape {sides}, as the first block does"
                remedy = " One gradient is G[None]." if block.ndim == 2 else ""
                raise ValueError(f"{call}: a block holds {expected}; got shape {block.shape}.{remedy}")
            sides, count = block.shape[1:], count + len(block)
            try:
                file.write(np.ascontiguousarray(block, np.float32).data)
                file.flush()
            except OSError as error:  # of the disk: one that making the blocks raises goes to the caller
                raise ValueError(
                    f"{call}: {count} gradients do not fit in the directory of temporary files, {tempfile.gettempdir()}: "
                    f"{error}. Free space, or name another by the variable TMPDIR."
                ) from error
        if not count:
            raise ValueError(f"{call}: there are no blocks of gradients. An iterator can be used only once: make it anew.")
        kept = np.memmap(file, np.float32, "r", shape=(count, *sides))
    return kept if kept.nbytes > max_bytes else np.array(kept)


def samples_of(call: str, gradients: Any, max_bytes: int, skip: bool = False) -> tuple[Samples, Int[np.ndarray, " N"]]:
    """Return the Fisher of gradients (N, m, n), which stay on disk beyond `max_bytes`, and the numbers of those that it has.

    Args:
        call: the public function that was given them, named in messages.
        gradients: an array, such as a `numpy.memmap`.
        max_bytes: bound on the memory of samples.
        skip: leave out gradients that are not finite, with a warning that names them.

    Raises:
        TypeError: the array is not of real numbers.
        ValueError: the array is not (N, m, n), has gradients that are not finite, or float32 does not hold their squares.
    """
    if gradients.ndim != 3 or 0 in gradients.shape:
        raise ValueError(f"{call}: expected N > 0 gradients of one m x n matrix, (N, m, n); got shape {gradients.shape}")
    require_real_array(call, gradients)
    block = max(1, min(len(gradients), max_bytes // (COPIES * 4 * math.prod(gradients.shape[1:]))))
    blocks = (np.asarray(gradients[k : k + block]) for k in range(0, len(gradients), block))
    ends = ((G.min((1, 2)).astype(float), G.max((1, 2)).astype(float)) for G in blocks)  # the -128 of int8 has no +128
    largest = np.concatenate([np.maximum(-low, high) for low, high in ends])
    bad = np.flatnonzero(~np.isfinite(largest))
    if len(bad) and (not skip or len(bad) == len(gradients)):
        raise ValueError(
            f"{call}: {len(bad)} of {len(gradients)} gradients are not finite (the first: number {bad[0]}). "
            "Find the batch that made them, or leave them out by skip_nonfinite=True (--skip-nonfinite)."
        )
    if len(bad):
        warnings.warn(f"{call}: {len(bad)} gradients are not finite and are left out: {bad.tolist()}", stacklevel=3)
    good = np.setdiff1d(np.arange(len(gradients)), bad)
    if not largest[good].any():
        raise ValueError(f"{call}: the gradients are all zero, and no error is relative to that. Give others.")
    if not SMALLEST <= largest[good].max() <= LARGEST:
        raise ValueError(
            f"{call}: the largest entry of the gradients is {largest[good].max():.2g}, and float32 does not hold its square. "
            "Scale them, which changes no relative error."
        )
    about = "given gradients", f"mean over {len(good)} gradients"
    if gradients.nbytes <= max_bytes:
        # Of files too: JAX has neither long doubles nor the bytes in another order.
        dtype = jnp.float32 if gradients.dtype.itemsize <= 4 else jax.dtypes.canonicalize_dtype(float)
        samples = jnp.asarray(gradients.astype(dtype, copy=False))
        return SampleFisher(*about, samples[good] if len(bad) else samples), good
    return StoredFisher(*about, Store(gradients, block), jnp.asarray(good), jnp.ones([])), good
