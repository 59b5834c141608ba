"""The ablation: runs are stored and read again, tables and figure are made of them, and bad options are refused."""

import json
import math

import pytest
from typer.testing import CliRunner

from fimlens.cli.app import app
from fimlens.experiments.ablation import (
    FULL,
    GROUPS,
    MAIN,
    PAPER,
    Results,
    Run,
    all_options,
    arms,
    list_runs,
    plot,
    same_order,
    train_missing,
)

RATES, SEEDS, STEPS = [0.01, 0.1], 2, 5


def invented(path):
    """Invent losses in the paper's order, lower at the higher rate, and one run that diverged."""
    results = Results(path)
    for run in list_runs(GROUPS, RATES, SEEDS, STEPS):
        name = next((name for name, changed in MAIN.items() if all_options(changed) == run.options), FULL)
        results.add(run, PAPER[name] - run.rate + run.seed / 10)
    results.add(Run(all_options(MAIN[FULL]), 0.01, 0, STEPS), math.inf)
    return results


def test_runs_are_stored_and_read_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    kept = invented(path)
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines()[0].replace(b'"loss": 2', b'"loss": NaN, "was": 2') + b"\n")
        file.write(b'\xff\xfe\n{"options": {"rank"')  # not text; cut short
    again = Results(path)
    assert again.broken == 3
    assert again.losses == kept.losses
    new = Run(all_options({"rank": 3}), 0.1, 0, 1)
    again.add(new, 2.5)
    assert Results(path).losses == kept.losses | {new: 2.5}
    assert list(train_missing(list_runs(["main"], RATES, SEEDS, STEPS), again, 1)) == []  # nothing is left to train


def test_arms_are_tuned_and_plotted(tmp_path):
    results = invented(tmp_path / "runs.jsonl")
    found = arms(results, RATES, SEEDS, STEPS)
    assert {arm.rate for arm in found} == {0.1}
    assert same_order(found, PAPER)
    assert not same_order(found, dict(zip(PAPER, reversed(PAPER.values()), strict=True)))
    assert sum(len(arm.losses) for arm in found) == SEEDS * sum(map(len, GROUPS.values()))
    for run in list_runs(["rank"], RATES, SEEDS, STEPS):  # runs at another rate than full Alice's best must not be used
        if run.options != all_options(MAIN[FULL]):
            results.add(run, 1.0 if run.rate == 0.01 else 2.0)
    again = arms(results, RATES, SEEDS, STEPS, ["rank"])
    assert {(arm.rate, arm.mean) for arm in again if arm.name != "16"} == {(0.1, 2.0)}
    plot(found, tmp_path / "ablate.png")
    assert (tmp_path / "ablate.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("option", "message"),
    [(("--groups", "mian"), "no table 'mian'"), (("--rates", "fast"), "numbers"), (("--rates", "-1"), "positive")],
)
def test_bad_options_are_refused(option, message, tmp_path):
    result = CliRunner().invoke(app, ["ablate", *option, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_command_reports_stored_runs(tmp_path, monkeypatch):
    """Only the runs that the chosen tables need are used, each table comes once, and the loss of a diverged run is null."""
    results = Results(tmp_path / "runs.jsonl")
    full = all_options(MAIN[FULL])
    wanted = [Run(full, 0.1, 0, STEPS), *list_runs(["rank"], [0.1], 1, STEPS)]
    for run in wanted:
        results.add(run, math.inf if dict(run.options)["rank"] == 8 else 2.0)
    monkeypatch.chdir(tmp_path)
    command = ["ablate", "--groups", "rank,rank", "--rates", "0.1", "--seeds", "1", "--steps", str(STEPS), "--out", "."]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "ablate.json").read_text(), parse_constant=pytest.fail)
    assert [arm["losses"] for arm in found] == [[None], [2.0], [2.0]]
    assert len(Results(tmp_path / "runs.jsonl").losses) == len(set(wanted))
    refused = CliRunner().invoke(app, [*command, "--json", "nowhere/x.json"])
    assert refused.exit_code == 2
    assert "--json: cannot write" in refused.stderr


def test_a_run_is_identified_by_all_its_options():
    assert {"b1", "moments", "adam_learning_rate"} <= dict(all_options({})).keys()
    assert all_options({"switch": "complement"}) == all_options({})


@pytest.mark.slow
def test_the_command_trains_and_continues(tmp_path):
    command = ["ablate", "--groups", "main", "--rates", "0.05", "--seeds", "1", "--steps", "2", "--out", str(tmp_path)]
    for _ in range(2):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert "the order of [G]" in result.output
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 4
    assert {arm["group"] for arm in json.loads((tmp_path / "ablate.json").read_text())} == {"main"}
