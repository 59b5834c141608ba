"""Fine-tuning: the tasks of GLUE in their own format and files of labelled texts, by the loop of pre-training."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import fimlens as fl
from fimlens.cli.app import app
from fimlens.language_model import Pretrained, encoder_files, llama_files, load
from fimlens.language_model.weights import Stored

pytestmark = pytest.mark.system

datasets = pytest.importorskip("datasets")
safetensors = pytest.importorskip("safetensors.numpy")
tokenizers = pytest.importorskip("tokenizers")

from fimlens.experiments.comparison import Result, best_of  # noqa: E402
from fimlens.finetune.examples import Texts, encode, read_task  # noqa: E402
from fimlens.finetune.plan import Finetuning, states_of  # noqa: E402
from fimlens.finetune.run import read as read_run  # noqa: E402
from fimlens.finetune.scores import SCORES  # noqa: E402
from fimlens.finetune.task import GLUE  # noqa: E402
from fimlens.pretrain import loop  # noqa: E402
from fimlens.pretrain.run_directory import Metrics  # noqa: E402

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "a", "film", "the", "is", "not", "and"]
SIZES = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
}


def tokenizer(special=True):
    """A tokenizer of words; with special tokens, texts and pairs of texts are marked as BERT's are."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if special:
        marks = [("[CLS]", 1), ("[SEP]", 2)]
        pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
        made.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", pair, marks)
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Write a model of a kind with random weights, once, and return its directory."""

    def write(kind="bert", special=True, **changes):
        path = tmp_path_factory.mktemp(kind)
        about = SIZES | {"model_type": kind} | changes
        files = llama_files if kind == "llama" else encoder_files
        config = files.config(about, {"pooler.dense.weight": Stored((8, 8), np.zeros)} if kind == "bert" else {})
        named = jax.tree_util.tree_leaves_with_path(files.names(config))
        # A random encoder hands on little of what it reads, unless its matrices are larger than those of a new one.
        scale = 1 if kind == "llama" else 20
        leaves = [scale * leaf if leaf.ndim == 2 else leaf for leaf in jax.tree.leaves(files.init(config, jax.random.key(1)))]
        tensors = {
            name: np.ascontiguousarray(leaf if at[0].key == "embedding" else leaf.T)
            for (at, name), leaf in zip(named, leaves, strict=True)
        }
        safetensors.save_file(tensors, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(about))
        tokenizer(special).save(str(path / "tokenizer.json"))
        return path

    made = {"bert": write(), "roberta": write("roberta", type_vocab_size=1), "llama": write("llama", False)}
    return lambda kind="bert", **changes: write(kind, **changes) if changes else made[kind]


def texts(count=40):
    """Short texts, and whether each says "good"."""
    random = np.random.default_rng(0)
    labels = random.integers(2, size=count)
    return [f"the film is {('bad', 'good')[label]} {'and ' * random.integers(3)}" for label in labels], labels


@pytest.fixture
def task_file(tmp_path):
    """Write a file of labelled texts; columns may be changed."""

    def write(name="task.csv", count=40, **changes):
        found, labels = texts(count)
        columns = {"text": found, "label": [("negative", "positive")[label] for label in labels]} | changes
        made = datasets.Dataset.from_dict(columns)
        getattr(made, {"csv": "to_csv", "jsonl": "to_json", "parquet": "to_parquet"}[name.partition(".")[2]])(tmp_path / name)
        return tmp_path / name

    return write


def on_device(rows):
    return jax.tree.map(jax.numpy.asarray, rows)


# --- tasks and their data --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    """A directory in the format that GLUE has on the hub: a config for each task, with parquet files for its splits."""
    path = tmp_path_factory.mktemp("glue")
    lines = ["---", "configs:"]
    for task in GLUE.values():
        lines += [f"- config_name: {task.name}", "  data_files:"]
        for split, count in (("train", 6), (task.held_out, 4), ("test", 1)):
            labels = [k % 3 % task.width if task.classes else 1.25 * k for k in range(count)]
            columns = {column: [f"the film is {column} {k}" for k in range(count)] for column in task.texts}
            columns |= {"label": labels if split != "test" else [-1], "idx": list(range(count))}
            (path / task.name).mkdir(exist_ok=True)
            datasets.Dataset.from_dict(columns).to_parquet(path / task.name / f"{split}-00000-of-00001.parquet")
            lines += [f"  - split: {split}", f"    path: {task.name}/{split}-*"]
    (path / "README.md").write_text("\n".join([*lines, "---", ""]))
    return path


@pytest.mark.parametrize("name", GLUE)
def test_a_task_of_glue(glue, model, name):
    task, train, held_out = read_task(name, source=str(glue))
    assert task == GLUE[name]
    assert (len(train.texts), len(held_out.texts)) == (6, 4)
    plan = Finetuning(str(model()), task=task, length=16)
    examples = encode(plan.source, task, train, held_out, 16)
    assert (examples.train.types.max() == 1) == (len(task.texts) == 2)
    weights, rows = plan.initial_weights(plan.pretrained()), plan.held_out(examples)
    outputs = plan.outputs(weights, on_device(rows))
    assert outputs.shape == (4, task.width)
    loss, scores = plan.measure(np.asarray(outputs), rows)
    assert loss == pytest.approx(float(plan.loss(weights, on_device(rows))), rel=1e-5)
    assert tuple(scores) == task.scores


def test_a_split_without_labels_is_refused(glue, monkeypatch):
    monkeypatch.setitem(GLUE, "sst2", replace(GLUE["sst2"], held_out="test"))
    with pytest.raises(ValueError, match="row 1 of test has no label"):
        read_task("sst2", source=str(glue))


@pytest.mark.parametrize("name", ["task.csv", "task.jsonl", "task.parquet"])
def test_every_tenth_row_of_a_file_is_held_out(task_file, name):
    task, train, held_out = read_task(str(task_file(name)))
    found, labels = texts()
    assert task.classes == ("negative", "positive")
    assert held_out.texts == [(text,) for text in found[::10]]
    assert held_out.labels.tolist() == labels[::10].tolist()
    assert len(train.texts) == 36


def test_a_file_may_have_pairs_another_file_to_hold_out_and_numbers(task_file):
    numbers = [k / 2 for k in range(40)]
    path, other = (task_file(name, second=["a film"] * 40, label=numbers) for name in ("one.csv", "other.csv"))
    task, train, held_out = read_task(str(path), held_out=other, texts=("text", "second"))
    assert (task.classes, task.scores) == ((), ("pearson", "spearman"))
    assert train.labels.tolist() == held_out.labels.tolist() == numbers
    assert train.texts[3][1] == "a film"


def test_classes_may_be_numbers_and_may_be_missing_elsewhere(task_file):
    path, other = task_file("one.csv", label=[1, 2] * 20), task_file("other.csv", label=[1, 2] * 19 + [1, None])
    assert read_task(str(path))[0].classes == ("1", "2")
    with pytest.raises(ValueError, match=r"row 40 of .*other.csv has no label. Mend that row, or leave it out"):
        read_task(str(path), held_out=other)  # all labels of its column are read as 1.0 and 2.0


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({}, {"texts": ("sentence",)}, "has no column 'sentence'. It has text, label; choose by --texts and --label"),
        ({}, {"label": "class"}, "has no column 'class'"),
        ({"text": ["fine"] * 5 + [" "] + ["fine"] * 34}, {}, r"row 6 of .*task.jsonl has no text in text. Mend that row"),
        ({"text": list(range(40))}, {}, "row 1 of .* has 0 in the column 'text', which is no text"),
        ({"label": ["a"] * 3 + [""] + ["b"] * 36}, {}, "row 4 of .* has no label"),
        ({"label": ["a"] * 40}, {}, "all labels are 'a'. Give data of two classes or more"),
        ({}, {"texts": ("text", "label", "text")}, "one column of text or two; got text, label, text"),
        ({"text": ["one"], "label": [0.5]}, {}, "has one row, which is held out. Give more, or another file by --held-out"),
        ({}, {"held_out": Path("nowhere.csv")}, "nowhere.csv is no file. Give the one to hold out"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_a_file_that_is_no_task_is_refused(task_file, changes, given, message):
    with pytest.raises(ValueError, match=message):
        read_task(str(task_file("task.jsonl", **changes)), **given)


def test_a_label_outside_the_classes_is_refused(task_file):
    path, other = task_file("one.csv"), task_file("other.csv", label=["positive"] * 7 + ["neutral"] * 33)
    with pytest.raises(ValueError, match=r"row 8 of .*other.csv has the label 'neutral', which is none of negative, positive"):
        read_task(str(path), held_out=other)


def test_a_number_that_is_not_finite_is_refused(task_file):
    with pytest.raises(ValueError, match=r"row 2 of .*task.csv has the label inf, which is not finite"):
        read_task(str(task_file(label=[0.5, float("inf")] * 20)))


def test_a_task_of_glue_takes_no_file_to_hold_out(task_file):
    with pytest.raises(ValueError, match=r"sst2 holds out a split of its own\. Leave out --held-out"):
        read_task("sst2", held_out=task_file())


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "task.csv").touch()
    with pytest.raises(ValueError, match=r"^finetune: the file \S*task.csv cannot be read .* Mend it"):
        read_task(str(tmp_path / "task.csv"))


def test_what_is_no_task_is_refused():
    with pytest.raises(ValueError, match="sst3 is no file, and no task of GLUE, which are cola, sst2"):
        read_task("sst3")


@pytest.mark.parametrize(
    ("kind", "changes", "length", "message"),
    [
        ("bert", {}, 21, "the model reads 20 tokens; got a length of 21"),
        ("roberta", {"pad_token_id": 3}, 17, "the model reads 16 tokens; got a length of 17"),
        ("bert", {"special": False}, 8, "puts no token before a text, and an encoder is read at that token"),
        ("bert", {"type_vocab_size": 1}, 8, "gives tokens the type 1, and the model knows 1 types"),
        ("bert", {}, 2, "the tokenizer adds 3 tokens, and a length of 2 leaves none for a text"),
        ("bert", {}, 3, "the tokenizer adds 3 tokens, and a length of 3 leaves none for a text"),
    ],
)
def test_a_tokenizer_or_a_length_that_does_not_fit_is_refused(model, kind, changes, length, message):
    pairs = Texts([("good", "bad")], np.zeros(1, np.int32))
    with pytest.raises(ValueError, match=message):
        encode(load(model(kind, **changes)), GLUE["rte"], pairs, pairs, length)


def test_a_model_of_bytes_and_a_text_without_tokens_are_refused(model):
    words = load(model("llama"))
    blank = Texts([("\t",)], np.zeros(1, np.int32))
    with pytest.raises(ValueError, match=r"the model has no tokenizer. Give its tokenizer.json by --tokenizer"):
        encode(Pretrained(words.config, words.params, None), GLUE["sst2"], blank, blank, 8)
    with pytest.raises(ValueError, match=r"the tokenizer leaves nothing. Leave that row out"):
        encode(words, GLUE["sst2"], blank, blank, 8)


def test_long_pairs_lose_tokens_of_the_longer_text(model):
    pair = Texts([("good " * 9, "bad")], np.zeros(1, np.int32))
    rows = encode(load(model()), GLUE["rte"], pair, pair, 8).train
    assert rows.tokens[0].tolist() == [1, 4, 4, 4, 4, 2, 5, 2]
    assert rows.types[0].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]


# --- scores ----------------------------------------------------------------------------------------------------


def test_scores_are_those_of_their_definitions():
    """F1 and Matthews's correlation from counts, independently of the code."""
    random = np.random.default_rng(0)
    labels, predicted = random.integers(2, size=(2, 50))
    tp, tn, fp, fn = (np.sum((labels == a) & (predicted == b)) for a, b in ((1, 1), (0, 0), (0, 1), (1, 0)))
    f1, other = 2 * tp / (2 * tp + fp + fn), 2 * tn / (2 * tn + fp + fn)
    matthews = (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    expected = {"accuracy": (tp + tn) / 50, "f1": f1, "macro-f1": (f1 + other) / 2, "matthews": matthews}
    for name, value in expected.items():
        assert SCORES[name](labels, predicted) == pytest.approx(value)


def test_scores_of_ranks_and_of_what_is_constant():
    numbers = np.array([0.1, 0.4, 2.0, 9.0])
    assert SCORES["spearman"](numbers, numbers**3) == pytest.approx(1)
    assert SCORES["pearson"](numbers, 3 - 2 * numbers) == pytest.approx(-1)
    constant = np.zeros(4, int)
    assert [SCORES[name](np.array([0, 1, 1, 0]), constant) for name in ("f1", "matthews", "spearman")] == [0, 0, 0]
    assert SCORES["f1"](constant, constant) == 0
    assert SCORES["macro-f1"](constant, constant) == 1


# --- the model and its head ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_padding_and_the_rest_of_a_batch_do_not_change_an_output(model, kind):
    plan = Finetuning(str(model(kind)), length=12)
    given = Texts([("good film",), ("the film is not good and",)], np.zeros(2, np.int32))
    weights = plan.initial_weights(plan.pretrained())
    assert ("pooler" in weights) == (kind != "llama")
    rows = on_device(encode(plan.source, plan.task, given, given, 12).train)
    alone = jax.tree.map(lambda leaf: leaf[:1], rows)
    alone = alone._replace(tokens=alone.tokens[:, : alone.lengths[0]], types=alone.types[:, : alone.lengths[0]])
    np.testing.assert_allclose(plan.outputs(weights, rows)[:1], plan.outputs(weights, alone), atol=1e-6)


def test_a_head_alone_is_trained_on_states_that_are_computed_once(model):
    whole = Finetuning(str(model()), length=12)
    head = replace(whole, head_only=True, scan=True)
    given = Texts([("good film",), ("bad",)], np.array([1, 0], np.int32))
    examples = encode(whole.source, whole.task, given, given, 12)
    states = states_of(head, examples)
    weights = whole.initial_weights(whole.pretrained())
    own = head.initial_weights(head.pretrained())
    assert sorted(own) == ["classifier", "pooler"]
    expected = whole.outputs(weights, on_device(examples.train))
    np.testing.assert_allclose(head.outputs(own, on_device(states.train)), expected, atol=1e-6)
    with pytest.raises(ValueError, match="the head alone is trained on what states_of returns"):
        head.batches(examples)


def test_the_lens_sees_a_task(prepared):
    """The Fisher of a classifier's matrix is the mean of its rows' squared gradients, each computed alone."""
    plan, examples = prepared
    plan = replace(plan, scan=False)
    weights = plan.initial_weights(plan.pretrained())
    rows = on_device(jax.tree.map(lambda leaf: leaf[:3], examples.train))
    name = "layers/0/attention/query/weight"
    fisher = fl.empirical_fisher(plan.loss, weights, [rows], matrices=[name])[name]
    alone = [jax.tree.map(lambda leaf, k=k: leaf[k : k + 1], rows) for k in range(3)]
    gradients = [jax.grad(plan.loss)(weights, row)["layers"][0]["attention"]["query"]["weight"] for row in alone]
    np.testing.assert_allclose(fisher.second_moment(), np.mean(np.square(gradients), axis=0), rtol=1e-3, atol=1e-9)


# --- the loop --------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.fixture
def prepared(model, task_file):
    """A plan of 8 steps on labelled texts, and its examples."""
    task, train, held_out = read_task(str(task_file()))
    plan = Finetuning(str(model()), "adamw", rate=0.01, steps=8, batch=8, length=12, task=task, scan=True)
    return plan, encode(plan.source, task, train, held_out, 12)


@pytest.mark.parametrize("head_only", [False, True], ids=["whole", "head"])
def test_a_killed_run_continues_to_the_same_scores(prepared, tmp_path, head_only):
    plan, examples = prepared
    plan = replace(plan, head_only=head_only)
    examples = states_of(plan, examples) if head_only else examples

    def killed(line):
        if line.step == 6:
            raise Killed

    with pytest.raises(Killed):
        loop.train(plan, examples, tmp_path / "run", evaluate_every=2, checkpoint_every=4, callback=killed)
    resumed = loop.train(plan, examples, tmp_path / "run", evaluate_every=2, checkpoint_every=4)
    whole = loop.train(plan, examples)
    assert [line.step for line in resumed] == [2, 4, 6, 8]
    assert (resumed[-1].held_out, resumed[-1].scores) == (whole[-1].held_out, whole[-1].scores)
    assert set(whole[-1].scores) == {"accuracy", "macro-f1"}
    assert whole[-1].perplexity is None
    trained, weights = read_run(tmp_path / "run")
    assert trained == replace(plan, scan=False)
    rows = trained.held_out(examples)
    measured = trained.measure(np.asarray(trained.outputs(weights, on_device(rows))), rows)
    assert measured == (pytest.approx(whole[-1].held_out, rel=1e-5), whole[-1].scores)
    with pytest.raises(ValueError, match=r"a run of fimlens finetune. fimlens.finetune.run.read reads it"):
        load(tmp_path / "run")
    with pytest.raises(ValueError, match=r"another plan: warmup 0.1 there and 0.5 here"):
        loop.train(replace(plan, warmup=0.5), examples, tmp_path / "run")


def test_a_run_leaves_the_model_as_it_was(prepared):
    plan, examples = prepared
    plan = replace(plan, steps=1, scan=False)
    first, second = (loop.train(plan, examples)[-1] for _ in range(2))
    assert (first.loss, first.held_out) == (second.loss, second.held_out)


@pytest.mark.parametrize(
    ("kind", "optimizer"), [("bert", "adamw --rate 0.02"), ("llama", "alice --option rank=4 --option leading=2 --rate 0.05")]
)
def test_the_command_learns_a_task(model, task_file, tmp_path, monkeypatch, kind, optimizer):
    monkeypatch.chdir(tmp_path)
    task_file("task.jsonl", count=80)
    command = (
        f"finetune --model {model(kind)} --task task.jsonl --optimizer {optimizer} --epochs 4 --batch 8 --length 12 --scan"
        " --out run"
    )
    run = CliRunner().invoke(app, command.split())
    assert run.exit_code == 0, run.output
    assert "On 8 held-out rows after 36 steps: accuracy 1.0000, macro-f1 1.0000" in " ".join(run.output.split())
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["task"]["classes"] == ["negative", "positive"]
    assert plan["options"] == ({"rank": 4, "leading": 2} if kind == "llama" else {})


def test_the_first_score_chooses_the_rate():
    def run(held_out, **scores):
        return Result([Metrics(9, 1.0, held_out, None, 9, 1.0, 1.0, None, (), scores)])

    runs = {(0, 0): run(0.5, f1=0.7, accuracy=0.9), (1, 0): run(0.6, f1=0.8, accuracy=0.8), (2, 0): Result([])}
    assert best_of(runs) == 1
    runs = {(0, 0): run(0.5, pearson=-0.2), (1, 0): run(0.6, pearson=-0.3), (2, 0): Result([])}
    assert best_of(runs) == 0


def test_optimizers_are_compared_by_their_scores(model, task_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task_file("task.jsonl")
    command = (
        f"compare --optimizers adam galore --model {model()} --task task.jsonl --head-only --seeds 2 --no-tune --epochs 1"
        " --batch 8 --length 12 --out table"
    )
    run = CliRunner().invoke(app, command.split())
    assert run.exit_code == 0, run.output
    header = "| optimizer | rate | accuracy | spread | macro-f1 | spread | loss | ms a step | share of step, % | memory, MB |"
    assert (tmp_path / "table" / "table.md").read_text().splitlines()[0] == header
    entries = json.loads((tmp_path / "table" / "compare.json").read_text())["entries"]
    assert [(each["name"], each["usual"]) for each in entries] == [("adam", 1e-3), ("galore", 4e-3)]
    assert entries[1]["options"]["rank"] == 8
    speeds = (tmp_path / "table" / "speed.json").read_text()
    assert CliRunner().invoke(app, command.split()).exit_code == 0
    assert (tmp_path / "table" / "speed.json").read_text() == speeds  # measured once
    assert all(set(run["scores"]) == {"accuracy", "macro-f1"} for each in entries for run in each["runs"])
    run = CliRunner().invoke(app, [*command.split(), "--lengths", "5,10"])
    assert run.exit_code == 2
    assert "--lengths is read with a pre-training alone, not with --task. Leave it out." in " ".join(run.output.split())


def test_its_errors_have_its_name():
    with pytest.raises(ValueError, match=r"^finetune: rate is a positive number"):
        Finetuning("anywhere", rate=0.0)
    with pytest.raises(ValueError, match=r"^finetune: adam has no option 'rank'"):
        Finetuning("anywhere", options={"rank": 3})


def test_the_command_refuses_in_one_line(model, task_file, tmp_path):
    path = task_file()
    for words, message in (
        (["--model", str(tmp_path), "--task", str(path)], "no directory with a config.json"),
        (["--model", str(model()), "--task", "sst3"], "sst3 is no file, and no task of GLUE"),
        (["--model", str(model()), "--task", str(path), "--warmup", "1"], "warmup is a share of the steps"),
        (["--model", str(model()), "--task", str(path), "--rate", "0"], "fimlens finetune: rate is a positive number"),
        (["--model", str(model()), "--task", str(path), "--epochs", "inf"], "epochs is a positive number; got inf"),
        (["--model", str(model()), "--task", str(path), "--epochs", "nan"], "epochs is a positive number; got nan"),
    ):
        run = CliRunner().invoke(app, ["finetune", *words, "--out", str(tmp_path / "run")])
        assert run.exit_code == 2
        assert message in " ".join(run.output.split())
        assert "Traceback" not in run.output


def test_missing_packages_are_named(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "fimlens.finetune.examples", None)
    run = CliRunner().invoke(app, ["finetune", "--model", "x", "--task", "sst2"])
    assert run.exit_code == 2
    assert "pip install 'fimlens[finetune]'" in " ".join(run.output.split())
