"""The comparison of optimizers: which runs it needs, its speed-ups, and the command, interrupted and continued."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from fimlens.cli.app import app
from fimlens.costs.devices import DEVICES
from fimlens.experiments import comparison, dry_run, lengths, lengths_report, report
from fimlens.experiments.choices import CHOICE_HEADINGS, choice_cells
from fimlens.experiments.comparison import Result, make_entries, steps_to_reach
from fimlens.experiments.tuning import best_power, next_runs
from fimlens.language_model import llama
from fimlens.pretrain import data, model, timing
from fimlens.pretrain.plan import Plan
from fimlens.pretrain.run_directory import Metrics
from fimlens.pretrain.timing import StepCost

pytestmark = pytest.mark.system
TINY = llama.Config(vocabulary=256, hidden=16, mlp=24, heads=2, layers=1)


def line(step, held_out):
    return Metrics(step, 9.0, held_out, 1.0, step, 1.0, 1.0, None)


def run(*losses):
    return Result([line(10 * (k + 1), float(loss)) for k, loss in enumerate(losses)])


def known(losses):
    """Return results of the first seed, by the power of the rate."""
    return {(power, 0): run(loss) if loss is not None else Result([]) for power, loss in losses.items()}


def first_seed(losses):
    return {(power, 0): math.inf if loss is None else float(loss) for power, loss in losses.items()}


# --- which runs come next ------------------------------------------------------------------------------------------


def test_three_rates_come_first():
    assert next_runs({}, tries=5, seeds=3) == [(0, 0), (-1, 0), (1, 0)]
    assert next_runs(first_seed({0: 1.0}), tries=5, seeds=3) == [(-1, 0), (1, 0)]


def test_tries_continue_beyond_the_best_end_up_to_the_budget():
    assert next_runs(first_seed({-1: 3, 0: 2, 1: 1}), tries=5, seeds=3) == [(2, 0)]
    assert next_runs(first_seed({-1: 1, 0: 2, 1: 3}), tries=5, seeds=3) == [(-2, 0)]
    assert next_runs(first_seed({-1: 3, 0: 2, 1: 1, 2: 0.5, 3: 0.2}), tries=5, seeds=3) == [(3, 1), (3, 2)]


def test_other_seeds_are_trained_at_the_best_rate_only():
    results = first_seed({-1: 3, 0: 1, 1: 2})
    assert next_runs(results, tries=5, seeds=3) == [(0, 1), (0, 2)]
    results |= {(0, 1): 1.1, (0, 2): 0.9}
    assert next_runs(results, tries=5, seeds=3) == []
    assert next_runs(results, tries=5, seeds=4) == [(0, 3)]


def test_without_tuning_there_is_one_rate():
    assert next_runs({}, tries=1, seeds=2) == [(0, 0)]
    assert next_runs(first_seed({0: 1.0}), tries=1, seeds=2) == [(0, 1)]


def test_a_diverged_rate_is_never_best_and_smaller_rates_are_tried_first():
    assert best_power(first_seed({-1: 2.0, 0: None, 1: None})) == -1
    assert next_runs(first_seed({-1: None, 0: None, 1: None}), tries=5, seeds=3) == [(-2, 0)]
    assert next_runs(first_seed({-3: None, -2: None, -1: None, 0: None, 1: None}), tries=5, seeds=3) == []


def test_options_go_to_the_optimizers_that_have_them_and_sizes_follow_the_model():
    plan = Plan(model="cpu-1m", steps=400)
    adam, alice, soap, mini = make_entries(["adam", "alice", "soap", "apollo-mini"], plan, {"update_interval": 7})
    assert adam.options == {}
    assert alice.options == {"rank": 32, "leading": 10, "update_interval": 7}
    assert soap.options == {"update_interval": 7}
    assert mini.options == {"update_interval": 7, "variant": "mini"}
    assert make_entries(["alice"], plan, {})[0].options["update_interval"] == 20
    with pytest.raises(ValueError, match="no optimizer 'alise'"):
        make_entries(["alise"], plan, {})
    with pytest.raises(ValueError, match="none of adam has an option 'rank'"):
        make_entries(["adam"], plan, {"rank": 4})


# --- speed-ups ----------------------------------------------------------------------------------------------------


def test_steps_to_a_loss_are_interpolated_between_measurements():
    metrics = run(4.0, 3.0, 2.0).metrics
    assert steps_to_reach(2.5, metrics) == pytest.approx(25)
    assert steps_to_reach(3.0, metrics) == pytest.approx(20)
    assert steps_to_reach(5.0, metrics) == 10
    assert steps_to_reach(1.9, metrics) is None


def test_speed_ups_are_relative_to_the_first_optimizer_with_the_same_seed():
    plan = Plan(steps=30, batch=2, length=50)
    first, other = make_entries(["adam", "racs"], plan, {})
    results = {
        "adam": known({-1: 5, 1: 5}) | {(0, 0): run(4.0, 3.0, 2.0), (0, 1): run(5.0, 4.0, 3.0)},
        "racs": known({-1: 5, 1: 5}) | {(0, 0): run(3.0, 1.0, 0.5), (0, 1): run(3.0, 2.0, 1.5)},
    }
    speeds = {"adam": StepCost(1.0, 0.5, 100, 200), "racs": StepCost(2.0, 2.0, 100, 10)}
    rows = report.make_rows([first, other], results, speeds)
    racs = rows[1]
    assert racs.bracketed
    assert racs.losses == [0.5, 1.5]
    assert racs.steps == pytest.approx((15 + 10) / 2)
    assert racs.step == pytest.approx(1.5 + 1.5 * 2.0 / 2.0)  # the gradient's median is 1.5 s
    cells = dict(zip(report.LOSS_HEADINGS, report.loss_cells(rows, plan)[0], strict=True))
    costs = dict(zip(report.COST_HEADINGS, report.cost_cells(rows, plan)[0], strict=True))
    assert cells["optimizer"] == costs["optimizer"] == "racs"
    assert float(cells["speed-up"]) == pytest.approx(30 / 12.5)
    assert float(cells["in time"]) == pytest.approx(30 * 2.25 / (12.5 * 3.0))
    assert float(costs["effective tokens/s"]) == pytest.approx(30 * 100 / (12.5 * 3.0))
    assert float(costs["share of step, %"]) == 50


def test_a_loss_that_is_never_reached_is_marked_and_json_has_no_infinities():
    plan = Plan(steps=30)
    entries = make_entries(["adam", "racs"], plan, {})
    results = {"adam": known({-1: 5, 0: 2, 1: 5}), "racs": known({-1: None, 0: 4, 1: None})}
    speeds = dict.fromkeys(results, StepCost(2.0, 1.0, 1, 1))
    rows = report.make_rows(entries, results, speeds)
    assert math.isinf(rows[1].steps)
    assert "never" in report.markdown(report.LOSS_HEADINGS, report.loss_cells(rows, plan))
    json.loads(json.dumps(report.as_json(entries, results, rows, plan), allow_nan=False))
    results["adam"] = known({-1: None, 0: None, 1: None})
    with pytest.raises(ValueError, match="adam diverged, and others"):
        report.make_rows(entries, results, speeds)


def test_an_optimizer_may_stand_twice_with_options_of_its_own(tmp_path):
    own = {"adamw:b2=0.95": {"b2": 0.95}}
    first, other = make_entries(["adamw", *own], Plan(), {}, own)
    assert (first.options, other.options) == ({}, {"b2": 0.95})
    assert first.usual == other.usual
    places = [comparison.directory_for(tmp_path, entry, 0, 0) for entry in (first, replace(other, name="adamw:mask=../x"))]
    assert {place.parent.parent for place in places} == {tmp_path / "runs"}
    with pytest.raises(ValueError, match="adamw has no option 'rank'"):
        make_entries(["adamw:rank=3"], Plan(), {}, {"adamw:rank=3": {"rank": 3}})


# --- whole schedules at several lengths -----------------------------------------------------------------------------


def curve(name, losses):
    """Curves of twenty points on which the loss falls to its end linearly, from one above it."""
    entry = make_entries([name], Plan(steps=200), {})[0]
    runs = {
        at: {
            (0, seed): Result([line(k * at // 20, end + 1 - k / 20) for k in range(1, 21)] if math.isfinite(end) else [])
            for seed, end in enumerate(ends)
        }
        for at, ends in losses.items()
    }
    return lengths.Curve(entry, losses, dict.fromkeys(losses, 0.1), runs)


def test_a_speed_up_is_interpolated_between_lengths_and_never_beyond_them():
    """Adam's losses fall as 8 / length^(1/2), and RACS's are half of them. At 400 steps Adam's second seed ends lower."""
    adam = curve("adam", {100: [0.8, 0.8], 200: [0.8 / 2**0.5] * 2, 400: [0.4, 0.1]})
    racs = curve("racs", {100: [0.4, 0.4], 200: [0.4 / 2**0.5] * 2, 400: [0.2, 0.2]})
    found = lengths.speed_ups(adam, racs)
    assert found[100] == [math.inf, math.inf]  # at 100 steps already lower
    assert found[400] == pytest.approx([4.0, 0.0])
    share = math.log(2**0.5) / math.log(8 / 2**0.5)
    assert lengths.speed_ups(racs, adam)[100] == pytest.approx([1 / 4, 1 / (2 * 2**share)])
    assert lengths.speed_ups(adam, adam) == {100: [1, 1], 200: [1, 1], 400: [1, 1]}
    step = {"adam": 1.0, "racs": 2.0}
    cells = lengths_report.speed_cells([adam, racs], step)
    told = {cell[1]: dict(zip(lengths_report.SPEED_HEADINGS, cell, strict=True)) for cell in cells}
    assert told["100"]["speed-up"] == "over 1.00"
    assert told["100"]["in time"] == "over 0.50"
    assert told["400"]["speed-up"] == "under 1.00 (under 1.00 to 4.00)"
    assert told["400"]["in time"] == "under 0.50 (under 0.50 to 2.00)"
    assert told["400"]["a step"] == "2.00"
    # RACS' curve of 100 steps is at Adam's last loss, 0.8, when 0.6 of it are left to fall: after 60 steps.
    assert lengths.crossings(adam, racs)[100] == pytest.approx([100 / 60] * 2)
    assert lengths.crossings(adam, racs)[400] == pytest.approx([1 / 0.8, 0.0])
    assert told["400"]["by crossing"] == "under 1.00 (under 1.00 to 1.25)"
    words = lengths_report.conclude([adam, racs], step)
    assert "racs ends lowest: 0.2000, adam 0.2500, but seeds overlap" in words
    assert "in steps and under 0.50 (under 0.50 to 2.00) in time" in words
    json.loads(json.dumps(lengths_report.as_json([adam, racs]), allow_nan=False))


@pytest.mark.filterwarnings("error")
def test_trainings_that_diverged_have_no_speed_up(tmp_path):
    adam, racs = (
        curve("adam", {100: [0.8, 0.8], 200: [0.6, math.inf]}),
        curve("racs", {100: [0.9, math.inf], 200: [math.inf] * 2}),
    )
    assert lengths.speed_ups(adam, racs) == {100: [0.0, 0.0], 200: [0.0]}
    assert lengths.speed_ups(racs, racs)[200] == []
    assert lengths_report.speed_cells([racs, adam], {"adam": 1.0, "racs": 1.0})[1][2:5] == ("unknown",) * 3
    cells = {row[0]: row[1:3] for row in lengths_report.loss_cells([adam, racs])[1]}
    assert cells == {"adam": ("0.8000 ± 0.0000", "diverged"), "racs": ("diverged", "diverged")}
    json.loads(json.dumps(lengths_report.as_json([racs, adam]), allow_nan=False))
    lengths_report.plot([adam, racs], tmp_path / "lengths.png")


@pytest.mark.parametrize("text", ["150", "150,x", "0,300", "100,200", "300,0300"])
def test_lengths_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="--lengths"):
        lengths.read_lengths(text, 300)


# --- scalars, times and models of one's own -------------------------------------------------------------------------


def test_the_scalars_are_those_that_ran():
    own = {"muon:adam_learning_rate=0.1,clip=2": {"adam_learning_rate": 0.1, "clip": 2}}
    entries = make_entries(["adamw", "racs", *own], Plan(steps=200, clip=0.5), {"weight_decay": 0.1}, own)
    cells = choice_cells(entries, [0.01, 0.08, 0.02], Plan(steps=200, clip=0.5))
    shown = {cell[0]: dict(zip(CHOICE_HEADINGS[1:], cell[1:], strict=True)) for cell in cells}
    both = {"decay": "0.1", "warm-up": "20", "clip": "0.5"}
    assert shown["adamw"] == both | {
        "rate": "0.01", "b1": "0.9", "b2": "0.999", "beta": "", "eps": "1e-08", "Adam's rate": "",
    }  # fmt: skip
    assert shown["racs"] == both | {"rate": "0.08", "b1": "", "b2": "", "beta": "0.9", "eps": "0", "Adam's rate": "0.04"}
    assert [shown[next(iter(own))][name] for name in ("Adam's rate", "clip")] == ["0.1", "2"]
    assert comparison.plan_for(entries[-1], Plan(steps=200, clip=0.5), 0, 0).clip == 2


def test_a_time_is_read_only_on_the_machine_that_measured_it(tmp_path, monkeypatch):
    measured, machine = [], {"cores": 2}

    def measure(plan, corpus):
        measured.append(plan)
        return StepCost(1.0, float(len(measured)), 3, 4)

    monkeypatch.setattr(timing, "measure_step", measure)
    monkeypatch.setattr(timing, "_machine", lambda: dict(machine))
    (tmp_path / "text.txt").write_bytes(b"a line of text " * 400)
    corpus = data.read_files([tmp_path / "text.txt"])
    path = tmp_path / "speed.json"
    costs = [timing.measure_or_read("adam", Plan(), corpus, path) for _ in range(2)]
    machine["cores"] = 4
    costs += [timing.measure_or_read("adam", Plan(), corpus, path) for _ in range(2)]
    costs += [timing.measure_or_read("adam", Plan(steps=7), corpus, path)]
    assert [cost.optimizer for cost in costs] == [1, 1, 2, 2, 3]


def test_an_optimizer_may_have_a_model_of_its_own():
    own = {"galore:model=cpu-5m": {"model": "cpu-5m"}}
    small, large = make_entries(["galore", *own], Plan(steps=100), {}, own)
    plans = [comparison.plan_for(entry, Plan(steps=100), 0, 0) for entry in (small, large)]
    assert [(plan.model, plan.options["rank"]) for plan in plans] == [("cpu-1m", 32), ("cpu-5m", 64)]
    results = dict.fromkeys((small.name, large.name), known({-1: 5, 0: 2, 1: 5}))
    costs = {small.name: StepCost(1.0, 1.0, 1, 1), large.name: StepCost(3.0, 1.0, 1, 1)}
    assert [row.step for row in report.make_rows([small, large], results, costs)] == pytest.approx([2.0, 4.0])
    with pytest.raises(ValueError, match="model is one of"):
        make_entries(["adam:model=x"], Plan(), {}, {"adam:model=x": {"model": "x"}})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adamw:0.95"], "compare: adamw:0.95: expected name=value"),
        (["adamw:clip=much"], "clip is a positive number, or none; got 'much'"),
        (["adamw:learning_rate=1"], "adamw has no option 'learning_rate'. It has b1, b2"),
        (["--text", "text.txt", "--shards", "shards"], "give only one of --text and --shards"),
        (["--task", "sst2", "--shards", "shards"], "--shards is read with a pre-training alone, not with --task"),
    ],
)
def test_the_command_refuses_in_one_line(words, message):
    result = CliRunner().invoke(app, ["compare", "adam", *words])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_an_optimizer_may_go_without_the_bound_of_the_others():
    own = {"adam:clip=none": {"clip": None}, "adam:clip=2": {"clip": 2}}
    assert [entry.clip for entry in make_entries(["adam", *own], Plan(clip=1.0), {}, own)] == [1.0, None, 2.0]


def test_a_finished_run_keeps_no_checkpoints_that_a_kill_left(tmp_path, monkeypatch):
    (tmp_path / "checkpoints" / "300").mkdir(parents=True)
    monkeypatch.setattr(comparison, "read_finished", lambda *_: [line(400, 3.0)])
    assert comparison.run_or_read(Plan(), SimpleNamespace(fingerprint=""), tmp_path).loss == 3
    assert not (tmp_path / "checkpoints").exists()


def test_a_loss_far_above_any_text_has_a_perplexity():
    assert report.Row("adam", 0.1, True, [1000.0], 3.0, 1.0, 0.1, 1, 1).perplexity == float("inf")


def test_a_dry_run_by_hand(tmp_path):
    """cpu-1m: d = 128, mlp = 344, 5 layers, a vocabulary of 256; 2048 tokens a step in two parts, in float32; 989 TFLOP/s.

    Parameters  5 (4 x 128^2 + 3 x 128 x 344) = 988 160 in matrices, 32 768 each in head and embedding, 1 408 in norms
    weights     4 x 1 055 104                 =   4 220 416 bytes; as many of gradients, and as many of their sums
    state       2 x 4 220 416                 =   8 440 832, and a counter
    activations 1024 (4 x 5 (8 x 128 + 4 x 344) + 8 x 256) = 51 249 152
    runs        5 + 2 of 300 steps, 1 + 2 of 100: 2400 steps of 2048 tokens
    a token     6 (988 160 + 32 768) + 12 x 128 x 5 x 128 = 7 108 608 FLOPs
    """
    words = ["compare", "adam", "--dry-run", "--lengths", "100,300", "--accumulate", "2", "--utilisation", "0.5"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    (need,) = json.loads((tmp_path / "out" / "dry-run.json").read_text())["optimizers"]
    assert need["demand"]["state"] == pytest.approx(8_440_832, abs=100)
    assert (need["demand"]["weights"], need["gradients"], need["demand"]["working"]) == (4_220_416, 8_440_832, 51_249_152)
    assert (need["runs"], need["tokens"], need["devices"], need["share"]) == (10, 2400 * 2048, 1, 0)
    assert need["bytes"] == pytest.approx(3 * 4_220_416 + 8_440_832 + 51_249_152, abs=100)
    assert need["flops"] == 2400 * 2048 * 7_108_608
    assert need["hours"] == pytest.approx(2400 * 2048 * 7_108_608 / (989e12 * 0.5) / 3600)
    printed = " ".join(result.output.split())
    assert all(
        word in printed for word in (*dry_run.MEMORY_HEADINGS, *dry_run.TIME_HEADINGS, "Each fits in", "10 runs at most")
    )
    assert not (tmp_path / "out" / "runs").exists()
    assert "there is no hardware 'h10'" in CliRunner().invoke(app, [*words, "--hardware", "h10"]).stderr


def test_a_dry_run_says_what_does_not_fit():
    """cpu-5m in float32: 20 MB of weights, 39 of gradients, 39 of state; a sequence of 256 tokens has 30 of activations."""
    machine = dry_run.Machine("a small one", DEVICES["a100"]._replace(memory=1e8))
    plan = Plan("cpu-5m", batch=8, length=256, accumulate=8)
    entries = make_entries(["adam"], plan, {})
    assert "2 devices hold each of them" in dry_run.conclude(dry_run.dry_run(entries, plan, {1: 1}, machine), plan, machine)
    whole = replace(plan, accumulate=1)
    needs = dry_run.dry_run(entries, whole, {1: 1}, machine)
    assert needs[0].devices == 0
    assert "raise --accumulate, now 1" in dry_run.conclude(needs, whole, machine)
    with pytest.raises(ValueError, match="--utilisation"):
        dry_run.dry_run(entries, whole, {1: 1}, machine._replace(utilisation=1.5))


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_compares_and_continues_after_an_interruption(tmp_path, monkeypatch):
    monkeypatch.setitem(model.CONFIGS, "tiny", TINY)
    (tmp_path / "text.txt").write_bytes(b"a line of text, and another one; " * 400)
    words = ["compare", "--optimizers", "adam", "racs", "--seeds", "2", "--tries", "3", "--model", "tiny", "--steps", "4"]
    words += [
        "--batch",
        "8",
        "--length",
        "16",
        "--clip",
        "1",
        "--text",
        str(tmp_path / "text.txt"),
        "--out",
        str(tmp_path / "out"),
    ]
    train, made = comparison.train, []

    def counted(plan, *args, **options):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(plan)
        return train(plan, *args, **options)

    monkeypatch.setattr(comparison, "train", counted)
    CliRunner().invoke(app, words)
    assert len(made) == 5
    monkeypatch.setattr(comparison, "train", lambda plan, *args, **options: made.append(plan) or train(plan, *args, **options))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert len(made) == len({(plan.optimizer, plan.rate, plan.seed) for plan in made})  # no run is trained twice
    assert {plan.clip for plan in made} == {1.0}
    assert {(plan.optimizer, plan.seed) for plan in made} == {(name, seed) for name in ("adam", "racs") for seed in (0, 1)}
    assert not list((tmp_path / "out").rglob("checkpoints"))
    assert (tmp_path / "out" / "table.md").read_text().count("\n") == 19
    assert all(
        word in result.output for word in (*report.LOSS_HEADINGS, *report.COST_HEADINGS, *CHOICE_HEADINGS, "adam", "racs")
    )  # no heading is cut off
    assert (tmp_path / "out" / "compare.png").stat().st_size > 10_000
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0
    assert len(made) == len({(plan.optimizer, plan.rate, plan.seed) for plan in made})
    before = len(made)
    whole = CliRunner().invoke(app, [*words, "--lengths", "2,4"])  # those of four steps are there
    assert whole.exit_code == 0, whole.output
    assert [plan.steps for plan in made[before:]] == [2] * 4
    assert all(word in whole.output for word in lengths_report.SPEED_HEADINGS)
    assert (tmp_path / "out" / "lengths.png").stat().st_size > 10_000
    other = CliRunner().invoke(app, [*words, "--steps", "5"])
    assert other.exit_code == 2
    assert "another plan: steps 4 there and 5 here" in other.output.replace("\n", " ")
