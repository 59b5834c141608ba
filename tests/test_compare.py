"""The comparison of optimizers: which runs are wanted, what is reached when, and the command, interrupted and gone on with."""

import json
import math

import pytest
from typer.testing import CliRunner

from fimlens.cli.app import app
from fimlens.experiments import comparison as contest
from fimlens.experiments import report as standing
from fimlens.experiments.comparison import Result, entries, steps_to
from fimlens.experiments.tuning import best_power, wanted
from fimlens.language_model import llama
from fimlens.pretrain import model
from fimlens.pretrain.plan import Plan
from fimlens.pretrain.run_directory import Line
from fimlens.pretrain.timing import Speed

pytestmark = pytest.mark.training
TINY = llama.Config(vocabulary=256, hidden=16, mlp=24, heads=2, layers=1)


def line(step, held_out):
    return Line(step, 9.0, held_out, 1.0, step, 1.0, 1.0, None)


def run(*losses):
    return Result([line(10 * (k + 1), float(loss)) for k, loss in enumerate(losses)])


def known(losses):
    """Results of the first seed, by the power of the rate."""
    return {(power, 0): run(loss) if loss is not None else Result([]) for power, loss in losses.items()}


def first_seed(losses):
    return {(power, 0): math.inf if loss is None else float(loss) for power, loss in losses.items()}


# --- which runs are wanted ----------------------------------------------------------------------------------------


def test_three_rates_come_first():
    assert wanted({}, tries=5, seeds=3) == [(0, 0), (-1, 0), (1, 0)]
    assert wanted(first_seed({0: 1.0}), tries=5, seeds=3) == [(-1, 0), (1, 0)]


def test_tries_go_on_beyond_the_best_end_up_to_the_budget():
    assert wanted(first_seed({-1: 3, 0: 2, 1: 1}), tries=5, seeds=3) == [(2, 0)]
    assert wanted(first_seed({-1: 1, 0: 2, 1: 3}), tries=5, seeds=3) == [(-2, 0)]
    assert wanted(first_seed({-1: 3, 0: 2, 1: 1, 2: 0.5, 3: 0.2}), tries=5, seeds=3) == [(3, 1), (3, 2)]


def test_other_seeds_are_trained_at_the_best_rate_alone():
    results = first_seed({-1: 3, 0: 1, 1: 2})
    assert wanted(results, tries=5, seeds=3) == [(0, 1), (0, 2)]
    results |= {(0, 1): 1.1, (0, 2): 0.9}
    assert wanted(results, tries=5, seeds=3) == []
    assert wanted(results, tries=5, seeds=4) == [(0, 3)]


def test_without_tuning_there_is_one_rate():
    assert wanted({}, tries=1, seeds=2) == [(0, 0)]
    assert wanted(first_seed({0: 1.0}), tries=1, seeds=2) == [(0, 1)]


def test_what_diverged_is_never_best_and_smaller_rates_are_tried_first():
    assert best_power(first_seed({-1: 2.0, 0: None, 1: None})) == -1
    assert wanted(first_seed({-1: None, 0: None, 1: None}), tries=5, seeds=3) == [(-2, 0)]
    assert wanted(first_seed({-3: None, -2: None, -1: None, 0: None, 1: None}), tries=5, seeds=3) == []


def test_options_go_to_those_that_have_them_and_sizes_follow_the_model():
    plan = Plan(model="cpu-1m", steps=400)
    adam, alice, soap, mini = entries(["adam", "alice", "soap", "apollo-mini"], plan, {"update_interval": 7})
    assert adam.options == {}
    assert alice.options == {"rank": 32, "leading": 10, "update_interval": 7}
    assert soap.options == {"update_interval": 7}
    assert mini.options == {"update_interval": 7, "variant": "mini"}
    assert entries(["alice"], plan, {})[0].options["update_interval"] == 20
    with pytest.raises(ValueError, match="no optimizer 'alise'"):
        entries(["alise"], plan, {})
    with pytest.raises(ValueError, match="none of adam has an option 'rank'"):
        entries(["adam"], plan, {"rank": 4})


# --- what is reached when -----------------------------------------------------------------------------------------


def test_steps_to_a_loss_lie_on_the_line_between_measurements():
    lines = run(4.0, 3.0, 2.0).lines
    assert steps_to(2.5, lines) == pytest.approx(25)
    assert steps_to(3.0, lines) == pytest.approx(20)
    assert steps_to(5.0, lines) == 10
    assert steps_to(1.9, lines) is None


def test_speed_ups_are_over_the_first_and_by_its_own_seeds():
    plan = Plan(steps=30, batch=2, length=50)
    first, other = entries(["adam", "racs"], plan, {})
    results = {
        "adam": known({-1: 5, 1: 5}) | {(0, 0): run(4.0, 3.0, 2.0), (0, 1): run(5.0, 4.0, 3.0)},
        "racs": known({-1: 5, 1: 5}) | {(0, 0): run(3.0, 1.0, 0.5), (0, 1): run(3.0, 2.0, 1.5)},
    }
    speeds = {"adam": Speed(1.0, 0.5, 100, 200), "racs": Speed(2.0, 2.0, 100, 10)}
    rows = standing.standings([first, other], results, speeds)
    racs = rows[1]
    assert racs.bracketed
    assert racs.losses == [0.5, 1.5]
    assert racs.steps == pytest.approx((15 + 10) / 2)
    assert racs.step == pytest.approx(1.5 + 1.5 * 2.0 / 2.0)  # the gradient's median is 1.5 s
    cells = dict(zip(standing.REACHED, standing.reached(rows, plan)[0], strict=True))
    costs = dict(zip(standing.COSTS, standing.costs(rows, plan)[0], strict=True))
    assert cells["optimizer"] == costs["optimizer"] == "racs"
    assert float(cells["x steps"]) == pytest.approx(30 / 12.5)
    assert float(cells["x time"]) == pytest.approx(30 * 2.25 / (12.5 * 3.0))
    assert float(costs["effective tokens/s"]) == pytest.approx(30 * 100 / (12.5 * 3.0))
    assert float(costs["share, %"]) == 50


def test_what_never_gets_there_says_so_and_json_has_no_infinities():
    plan = Plan(steps=30)
    contestants = entries(["adam", "racs"], plan, {})
    results = {"adam": known({-1: 5, 0: 2, 1: 5}), "racs": known({-1: None, 0: 4, 1: None})}
    speeds = dict.fromkeys(results, Speed(2.0, 1.0, 1, 1))
    rows = standing.standings(contestants, results, speeds)
    assert math.isinf(rows[1].steps)
    assert "never" in standing.markdown(standing.REACHED, standing.reached(rows, plan))
    json.loads(json.dumps(standing.numbers(contestants, results, rows, plan), allow_nan=False))
    results["adam"] = known({-1: None, 0: None, 1: None})
    with pytest.raises(ValueError, match="adam diverged, and others"):
        standing.standings(contestants, results, speeds)


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_compares_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setitem(model.CONFIGS, "tiny", TINY)
    (tmp_path / "text.txt").write_bytes(b"a line of text, and another one; " * 400)
    words = ["compare", "--optimizers", "adam", "racs", "--seeds", "2", "--tries", "3", "--model", "tiny", "--steps", "4"]
    words += ["--batch", "8", "--length", "16", "--text", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]
    train, made = contest.train, []

    def counted(plan, *args, **options):
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(plan)
        return train(plan, *args, **options)

    monkeypatch.setattr(contest, "train", counted)
    CliRunner().invoke(app, words)
    assert len(made) == 5
    monkeypatch.setattr(contest, "train", lambda plan, *args, **options: made.append(plan) or train(plan, *args, **options))
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert len(made) == len({(plan.optimizer, plan.rate, plan.seed) for plan in made})  # none was made twice
    assert {(plan.optimizer, plan.seed) for plan in made} == {(name, seed) for name in ("adam", "racs") for seed in (0, 1)}
    assert not list((tmp_path / "out").rglob("checkpoints"))
    assert (tmp_path / "out" / "table.md").read_text().count("\n") == 14
    assert all(word in result.output for word in (*standing.REACHED, *standing.COSTS, "adam", "racs"))  # nothing is cut off
    assert (tmp_path / "out" / "compare.png").stat().st_size > 10_000
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0
    assert len(made) == len({(plan.optimizer, plan.rate, plan.seed) for plan in made})
    other = CliRunner().invoke(app, [*words, "--steps", "5"])
    assert other.exit_code == 2
    assert "another plan: steps 4 there and 5 here" in other.output.replace("\n", " ")
