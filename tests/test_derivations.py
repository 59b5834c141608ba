"""Every derivation is proved, and fails if a shipped function that it rests on has a slip."""

import inspect
import sys
import textwrap

import pytest

from fimlens import derivations, divergence, structure
from fimlens.fisher import dense_form, fisher, sample_form, samples
from fimlens.linalg import bases, spectral_functions
from fimlens.proofs import theorem
from fimlens.solver import fit as solver_fit
from fimlens.structures import Dense, blocks, kronecker, low_rank, marginals, product, rank_one, rotated, spectra
from fimlens.transforms import compensation, low_rank_update, norms

pytestmark = pytest.mark.proof
DERIVATIONS = theorem.load_derivations(derivations)
SLIPS = [  # derivation, owner of the shipped function, its name, code in it, and the slip that replaces that code
    ("kronecker_vec", fisher, "unvec", "reshape(n, m).T", "reshape(m, n)"),
    ("adam", spectra.Diagonal, "project", "return moments", "return 2 * moments"),
    ("adam", spectra.Spectrum, "dense", "vec(jnp", "jnp.ravel(jnp"),
    ("adam", spectral_functions, "_over_root", ") + eps", ") + eps + 1e-8"),
    ("adam", dense_form.DenseFisher, "second_moment", "t * tf", "t * t"),
    (
        "whitening",
        spectra.Rows,
        "dense",
        "jnp.kron(jnp.eye(params.frame.shape[1]), jnp.diag(params.coords[:, 0]))",
        "jnp.kron(jnp.diag(params.coords[:, 0]), jnp.eye(params.frame.shape[1]))",
    ),
    ("whitening", spectra._Tied, "moments", "V.mean", "V.sum"),
    ("whitening", rotated, "rotate", "left.T @ G", "left @ G"),
    ("whitening", rotated.Rotated, "from_eigenbasis", "left @ G", "left.T @ G"),
    ("normalisation", spectra._Tied, "moments", "V.mean", "V.sum"),
    ("normalisation", spectra.Columns, "dense", "params.coords[0]", "params.coords[0] ** 2"),
    ("square_root_ngd", spectral_functions, "_over_root", "1, x))) + eps", "1, x) + eps))"),
    ("square_root_ngd", structure.Structure, "apply", "scale(f,", "scale(lambda x: f(x) / 2,"),
    ("square_root_ngd", rotated.Rotated, "to_eigenbasis", "rotate(frame, G)", "rotate(frame, G) * 2"),
    ("square_root_ngd", product.Product, "from_eigenbasis", "left @ X @ right.T", "left @ X @ right"),
    ("square_root_ngd", blocks.Blocks, "_join", "grid.reshape", "grid[::-1].reshape"),
    ("square_root_ngd", low_rank.LowRank, "to_eigenbasis", "G - U @ A, None", "G, None"),
    ("square_root_ngd", low_rank.LowRank, "to_eigenbasis", "G - U @ A - columns @ V.T", "G - U @ A - B @ V.T"),
    ("square_root_ngd", structure.Structure, "precondition", "inverse_root(eps)", "inverse_root(2 * eps)"),
    ("fisher_forms", sample_form.SampleFisher, "_mean", "x / N", "x"),
    ("fisher_forms", samples.Samples, "right", "B.T @ G", "B @ G"),
    ("fisher_forms", samples.Samples, "inner", "jnp.sum(G", "2 * jnp.sum(G"),
    ("compensation", low_rank.LowRank, "_directions", "m - r,", "m - 1,"),
    ("error_split", low_rank.LowRank, "_directions", "m - r,", "m,"),
    ("error_split", low_rank.LowRank, "_tied_blocks", "count * total.size / V.size", "2 * count * total.size / V.size"),
    ("block_diagonal", blocks.Blocks, "dense", ".set(block)", ".set(2 * block)"),
    ("block_diagonal", Dense, "dense", "jnp.diag(lam) @ Q.T", "jnp.diag(lam) @ Q"),
    ("projections", spectra.Diagonal, "moments", "return V", "return V**2"),
    ("projections", spectra._Tied, "moments", "V.mean", "V.sum"),
    ("shampoo_bound", marginals.GeometricMarginals, "objective", "Rows().objective", "2 + Rows().objective"),
    ("shampoo_bound", marginals.GeometricMarginals, "dense", "r[:, 0] ** 0.5", "r[:, 0]"),
    ("shampoo_bound", marginals._RowAndColumnMeans, "moments", "Columns().moments(V)", "Columns().moments(V**2)"),
    ("osoap", bases, "cayley", "U + S @ U", "U - S @ U"),
    ("osoap", rotated.Rotated, "stats", "fisher.map(partial(rotate, member.frame))", "fisher"),
    ("soap", rotated, "rotate", "G @ right", "G @ right.T"),
    ("soap", rotated.Rotated, "dense", "@ B.T", "@ B"),
    ("racs", rank_one, "nearest_factor", "weight @ q", "jnp.sum(weight)"),
    ("racs", rank_one.RowColumn, "project", "s = s * largest", "s = s"),
    ("racs", rank_one.RowColumn, "project", "if self.cap is not None", "if False"),
    ("racs", rank_one, "least_factor", "(len(q) * cap)", "cap"),
    ("racs", rank_one, "capped_factor", "jnp.maximum", "jnp.minimum"),
    ("van_loan_pitsianis", dense_form.DenseFisher, "left", "self._tensor, A)", "self._tensor, 2 * A)"),
    ("van_loan_pitsianis", dense_form.DenseFisher, "right", "self._tensor, B)", "self._tensor, B**2)"),
    ("van_loan_pitsianis", product.Product, "stats", "self._weight(left, b)", "self._weight(left, a[: len(b)])"),
    ("diagonal_kronecker", product.Product, "fit", "total = weights @ rows", "total = weights @ b"),
    ("diagonal_kronecker", kronecker.DiagonalKronecker, "_right", "right_diagonal(B)", "right_diagonal(B**2)"),
    ("compensation", low_rank.LowRank, "tied", "total / count", "total"),
    ("compensation", compensation, "nearest", "inverse_root(0.0)", "inverse_root(1e-8)"),
    ("alice", low_rank.LowRank, "dense", "jnp.eye(short) - U @ U.T", "jnp.eye(short)"),
    ("alice", low_rank.LowRank, "from_eigenbasis", "+ X.columns\n", "+ 2 * X.columns\n"),
    ("galore", low_rank.LowRank, "_lead", "U.T @ self.see(G)", "self.see(G)[: U.shape[1]]"),
    ("low_rank_soap", low_rank.LowRank, "tied", "total / count", "total"),
    ("low_rank_soap", low_rank.LowRank, "dense", "jnp.kron(out_of_V, out_of_U)", "jnp.kron(out_of_U, out_of_V)"),
    ("alice", low_rank_update, "low_rank_update", "U @ (D - b * X) + b * G", "U @ D + b * G"),
    ("alice", low_rank_update, "squares_outside", "whole.columns - sums_of_squares(seen.X, -2)", "whole.columns"),
    ("low_rank_soap", low_rank_update, "low_rank_update", "(a + b - c) * X", "(a + b) * X"),
    ("low_rank_soap", low_rank_update, "squares_outside", "+ lead_rows.sum", "- lead_rows.sum"),
    ("adafactor", marginals.Marginals, "factors", "over(r, mean)", "r"),
    ("adafactor", structure.Structure, "objective", "return excess", "return 2 * excess"),
    ("adafactor", rank_one, "nearest_factor", "weight @ q", "jnp.sum(weight)"),
    ("shampoo_squared", product.Product, "fit", "total = weights @ rows", "total = weights @ b"),
    ("whitening", bases, "cayley", "z @ U.T - U @ z.T", "z @ U.T + U @ z.T"),
    ("error_split", solver_fit, "split", "trace + excess(blocks", "trace - excess(blocks"),
    ("error_split", solver_fit, "split", "basis = trace - sum", "basis = trace + sum"),
    ("error_split", divergence.Divergence, "between", "self.phi(V) +", "2 * self.phi(V) +"),
    ("error_split", divergence.Divergence, "excess", "jnp.where(steep, 0, slope) * V", "jnp.where(steep, slope, 0) * V"),
    ("error_split", divergence.Frobenius, "excess", "value - 2 * V", "value - V"),
    ("projections", divergence.Divergence, "excess", "-self.phi(inside)", "self.phi(inside)"),
    ("rank_one", rank_one, "nearest_factor", "weight @ q", "jnp.sum(weight)"),
    ("rank_one", divergence.Divergence, "weight", "x * self.curvature", "self.curvature"),
    ("rank_one", divergence.Divergence, "excess", "(V - inside)", "(inside - V)"),
    ("rank_one", divergence.Beta, "slope", "jnp.log(x) if", "2 * jnp.log(x) if"),
    ("rank_one", divergence.Beta, "phi", "(self.b * (self.b - 1))", "(self.b - 1)"),
    ("rank_one", divergence.Frobenius, "excess", "value - 2 * V", "value - V"),
    ("rank_one", marginals.Marginals, "factors", "over(r, mean)", "r"),
    ("sinkgd", rank_one, "nearest_factor", "weight @ V", "weight @ V**2"),
    ("sinkgd", rank_one.RowColumn, "project", "s = s * largest", "s = s"),
    ("sinkgd", rank_one.RowColumn, "project", "len(moments) > moments.shape[1]", "len(moments) < moments.shape[1]"),
    ("sinkgd", divergence.Beta, "curvature", "self.b - 2", "self.b - 1"),
    ("nearest_product", product.Product, "_weight", "weights @ values", "jnp.sum(weights)"),
    ("nearest_product", product.Product, "eigenvalues", "b * a", "b + a"),
    ("nearest_product", product.Product, "fit", "total = weights @ rows", "total = weights @ b"),
    ("nearest_product", kronecker.DiagonalKronecker, "_right", "right_diagonal(B)", "right_diagonal(B**2)"),
    ("nearest_product", divergence.Beta, "slope", "x ** (self.b - 1)", "x**self.b"),
    ("shampoo_bound", rotated.Rotated, "objective", "fisher.map(partial(rotate, params.frame))", "fisher"),
    (
        "shampoo_squared",
        marginals.Marginals,
        "factors",
        "root(r.mean()) * root(c.mean())",
        "root(r.mean() * 2) * root(c.mean())",
    ),
    ("lars_lamb", norms, "matrix_norm", "root(", "("),
    ("lars_lamb", spectra.Scalar, "dense", "params.coords[0, 0]", "2 * params.coords[0, 0]"),
    ("muon", spectra._Tied, "moments", "V.mean", "V.sum"),
    ("muon", rotated.Rotated, "from_eigenbasis", "left @ G", "left.T @ G"),
]


@pytest.mark.parametrize("name", DERIVATIONS)
def test_it_is_proved(name):
    derivation = DERIVATIONS[name]
    verdict = theorem.prove(derivation, derivation.SIZES[0])
    assert verdict.proved, verdict.steps[-1]


def with_slip(owner, name, code, slip):
    """The shipped function, with one slip in its source."""
    function = inspect.getattr_static(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(code) >= 1, f"{name} no longer has {code!r}"
    scope = {}
    exec(compile(source.replace(code, slip), f"{name} with a slip", "exec"), inspect.unwrap(function).__globals__, scope)
    return scope[name]


@pytest.mark.parametrize(
    ("derivation", "owner", "name", "code", "slip"), SLIPS, ids=[f"{d}-{n}-{k}" for k, (d, _, n, *_) in enumerate(SLIPS)]
)
def test_a_slip_breaks_it(derivation, owner, name, code, slip, monkeypatch):
    original, wrong = inspect.getattr_static(owner, name), with_slip(owner, name, code, slip)
    # A function that other modules import by name must be replaced in each of them.
    for module in [m for key, m in sys.modules.items() if key.startswith("fimlens")]:
        if getattr(module, name, None) is original:
            monkeypatch.setattr(module, name, wrong)
    monkeypatch.setattr(owner, name, wrong)
    assert not all(theorem.prove(DERIVATIONS[derivation], size).proved for size in DERIVATIONS[derivation].SIZES)


def test_every_proof_has_a_slip():
    assert {derivation for derivation, *_ in SLIPS} == set(DERIVATIONS)
