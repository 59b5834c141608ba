"""Datasets of the hub: the shards equal an independent tokenization, are streamed once, and runs continue from them."""

import gzip
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from test_hosts import free_port
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from typer.testing import CliRunner

import fimlens.pretrain
from fimlens.cli.app import app
from fimlens.language_model import llama
from fimlens.pretrain import data, hub, model, tokens
from fimlens.pretrain.plan import Plan

pytestmark = pytest.mark.system
TEXTS = [f"document {k} says that {k * k} is the square of {k}, and {k**3} its cube. " * (1 + k % 5) for k in range(2500)]
HELD_OUT = 500
PLAN = Plan(steps=6, batch=8, length=16)
COMMAND = "pretrain --model tiny --steps 6 --batch 8 --length 16 --checkpoint-every 2"


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(model.CONFIGS, "tiny", llama.Config(vocabulary=200, hidden=16, mlp=24, heads=2, layers=2))


@pytest.fixture
def c4(tmp_path):
    """Write a dataset in the format of C4."""
    directory = tmp_path / "c4"
    directory.mkdir()
    for part in range(2):
        with gzip.open(directory / f"c4-train.{part:05}-of-00002.json.gz", "wt") as file:
            for text in TEXTS[part * 1250 : (part + 1) * 1250]:
                file.write(json.dumps({"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://a.b"}) + "\n")
    return directory


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Train a tokenizer whose last token is special, like T5's sentinels."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(
        TEXTS[::10], trainers.BpeTrainer(vocab_size=200, special_tokens=["<pad>", "</s>"], show_progress=False)
    )
    made.add_special_tokens(["<extra_id_0>"])
    made.enable_truncation(8)  # meant for other uses: fimlens must turn it off
    made.enable_padding()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture
def source(c4, tokenizer):
    return hub.Source(str(c4), str(tokenizer), held_out=HELD_OUT)


@pytest.fixture
def invoke(c4, tokenizer, tmp_path):
    def invoke(*words, dataset=c4, tokenizer=tokenizer, out="run"):
        given = [
            "--dataset",
            str(dataset),
            "--tokenizer",
            str(tokenizer),
            "--held-out",
            str(HELD_OUT),
            "--out",
            str(tmp_path / out),
        ]
        return CliRunner().invoke(app, [*COMMAND.split(), *given, *words])

    return invoke


def witness(path):
    """Tokenize each document alone, with the end token after it."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [[*tokenizer.encode(text).ids, tokenizer.token_to_id("</s>")] for text in TEXTS]


def losses(out):
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"], line["held_out"]) for line in lines]


def test_shards_equal_an_independent_tokenization_and_held_out_documents_are_not_trained_on(source, tokenizer, tmp_path):
    corpus = tokens.stream_shards(PLAN, source, tmp_path / "tokens")
    documents = witness(tokenizer)
    together = np.concatenate([*corpus.held_out, *corpus.train])
    assert (together == np.concatenate(documents)[: len(together)]).all()
    ends = np.cumsum([len(document) for document in documents])
    assert sum(map(len, corpus.held_out)) == ends[ends >= HELD_OUT][0]
    assert len(together) in ends
    windows = sum(map(len, data.cut_windows(corpus.train, PLAN.length)))
    assert PLAN.steps * PLAN.batch <= windows < PLAN.steps * PLAN.batch + 20  # enough for one pass, and not much more
    assert corpus.vocabulary == 200  # the sentinel does not count
    assert isinstance(corpus.train[0], np.memmap)


def test_special_tokens_above_the_others_are_left_out(source, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps({"text": "document <extra_id_0> 3"}) + "\n")
    documents = hub.Documents(hub.Source(str(tmp_path / "one.json"), source.tokenizer))
    assert max(next(iter(documents))) < documents.vocabulary == 200


def test_half_written_shards_are_written_again(source, tmp_path):
    directory = tmp_path / "tokens"

    def interrupted(seen, wanted):
        if seen > HELD_OUT + 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokens.stream_shards(PLAN, source, directory, interrupted)
    assert not (directory / "tokens.json").exists()
    np.save(directory / "train-00007.npy", np.zeros(9, np.uint16))
    again, anew = (tokens.stream_shards(PLAN, source, where) for where in (directory, tmp_path / "other"))
    assert [row.tolist() for row in again.train] == [row.tolist() for row in anew.train]


def test_a_dataset_that_is_shorter_than_a_run_is_repeated(source, tmp_path):
    long = Plan(steps=10**6, batch=8, length=16)
    first = tokens.stream_shards(long, source, tmp_path / "tokens")
    assert sum(map(len, [*first.held_out, *first.train])) == sum(map(len, witness(source.tokenizer)))
    longer = tokens.stream_shards(Plan(steps=10**7), source, tmp_path / "tokens")
    assert longer.fingerprint == first.fingerprint


def test_an_interrupted_command_continues_without_the_stream(invoke, c4, tmp_path, monkeypatch):
    run = invoke(out="whole")
    assert run.exit_code == 0, run.output
    assert "Held-out loss after 6 steps" in run.output
    whole = data.Batches.__call__

    def interrupted(self, k, rows=slice(None)):
        if k == 5:
            raise KeyboardInterrupt
        return whole(self, k, rows)

    with monkeypatch.context() as patched:
        patched.setattr(data.Batches, "__call__", interrupted)
        assert invoke().exit_code != 0
    assert (tmp_path / "run" / "checkpoints" / "4").exists()
    shutil.rmtree(c4)
    run = invoke()
    assert run.exit_code == 0, run.output
    assert losses(tmp_path / "run")[-1] == losses(tmp_path / "whole")[-1]


def test_tokens_are_shared_by_runs_and_those_of_another_source_are_refused(invoke, c4, tmp_path):
    shared = "--tokens", str(tmp_path / "tokens")
    assert invoke(*shared).exit_code == 0
    c4.rename(tmp_path / "other")
    assert invoke(*shared, "--optimizer", "racs", out="second").exit_code == 0
    run = invoke(*shared, dataset=tmp_path / "other", out="third")
    assert run.exit_code == 2
    assert "tokens of another source: dataset" in " ".join(run.output.split())
    run = invoke(*shared, "--steps", "60", out="fourth")
    assert run.exit_code == 2
    assert "one pass of this run needs" in " ".join(run.output.split())


@pytest.mark.parametrize(
    ("words", "given", "message"),
    [
        ([], {"dataset": "allenai/c4"}, "split 'train' of dataset 'allenai/c4'"),
        ([], {"dataset": "nowhere/at/all"}, "cannot be read"),
        ([], {"tokenizer": "t5-base"}, "tokenizer 't5-base' cannot be read"),
        (["--split", "nosuch"], {}, "Bad split: nosuch"),
        (["--dataset-config", "nosuch"], {}, "'nosuch' not found"),
        (["--column", "nosuch"], {}, "no column 'nosuch' of text. It has text, timestamp, url"),
        (["--column", "timestamp"], {}, "no column 'timestamp' of text"),
        (["--end-token", "nosuch"], {}, "has no nosuch"),
        (["--held-out", "10000000"], {}, "Hold out fewer"),
        (["--text", "x"], {}, "only one of --text, --shards and --dataset"),
    ],
    ids=str,
)
def test_an_unreadable_source_is_an_error_of_one_line(invoke, words, given, message):
    run = invoke(*words, **given)
    assert run.exit_code == 2
    assert message in " ".join(run.output.split())
    assert "Traceback" not in run.output


def test_a_model_with_too_small_a_vocabulary_is_refused_before_the_stream(source, tmp_path, monkeypatch):
    monkeypatch.setitem(model.CONFIGS, "tiny", llama.Config(vocabulary=100))
    with pytest.raises(ValueError, match="200 kinds of token and tiny knows 100"):
        tokens.stream_shards(Plan(model="tiny"), source, tmp_path, callback=pytest.fail)


def test_missing_packages_are_named(invoke, monkeypatch):
    for name in ("hub", "tokens"):
        monkeypatch.delitem(sys.modules, f"fimlens.pretrain.{name}")
        monkeypatch.delattr(fimlens.pretrain, name)
    monkeypatch.setitem(sys.modules, "datasets", None)
    run = invoke()
    assert run.exit_code == 2
    assert "pip install 'fimlens[train,hub]'" in " ".join(run.output.split())


ON_A_HOST = """
import sys
from dataclasses import replace
from pathlib import Path
import jax
from fimlens.pretrain import hub, tokens
from fimlens.pretrain.plan import Plan

address, host, dataset, tokenizer, directory = sys.argv[1:]
jax.distributed.initialize(address, 2, int(host))
source = hub.Source(dataset, tokenizer, held_out=500)
for each in (replace(source, split="nosuch"), source):
    try:
        print(tokens.stream_shards(Plan(steps=6, batch=8, length=16), each, Path(directory)).fingerprint, flush=True)
    except ValueError as error:
        print(error, flush=True)
"""


@pytest.mark.slow
def test_one_of_two_hosts_streams_and_the_other_learns_the_outcome(source, tmp_path):
    words = f"127.0.0.1:{free_port()}", "{host}", source.dataset, source.tokenizer, str(tmp_path / "tokens")
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", ON_A_HOST, *(word.format(host=host) for word in words)],
            env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for host in range(2)
    ]
    try:
        outputs = [host.communicate(timeout=280)[0] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    fingerprint = tokens.stream_shards(PLAN, source, tmp_path / "alone").fingerprint
    for output in outputs:
        assert "Bad split: nosuch" in output
        assert output.split()[-1] == fingerprint
    assert "(on host 0)" in outputs[1]
