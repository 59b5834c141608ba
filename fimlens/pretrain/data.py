"""Training data: rows of tokens, cut into windows, and batch k of those windows for every k.

A batch is a function of the seed and its number alone, so the data need no state of their own. A run that has made k steps
continues with batch k on whatever machines, and each host reads only the rows that its devices train on.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from fimlens._validate import write_atomically
from fimlens.language_model import text
from fimlens.pretrain.shuffled import Shuffled

HELD_OUT_PART = 10  # of a single file, the last tenth is held out


BYTE_VOCABULARY = 256


SHARD_TOKENS = 2**27


MANIFEST = "tokens.json"  # written after all shards: where it exists, the shards are complete


Tokens = np.ndarray  # one-dimensional, of integers, in memory or mapped from disk; rows may differ in length


class Corpus(NamedTuple):
    """The tokens of a run: rows to train on, rows held out, and the size of the vocabulary."""

    train: Sequence[Tokens]
    held_out: Sequence[Tokens]
    vocabulary: int

    @property
    def fingerprint(self) -> str:
        """A checksum that tells two corpora apart. It covers all lengths but samples the content, so it may miss an edit."""
        # A complete checksum would read every shard from disk before the first step.
        crc = zlib.crc32(repr([self.vocabulary, *([len(row) for row in rows] for rows in self[:2])]).encode())
        for row in (*self.train, *self.held_out):
            for start in np.linspace(0, len(row), 16, endpoint=False).astype(int):
                crc = zlib.crc32(np.asarray(row[start : start + 256], np.int64).tobytes(), crc)
        return f"{crc:08x}"


@dataclass(frozen=True)
class Windows:
    """The consecutive windows of one row, each of `length` + 1 tokens.

    Neighbours share one token: the last target of a window is the first input of the next, so every token is a target once.
    """

    tokens: Tokens
    length: int

    def __len__(self) -> int:
        return max(len(self.tokens) - 1, 0) // self.length

    def __getitem__(self, k: int) -> Int[np.ndarray, " window"]:
        start = int(k) * self.length
        return np.asarray(self.tokens[start : start + self.length + 1], np.int32)


def cut_windows(rows: Sequence[Tokens], length: int) -> list[Windows]:
    """Cut each row into windows, and leave out rows that are shorter than one.

    Raises:
        ValueError: no row is as long as a window.
    """
    windows = [each for each in (Windows(row, length) for row in rows) if len(each)]
    if not windows:
        raise ValueError(
            f"pretrain: no text of {sum(map(len, rows))} tokens is as long as one window of {length + 1}. "
            "Give more text, or shorter windows."
        )
    return windows


class Batches(Shuffled):
    """Batch k of shuffled windows, for every k >= 0. Each epoch has every window once, in an order of its own.

    Args:
        rows: the tokens to train on.
        batch: windows in a batch.
        length: tokens of a window that the model reads; a window has one more.
        seed: determines the order.

    Raises:
        ValueError: no row is as long as a window.

    Examples:
        >>> import numpy as np
        >>> batches = Batches([np.arange(100)], batch=4, length=8, seed=0)
        >>> batches(7).shape, bool((batches(7)[2:] == batches(7, slice(2, 4))).all())
        ((4, 9), True)
    """

    def __init__(self, rows: Sequence[Tokens], *, batch: int, length: int, seed: int) -> None:
        super().__init__(cut_windows(rows, length), batch=batch, seed=seed)


def evaluation_windows(rows: Sequence[Tokens], *, count: int, length: int) -> Int[np.ndarray, "_ window"]:
    """Return up to `count` windows, evenly spaced over all. Every run measures its loss on the same ones."""
    sources = cut_windows(rows, length)
    places = [(source, k) for source in sources for k in range(len(source))]
    chosen = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
    return np.stack([source[k] for source, k in (places[place] for place in chosen)])


def read_files(paths: Sequence[Path] | None = None) -> Corpus:
    """Read text files as bytes, without a tokenizer, and hold out every tenth file.

    Args:
        paths: files and directories; by default the sources of Python's standard library. Of a single file, the last tenth is
            held out.

    Raises:
        ValueError: a path cannot be read, or there is no file or no text in them.
    """
    files = text.standard_library() if paths is None else [file for path in paths for file in text.files_of(path)]
    if not files:
        raise ValueError(f"pretrain: there is no file in {', '.join(map(str, paths or ()))}. Give more text.")
    # A file that is named twice could otherwise be trained on under one position and held out under the other.
    files = list({file.resolve(): file for file in files}.values())
    if len(files) == 1:
        tokens = text.read(files)
        cut = len(tokens) - len(tokens) // HELD_OUT_PART
        return Corpus([tokens[:cut]], [tokens[cut:]], BYTE_VOCABULARY)
    train, held_out = text.split(files)
    return Corpus([text.read(train)], [text.read(held_out)], BYTE_VOCABULARY)


def read_shards(directory: Path) -> Corpus:
    """Map the token shards that `write_shards` wrote into memory. Pages are read from disk when a batch needs them.

    Raises:
        ValueError: the directory has no manifest or no shards, or a shard is not a one-dimensional array of integers.
    """
    try:
        about = json.loads((directory / MANIFEST).read_text())
        vocabulary = int(about["vocabulary"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"pretrain: {directory} has no readable {MANIFEST} with a vocabulary ({error}). Write shards with write_shards."
        ) from error
    return Corpus(_map_shards(directory, "train"), _map_shards(directory, "held-out"), vocabulary)


def write_shards(
    directory: Path,
    documents: Iterable[Sequence[int]],
    *,
    vocabulary: int,
    end: int,
    shard: int = SHARD_TOKENS,
    held_out: int = 2**20,
    train: int | None = None,
    about: dict[str, Any] | None = None,
) -> None:
    """Write tokenized documents to disk, for trainings of any number: held-out-*.npy first, then train-*.npy.

    Documents follow each other with the token `end` after each. At most two shards are in memory, and no more documents are
    read than needed. Shards that are already in the directory are removed first.

    Args:
        directory: created if it does not exist.
        documents: the token ids of each document.
        vocabulary: the number of different tokens; every id is below it.
        end: the token after each document.
        shard: tokens in a shard; a shard ends with a document, so it may be longer.
        held_out: tokens at the start that are held out, up to the end of a document.
        train: tokens after those to train on, up to the end of a document; all by default.
        about: further entries of tokens.json.

    Raises:
        ValueError: no document is left to train on, or a token is outside the vocabulary.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # The manifest goes first: without it, shards that are partly removed or partly written are never read as complete.
    for old in (directory / MANIFEST, *(path for kind in ("held-out", "train") for path in directory.glob(f"{kind}-*.npy"))):
        old.unlink(missing_ok=True)
    dtype = np.uint16 if vocabulary <= 2**16 else np.uint32  # two bytes a token where they suffice: C4 has 10^11 tokens

    def checked(document: Sequence[int]) -> Tokens:
        tokens = np.asarray([*document, end], np.int64)  # wider than dtype, in which a wrong id would wrap around unseen
        if tokens.min() < 0 or tokens.max() >= vocabulary:
            raise ValueError(
                f"pretrain: tokens go from {tokens.min()} to {tokens.max()}, outside of a vocabulary of {vocabulary}. "
                "Give the tokenizer's size."
            )
        return tokens.astype(dtype)

    documents = map(checked, documents)  # one iterator: the training part begins where the held-out part stopped reading
    for kind, limit in (("held-out", held_out), ("train", train)):
        for number, tokens in enumerate(_pack(documents, shard, limit)):
            np.save(directory / f"{kind}-{number:05}.npy", tokens)
    if not any(directory.glob("train-*.npy")):
        raise ValueError(f"pretrain: the first {held_out} tokens are held out, and there are no more. Hold out fewer.")
    # Atomically: no other process sees half a manifest.
    write_atomically(directory / MANIFEST, json.dumps({"vocabulary": vocabulary, "end": end} | (about or {}), indent=2) + "\n")


def _pack(documents: Iterator[Tokens], shard: int, limit: int | None) -> Iterator[Tokens]:
    """Join documents into shards of at least `shard` tokens; stop at the end of the document that reaches `limit`."""
    taken, held, pieces = 0, 0, []
    for document in documents:
        pieces.append(document)
        held += len(document)
        taken += len(document)
        if held >= shard:
            yield np.concatenate(pieces)
            held, pieces = 0, []
        if limit is not None and taken >= limit:
            break
    if pieces:
        yield np.concatenate(pieces)


def _map_shards(directory: Path, kind: str) -> list[Tokens]:
    """Map the shards of one kind from disk."""
    try:
        shards = [np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(directory.glob(f"{kind}-*.npy"))]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"pretrain: a {kind} shard of {directory} is not an array of numbers ({error}). Write it again."
        ) from error
    if not shards or any(tokens.ndim != 1 or tokens.dtype.kind not in "iu" for tokens in shards):
        raise ValueError(f"pretrain: {directory} needs {kind}-*.npy, one-dimensional arrays of whole numbers.")
    return shards
