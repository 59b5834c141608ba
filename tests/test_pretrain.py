"""Pre-training: batches are functions of the step, killed runs continue, and a mesh does not change the losses."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from typer.testing import CliRunner

from fimlens.cli.app import app
from fimlens.language_model import llama
from fimlens.pretrain import data, loop, model
from fimlens.pretrain.mesh import make_mesh
from fimlens.pretrain.plan import Plan
from fimlens.pretrain.step import initial_state

pytestmark = pytest.mark.system
TINY = llama.Config(vocabulary=256, hidden=16, mlp=24, heads=2, layers=2)
TEXT = (b"a line of text, and another one; " * 400)[: 12 * 1024]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(model.CONFIGS, "tiny", TINY)


@pytest.fixture
def plan():
    return Plan(model="tiny", rate=1e-2, steps=8, batch=8, length=16)


@pytest.fixture
def corpus():
    tokens = np.random.default_rng(0).integers(0, 256, 6000).astype(np.uint8)
    return data.Corpus([tokens[:5000]], [tokens[5000:]], 256)


def losses(lines):
    return [(line.step, line.loss, line.held_out) for line in lines]


# --- data ------------------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_its_number():
    rows = [np.arange(1000), np.arange(5000, 5600)]
    one, other = (data.Batches(rows, batch=6, length=10, seed=3) for _ in range(2))
    assert (one(9) == other(9)).all()
    assert not (one(9) == data.Batches(rows, batch=6, length=10, seed=4)(9)).all()
    assert (np.concatenate([one(9, slice(0, 3)), one(9, slice(3, 6))]) == one(9)).all()


def test_an_epoch_has_every_window_once_and_the_next_another_order():
    batches = data.Batches([np.arange(121)], batch=4, length=10, seed=0)
    first, second = (np.concatenate([batches(k + 3 * epoch) for k in range(3)])[:, 0] for epoch in range(2))
    assert sorted(first) == sorted(second) == list(range(0, 120, 10))
    assert list(first) != list(second)


def test_windows_overlap_by_one_token():
    windows = data.Windows(np.arange(100), 9)
    assert windows[0][-1] == windows[1][0] == 9
    assert len(windows) == 11


def test_held_out_files_are_not_trained_on(tmp_path):
    for k in range(20):
        (tmp_path / f"{k:02}.txt").write_bytes(bytes([k]) * 100)
    corpus = data.read_files([tmp_path])
    newline = {10}
    train, held_out = (set(np.concatenate(rows).tolist()) - newline for rows in (corpus.train, corpus.held_out))
    assert held_out == {0}  # and file 10, whose byte is the newline between files
    assert not train & held_out


def test_shards_are_mapped_and_read_back(tmp_path):
    documents = [[k] * 30 for k in range(1, 40)]
    data.write_shards(tmp_path, documents, vocabulary=1000, end=0, shard=200, held_out=100)
    corpus = data.read_shards(tmp_path)
    assert corpus.vocabulary == 1000
    assert isinstance(corpus.train[0], np.memmap)
    assert len(corpus.train) > 2
    together = np.concatenate([*corpus.held_out, *corpus.train])
    assert (together == np.concatenate([[*d, 0] for d in documents])).all()
    assert sum(map(len, corpus.held_out)) == 124  # to the end of a document
    np.save(tmp_path / "train-99999.npy", np.ones((2, 2)))
    with pytest.raises(ValueError, match="one-dimensional arrays of whole numbers"):
        data.read_shards(tmp_path)
    with pytest.raises(ValueError, match=r"no readable tokens\.json"):
        data.read_shards(tmp_path / "nowhere")


@pytest.mark.parametrize("token", [-1, 1000])
def test_tokens_beyond_the_vocabulary_are_refused(tmp_path, token):
    with pytest.raises(ValueError, match=f"{token}.*, outside of a vocabulary of 1000"):
        data.write_shards(tmp_path, [[5, token, 7]], vocabulary=1000, end=0, held_out=1)


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match="shorter windows"):
        data.Batches([np.arange(5)], batch=2, length=10, seed=0)


# --- model -----------------------------------------------------------------------------------------------------


def test_scan_and_remat_do_not_change_the_loss():
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 256)
    plain = model.Llama(TINY, rngs=nnx.Rngs(0))
    other = model.Llama(TINY, rngs=nnx.Rngs(0), scan=True, remat=True)
    grads = [nnx.grad(lambda m: m.loss(tokens))(m) for m in (plain, other)]
    np.testing.assert_allclose(plain.loss(tokens), other.loss(tokens), rtol=1e-6)
    np.testing.assert_allclose(grads[0]["embedding"][...], grads[1]["embedding"][...], atol=1e-6)


def test_a_tied_head_is_the_embedding():
    tied = model.Llama(replace(TINY, tied=True), rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    assert "head" not in tied.weights
    assert tied.embedding[...].dtype == jnp.bfloat16
    assert jnp.isfinite(tied.loss(jnp.zeros((1, 4), int)))


@pytest.mark.parametrize(
    ("name", "millions"),
    [("llama-60m", 58.07), ("llama-130m", 134.11), ("llama-350m", 367.97), ("llama-1b", 1339.08), ("llama-7b", 6738.42)],
)
def test_parameter_counts_are_those_of_the_paper(name, millions):
    shapes = jax.eval_shape(lambda: model.initial_weights(model.CONFIGS[name], jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.01)


# --- the loop --------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def test_a_killed_run_continues_to_the_same_losses(tmp_path, plan, corpus):
    whole = loop.train(plan, corpus, evaluate_every=4)

    def killed(line):
        if line.step >= 6:
            raise Killed

    with pytest.raises(Killed):
        loop.train(plan, corpus, tmp_path, evaluate_every=2, checkpoint_every=4, callback=killed)
    older = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for each in older:
        del each["scores"]  # as written before there were any
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in older))
    resumed = loop.train(plan, corpus, tmp_path, evaluate_every=2, checkpoint_every=4)
    assert losses(resumed)[-1][::2] == losses(whole)[-1][::2]
    assert [line.step for line in resumed] == [2, 4, 6, 8]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    again = loop.train(plan, corpus, tmp_path)
    assert losses(again) == losses(resumed)


@pytest.mark.parametrize("optimizer", ["adam", "racs", "alice"])
def test_state_is_stored_in_bfloat16(plan, optimizer):
    """Every array of state with more than one number is in bfloat16; counts, norms and sums of weights stay in float32."""
    options = {"rank": 4, "leading": 2} if optimizer == "alice" else {}
    plan = replace(plan, optimizer=optimizer, options=options, state_dtype="bfloat16")
    state = jax.eval_shape(lambda: initial_state(plan, plan.transform())).optimizer
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats if np.prod(x.shape[-2:]) > 1} == {jnp.dtype("bfloat16")}
    assert all(x.dtype == jnp.float32 for x in floats if np.prod(x.shape[-2:]) == 1)


def test_bfloat16_state_changes_the_loss_of_a_short_training_little(plan, corpus):
    plan = replace(plan, optimizer="racs")
    whole, kept = (loop.train(replace(plan, state_dtype=dtype), corpus)[-1].loss for dtype in ("float32", "bfloat16"))
    assert whole != kept
    assert abs(whole - kept) < 0.01 * whole


def test_metrics_have_perplexity_speed_and_the_optimizers_share(tmp_path, plan, corpus):
    lines = loop.train(plan, corpus, tmp_path, evaluate_every=4, share=True)
    kept = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in kept] == [4, 8]
    for line, stored in zip(lines, kept, strict=True):
        assert line.perplexity == stored["perplexity"] == pytest.approx(np.exp(line.held_out))
        assert line.tokens == line.step * plan.batch * plan.length
        assert line.tokens_per_second > 0
        assert 0 < line.optimizer_share < 1.5
    assert 0 < lines[0].seconds < lines[1].seconds


def test_a_killed_run_continues_to_the_same_readings(tmp_path, plan, corpus):
    plan = replace(plan, monitor=2)

    def killed(line):
        if line.step == 6:
            raise Killed

    def read():
        return [json.loads(line) for line in (tmp_path / "readings.jsonl").read_text().splitlines()]

    with pytest.raises(Killed):
        loop.train(plan, corpus, tmp_path, evaluate_every=2, checkpoint_every=4, callback=killed)
    before = read()
    loop.train(plan, corpus, tmp_path, evaluate_every=2, checkpoint_every=4)
    assert read()[:3] == before
    assert [line["step"] for line in read()] == [2, 4, 6, 8]
    assert 1 <= before[-1]["layers/1/attention/query/stable_rank"] < 16
    with pytest.raises(ValueError, match="another plan: monitor 2 there and 4 here"):
        loop.train(replace(plan, monitor=4), corpus, tmp_path)


def test_another_text_is_refused(tmp_path, plan, corpus):
    loop.train(replace(plan, steps=1), corpus, tmp_path)
    with pytest.raises(ValueError, match=r"another plan: text '\w+' there and '\w+' here"):
        loop.train(replace(plan, steps=1), corpus._replace(train=[corpus.train[0] + 1]), tmp_path)


def test_a_run_killed_before_its_first_checkpoint_starts_its_metrics_again(tmp_path, plan, corpus):
    def killed(line):
        if line.step == 2:
            raise Killed

    with pytest.raises(Killed):
        loop.train(plan, corpus, tmp_path, evaluate_every=2, callback=killed)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # the kill cut this line short
    loop.train(plan, corpus, tmp_path, evaluate_every=2)
    steps = [json.loads(text)["step"] for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 8]


def test_another_plan_is_refused_by_what_differs(tmp_path, plan, corpus):
    loop.train(replace(plan, steps=1), corpus, tmp_path)
    with pytest.raises(ValueError, match=r"another plan: steps 1 there and 8 here"):
        loop.train(plan, corpus, tmp_path)


def test_a_damaged_checkpoint_is_refused_with_a_remedy(tmp_path, plan, corpus):
    loop.train(replace(plan, steps=2), corpus, tmp_path, checkpoint_every=2)
    for file in (tmp_path / "checkpoints" / "2").rglob("*"):
        if file.is_file() and file.stat().st_size > 50 and "METADATA" not in file.name:
            file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(ValueError, match=r"checkpoint 2 of .* cannot be read"):
        loop.train(replace(plan, steps=2), corpus, tmp_path)


def test_accumulated_parts_give_the_loss_of_the_whole_batch(plan, corpus):
    whole, parts = (loop.train(replace(plan, accumulate=k), corpus, mesh=one_device())[-1] for k in (1, 4))
    assert parts.held_out == pytest.approx(whole.held_out, rel=1e-5)


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_mesh_does_not_change_the_loss(plan, corpus, sizes):
    alone = loop.train(plan, corpus, mesh=one_device())[-1]
    spread = loop.train(plan, corpus, mesh=make_mesh(sizes))[-1]
    assert spread.held_out == pytest.approx(alone.held_out, rel=1e-5)


def one_device():
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))


def test_a_step_that_is_not_finite_stops_the_run_or_is_skipped(plan, corpus, monkeypatch):
    whole = data.Batches.__call__

    def poisoned(self, k, rows=slice(None)):
        return whole(self, k, rows) if k != 3 else np.full_like(whole(self, k, rows), 9999)

    broken = replace(plan, rate=1e-3)
    monkeypatch.setattr(data.Batches, "__call__", poisoned)
    monkeypatch.setattr(
        llama,
        "loss",
        lambda config, weights, tokens, remat=False, loss=llama.loss: jnp.where(
            (tokens == 9999).any(), jnp.nan, loss(config, weights, jnp.minimum(tokens, 255), remat=remat)
        ),
    )
    with pytest.raises(loop.NonFinite, match=r"batch 3 made a loss of nan"):
        loop.train(broken, corpus)
    skipped = loop.train(replace(broken, on_nonfinite="skip"), corpus)
    assert np.isfinite(skipped[-1].held_out)
    assert [k for line in skipped for k in line.skipped] == [3]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "gpt"}, "^pretrain: model is one of .*trained by `fimlens finetune`"),
        ({"optimizer": "adan"}, "optimizer is one of"),
        ({"rate": 0.0}, "rate is a positive number"),
        ({"clip": -1.0}, "clip is a positive number"),
        ({"optimizer": "apollo-mini"}, "optimizer is one of"),
        ({"steps": 0}, "steps is a positive number"),
        ({"accumulate": 3}, "no 3 equal parts"),
    ],
    ids=str,
)
def test_a_wrong_plan_is_refused(plan, changed, message):
    with pytest.raises(ValueError, match=message):
        replace(plan, **changed)


def test_a_refusal_names_no_line_of_ours():
    run = CliRunner().invoke(app, ["pretrain", "--model", "gpt2"])
    assert run.exit_code == 2
    assert " ".join(run.output.split()).endswith("A model of others, in a directory, is trained by `fimlens finetune`.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hosts", "2"], "give --coordinator, --hosts and --host together"),
        (["--host", "0"], "give --coordinator, --hosts and --host together"),
        (["--optimizer", "adamw:b2=0.95"], "--optimizer: adamw takes no file"),
        (["--text", "nothing"], "there is no file in nothing"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    run = CliRunner().invoke(app, ["pretrain", *words])
    assert run.exit_code == 2
    assert message in " ".join(run.output.split())


def test_a_wrong_option_is_refused(plan):
    with pytest.raises(ValueError, match="adam has no option 'rank'"):
        replace(plan, options={"rank": 3}).transform()
    with pytest.raises(ValueError, match=r"b1 of adam is 0\.9 by default; got 'much'"):
        replace(plan, options={"b1": "much"})


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(TEXT)
    command = (
        "pretrain --model tiny --optimizer alice --option rank=4 --option leading=2 --rate 0.02 --steps 3 --batch 8 --length 16"
        " --monitor 1"
    )
    run = CliRunner().invoke(app, [*command.split(), "--text", "text.txt", "--out", "run"])
    assert run.exit_code == 0, run.output
    assert "Held-out loss after 3 steps" in run.output
    assert "3 steps of 8 sequences of at most 16 tokens, 384 in all. Weights take" in " ".join(run.output.split())
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["options"] == {"rank": 4, "leading": 2}
    assert "layers/0/attention/query/outside" in (tmp_path / "run" / "readings.jsonl").read_text()
    assert (tmp_path / "run" / "readings.png").stat().st_size > 10_000
    run = CliRunner().invoke(app, [*command.split(), "--mesh", "data=3", "--out", "other"])
    assert run.exit_code == 2
    assert "multiply to the 8 devices" in " ".join(run.output.split())
    assert "━" not in run.output  # refused before a bar was shown
    run = CliRunner().invoke(app, [*command.split(), "--mesh", "data=8,data=1", "--out", "other"])
    assert run.exit_code == 2
    assert "one size for each axis" in " ".join(run.output.split())


def test_the_command_takes_a_recommendation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(TEXT)
    choices = {"layers.0.attention.query": "soap", "layers/*/mlp/*": "rows"}
    (tmp_path / "r.json").write_text(json.dumps({"choices": choices}))
    command = "pretrain --model tiny --optimizer recommended:r.json --steps 2 --batch 8 --length 16 --text text.txt --out run"
    run = CliRunner().invoke(app, command.split())
    assert run.exit_code == 0, run.output
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert (plan["optimizer"], plan["options"]) == ("recommended", {"choices": choices})
    for optimizer, message in (("recommended", "give the choices too"), ("recommended:no.json", "no.json is no file")):
        run = CliRunner().invoke(app, ["pretrain", "--optimizer", optimizer, "--text", "text.txt", "--out", "other"])
        assert run.exit_code == 2
        assert message in " ".join(run.output.split())
