"""Text that every machine has: the source files of Python's standard library, read as bytes.

The experiments and the embedded model of `fimlens lens` train on it, so that they need no download.
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8


def standard_library() -> list[Path]:
    """Return the top-level modules of Python's standard library, sorted by name."""
    # Sorted here and in files_of: the order of a directory listing differs between file systems, and training must not.
    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def files_of(path: Path) -> list[Path]:
    """Return the file itself, or all files below a directory, sorted by name."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def split(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Split files into those to train on and those to hold out: every tenth, beginning with the first."""
    return [file for k, file in enumerate(files) if k % 10], files[::10]


def read(paths: list[Path]) -> UInt8[np.ndarray, " bytes"]:
    """Return the bytes of all files, joined by newlines; a directory stands for all files below it.

    Raises:
        ValueError: a path cannot be read, or the files are empty.
    """
    parts = []
    for path in paths:
        try:
            parts += [file.read_bytes() for file in files_of(path)]
        except OSError as error:
            raise ValueError(f"text: cannot read {path}: {error.strerror}. Give a readable file or directory.") from error
    text = np.frombuffer(b"\n".join(parts), np.uint8)
    if not text.size:
        raise ValueError(f"text: there is no text in {', '.join(map(str, paths)) or 'no files'}.")
    return text


def batches(text: UInt8[np.ndarray, " bytes"], *, size: int, length: int, seed: int) -> Iterator[UInt8[np.ndarray, "B T"]]:
    """Draw random windows of a text without end. For training whose data order follows from a seed.

    Args:
        text: the bytes to draw from.
        size: windows in a batch.
        length: bytes in a window.
        seed: seed of the random generator; the same seed gives the same batches.

    Returns:
        An iterator over batches of shape (size, length).

    Raises:
        ValueError: the text is no longer than one window.
    """
    if len(text) <= length:
        raise ValueError(f"text: {len(text)} bytes are fewer than a window of {length}. Give more text.")
    random = np.random.default_rng(seed)
    while True:
        starts = random.integers(len(text) - length, size=size)
        yield text[starts[:, None] + np.arange(length)]
