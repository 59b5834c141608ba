"""Token shards of a streamed dataset: one host of one run writes them once, and all hosts and runs read them.

Training reads only these shards. So batch k stays a function of the seed and k, whatever happens to the stream.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import jax
from filelock import FileLock
from jax.experimental import multihost_utils

from fimlens._validate import differences
from fimlens.pretrain.data import MANIFEST, SHARD_TOKENS, Corpus, read_shards, write_shards
from fimlens.pretrain.hub import Documents, Source
from fimlens.pretrain.plan import Plan

Callback = Callable[[int, int], None]


def stream_shards(plan: Plan, source: Source, directory: Path, callback: Callback = lambda tokens, wanted: None) -> Corpus:
    """Return the tokens of a source, enough for one pass of a plan. Stream them into `directory` unless they are there.

    On several hosts, host 0 streams and the others wait for it.

    Args:
        plan: the run, whose steps, batch and length say how many tokens it needs.
        source: the dataset and the tokenizer.
        directory: where the shards are. Several runs may share it, also while it is being written.
        callback: called after each document with the number of tokens so far and the number wanted.

    Raises:
        ValueError: `Documents` refuses the source; the model's vocabulary is smaller than the tokenizer's; or the directory has
            tokens of another source, or too few.
    """
    windows = plan.steps * plan.batch
    # The tokens at the end of a shard that do not fill a window are lost: add one window for each shard, and two to spare.
    wanted = (windows + windows * plan.length // SHARD_TOKENS + 2) * plan.length
    _write_once(directory, lambda: _write(plan, source, directory, wanted, callback))
    corpus, about = read_shards(directory), json.loads((directory / MANIFEST).read_text())
    if differing := differences(about.get("source", {}), asdict(source)):
        raise ValueError(f"pretrain: {directory} has tokens of another source: {differing}. Take another directory.")
    count = sum(map(len, corpus.train))
    # Shards with fewer tokens than their writer wanted hold the whole dataset: a longer run repeats it.
    if about["wanted"] < wanted and about["wanted"] <= count:
        raise ValueError(
            f"pretrain: {directory} has {count} tokens to train on and one pass of this run needs {wanted}. "
            "Take another directory, or remove this one to stream it again."
        )
    return corpus


def _write_once(directory: Path, write: Callable[[], None]) -> None:
    """Let host 0 write the shards, unless they are complete, while the other hosts wait.

    The others poll for the manifest or for a file with host 0's error. A collective operation would time out within minutes,
    and a stream may take hours.
    """
    manifest, failed = directory / MANIFEST, directory / "failed"
    if jax.process_index() == 0:
        failed.unlink(missing_ok=True)
    # Without this barrier a fast host could read the error of an earlier run before host 0 removes it.
    multihost_utils.sync_global_devices("the error of an earlier run is removed")
    if jax.process_index() == 0 and not manifest.exists():
        directory.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(directory / "lock"):  # another run may share the directory
                if not manifest.exists():  # that run may have written the shards while this one waited for the lock
                    write()
        except Exception as error:
            failed.write_text(str(error))
            multihost_utils.sync_global_devices("all hosts know the outcome")
            raise
    while not (manifest.exists() or failed.exists()):
        time.sleep(1)
    failure = None if manifest.exists() else failed.read_text()
    # Without this barrier host 0 could start again and remove its error before a slow host has read it.
    multihost_utils.sync_global_devices("all hosts know the outcome")
    if failure is not None:
        raise ValueError(f"{failure} (on host 0)")


def _write(plan: Plan, source: Source, directory: Path, wanted: int, callback: Callback) -> None:
    """Stream the held-out tokens and `wanted` tokens to train on into shards."""
    documents = Documents(source)
    plan.require_vocabulary(source.tokenizer, documents.vocabulary)  # before the stream, which may take hours

    def reported() -> Iterator[list[int]]:
        tokens = 0
        for document in documents:
            yield document
            tokens += len(document) + 1
            callback(tokens, source.held_out + wanted)

    about = {"source": asdict(source), "wanted": wanted}
    sizes = {"held_out": source.held_out, "train": wanted}
    write_shards(directory, reported(), vocabulary=documents.vocabulary, end=documents.end, about=about, **sizes)
