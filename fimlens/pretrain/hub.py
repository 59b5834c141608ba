"""Documents of a Hugging Face dataset, streamed as token ids."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from datasets import load_dataset
from tokenizers import Tokenizer

ENDS = ("</s>", "<|endoftext|>", "<eos>", "[SEP]")


TOGETHER = 1000  # documents read and tokenized at a time


@dataclass(frozen=True)
class Source:
    """What is streamed.

    `dataset` is a name on the hub, or a file or directory in one of its formats (json, json.gz, parquet, txt). `tokenizer` is a
    name on the hub too, or the path of a tokenizer.json. `end_token` follows each document; by default it is the first of
    ENDS that the tokenizer has. The first `held_out` tokens, to the end of a document, are never trained on.
    """

    dataset: str
    tokenizer: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    end_token: str | None = None
    held_out: int = 2**20


class Documents:
    """Token ids of each document of a source, in its order; nothing but the tokenizer is read before they are asked for.

    `end` is the token that follows each, `vocabulary` one more than the largest of them all: special tokens above it, such as
    T5's sentinels, are left out of text that spells them, and no model needs to know them.

    Raises:
        ValueError: the tokenizer cannot be read or has no such end; or, as documents are asked for, dataset, config, split or
            column cannot be.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.tokenizer = source, _tokenizer(source.tokenizer)
        self.end = _end(self.tokenizer, source)
        special = {token for token, added in self.tokenizer.get_added_tokens_decoder().items() if added.special}
        self.vocabulary = 1 + max({*self.tokenizer.get_vocab().values()} - special | {self.end})

    def __iter__(self) -> Iterator[list[int]]:
        for texts in _texts(self.source):
            for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                yield [token for token in encoding.ids if token < self.vocabulary]


def _texts(source: Source) -> Iterator[list[str]]:
    """Some documents at a time."""
    for rows in _rows(source):
        texts = rows.get(source.column, [None])
        if not all(isinstance(text, str) for text in texts):
            names = ", ".join(rows)
            raise ValueError(
                f"pretrain: {source.dataset} has no column {source.column!r} of text. It has {names}; say --column."
            )
        yield texts


def _rows(source: Source) -> Iterator[dict[str, list[Any]]]:
    local = Path(source.dataset)
    path, files = (local.parent, {source.split: local.name}) if local.is_file() else (source.dataset, None)
    try:
        dataset = load_dataset(str(path), source.config, data_files=files, split=source.split, streaming=True)
        yield from dataset.iter(TOGETHER)
    except Exception as error:  # its own, the network's and the formats' have no narrower class in common
        raise ValueError(
            f"pretrain: split {source.split!r} of dataset {source.dataset!r}, config {source.config!r}, cannot be read "
            f"({_in_a_line(error)}). Give a name on the hub, and a network, or a path; and a config and split that it has."
        ) from error


def _tokenizer(name: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(name) if Path(name).is_file() else Tokenizer.from_pretrained(name)
    except Exception as error:  # nothing narrower is raised
        raise ValueError(
            f"pretrain: tokenizer {name!r} cannot be read ({_in_a_line(error)}). "
            "Give a name on the hub that has a tokenizer.json, and a network, or the path of a tokenizer.json."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _end(tokenizer: Tokenizer, source: Source) -> int:
    names = ENDS if source.end_token is None else (source.end_token,)
    known = [token for token in map(tokenizer.token_to_id, names) if token is not None]
    if not known:
        names = " nor ".join(names)
        raise ValueError(f"pretrain: tokenizer {source.tokenizer!r} has no {names}. Say by --end-token what ends a document.")
    return known[0]


def _in_a_line(error: Exception) -> str:
    return shorten(str(error) or type(error).__name__, 300)
