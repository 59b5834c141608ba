"""Gradients in a directory, one file a matrix: what any framework can write, and the lens can read without loading it.

    DIR/NAME.npy            (N, m, n), by numpy.save
    DIR/*.safetensors       a tensor (N, m, n) a matrix, by its name in the file
    DIR/gradients.json      {"kind": "...", "normalisation": "...", "units": [0, 0, 1, ...]}, each of them optional

`units` has the sampling unit of each gradient, such as the number of its document.
"""

import json
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Int

ABOUT = "gradients.json"
DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "BF16": ml_dtypes.bfloat16}


@dataclass(frozen=True)
class GradientFiles:
    """Gradients of several matrices, mapped from files.

    Attributes:
        matrices: (N, m, n) by name.
        kind: what the gradients are gradients of.
        normalisation: what their Fisher is a mean or a sum over.
        units: the sampling unit of each gradient; None where each is one.
    """

    matrices: dict[str, np.ndarray]
    kind: str
    normalisation: str
    units: Int[np.ndarray, " N"] | None


def read_gradients(directory: Path) -> GradientFiles:
    """Map the gradients of a directory into memory.

    Args:
        directory: with files as above. Nothing in it is unpickled.

    Raises:
        ValueError: there is no such directory, it has no gradients, two arrays have one name, or a file is not of three axes,
            of another number of gradients, or damaged.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory} is no directory. Give one with an array (N, m, n) a matrix, NAME.npy or safetensors.")
    found: dict[str, np.ndarray] = {}
    for path in sorted(directory.glob("*.npy")):
        try:
            found[path.stem] = np.lib.format.open_memmap(path, mode="r")  # `numpy.load` takes an archive too
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path} cannot be read: {error}. Write it by numpy.save, as an array of numbers.") from error
    for path in sorted(directory.glob("*.safetensors")):
        tensors = _read_safetensors(path)
        if twice := sorted(found.keys() & tensors.keys()):
            raise ValueError(f"{path}: there is another array named {', '.join(twice)} in {directory}. Remove one of them.")
        found |= tensors
    if not found:
        raise ValueError(f"{directory} has no gradients: no *.npy and no *.safetensors.")
    about = read_about(directory / ABOUT)
    if "done" in about:
        raise ValueError(f"{directory} is unfinished: {about['done']} gradients are written. Let the run that writes it end.")
    counts = {name: len(G) if G.ndim == 3 else 0 for name, G in found.items()}
    for name, G in found.items():
        if G.ndim != 3 or 0 in G.shape or (not np.issubdtype(G.dtype, np.floating) and G.dtype != ml_dtypes.bfloat16):
            raise ValueError(f"{directory}: {name} is {G.dtype} of shape {G.shape}; expected gradients (N, m, n) of floats.")
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"{directory}: the matrices have different numbers of gradients: {listed}. Write them together.")
    N = next(iter(counts.values()))
    units = about.get("units")
    if units is not None and (not isinstance(units, list) or len(units) != N or not all(isinstance(u, int) for u in units)):
        raise ValueError(f"{directory / ABOUT}: units is a list of {N} whole numbers, one a gradient.")
    kind, normalisation = about.get("kind", "given gradients"), about.get("normalisation", f"mean over {N} gradients")
    return GradientFiles(found, str(kind), str(normalisation), None if units is None else np.array(units))


def read_about(path: Path) -> dict[str, Any]:
    """Return what gradients.json says; nothing if there is none."""
    if not path.exists():
        return {}
    try:
        about = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(about, dict):
        raise ValueError(f"{path}: expected an object with kind, normalisation and units; got {type(about).__name__}.")
    return about


def fingerprint(arrays: Iterable[Any]) -> str:
    """Return a checksum of arrays, by which a run that continues knows that its results are of the same ones.

    Args:
        arrays: read one entry of the first axis at a time where they have three axes, as files larger than memory may.
    """
    crc = 0
    for array in arrays:
        numbers = jax.random.key_data(array) if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else array
        crc = zlib.crc32(f"{array.shape} {array.dtype}".encode(), crc)
        for part in np.asarray(numbers) if array.ndim > 2 else [np.asarray(numbers)]:
            crc = zlib.crc32(part.tobytes(), crc)
    return f"{crc:08x}"


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Map the tensors of a file: eight bytes with the length of a header of JSON, the header, and the numbers."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if 8 + length > path.stat().st_size:
                raise ValueError("it ends within its header")
            header = json.loads(file.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {name: _map_tensor(path, 8 + length, entry) for name, entry in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError) as error:
        raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from error


def _map_tensor(path: Path, offset: int, entry: dict[str, Any]) -> np.ndarray:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"a tensor is of dtype {entry['dtype']}; gradients are {', '.join(DTYPES)}")
    dtype, shape, (start, end) = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"]), entry["data_offsets"]
    if end - start != math.prod(shape) * dtype.itemsize or offset + end > path.stat().st_size:
        raise ValueError("a tensor ends where its numbers do not")
    return np.memmap(path, dtype, "r", offset=offset + start, shape=shape)
