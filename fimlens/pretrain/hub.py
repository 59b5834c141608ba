"""Documents of a Hugging Face dataset, streamed once, as token ids, into shards on disk.

What trains reads the shards alone, so that batch k stays a function of the seed and of k, whatever the stream does.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import jax
from datasets import load_dataset
from filelock import FileLock
from jax.experimental import multihost_utils
from tokenizers import Tokenizer

from fimlens.pretrain.data import ABOUT, SHARD, Corpus, of_shards, write_shards
from fimlens.pretrain.plan import Plan

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


def streamed(
    plan: Plan, source: Source, directory: Path, told: Callable[[int, int], None] = lambda tokens, wanted: None
) -> Corpus:
    """The shards of a source in `directory`, for one pass of a plan; streamed into it first, unless they are there and whole.

    Host 0 streams and all others wait for it. `told` hears how many tokens there are so far, and how many are wanted.

    Raises:
        ValueError: dataset, split, column or tokenizer cannot be read, the model's vocabulary is smaller than the tokenizer's,
            or the directory has tokens of another source, or too few.
    """
    wanted = _wanted(plan)
    try:
        if jax.process_index() == 0 and not _is_whole(directory):
            directory.mkdir(parents=True, exist_ok=True)
            with FileLock(directory / "lock"):  # another run may share the directory
                if not _is_whole(directory):
                    _write(plan, source, directory, wanted, told)
    finally:  # where host 0 fails, the others find no tokens, and end as well
        multihost_utils.sync_global_devices("tokens are streamed")
    corpus = of_shards(directory)
    about = json.loads((directory / ABOUT).read_text())
    mine, theirs = asdict(source), about.get("source", {})
    differing = [f"{name} {theirs.get(name)!r} there and {mine[name]!r} here" for name in mine if theirs.get(name) != mine[name]]
    if differing:
        raise ValueError(f"pretrain: {directory} has tokens of another source: {', '.join(differing)}. Take another directory.")
    count = sum(map(len, corpus.train))
    if about["wanted"] < wanted and about["wanted"] <= count:  # where there are fewer, that is the whole dataset
        raise ValueError(
            f"pretrain: {directory} has {count} tokens to train on and one pass of this run needs {wanted}. "
            "Take another directory, or remove this one to stream it anew."
        )
    return corpus


def _is_whole(directory: Path) -> bool:
    return (directory / ABOUT).exists()


def _wanted(plan: Plan) -> int:
    """Tokens that have a window for each row of each step, though each shard has a rest shorter than one."""
    windows = plan.steps * plan.batch
    return (windows + windows * plan.length // SHARD + 2) * plan.length


def _write(plan: Plan, source: Source, directory: Path, wanted: int, told: Callable[[int, int], None]) -> None:
    tokenizer = _tokenizer(source.tokenizer)
    end = _end(tokenizer, source)
    vocabulary = _vocabulary(tokenizer, end)
    if vocabulary > plan.config.vocabulary:
        raise ValueError(
            f"pretrain: {source.tokenizer} has {vocabulary} kinds of token and {plan.model} knows {plan.config.vocabulary}. "
            "Take a model with a larger vocabulary, or another tokenizer."
        )

    def documents() -> Iterator[list[int]]:
        tokens = 0
        for texts in _texts(source):
            for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                ids = [token for token in encoding.ids if token < vocabulary]
                tokens += len(ids) + 1
                yield ids
            told(tokens, source.held_out + wanted)

    about = {"source": asdict(source), "wanted": wanted}
    write_shards(
        directory, documents(), vocabulary=vocabulary, end=end, held_out=source.held_out, train=wanted, about=about
    )


def _texts(source: Source) -> Iterator[list[str]]:
    for rows in _rows(source):
        texts = rows.get(source.column, [None])
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"pretrain: {source.dataset} has no column {source.column!r} of text. It has {', '.join(rows)}; say --column."
            )
        yield texts


def _rows(source: Source) -> Iterator[dict[str, list[Any]]]:
    """Some documents at a time, by column."""
    local = Path(source.dataset)
    path, files = (local.parent, {source.split: local.name}) if local.is_file() else (source.dataset, None)
    try:
        dataset = load_dataset(str(path), source.config, data_files=files, split=source.split, streaming=True)
        yield from dataset.iter(TOGETHER)
    except Exception as error:  # of its own libraries, of the network's, of the formats': they share no narrower class
        raise ValueError(
            f"pretrain: split {source.split!r} of dataset {source.dataset!r}, config {source.config!r}, cannot be read "
            f"({_in_a_line(error)}). Give a name on the hub or a path, one of its configs and splits, and a network for the hub."
        ) from error


def _tokenizer(name: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(name) if Path(name).is_file() else Tokenizer.from_pretrained(name)
    except Exception as error:  # it raises no narrower class
        raise ValueError(
            f"pretrain: tokenizer {name!r} cannot be read ({_in_a_line(error)}). "
            "Give a name on the hub that has a tokenizer.json, and a network, or the path of a tokenizer.json."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _end(tokenizer: Tokenizer, source: Source) -> int:
    names = ENDS if source.end_token is None else (source.end_token,)
    ids = [tokenizer.token_to_id(name) for name in names]
    if not any(known := [token is not None for token in ids]):
        raise ValueError(
            f"pretrain: tokenizer {source.tokenizer!r} has no {' nor '.join(names)}. Say by --end-token what follows a document."
        )
    return ids[known.index(True)]


def _vocabulary(tokenizer: Tokenizer, end: int) -> int:
    """One more than the largest token of text: special ones above it, such as T5's sentinels, no model needs to know."""
    special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    return 1 + max({*tokenizer.get_vocab().values()} - special | {end})


def _in_a_line(error: Exception) -> str:
    return shorten(str(error) or type(error).__name__, 300)
