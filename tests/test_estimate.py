"""Held-out estimates: unbiased by enumeration of every draw, error bars against NumPy, storage, units, and bad input."""

import dataclasses
import itertools
import json
import math
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure
from typer.testing import CliRunner

import fimlens as fl
from fimlens import edges
from fimlens.cli import lens_estimates
from fimlens.cli.app import app
from fimlens.fisher.stored_form import samples_of
from fimlens.lens import fits, held_out
from fimlens.lens.conclusions import conclude, conclude_in_sample
from fimlens.lens.estimate import estimate_each, folds_of
from fimlens.lens.estimate_figure import error_map, errors_over_steps, errors_with_bars
from fimlens.lens.figure import error_against_memory, error_in_each_divergence
from fimlens.lens.split import Split
from fimlens.models.gradient_files import read_gradients

DIAGONAL, SIDES = fl.Diagonal(), fl.Rotated(fl.Diagonal(), "LR")
PAIR = {"adam": DIAGONAL, "soap": SIDES}


def gradients(N=24, m=3, n=4, seed=0):
    columns = np.linspace(0.5, 2, n)
    return np.random.default_rng(seed).normal(size=(N, m, n)).astype(np.float32) * columns.astype(np.float32)


# --- without bias: the mean over every draw of a small population ------------------------------------------------------


@pytest.mark.parametrize("divergence", [fl.Frobenius(), fl.VonNeumann()], ids=str)
@pytest.mark.parametrize("structure", [DIAGONAL, fl.Rows(), fl.Rotated(DIAGONAL, "L")], ids=str)
def test_the_mean_over_all_draws_is_the_mean_error_of_the_fits(structure, divergence):
    """A population of two gradients, four draws with replacement: all 16 of them, each with its own truth."""
    values = gradients(2, 2, 2)
    population = fl.Fisher.from_gradients(values)
    key, draws = jax.random.key(3), list(itertools.product(range(2), repeat=4))
    folds, of_fits = folds_of(np.arange(4), 2, key)
    estimated, true, parts = [], [], []
    for draw in draws:
        G = values[list(draw)]
        row = fl.estimate([structure], G, divergence=divergence, folds=2, key=key).rows[str(structure)]
        gaps, levels = [], []
        for k in range(2):
            fisher = fl.Fisher.from_gradients(G[folds.outside(k)])
            gaps.append(fl.gap(structure, fl.fit(structure, fisher, key=of_fits), population, divergence=divergence))
            scalar = fl.fit(fl.Scalar(), fisher)
            levels.append(float(fl.gap(fl.Scalar(), scalar, population, divergence=divergence).total))
        total = np.mean([float(gap.total) for gap in gaps])
        true.append(total - (0 if divergence == fl.Frobenius() else np.mean(levels)))
        estimated.append(row.total)
        parts.append(np.mean([float(gap.spectrum) for gap in gaps]))
    spread = np.std(np.array(estimated) - np.array(true))
    assert spread > 1e-3  # each draw alone is off
    np.testing.assert_allclose(np.mean(estimated), np.mean(true), atol=1e-5 * np.abs(true).max())
    if divergence == fl.Frobenius():
        assert np.mean(parts) >= 0


def test_the_plug_in_flatters_and_the_estimate_does_not():
    G = gradients(64, 6, 8)
    population = fl.Fisher.from_dense(jnp.diag(jnp.repeat(jnp.linspace(0.5, 2, 8) ** 2, 6)), (6, 8))
    row = fl.estimate(PAIR, G).rows["soap"]
    true = float(fl.gap(SIDES, fl.fit(SIDES, fl.Fisher.from_gradients(G)), population).relative)
    assert abs(row.relative - true) < 3 * row.se
    assert row.plug_in > true + 0.2


@pytest.mark.parametrize("structure", [fl.Rows(), SIDES], ids=str)
def test_many_samples_give_the_error_against_the_population(structure):
    """A mixture of two Kronecker products, whose F is written out, and which no structure here describes."""
    random = np.random.default_rng(4)
    L, R = random.normal(size=(2, 3, 3)), random.normal(size=(2, 4, 4))
    K = [np.kron(right, left) for left, right in zip(L, R, strict=True)]
    population = fl.Fisher.from_dense(sum(k @ k.T for k in K) / 2, (3, 4))
    Z, which = random.normal(size=(8192, 3, 4)), random.integers(2, size=8192)
    row = fl.estimate({"it": structure}, (L[which] @ Z @ R[which].mT).astype(np.float32), folds=4).rows["it"]
    true = fl.gap(structure, fl.fit(structure, population), population)
    size = float(population.norm_squared)
    assert true.relative > 0.1
    np.testing.assert_allclose(row.relative, true.relative, atol=0.01)
    np.testing.assert_allclose([row.basis, row.spectrum], [true.basis / size, true.spectrum / size], atol=0.01)


# --- error bars -------------------------------------------------------------------------------------------------------


def test_errors_and_differences_are_those_of_leaving_out_each_fold():
    """Written out in NumPy for Adam and SGD, whose fits and tests are means of squares."""
    G, key = gradients(16), jax.random.key(1)
    estimates = fl.estimate({"adam": DIAGONAL, "sgd": fl.Scalar()}, G, folds=4, key=key)
    folds, _ = folds_of(np.arange(16), 4, key)
    squares, gram = G.astype(float) ** 2, np.einsum("aij,bij->ab", G, G, dtype=float) ** 2

    def error(kept, name):
        linear = []
        for k in kept:
            F = squares[folds.fold != k].mean(0)
            fit = F if name == "adam" else np.full_like(F, F.mean())
            linear.append(np.sum(fit**2 - 2 * fit * squares[folds.fold == k].mean(0)))
        inside = np.isin(folds.fold, kept)
        pairs = gram[inside][:, inside]
        norm = (pairs.sum() - np.trace(pairs)) / (len(pairs) * (len(pairs) - 1))
        return np.mean(linear) / norm + 1

    pseudo = {}
    for name in ("adam", "sgd"):
        without = [error([j for j in range(4) if j != k], name) for k in range(4)]
        pseudo[name] = 4 * error(range(4), name) - 3 * np.array(without)
        row = estimates.rows[name]
        np.testing.assert_allclose(row.relative, pseudo[name].mean(), rtol=1e-4)
        np.testing.assert_allclose(row.se, pseudo[name].std(ddof=1) / 2, rtol=1e-4)
        np.testing.assert_allclose(row.high - row.relative, 3.182446 * row.se, rtol=1e-5)  # Student's t, 3 degrees of freedom
        np.testing.assert_allclose(row.basis + row.spectrum, row.relative, rtol=1e-5)
    off = pseudo["adam"] - pseudo["sgd"]
    np.testing.assert_allclose(estimates.difference("adam", "sgd"), [off.mean(), off.std(ddof=1) / 2], rtol=1e-4)


def test_heavy_tails_are_said_to_be():
    G = gradients(64) * np.random.default_rng(0).standard_cauchy((64, 1, 1)).astype(np.float32)
    with pytest.warns(UserWarning, match="heavy tails"):
        estimates = fl.estimate([DIAGONAL], G)
    assert not estimates.reliable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fl.estimate([DIAGONAL], gradients(64)).reliable
    one = gradients(64) * np.where(np.arange(64) == 7, 3.5, 1)[:, None, None].astype(np.float32)  # spread too little to show
    with pytest.warns(UserWarning, match=r"largest sample has 0\.\d+ of the sum"):
        assert fl.estimate([DIAGONAL], one).largest_share > 0.25


def test_gradients_that_lie_outside_the_range_are_infinitely_far_and_last():
    drop = fl.LowRank(DIAGONAL, 1, fl.Drop())
    estimates = fl.estimate({"drop": drop, "adam": DIAGONAL}, gradients(), divergence=fl.LogDet())
    assert estimates.rows["drop"].relative == math.inf
    assert estimates.rows["drop"].basis is None
    assert estimates.ranked() == ["adam", "drop"]
    assert np.isnan(estimates.difference("drop", "adam")[0])
    assert json.loads(json.dumps(estimates.to_json()))["rows"]["drop"]["relative"] == "inf"
    G = gradients()
    G[:, 1] = 0  # F~ is singular in all folds, which no sample contradicts
    G[1:, 0] = 0  # one sample alone has a first row: in its fold it lies outside
    assert fl.estimate({"adam": DIAGONAL}, G, divergence=fl.LogDet()).rows["adam"].relative == math.inf
    shrunk = fl.estimate({"drop": drop}, gradients(), divergence=fl.LogDet(), shrink=True).rows["drop"]
    assert math.isfinite(shrunk.relative)
    assert 0 < shrunk.shrinkage <= 1


def test_small_eigenvalues_beside_one_large_are_no_rounding():
    G = gradients(32)
    G[:, 0, 0] *= 1e4  # as of an outlier dimension of a language model
    estimates = fl.estimate(PAIR | {"sgd": fl.Scalar()}, G, divergence=fl.LogDet())
    assert all(math.isfinite(row.relative) for row in estimates.rows.values())
    G[:, 1] = 0
    assert fl.estimate(PAIR, G, divergence=fl.VonNeumann()).rows["soap"].relative < 0  # zeros on both sides are no distance


def test_the_best_scale_takes_back_what_a_learning_rate_would():
    twice = fl.Rotated(fl.GeometricMarginals(), "LR")
    plain, scaled = (fl.estimate([twice], gradients(64), best_scale=s).rows[str(twice)] for s in (False, True))
    assert scaled.plug_in < plain.plug_in - 1e-4  # on its own samples it cannot lose


@pytest.mark.parametrize("family", [fl.Kronecker(), fl.Kronecker(fl.LogDet()), fl.DiagonalKronecker()], ids=str)
def test_a_bounded_number_of_sweeps_ends_near_the_nearest_product(family):
    fisher = fl.Fisher.from_gradients(gradients(64, 4, 5))
    bounded = dataclasses.replace(family, sweeps=10)
    shares = [fl.gap(s, fl.fit(s, fisher), fisher, divergence=family.divergence).share for s in (bounded, family)]
    assert float(shares[0]) == pytest.approx(float(shares[1]), rel=1e-2)
    with pytest.raises(ValueError, match="sweeps is a positive number"):
        dataclasses.replace(family, sweeps=0)


# --- units and storage ------------------------------------------------------------------------------------------------


def test_copies_of_a_sample_in_its_unit_change_nothing():
    G = gradients(16)
    once = fl.estimate(PAIR, G, folds=4)
    twice = fl.estimate(PAIR, np.repeat(G, 2, axis=0), folds=4, units=np.repeat(np.arange(16), 2))
    for name, row in once.rows.items():
        other = twice.rows[name]
        for field in ("relative", "se", "basis", "spectrum"):
            np.testing.assert_allclose(getattr(other, field), getattr(row, field), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("structure", "divergence"),
    [
        (SIDES, fl.Frobenius()),
        pytest.param(fl.Kronecker(fl.LogDet(), sweeps=10), fl.LogDet(), marks=pytest.mark.slow),  # half a minute to compile
        pytest.param(fl.LowRank(DIAGONAL, 2, fl.Columns()), fl.VonNeumann(), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_samples_on_disk_give_the_same_numbers(structure, divergence, programs_within_programs):
    G = gradients(26)
    inside = fl.estimate([structure], G, folds=2, divergence=divergence)
    stored = fl.estimate([structure], [G[:10], G[10:]], folds=2, divergence=divergence, max_bytes=1000)
    assert G.nbytes > 1000  # so that it stays on disk, and is read by threes
    for name, row in inside.rows.items():
        np.testing.assert_allclose(stored.rows[name].pseudo, row.pseudo, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(stored.rows[name].plug_in, row.plug_in, rtol=1e-4, atol=1e-5)


def test_short_floats_are_summed_in_float32(programs_within_programs):
    """In memory and in a file; the spectrum is asked for inside a program."""
    G = gradients(26).astype(ml_dtypes.bfloat16)
    full = fl.Fisher.from_gradients(G.astype(np.float32))
    for max_bytes in (2**30, 600):
        short, _ = samples_of("test", G, max_bytes)
        for values in zip(*((f.second_moment(), f.spectrum[-12:], f.norm_squared) for f in (short, full)), strict=True):
            np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)


def test_samples_spread_over_devices_give_the_same_numbers():
    G = gradients(16)
    mesh = Mesh(np.array(jax.devices()), "samples")
    spread = jax.device_put(G, NamedSharding(mesh, PartitionSpec("samples")))
    one, eight = (fl.estimate(PAIR, x, folds=4).rows for x in (G, spread))
    for name in PAIR:
        np.testing.assert_allclose(one[name].pseudo, eight[name].pseudo, rtol=1e-5, atol=1e-5)


# --- what structures share --------------------------------------------------------------------------------------------


def test_structures_in_the_same_bases_share_their_moments(monkeypatch):
    """And have the errors that each would have by itself; coupled sides have bases of their own."""
    spectra = [DIAGONAL, fl.Marginals()]
    structures = spectra + [fl.Rotated(spectrum, "LR") for spectrum in spectra]
    found, calls, G = [], [], gradients(16)
    monkeypatch.setattr(fits, "moments_along", lambda *args: calls.append(args) or held_out.moments_along(*args))
    for widest in (fits.widest, lambda structure, _: structure):
        monkeypatch.setattr("fimlens.lens.estimate.widest", widest)
        found.append(fl.estimate(structures, G, folds=2).rows)
    assert len(calls) == 3 * (2 + len(structures))  # in each basis those of both folds and of all samples
    shared, alone = found
    for name in map(str, structures):
        np.testing.assert_allclose(shared[name].pseudo, alone[name].pseudo, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(shared[name].plug_in, alone[name].plug_in, rtol=1e-5, atol=1e-6)
    coupled = fl.Rotated(fl.Marginals(fl.LogDet()), "LR")
    assert fits.widest(coupled, (3, 4)) == coupled


def test_known_covariances_are_those_of_the_samples_and_of_no_others():
    split = Split(fl.Fisher.from_gradients(gradients(16)), folds_of(np.arange(16), 4, jax.random.key(0))[0])
    known, plain = (split.without(1, covariances=known) for known in (True, False))
    pairs = (known, plain), (known.map(lambda G: 2 * G), plain.map(lambda G: 2 * G)), (known.scaled(3.0), plain.scaled(3.0))
    for one, other in pairs:
        np.testing.assert_allclose(one.left(), other.left(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.right(), other.right(), rtol=1e-5, atol=1e-6)
    assert known.covariances is not None


# --- bad input --------------------------------------------------------------------------------------------------------


def test_bad_input_is_refused_at_the_door():
    G = gradients()
    broken = G.copy()
    broken[5, 0, 0] = np.nan
    for message, call in {
        "one says nothing of others": lambda: fl.estimate([DIAGONAL], G[:1]),
        "3 sampling units cannot be divided into 2 folds, with two units outside each": lambda: fl.estimate(
            [DIAGONAL], G[:3], folds=2
        ),
        "or folds=6": lambda: fl.estimate([DIAGONAL], G[:6]),
        "or folds=3": lambda: fl.estimate([DIAGONAL], G[:3], folds=2),
        "float32 does not hold its square": lambda: fl.estimate([DIAGONAL], G * np.float32(1e-20)),
        "the Fisher is zero": lambda: fl.estimate([DIAGONAL], fl.Fisher.from_gradients(0 * G)),
        "folds is a whole number, at least 2": lambda: fl.estimate([DIAGONAL], G, folds=1),
        "number 5": lambda: fl.estimate([DIAGONAL], broken),
        "no blocks": lambda: fl.estimate([DIAGONAL], iter([])),
        "shape \\(3, 4\\)": lambda: fl.estimate([DIAGONAL], [G[0]]),
        "of shape \\(3, 4\\), as the first block does": lambda: fl.estimate([DIAGONAL], [G, G[:, :2]]),
        "units are 24 whole numbers": lambda: fl.estimate([DIAGONAL], G, units=np.zeros(3, int)),
        "there are no structures": lambda: fl.estimate([], G),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="no samples to hold out"):
        fl.estimate([DIAGONAL], fl.Fisher.from_dense(jnp.eye(4), (2, 2)))
    for message, wrong in {
        "expected real numbers, got object": G.astype(object),
        "expected real numbers, got complex64": [G + 1j],
        "expected real numbers, got complex": G + 1j,
        "expected real numbers, got <U": np.full((8, 3, 4), "a"),
        "of one matrix, .* got a dict": {"w": G},
    }.items():
        with pytest.raises(TypeError, match=message):
            fl.estimate([DIAGONAL], wrong)
    with pytest.raises(ValueError, match=r"k gradients \(k, m, n\); got shape \(24, 0, 4\)"):
        fl.estimate([DIAGONAL], [G[:, :0]])
    with pytest.raises(FileNotFoundError):  # of the blocks' maker, not of the temporary file
        fl.estimate([DIAGONAL], (np.load(path) for path in ["none.npy"]))
    with pytest.warns(UserWarning, match=r"left out: \[5\]"):
        assert fl.estimate([DIAGONAL], broken, skip_nonfinite=True).samples == 23
    found = fl.estimate({"too many": fl.LowRank(DIAGONAL, 9)}, G)
    assert not found.rows
    assert "rank 9" in found.unsuited["too many"]
    with pytest.raises(KeyError, match="no estimate of 'adam'"):
        found.difference("adam", "too many")


@dataclasses.dataclass(frozen=True)
class Faulty(fl.Scalar):
    """A structure of a user whose code fails."""

    def stats(self, fisher, params):
        raise ValueError("a fault of my own")


@pytest.mark.parametrize("lens", [fl.estimate, lambda given, G: fl.compare(given, fl.Fisher.from_gradients(G))])
def test_a_fault_is_not_taken_for_a_structure_that_does_not_suit(lens):
    with pytest.raises(ValueError, match="a fault of my own"):
        lens({"mine": Faulty(), "sgd": fl.Scalar()}, gradients(16))
    assert list(lens({"too wide": fl.LowRank(DIAGONAL, 9, fl.Drop()), "sgd": fl.Scalar()}, gradients(16)).unsuited) == [
        "too wide"
    ]


def test_a_map_of_samples_on_disk_is_seen_by_every_question(programs_within_programs):
    G, U = gradients(26), jnp.eye(3)[:, :2] * 3.0  # no orthogonal map
    inside = fl.Fisher.from_gradients(G).map(lambda G: U.T @ G)
    stored = samples_of("test", G, 1000)[0].map(lambda G: U.T @ G)
    for ask in (lambda f: f.gram(), lambda f: f.mean_squares(), lambda f: f.norm_squared, lambda f: f.spectrum[-8:]):
        np.testing.assert_allclose(ask(stored), ask(inside), rtol=1e-4, atol=1e-3)


def test_a_small_sample_counts_for_the_rank_in_memory_and_on_disk(programs_within_programs):
    G = np.float32(jax.random.normal(jax.random.key(7), (4, 2, 3))) * np.float32([[[1]], [[1e-9]], [[1]], [[0]]])
    assert [edges.rank(each) for each in (fl.Fisher.from_gradients(G), samples_of("test", G, G.nbytes - 1)[0])] == [3, 3]


def test_whole_numbers_of_any_size_are_gradients():
    assert fl.estimate({"adam": DIAGONAL}, np.where(gradients() > 0, -128, 0).astype(np.int8)).rows


def test_empty_input_is_named():
    for ask in (conclude, errors_with_bars, error_map, errors_over_steps):
        with pytest.raises(ValueError, match=f"^{ask.__name__}: there are no estimates"):
            ask({})
    for ask in (conclude_in_sample, error_against_memory, error_in_each_divergence):
        with pytest.raises(ValueError, match=f"^{ask.__name__}: there are no comparisons"):
            ask([])


@pytest.mark.parametrize("dtype", [np.float64, np.longdouble, ">f4"])
def test_floats_that_jax_does_not_have_are_converted(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fl.estimate({"adam": DIAGONAL}, gradients().astype(dtype), folds=4)
    assert found.rows == fl.estimate({"adam": DIAGONAL}, gradients(), folds=4).rows


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_reads_files_concludes_and_continues(tmp_path):
    source, out = tmp_path / "gradients", tmp_path / "out"
    source.mkdir()
    np.save(source / "layers.0.query[0].npy", gradients(16))
    np.save(source / "value.npy", gradients(16, seed=1))
    (source / "gradients.json").write_text('{"kind": "a test", "units": ' + str(list(range(16))) + "}")
    command = ["lens", "--gradients", str(source), "--structures", "osoap,soap", "--folds", "4", "--out", str(out)]
    command += ["--matrices", "layers/0/query[0],value"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    for words in ("a test", "nearest on held-out gradients", "A second basis", "plug-in"):
        assert words in result.output
    assert (out / "map-frobenius.png").exists()
    assert (out / "estimates-logdet.png").exists()
    written = (out / "estimates.json").read_text()
    again = CliRunner().invoke(app, command)  # nothing is left to compute
    assert again.exit_code == 0
    assert (out / "estimates.json").read_text() == written
    assert again.output.split("query", 1)[1].split("Numbers")[0] == result.output.split("query", 1)[1].split("Numbers")[0]


def test_other_structures_are_added_and_nothing_is_lost(tmp_path, monkeypatch):
    """After an interruption too; what is about other folds is not written over."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    source, out = tmp_path / "gradients", tmp_path / "out"
    source.mkdir()
    for name in ("a", "b"):
        np.save(source / f"{name}.npy", gradients(16))
    asked = []

    def interrupted(structures, *rest):
        asked.append(sorted(structures))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return estimate_each(structures, *rest)

    monkeypatch.setattr(lens_estimates, "estimate_each", interrupted)

    def run(structures, folds="2"):
        words = ["lens", "--gradients", str(source), "--out", str(out), "--structures", structures, "--folds", folds]
        return CliRunner().invoke(app, words)

    assert run("sgd").exit_code
    assert run("sgd").exit_code == 0
    assert run("adam,sgd").exit_code == 0
    written = (out / "estimates.json").read_text()
    assert run("sgd").exit_code == 0
    assert asked == 3 * [["sgd"]] + 2 * [["adam"]]
    for part in json.loads(written)["matrices"].values():
        assert set(part["LogDet"]["rows"]) == set(part["LogDet"]["structures"]) == {"sgd", "adam"}
    assert "folds 2 there and 3 here" in " ".join(run("sgd", "3").output.split())
    assert (out / "estimates.json").read_text() == written


def test_a_name_that_means_another_structure_is_estimated_again(tmp_path):
    source, out, errors = tmp_path / "gradients", tmp_path / "out", []
    source.mkdir()
    np.save(source / "query.npy", gradients(16))
    for rank in ("1", "2"):
        command = [
            "lens",
            "--gradients",
            str(source),
            "--structures",
            "galore",
            "--rank",
            rank,
            "--folds",
            "2",
            "--out",
            str(out),
        ]
        assert CliRunner().invoke(app, command).exit_code == 0
        part = json.loads((out / "estimates.json").read_text())["matrices"]["query"]["Frobenius"]
        errors.append(part["rows"]["galore"]["relative"])
    assert f"rank={rank}" in part["structures"]["galore"]
    assert errors[0] != errors[1]


def test_other_gradients_of_the_same_name_are_estimated_anew(tmp_path, monkeypatch):
    """As of a later checkpoint; and a file that no run finished is named."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    source, out = tmp_path / "gradients", tmp_path / "out"
    source.mkdir()
    command = ["lens", "--gradients", str(source), "--structures", "sgd", "--folds", "2", "--out", str(out)]
    norms = []
    for seed in (0, 1):
        np.save(source / "query.npy", gradients(16, seed=seed))
        assert CliRunner().invoke(app, command).exit_code == 0
        part = json.loads((out / "estimates.json").read_text())["matrices"]["query"]["Frobenius"]
        norms.append(part["norm_squared"])
    assert norms[0] != norms[1]
    for damaged in ("{", "[]"):
        (out / "estimates.json").write_text(damaged)
        assert "name another directory by --out" in " ".join(CliRunner().invoke(app, command).output.split())


def test_gradients_in_safetensors_are_mapped(tmp_path):
    G = gradients(8)
    header = json.dumps({"layer.query": {"dtype": "F32", "shape": [8, 3, 4], "data_offsets": [0, G.nbytes]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + G.tobytes())
    found = read_gradients(tmp_path).matrices
    assert isinstance(found["layer.query"], np.memmap)
    np.testing.assert_array_equal(found["layer.query"], G)
    np.save(tmp_path / "layer.query.npy", G)
    with pytest.raises(ValueError, match=r"another array named layer\.query"):
        read_gradients(tmp_path)


def test_damaged_directories_are_refused(tmp_path):
    def refused(message):
        with pytest.raises(ValueError, match=message):
            read_gradients(tmp_path)

    refused("no gradients")
    (tmp_path / "a.npy").write_bytes(b"not an array")
    refused("a.npy cannot be read")
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    refused(r"a is float64 of shape \(2, 3\)")
    np.save(tmp_path / "a.npy", gradients(4))
    np.save(tmp_path / "b.npy", gradients(5))
    refused("different numbers of gradients: a 4, b 5")
    (tmp_path / "b.npy").unlink()
    (tmp_path / "gradients.json").write_text('{"units": [1]}')
    refused("units is a list of 4 whole numbers")
    (tmp_path / "gradients.json").write_text("{")
    refused("is no JSON")
    (tmp_path / "gradients.json").unlink()
    with (tmp_path / "c.npy").open("wb") as file:
        np.savez(file, gradients(4))
    refused("c.npy cannot be read")
    (tmp_path / "c.npy").unlink()
    header = json.dumps({"w": {"dtype": "F32", "shape": [1, 3, 4], "data_offsets": [-88, -40]}}).encode()
    for content, why in ((b"\x08" + bytes(7) + b"{}", "within its header"), (len(header).to_bytes(8, "little") + header, "")):
        (tmp_path / "b.safetensors").write_bytes(content)
        refused(f"b.safetensors is damaged.*{why}")
    with pytest.raises(ValueError, match="is no directory"):
        read_gradients(tmp_path / "none")


def test_conclusions_name_what_is_unclear():
    G = gradients(32)
    structures = {"sgd": fl.Scalar(), "same": fl.Scalar(), "adam": DIAGONAL, "racs": fl.RowColumn()}
    words = " ".join(conclude({"a": fl.estimate(structures, G)}))
    assert "Adam's m n numbers over RACS' m + n: the error changes by " in words
    assert "On 1 of 1 matrices the error bars do not tell the best two apart." in words
    two = fl.estimate({"adam": DIAGONAL, "sgd": fl.Scalar()}, G, folds=2)
    for far, clear in ((1.3, False), (1.1, True)):  # 8 and 21 standard errors; Student's t with one degree of freedom is 12.7
        pseudo = {"adam": (0.0, 0.0), "sgd": (1.0, far)}
        found = dataclasses.replace(two, rows={name: row._replace(pseudo=pseudo[name]) for name, row in two.rows.items()})
        assert found.clearly_nearer("adam", "sgd") == clear


def test_a_structure_that_is_infinitely_far_is_never_the_nearest():
    found = fl.estimate({"galore": fl.LowRank(DIAGONAL, 1, fl.Drop())}, gradients(16), divergence=fl.LogDet())
    assert math.isinf(found.error("galore"))
    assert "nearest on held-out gradients: none." in conclude({"a": found})[0]
    with pytest.raises(ValueError, match="conclude: there are no estimates"):
        conclude({})
    structures = {"galore": found.structures["galore"], "sgd": fl.Scalar()}
    both = fl.estimate(structures, gradients(16), divergence=fl.LogDet())
    assert both.clearly_nearer("sgd", "galore")
    assert not both.clearly_nearer("galore", "sgd")
    assert "do not tell the best two apart" not in " ".join(conclude({"a": both}))


def test_gradients_are_written_as_empirical_fisher_has_them_and_continued(tmp_path):
    def loss(params, batch):
        return jnp.mean((jnp.tanh(batch["x"] @ params["w"]) - batch["y"]) ** 2)

    params, random = {"w": jnp.ones((3, 2)) / 3, "b": jnp.ones(2)}, np.random.default_rng(0)
    batches = [{"x": random.normal(size=(k, 3)), "y": random.normal(size=(k, 2))} for k in (4, 3)]
    expected = fl.empirical_fisher(loss, params, batches)["w"].samples

    def interrupt(done, count):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fl.write_gradients(loss, params, batches, tmp_path, units=range(7), progress=interrupt)
    with pytest.raises(ValueError, match="unfinished: 5 gradients"):
        read_gradients(tmp_path)
    counts = []
    fl.write_gradients(loss, params, batches, tmp_path, units=range(7), progress=lambda done, count: counts.append(done))
    fl.write_gradients(loss, params, batches, tmp_path, units=range(7), progress=lambda done, count: counts.append(done))
    assert counts == [5, 6, 7, 7]  # what was done comes first, and nothing is done again
    found = read_gradients(tmp_path)
    np.testing.assert_allclose(found.matrices["w"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.units, range(7))
    with pytest.raises(ValueError, match="another run"):
        fl.write_gradients(loss, params, batches[:1], tmp_path, units=range(4))
    with pytest.raises(ValueError, match="7 examples and 2 units"):
        fl.write_gradients(loss, params, batches, tmp_path, units=[0, 1])
    moved, other = params | {"b": 2 * jnp.ones(2)}, [batches[0], jax.tree.map(np.negative, batches[1])]
    for weights, data in ((moved, batches), (params, other)):  # of the same names and shapes
        with pytest.raises(ValueError, match="another run"):
            fl.write_gradients(loss, weights, data, tmp_path, units=range(7))
    (tmp_path / "gradients.json").unlink()
    with pytest.raises(ValueError, match="another run"):  # of who knows what
        fl.write_gradients(loss, params, batches, tmp_path)
    with pytest.raises(ValueError, match="two matrices have one name"):
        fl.write_gradients(loss, {"w/a": params["w"], "w.a": params["w"], "w": params["w"]}, batches, tmp_path / "new")


def test_gradients_that_were_not_begun_are_no_zeros(tmp_path, monkeypatch):
    """A run stopped between the making of its files and its first gradient."""
    loss, params, batches = lambda params, x: jnp.sum(x @ params["w"]), {"w": jnp.ones((3, 2))}, [np.ones((2, 3))]

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", stop)
        with pytest.raises(KeyboardInterrupt):
            fl.write_gradients(loss, params, batches, tmp_path)
    with pytest.raises(ValueError, match="unfinished: 0 gradients"):
        read_gradients(tmp_path)
    fl.write_gradients(loss, params, batches, tmp_path)
    assert (read_gradients(tmp_path).matrices["w"] == 1).all()
