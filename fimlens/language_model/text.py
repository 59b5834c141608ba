"""Real text that every machine has: the sources of Python's standard library, as bytes."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8


def standard_library() -> list[Path]:
    """The top-level modules of Python's standard library, in order of their names."""
    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def files_of(path: Path) -> list[Path]:
    """The file itself, or the files under a directory, in order of their names."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def split(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Files to train on, and every tenth, held out."""
    return [file for k, file in enumerate(files) if k % 10], files[::10]


def read(paths: list[Path]) -> UInt8[np.ndarray, " bytes"]:
    """The bytes of files, and of the files under directories, one after the other.

    Raises:
        ValueError: a path cannot be read, or there is no text at all.
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
    """Endless random windows of `length` bytes, `size` at a time.

    Raises:
        ValueError: the text is shorter than a window.
    """
    if len(text) <= length:
        raise ValueError(f"text: {len(text)} bytes are fewer than a window of {length}. Give more text.")
    random = np.random.default_rng(seed)
    while True:
        starts = random.integers(len(text) - length, size=size)
        yield text[starts[:, None] + np.arange(length)]
