"""What a run costs: figures by hand, products as XLA counts them, refusals, and a page with the same numbers."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import pytest
from typer.testing import CliRunner

import fimlens as fl
from fimlens.cli.app import app
from fimlens.costs import page as cost_page
from fimlens.costs import run as cost
from fimlens.costs.flops import PRODUCTS, REFRESH, step_flops
from fimlens.costs.memory import FORMULAS

SMALL = ["--model", "llama-60m"]
TERMS = cost.Terms(tokens=1e9, devices=2, memory=4e9, peak=1e14, utilisation=0.5, price=3.0)


def of(name, batch=cost.PAPERS_BATCH):
    return cost.costs([name], model="llama-60m", terms=TERMS, batch=batch)[0]


def test_adam_by_hand():
    """LLaMA-60M: d = 512, mlp = 1376, 8 layers, a vocabulary of 32000; 8 sequences of 256 on a device at once; bfloat16.

    Matrices    8 (4 x 512^2 + 3 x 512 x 1376)          = 25 296 896
    head        512 x 32000                             = 16 384 000, and the embedding as many
    norms       (2 x 8 + 1) 512                         =      8 704, in all 58 073 600 parameters
    held        (2 + 2 + 2 + 2) bytes x 58 073 600      = 464 588 800, and a counter
    activations 2048 (2 x 8 (8 x 512 + 4 x 1376) + 8 x 32000) = 838 860 800 bytes
    a token     6 (25 296 896 + 16 384 000) + 12 x 256 x 8 x 512 = 262 668 288 FLOPs
    hours       10^9 x 262 668 288 / (2 x 10^14 x 0.5) / 3600    = 0.729634
    money       0.729634 x 2 x 3                                 = 4.377805
    fits        464 588 800 / (0.9 x 4 x 10^9 - 838 860 800) = 0.17, so one device would do
    """
    row = of("adam")
    assert row.held == pytest.approx(464_588_800, abs=100)
    assert row.working == 838_860_800
    assert row.flops_per_token == 262_668_288
    assert row.memory == pytest.approx(464_588_800 / 2 + 838_860_800, abs=100)
    assert row.hours == pytest.approx(0.729634, rel=1e-6)
    assert row.money == pytest.approx(4.377805, rel=1e-6)
    assert (row.devices_needed, row.devices, row.saving) == (1, 2, 0)


def test_alice_by_hand():
    """At rank 128, a step of 131072 tokens: 4 m n r + 2 n r^2 for each matrix, and a refresh in 200 of 8 m n r + QR + 9 r^3.

    512 x 512    products 150 994 944, refresh 268 435 456 + 4 (512 x 128^2 - 128^3 / 3) + 9 x 128^3
    512 x 1376   products 405 798 912, refresh 721 420 288 + the same
    """
    beside = 4 * (512 * 128**2 - 128**3 / 3) + 9 * 128**3
    step = 8 * (4 * (150_994_944 + (268_435_456 + beside) / 200) + 3 * (405_798_912 + (721_420_288 + beside) / 200))
    row = of("alice")
    assert row.flops_per_token == pytest.approx(262_668_288 + step / 131072, rel=1e-12)
    assert row.saving == pytest.approx(1 - row.flops_per_token / 2 / 262_668_288, rel=1e-12)


def test_rematerialisation_by_hand():
    """2048 (2 (8 x 512 + 8 x 512 + 4 x 1376) + 8 x 32000) bytes of activations, and a second forward: 4/3 of the FLOPs."""
    row = of("adam", cost.Batch(rematerialise=True))
    assert row.working == 2048 * (2 * (8 * 512 + 8 * 512 + 4 * 1376) + 256_000)
    assert row.flops_per_token == pytest.approx(262_668_288 * 4 / 3)


@pytest.mark.parametrize("name", ["muon", "galore", "alice"])
def test_products_are_those_that_xla_counts(name):
    """Of a step without a refresh; what is over is some tens of operations an element."""
    m, n, rank = 96, 160, 32
    options = {"muon": {}, "galore": {"rank": rank}, "alice": {"rank": rank, "leading": 8}}[name]
    options |= {"update_interval": None} if options else {}
    tx, W = getattr(fl, name)(1.0, **options), {"w": jax.ShapeDtypeStruct((m, n), jnp.float32)}
    counted = jax.jit(tx.update).lower(W, jax.eval_shape(tx.init, W), W).compile().cost_analysis()["flops"]
    assert 0 < counted / (m * n) - PRODUCTS[name](m, n, rank) / (m * n) < 100


def test_more_is_less():
    known = {"tokens": 1e9, "speed_up": 1.0, "flops_per_token": 3e8, "devices": 2, "peak": 1e14, "utilisation": 0.5}
    for name in ("speed_up", "devices", "peak", "utilisation"):
        assert cost.hours(**known | {name: 1.5 * known[name]}) < cost.hours(**known)
    paid = [cost.money(cost.hours(**known | {"devices": devices}), devices, 3.0) for devices in (1, 2, 64)]
    assert paid == pytest.approx(paid[:1] * 3)  # perfect scaling is assumed
    assert cost.memory(1e10, 1e9, 4) < cost.memory(1e10, 1e9, 2)
    assert cost.saving(3e8, 2.0, 3e8) > cost.saving(3e8, 1.5, 3e8) > cost.saving(4e8, 1.5, 3e8)
    for held in (6.99e9, 7e9, 7.01e9):  # the smallest number that fits
        count = cost.devices_needed(held, 1e9, 2e9)
        assert cost.memory(held, 1e9, count) <= 2e9 < cost.memory(held, 1e9, count - 1)


def test_every_optimizer_is_counted():
    matrix = jax.ShapeDtypeStruct((96, 64), jnp.float32)
    for name in FORMULAS:
        assert (step_flops(name, matrix, 8) > 0) == (name in PRODUCTS)
    assert set(REFRESH) <= set(PRODUCTS) <= set(FORMULAS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "lama-1b"], "there is no model 'lama-1b'. Is it 'llama-1b'?"),
        (["--optimizer", "adma"], "there is no optimizer 'adma'. Is it 'adam'?"),
        (["--hardware", "h1000"], "there is no hardware 'h1000'. Is it 'h100'?"),
        (["--tokens", "0"], "tokens is a positive, finite number; got 0"),
        (["--tokens", "nan"], "tokens is a positive, finite number; got nan"),
        (["--price", "inf"], "price is a positive, finite number; got inf"),
        (["--memory-gib", "-1"], "memory is a positive, finite number"),
        (["--utilisation", "1.5"], "utilisation is a share of the peak, at most 1; got 1.5"),
        (["--speed-up", "alice=0"], "the speed-up of alice is a positive, finite number; got 0"),
        (["--speed-up", "alice"], "--speed-up: expected name=ratio"),
        (["--speed-up", "soap=2"], "there is no optimizer in the table, for --speed-up, 'soap'"),
        (["--speed-up", "adam=2"], "--speed-up: adam is what the others are compared with"),
        (["--rank", "4096"], "rank: 4096 is not from 1 to 2048, the shorter side of llama-1b's matrices"),
        (
            [*SMALL, "--memory-gib", "1", "--devices", "3"],
            "the run does not fit: with adam it needs 4 devices of 0.9 GiB usable",
        ),
        ([*SMALL, "--memory-gib", "0.8"], "activations of 8 sequences at once take 0.8 GiB; a device has 0.7 GiB usable."),
        ([*SMALL, "--devices", "600"], "600 devices are more than the 512 sequences of a step"),
        (["--html", "nowhere/at/all.html"], "--html: cannot write"),
    ],
)
def test_refusals(arguments, message):
    result = CliRunner().invoke(app, ["cost", *arguments])
    assert result.exit_code == 2
    assert f"fimlens cost: {message}" in " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cost")
    arguments = ["cost", "--model", "llama-60m", "--optimizer", "adam", "racs", "alice", "--speed-up", "alice=2.5", "racs=1.9"]
    files = ["--html", str(folder / "cost.html"), "--json", str(folder / "cost.json")]
    result = CliRunner().invoke(app, [*arguments, *files], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return result.output, (folder / "cost.html").read_text(), json.loads((folder / "cost.json").read_text())


def test_every_assumption_is_printed(written):
    output, _, report = written
    printed = " ".join(output.split())
    assert "…" not in output
    assert "Speed-up of alice: 2.5 (given)." in printed
    for what, why in report["assumptions"].items():
        assert f"{what}: {why}." in printed


class Tags(HTMLParser):
    """Tags and attributes, each element closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes |= dict(attributes)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_parses_and_needs_no_network(written):
    _, html, _ = written
    seen = Tags(html)
    assert seen.open == []
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(seen.tags)
    assert not {"src", "href", "srcset", "action"} & set(seen.attributes)
    assert "default-src 'none'" in html
    assert not re.search(r"@import|url\(|fetch|XMLHttpRequest|WebSocket|\bimport\b", html)


def test_the_pages_numbers_are_the_commands(written):
    """Its formulas, read as Python, of its own data."""
    _, html, report = written
    data = json.loads(re.search(r"const data = (.*);\n", html)[1])
    formulas = {formula.__name__: cost_page.in_javascript(formula) for formula in cost_page.FORMULAS}
    for optimizer, row in zip(data["optimizers"], report["rows"], strict=True):
        known = data["terms"] | optimizer
        for name, formula in formulas.items():
            assert f"{name}: {formula}" in html
            if name == "memory":
                known["devices"] = data["terms"]["devices"] or known["devices_needed"]
            known[name] = eval(formula.partition("=> ")[2], {"Math": math}, known)
            assert known[name] == pytest.approx(row[name], rel=1e-12, abs=1e-12)


@pytest.mark.skipif(shutil.which("node") is None, reason="no engine for scripts")
def test_the_pages_script_gives_the_commands_numbers(written):
    _, html, report = written
    arithmetic = re.search(r"<script>(.*?)</script>", html, re.S)[1]
    asked = "console.log(JSON.stringify(data.optimizers.map((each) => costOf(each, data.terms))))"
    found = json.loads(subprocess.run(["node", "-e", arithmetic + asked], capture_output=True, check=True).stdout)
    for costed, row in zip(found, report["rows"], strict=True):
        for name in ("devices_needed", "devices", "memory", "hours", "money", "saving"):
            assert costed[name] == pytest.approx(row[name], rel=1e-12, abs=1e-12)


def test_nothing_that_is_named_ends_the_script():
    named = "</script><script>alert(1)</script>"
    html = cost_page.page(named, [of("adam")], TERMS, 512, {named: named})
    assert Tags(html).tags.count("script") == 2
