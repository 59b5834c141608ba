"""Tokens of a source in a directory: written once, by one host of one run, and read by all.

What trains reads these shards alone, so that batch k stays a function of the seed and of k, whatever a stream does.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import jax
from filelock import FileLock
from jax.experimental import multihost_utils

from fimlens.pretrain.data import ABOUT, SHARD, Corpus, of_shards, write_shards
from fimlens.pretrain.hub import Documents, Source
from fimlens.pretrain.plan import Plan

Told = Callable[[int, int], None]


def of_source(plan: Plan, source: Source, directory: Path, told: Told = lambda tokens, wanted: None) -> Corpus:
    """The shards of a source in `directory`, for one pass of a plan; streamed into it first, unless they are there and whole.

    Host 0 streams and all others wait for it. `told` hears how many tokens there are so far, and how many are wanted.

    Raises:
        ValueError: what `Documents` refuses; the model's vocabulary is smaller than the tokenizer's; or the directory has
            tokens of another source, or too few.
    """
    windows = plan.steps * plan.batch
    wanted = (windows + windows * plan.length // SHARD + 2) * plan.length  # each shard has a rest shorter than a window
    _written_once(directory, lambda: _write(plan, source, directory, wanted, told))
    corpus, about, mine = of_shards(directory), json.loads((directory / ABOUT).read_text()), asdict(source)
    theirs = about.get("source", {})
    differing = [
        f"{name} {theirs.get(name)!r} there and {mine[name]!r} here" for name in mine if theirs.get(name) != mine[name]
    ]
    if differing:
        raise ValueError(f"pretrain: {directory} has tokens of another source: {', '.join(differing)}. Take another directory.")
    count = sum(map(len, corpus.train))
    if about["wanted"] < wanted and about["wanted"] <= count:  # where there are fewer, that is the whole dataset
        raise ValueError(
            f"pretrain: {directory} has {count} tokens to train on and one pass of this run needs {wanted}. "
            "Take another directory, or remove this one to stream it anew."
        )
    return corpus


def _written_once(directory: Path, write: Callable[[], None]) -> None:
    """Host 0 writes, and says so if it fails; the others look for either: a collective would give up before hours are over."""
    whole, failed = directory / ABOUT, directory / "failed"
    if jax.process_index() == 0:
        failed.unlink(missing_ok=True)
    multihost_utils.sync_global_devices("no old failure is there")
    if jax.process_index() == 0 and not whole.exists():
        directory.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(directory / "lock"):  # another run may share the directory
                if not whole.exists():
                    write()
        except Exception as error:
            failed.write_text(str(error))
            multihost_utils.sync_global_devices("all have seen the end")
            raise
    while not (whole.exists() or failed.exists()):
        time.sleep(1)
    failure = None if whole.exists() else failed.read_text()
    multihost_utils.sync_global_devices("all have seen the end")
    if failure is not None:
        raise ValueError(f"{failure} (on host 0)")


def _write(plan: Plan, source: Source, directory: Path, wanted: int, told: Told) -> None:
    documents = Documents(source)
    plan.require_vocabulary(source.tokenizer, documents.vocabulary)

    def heard() -> Iterator[list[int]]:
        tokens = 0
        for document in documents:
            yield document
            tokens += len(document) + 1
            told(tokens, source.held_out + wanted)

    about = {"source": asdict(source), "wanted": wanted}
    sizes = {"held_out": source.held_out, "train": wanted}
    write_shards(directory, heard(), vocabulary=documents.vocabulary, end=documents.end, about=about, **sizes)
