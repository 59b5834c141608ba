"""The ablation: its runs are kept and taken up again, its tables and figure come of them, and bad options are refused."""

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
    arms,
    carry_out,
    in_order,
    options_of,
    picture,
    runs_of,
)

RATES, SEEDS, STEPS = [0.01, 0.1], 2, 5


def invented(path):
    """Losses in the paper's order, the higher rate the better; and one that diverged."""
    results = Results(path)
    for run in runs_of(GROUPS, RATES, SEEDS, STEPS):
        name = next((name for name, changed in MAIN.items() if options_of(changed) == run.options), FULL)
        results.add(run, PAPER[name] - run.rate + run.seed / 10)
    results.add(Run(options_of(MAIN[FULL]), 0.01, 0, STEPS), math.inf)
    return results


def test_runs_are_kept_and_taken_up_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    kept = invented(path)
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines()[0].replace(b'"loss": 2', b'"loss": NaN, "was": 2') + b"\n")
        file.write(b'\xff\xfe\n{"options": {"rank"')  # not text; cut short
    again = Results(path)
    assert again.broken == 3
    assert again.losses == kept.losses
    new = Run(options_of({"rank": 3}), 0.1, 0, 1)
    again.add(new, 2.5)
    assert Results(path).losses == kept.losses | {new: 2.5}
    assert list(carry_out(runs_of(["main"], RATES, SEEDS, STEPS), again, 1)) == []  # nothing is left to train


def test_arms_are_tuned_and_pictured(tmp_path):
    results = invented(tmp_path / "runs.jsonl")
    found = arms(results, RATES, SEEDS, STEPS)
    assert {arm.rate for arm in found} == {0.1}
    assert in_order(found, PAPER)
    assert not in_order(found, dict(zip(PAPER, reversed(PAPER.values()), strict=True)))
    assert sum(len(arm.losses) for arm in found) == SEEDS * sum(map(len, GROUPS.values()))
    for run in runs_of(["rank"], RATES, SEEDS, STEPS):  # at a rate that is not full Alice's they are not looked at
        if run.options != options_of(MAIN[FULL]):
            results.add(run, 1.0 if run.rate == 0.01 else 2.0)
    again = arms(results, RATES, SEEDS, STEPS, ["rank"])
    assert {(arm.rate, arm.mean) for arm in again if arm.name != "16"} == {(0.1, 2.0)}
    picture(found, tmp_path / "ablate.png")
    assert (tmp_path / "ablate.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("option", "says"),
    [(("--groups", "mian"), "no table 'mian'"), (("--rates", "fast"), "numbers"), (("--rates", "-1"), "positive")],
)
def test_bad_options_are_refused(option, says, tmp_path):
    result = CliRunner().invoke(app, ["ablate", *option, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert says in result.stderr


def test_the_command_reports_what_is_there(tmp_path, monkeypatch):
    """Nothing is trained but what the tables chosen need; each comes once; what diverged is null."""
    results = Results(tmp_path / "runs.jsonl")
    full = options_of(MAIN[FULL])
    wanted = [Run(full, 0.1, 0, STEPS), *runs_of(["rank"], [0.1], 1, STEPS)]
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


def test_a_run_is_known_by_all_its_options():
    assert {"b1", "moments", "adam_learning_rate"} <= dict(options_of({})).keys()
    assert options_of({"switch": "complement"}) == options_of({})


@pytest.mark.slow
def test_the_command_trains_and_goes_on(tmp_path):
    command = ["ablate", "--groups", "main", "--rates", "0.05", "--seeds", "1", "--steps", "2", "--out", str(tmp_path)]
    for _ in range(2):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert "the order of [G]" in result.output
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 4
    assert {arm["group"] for arm in json.loads((tmp_path / "ablate.json").read_text())} == {"main"}
