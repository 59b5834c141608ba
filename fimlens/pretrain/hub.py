"""Documents of a Hugging Face dataset, streamed and tokenized (pip install 'fimlens[hub]')."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from datasets import load_dataset
from tokenizers import Tokenizer

END_TOKENS = ("</s>", "<|endoftext|>", "<eos>", "[SEP]")


DOCUMENTS_AT_ONCE = 1000  # read and tokenized together: the tokenizer works on them in parallel


@dataclass(frozen=True)
class Source:
    """A dataset and a tokenizer: what to stream.

    Args:
        dataset: a name on the hub, or a file or directory in a format that `datasets` reads (json, json.gz, parquet, txt).
        tokenizer: a name on the hub, or the path of a tokenizer.json.
        config: the configuration of a dataset that has several, such as "en" of allenai/c4.
        split: the split of the dataset.
        column: the column with the text.
        end_token: the token after each document; by default the first of END_TOKENS that the tokenizer has.
        held_out: tokens at the start, up to the end of a document, that are never trained on.
    """

    dataset: str
    tokenizer: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    end_token: str | None = None
    held_out: int = 2**20


class Documents:
    """The token ids of each document of a source, in its order. To construct it reads only the tokenizer.

    Attributes:
        end: the token to put after each document.
        vocabulary: one more than the largest token id. Special tokens above the others, such as T5's sentinels, do not count:
            text that spells one is tokenized without it, so that the model needs no embedding for it.

    Raises:
        ValueError: the tokenizer cannot be read or lacks the end token; or, during iteration, the dataset, its config, its
            split or its column cannot be read.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.tokenizer = source, _load_tokenizer(source.tokenizer)
        self.end = _end_token(self.tokenizer, source)
        special = {token for token, added in self.tokenizer.get_added_tokens_decoder().items() if added.special}
        self.vocabulary = 1 + max({*self.tokenizer.get_vocab().values()} - special | {self.end})

    def __iter__(self) -> Iterator[list[int]]:
        for texts in _texts(self.source):
            for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                yield [token for token in encoding.ids if token < self.vocabulary]


def _texts(source: Source) -> Iterator[list[str]]:
    """Iterate over the texts of the documents, DOCUMENTS_AT_ONCE at a time."""
    for rows in stream("pretrain", source.dataset, source.config, source.split):
        texts = rows.get(source.column, [None])
        if not all(isinstance(text, str) for text in texts):
            names = ", ".join(rows)
            raise ValueError(
                f"pretrain: {source.dataset} has no column {source.column!r} of text. It has {names}; choose one by --column."
            )
        yield texts


def stream(command: str, name: str, config: str | None, split: str) -> Iterator[dict[str, list[Any]]]:
    """Stream rows of a dataset, as columns of DOCUMENTS_AT_ONCE values.

    Args:
        command: with which errors begin: "pretrain" or "finetune".
        name, config, split: as in `Source`.

    Raises:
        ValueError: the dataset, its config or its split cannot be read.
    """
    local = Path(name).absolute()  # `datasets` finds no name in a relative "."
    # For a single file, `datasets` wants the directory as the name and the file under the split that we ask for.
    path, files = (local.parent, {split: local.name}) if local.is_file() else (name, None)
    try:
        dataset = load_dataset(str(path), config, data_files=files, split=split, streaming=True)
        yield from dataset.iter(DOCUMENTS_AT_ONCE)
    except Exception as error:  # the errors of `datasets`, of the network and of the file formats share no narrower class
        what = f"split {split!r} of dataset {name!r}, config {config!r},"
        remedy = "Give a path, or a name on the hub and a network connection; and a config and a split that it has."
        if files is not None:
            what, remedy = f"the file {name}", "Mend it, or give it the ending of its format."
        raise ValueError(f"{command}: {what} cannot be read ({_one_line(error)}). {remedy}") from error


def _load_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer from a file or from the hub."""
    try:
        tokenizer = Tokenizer.from_file(name) if Path(name).is_file() else Tokenizer.from_pretrained(name)
    except Exception as error:  # `tokenizers` raises no narrower class
        raise ValueError(
            f"pretrain: tokenizer {name!r} cannot be read ({_one_line(error)}). Give the path of a tokenizer.json, or the name "
            "of a tokenizer on the hub and a network connection."
        ) from error
    # A tokenizer.json may store truncation and padding for other uses; both would change the text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _end_token(tokenizer: Tokenizer, source: Source) -> int:
    """Return the id of the token that ends a document."""
    names = END_TOKENS if source.end_token is None else (source.end_token,)
    known = [token for token in map(tokenizer.token_to_id, names) if token is not None]
    if not known:
        names = " nor ".join(names)
        raise ValueError(
            f"pretrain: tokenizer {source.tokenizer!r} has no {names}. Name the token that ends a document by --end-token."
        )
    return known[0]


def _one_line(error: Exception) -> str:
    """Shorten an error's message to one line."""
    return shorten(str(error) or type(error).__name__, 300)
