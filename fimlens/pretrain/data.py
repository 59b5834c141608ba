"""What a training reads: rows of tokens, cut into windows, and batch k of them for every k.

A batch is a function of the seed and its number alone. So data need no state of their own: a run that has made k steps goes on
with batch k, on whatever machines, and each host reads only the rows that it trains on.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Int

from fimlens.language_model import text

HELD_OUT = 10  # of a single file, the last of so many parts


BYTES = 256  # the vocabulary of bytes


SHARD = 2**27  # tokens


ABOUT = "tokens.json"  # written last: with it, shards are whole


Tokens = np.ndarray  # one-dimensional, of whole numbers, in memory or mapped from disk; no two need be of one length


class Corpus(NamedTuple):
    """Rows of tokens to train on, others held out, and how many kinds of token there are."""

    train: Sequence[Tokens]
    held_out: Sequence[Tokens]
    vocabulary: int

    @property
    def fingerprint(self) -> str:
        """Of how much text there is, and of pieces of it, which tell another text but not every change of one."""
        crc = zlib.crc32(repr([self.vocabulary, *([len(row) for row in rows] for rows in self[:2])]).encode())
        for row in (*self.train, *self.held_out):
            for start in np.linspace(0, len(row), 16, endpoint=False).astype(int):
                crc = zlib.crc32(np.asarray(row[start : start + 256], np.int64).tobytes(), crc)
        return f"{crc:08x}"


@dataclass(frozen=True)
class Windows:
    """Consecutive windows of `length` + 1 tokens of one row, each beginning with the last token of the one before."""

    tokens: Tokens
    length: int

    def __len__(self) -> int:
        return max(len(self.tokens) - 1, 0) // self.length

    def __getitem__(self, k: int) -> Int[np.ndarray, " window"]:
        start = int(k) * self.length
        return np.asarray(self.tokens[start : start + self.length + 1], np.int32)


def windows_of(rows: Sequence[Tokens], length: int) -> list[Windows]:
    """The windows of each row that has any.

    Raises:
        ValueError: none has.
    """
    windows = [each for each in (Windows(row, length) for row in rows) if len(each)]
    if not windows:
        raise ValueError(
            f"pretrain: no text of {sum(map(len, rows))} tokens is as long as one window of {length + 1}. "
            "Give more text, or shorter windows."
        )
    return windows


class Batches:
    """Batch k of shuffled windows, for every k >= 0: epoch after epoch, each in an order of its own.

    Examples:
        >>> import numpy as np
        >>> batches = Batches([np.arange(100)], batch=4, length=8, seed=0)
        >>> batches(7).shape, bool((batches(7)[2:] == batches(7, slice(2, 4))).all())
        ((4, 9), True)
    """

    def __init__(self, rows: Sequence[Tokens], *, batch: int, length: int, seed: int) -> None:
        sources = [grain.MapDataset.source(windows) for windows in windows_of(rows, length)]
        self.batch, self.windows = batch, grain.MapDataset.concatenate(sources).seed(seed).shuffle().repeat()

    def __call__(self, k: int, rows: slice = slice(None)) -> Int[np.ndarray, "_ window"]:
        """Rows of batch k: all, or those of one host."""
        return np.stack([self.windows[k * self.batch + row] for row in range(*rows.indices(self.batch))])


def fixed_windows(rows: Sequence[Tokens], *, count: int, length: int) -> Int[np.ndarray, "_ window"]:
    """Up to `count` windows, evenly spaced over all: the same for every run, to measure a loss on."""
    sources = windows_of(rows, length)
    places = [(source, k) for source in sources for k in range(len(source))]
    chosen = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)
    return np.stack([source[k] for source, k in (places[place] for place in chosen)])


def of_files(paths: Sequence[Path] | None = None) -> Corpus:
    """The bytes of files and directories (by default the sources of Python's standard library), every tenth file held out.

    Of a single file its last tenth is.

    Raises:
        ValueError: a path cannot be read, or there is no text.
    """
    files = text.standard_library() if paths is None else [file for path in paths for file in text.files_of(path)]
    files = list({file.resolve(): file for file in files}.values())  # one named twice must not be held out once
    if len(files) == 1:
        tokens = text.read(files)
        cut = len(tokens) - len(tokens) // HELD_OUT
        return Corpus([tokens[:cut]], [tokens[cut:]], BYTES)
    train, held_out = text.split(files)
    return Corpus([text.read(train)], [text.read(held_out)], BYTES)


def of_shards(directory: Path) -> Corpus:
    """Token shards as `write_shards` leaves them, mapped from disk.

    Raises:
        ValueError: the directory has none, or they are not what they should be.
    """
    try:
        about = json.loads((directory / ABOUT).read_text())
        vocabulary = int(about["vocabulary"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"pretrain: {directory} has no readable {ABOUT} with a vocabulary ({error}). Write shards with write_shards."
        ) from error
    return Corpus(_shards(directory, "train"), _shards(directory, "held-out"), vocabulary)


def write_shards(
    directory: Path,
    documents: Iterable[Sequence[int]],
    *,
    vocabulary: int,
    end: int,
    shard: int = SHARD,
    held_out: int = 2**20,
    train: int | None = None,
    about: dict[str, Any] | None = None,
) -> None:
    """Write documents, as token ids, end to end with the token `end` after each: held-out-*.npy first, then train-*.npy.

    Two shards at most are in memory, and no more documents are taken than are needed. Shards that are there go first.

    Args:
        directory: made if it is not there.
        documents: token ids of each.
        vocabulary: how many kinds of token there are; ids lie below.
        end: the token between documents.
        shard: tokens a shard.
        held_out: how many tokens at the start, to the end of a document, are held out.
        train: how many tokens after those, to the end of a document, are trained on: all by default.
        about: what else tokens.json says of them.

    Raises:
        ValueError: no document is left to train on, or a token is not of the vocabulary.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for old in (directory / ABOUT, *(path for kind in ("held-out", "train") for path in directory.glob(f"{kind}-*.npy"))):
        old.unlink(missing_ok=True)
    dtype = np.uint16 if vocabulary <= 2**16 else np.uint32

    def checked(document: Sequence[int]) -> Tokens:
        tokens = np.asarray([*document, end], np.int64)
        if tokens.min() < 0 or tokens.max() >= vocabulary:
            raise ValueError(
                f"pretrain: tokens from {tokens.min()} to {tokens.max()}, of a vocabulary of {vocabulary}. Give its size."
            )
        return tokens.astype(dtype)

    documents = map(checked, documents)
    for kind, limit in (("held-out", held_out), ("train", train)):
        for number, tokens in enumerate(_packed(documents, shard, limit)):
            np.save(directory / f"{kind}-{number:05}.npy", tokens)
    if not any(directory.glob("train-*.npy")):
        raise ValueError(f"pretrain: the first {held_out} tokens are held out, and there are no more. Hold out fewer.")
    part = directory / f"{ABOUT}.part"
    part.write_text(json.dumps({"vocabulary": vocabulary, "end": end} | (about or {}), indent=2) + "\n")
    part.replace(directory / ABOUT)


def _packed(documents: Iterator[Tokens], shard: int, limit: int | None) -> Iterator[Tokens]:
    """Shards of documents, each ending with one; at most `limit` tokens and the rest of a document."""
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


def _shards(directory: Path, kind: str) -> list[Tokens]:
    try:
        shards = [np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(directory.glob(f"{kind}-*.npy"))]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"pretrain: a {kind} shard of {directory} is no array of numbers ({error}). Write it again."
        ) from error
    if not shards or any(tokens.ndim != 1 or tokens.dtype.kind not in "iu" for tokens in shards):
        raise ValueError(f"pretrain: {directory} needs {kind}-*.npy, one-dimensional arrays of whole numbers.")
    return shards
