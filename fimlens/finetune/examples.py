"""Labelled texts: read from the hub or from files, checked row by row, and encoded by the tokenizer of a model."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int32, PyTree, Shaped
from tokenizers import Tokenizer

from fimlens.finetune.task import GLUE, REGRESSION_SCORES, Task, is_missing, word
from fimlens.language_model import Pretrained, encoder
from fimlens.pretrain.hub import stream

HUB = "nyu-mll/glue"  # where GLUE is, with a config for each task

HELD_OUT_EVERY = 10  # of a file without another to hold out, every tenth row is, beginning with the first

BETWEEN = "\n"  # between the texts of a pair, for a decoder


class Texts(NamedTuple):
    """The texts of some rows, a tuple of one or two for each, and their labels as numbers."""

    texts: list[tuple[str, ...]]
    labels: Shaped[np.ndarray, " rows"]


class Rows(NamedTuple):
    """Encoded rows: what a model reads, and the labels. A row ends with padding."""

    tokens: Int32[np.ndarray, "rows length"]
    types: Int32[np.ndarray, "rows length"]
    lengths: Int32[np.ndarray, " rows"]
    labels: Shaped[np.ndarray, " rows"]


class States(NamedTuple):
    """What the head reads of each row, where it alone is trained, and the labels."""

    states: Float[np.ndarray, "rows d"]
    labels: Shaped[np.ndarray, " rows"]


class Examples(NamedTuple):
    """The data of a task for one model: rows to train on, rows held out, and a checksum of both."""

    train: Rows | States
    held_out: Rows | States
    fingerprint: str


@dataclass(frozen=True)
class Each:
    """The rows of a tree of arrays, one at a time."""

    rows: PyTree

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.rows)[0])

    def __getitem__(self, k: int) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[k], self.rows)


def read_task(
    name: str,
    *,
    source: str = HUB,
    held_out: Path | None = None,
    texts: Sequence[str] = ("text",),
    label: str = "label",
) -> tuple[Task, Texts, Texts]:
    """Read the labelled texts of a task: those to train on, and those held out.

    The labels of a file are its classes, words or whole numbers. Numbers with a fraction are a regression.

    Args:
        name: a name in GLUE, or the path of a file: CSV, JSON lines or parquet.
        source: for a name, the dataset that has the tasks as configs: on the hub, or a directory.
        held_out: for a path alone, the file that is held out; by default every tenth row of the first one.
        texts: for a path, the columns of the texts.
        label: for a path, the column of the label.

    Raises:
        ValueError: there is no such task, file or column, a name has a file to hold out, or a row has no text, no label, or a
            label of no class.
    """
    if name in GLUE:
        if held_out is not None:
            raise ValueError(f"finetune: {name} holds out a split of its own. Leave out --held-out, or take a file as task.")
        task = GLUE[name]
        return task, *(_texts(task, _rows(source, name, split), split) for split in ("train", task.held_out))
    if not Path(name).is_file():
        raise ValueError(f"finetune: {name} is no file, and no task of GLUE, which are {', '.join(GLUE)}.")
    if held_out is not None and not held_out.is_file():
        raise ValueError(f"finetune: {held_out} is no file. Give the one to hold out by --held-out.")
    rows = _rows(name, None, "train")
    task = _task_of(name, rows, tuple(texts), label)
    if held_out is not None:
        return task, _texts(task, rows, name), _texts(task, _rows(str(held_out), None, "train"), str(held_out))
    if len(rows) == 1:
        raise ValueError(f"finetune: {name} has one row, which is held out. Give more, or another file by --held-out.")
    every = _texts(task, rows, name)
    chosen = np.arange(len(rows)) % HELD_OUT_EVERY == 0
    return task, *(Texts([every.texts[k] for k in np.flatnonzero(part)], every.labels[part]) for part in (~chosen, chosen))


def encode(model: Pretrained, task: Task, train: Texts, held_out: Texts, length: int) -> Examples:
    """Encode texts as a model reads them. Longer ones lose tokens at the end, of a pair the longer text first.

    Args:
        model: the model, whose tokenizer encodes.
        task: the task.
        train: texts to train on.
        held_out: texts that are held out.
        length: tokens in a row.

    Raises:
        ValueError: the model has no tokenizer, or one of another model, or reads fewer tokens than `length`; or `length` leaves
            no token for a text.
    """
    tokenizer = _tokenizer_for(model, length, is_pair=len(task.texts) == 2)
    rows = [_encode(model, tokenizer, each, length) for each in (train, held_out)]
    checksum = 0
    for leaf in jax.tree.leaves((rows, task.classes)):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).tobytes() if isinstance(leaf, np.ndarray) else leaf.encode(), checksum)
    return Examples(*rows, f"{checksum:08x}")


def _rows(name: str, config: str | None, split: str) -> list[dict[str, Any]]:
    """Read all rows of a split."""
    columns = stream("finetune", name, config, split)
    return [dict(zip(part, row, strict=True)) for part in columns for row in zip(*part.values(), strict=True)]


def _task_of(name: str, rows: list[dict[str, Any]], texts: tuple[str, ...], label: str) -> Task:
    """Return the task of a file, whose labels say whether it is a regression."""
    for column in (*texts, label):
        if not rows or column not in rows[0]:
            some = ", ".join(rows[0]) if rows else "no rows"
            raise ValueError(f"finetune: {name} has no column {column!r}. It has {some}; choose by --texts and --label.")
    labels = [row[label] for row in rows if not is_missing(row[label])]
    if any(isinstance(each, float) and not each.is_integer() for each in labels):
        return Task(name, texts, (), REGRESSION_SCORES, label)
    return Task(name, texts, tuple(sorted({word(each) for each in labels})), label=label)


def _texts(task: Task, rows: list[dict[str, Any]], where: str) -> Texts:
    """Return the texts and labels of rows, and refuse the first row that is not as the task says."""
    texts, labels = [], []
    for number, row in enumerate(rows, 1):
        try:
            texts.append(_text_of(task, row))
            labels.append(task.read_label(row.get(task.label)))
        except ValueError as error:
            raise ValueError(f"finetune: row {number} of {where} {error}. Mend that row, or leave it out.") from error
    if not rows:
        raise ValueError(f"finetune: {where} has no rows.")
    return Texts(texts, np.asarray(labels, np.int32 if task.classes else np.float32))


def _text_of(task: Task, row: dict[str, Any]) -> tuple[str, ...]:
    texts = tuple("" if row.get(column) is None else row[column] for column in task.texts)
    for column, text in zip(task.texts, texts, strict=True):
        if not isinstance(text, str):
            raise ValueError(f"has {text!r} in the column {column!r}, which is no text")
    if not any(text.strip() for text in texts):  # in GLUE's own pairs, one side is empty now and then
        raise ValueError(f"has no text in {' and '.join(task.texts)}")
    return texts


def _tokenizer_for(model: Pretrained, length: int, *, is_pair: bool) -> Tokenizer:
    """Return a tokenizer that truncates to `length`, if the model can read what it gives."""
    if model.tokenizer is None:
        raise ValueError("finetune: the model has no tokenizer. Give its tokenizer.json by --tokenizer.")
    if isinstance(model.config, encoder.Config):
        if length > model.config.longest:
            raise ValueError(f"finetune: the model reads {model.config.longest} tokens; got a length of {length}.")
        if model.tokenizer.encode("a").ids == model.tokenizer.encode("a", add_special_tokens=False).ids:
            raise ValueError(
                "finetune: the tokenizer puts no token before a text, and an encoder is read at that token. Give the "
                "tokenizer.json of this model."
            )
    tokenizer = Tokenizer.from_str(model.tokenizer.to_str())  # the model's own is left as it is
    special = tokenizer.num_special_tokens_to_add(is_pair and isinstance(model.config, encoder.Config))
    if length <= special:
        raise ValueError(
            f"finetune: the tokenizer adds {special} tokens, and a length of {length} leaves none for a text. Take more."
        )
    tokenizer.enable_truncation(length)
    return tokenizer


def _encode(model: Pretrained, tokenizer: Tokenizer, given: Texts, length: int) -> Rows:
    """Encode texts into rows of `length` tokens."""
    is_encoder = isinstance(model.config, encoder.Config)
    # A pair goes to an encoder's tokenizer as a pair, which separates and marks it as the model has learnt to read it.
    inputs = [each if is_encoder and len(each) == 2 else BETWEEN.join(each) for each in given.texts]
    encodings = tokenizer.encode_batch(inputs)
    rows = np.zeros((2, len(inputs), length), np.int32)
    lengths = np.array([len(each.ids) for each in encodings], np.int32)
    for k, each in enumerate(encodings):
        rows[0, k, : lengths[k]], rows[1, k, : lengths[k]] = each.ids, each.type_ids
    if is_encoder and rows[1].max() >= model.config.types:
        raise ValueError(
            f"finetune: the tokenizer gives tokens the type {rows[1].max()}, and the model knows {model.config.types} types. "
            "Give the tokenizer.json of this model."
        )
    if not lengths.all():
        raise ValueError(f"finetune: of {inputs[int(lengths.argmin())]!r} the tokenizer leaves nothing. Leave that row out.")
    return Rows(rows[0], rows[1], lengths, given.labels)
