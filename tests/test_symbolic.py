"""Every rule against JAX on random rationals; what has none is refused by name."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive

import fimlens as fl
from fimlens.interpreter import interpret
from fimlens.interpreter.identity import is_zero, refuted, relative_size
from fimlens.interpreter.interpret import RULES
from fimlens.interpreter.unknown import unknown
from fimlens.interpreter.values import constant, exact


@jax.custom_jvp
def doubled(x):
    return 2 * x


doubled.defjvp(lambda x, t: (doubled(*x), 2 * t[0]))


@jax.custom_vjp
def tripled(x):
    return 3 * x


tripled.defvjp(lambda x: (tripled(x), None), lambda _, g: (3 * g,))

CASES = {  # a function of x (2, 3) and y (3, 2), positive, in which the primitive occurs
    "abs": lambda x, y: jnp.abs(-x),
    "add": lambda x, y: x + y.T,
    "and": lambda x, y: jnp.where((x > 1) & (y.T > 1), x, 0),
    "add_any": lambda x, y: jax.grad(lambda x: jnp.sum(x * x * x))(x),
    "broadcast_in_dim": lambda x, y: jnp.broadcast_to(x[:, None], (2, 4, 3)),
    "concatenate": lambda x, y: jnp.concatenate([x, y.T], 0),
    "cond": lambda x, y: jax.lax.cond(jnp.arange(3)[1] == 1, lambda x: x + 1, lambda x: x - 1, x),
    "convert_element_type": lambda x, y: x * jnp.arange(3),
    "copy": lambda x, y: jnp.array(x, copy=True),
    "cos": lambda x, y: jnp.cos(x),
    "cumsum": lambda x, y: jnp.cumsum(x, 1),
    "div": lambda x, y: x / y.T,
    "dot_general": lambda x, y: jnp.einsum("ij,jk,ij->ijk", x, y, x),
    "dynamic_slice": lambda x, y: jax.lax.dynamic_slice(x, (jnp.arange(2)[1], 0), (1, 2)),
    "dynamic_update_slice": lambda x, y: jax.lax.dynamic_update_slice(x, y[:1], (jnp.arange(2)[1], 1)),
    "eq": lambda x, y: jnp.where(x == x, x, 0),
    "exp": lambda x, y: jnp.exp(x),
    "expm1": lambda x, y: jnp.expm1(x),
    "gather": lambda x, y: x[jnp.array([1, 0, 1]), jnp.array([2, 0, 1])],
    "ge": lambda x, y: jnp.where(x >= y.T, x, 0),
    "gt": lambda x, y: jnp.where(x > y.T, x, 0),
    "integer_pow": lambda x, y: x**-3,
    "is_finite": lambda x, y: jnp.where(jnp.isfinite(x), x, 0),
    "not": lambda x, y: jnp.where(~(x > 1), x, 0),
    "or": lambda x, y: jnp.where((x > 1) | (y.T > 1), x, 0),
    "iota": lambda x, y: x + jnp.arange(3.0),
    "le": lambda x, y: jnp.where(x <= y.T, x, 0),
    "log": lambda x, y: jnp.log(x),
    "log1p": lambda x, y: jnp.log1p(x),
    "logistic": lambda x, y: jax.nn.sigmoid(x),
    "lt": lambda x, y: jnp.where(x < y.T, x, 0),
    "max": lambda x, y: jnp.maximum(x, y.T),
    "min": lambda x, y: jnp.minimum(x, y.T),
    "mul": lambda x, y: x * y.T,
    "ne": lambda x, y: jnp.where(x != y.T, x, 0),
    "neg": lambda x, y: -x,
    "pad": lambda x, y: jnp.pad(x, ((1, 0), (0, 2)), constant_values=5.0),
    "pow": lambda x, y: x**0.5,
    "reduce_max": lambda x, y: x.max(1),
    "reduce_min": lambda x, y: x.min(0),
    "reduce_prod": lambda x, y: x.prod(0),
    "reduce_sum": lambda x, y: x.sum(0),
    "reshape": lambda x, y: x.reshape(3, 2),
    "rev": lambda x, y: x[:, ::-1],
    "rsqrt": lambda x, y: jax.lax.rsqrt(x),
    "scan": lambda x, y: jax.lax.scan(lambda c, row: (c + row, c * row), x[0], x, reverse=True),
    "scatter": lambda x, y: x.at[jnp.array([1]), jnp.array([0])].set(y[0, 0]),
    "scatter-add": lambda x, y: x.at[:, jnp.array([0, 0, 2])].add(y.T),
    "select_n": lambda x, y: jnp.where(jnp.arange(3) > 1, x, y.T),
    "sign": lambda x, y: jnp.sign(-x),
    "sin": lambda x, y: jnp.sin(x),
    "slice": lambda x, y: x[:, 1:3],
    "split": lambda x, y: jnp.split(x, 3, axis=1),
    "sqrt": lambda x, y: jnp.sqrt(x),
    "square": lambda x, y: jnp.square(x),
    "squeeze": lambda x, y: jnp.squeeze(x[:1], 0),
    "stack": lambda x, y: jnp.stack([x, y.T], 1),
    "stop_gradient": lambda x, y: jax.lax.stop_gradient(x) * x,
    "sub": lambda x, y: x - y.T,
    "tanh": lambda x, y: jnp.tanh(x),
    "tile": lambda x, y: jnp.tile(x, (2, 1)),
    "transpose": lambda x, y: x.T,
    "unstack": lambda x, y: jnp.unstack(x, axis=1),
    "while": lambda x, y: jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * x), (0, x))[1],
}


CALLS = {
    "jit": jax.jit(lambda x, y: x + y.T),
    "checkpoint": jax.checkpoint(lambda x, y: jnp.sin(x) * y.T),
    "its gradient": jax.grad(jax.checkpoint(lambda x, y: jnp.sum(x**2 * y.T))),
    "custom_jvp": lambda x, y: (doubled(x), jax.grad(lambda x: doubled(x).sum())(x)),
    "custom_vjp": lambda x, y: (tripled(x), jax.grad(lambda x: tripled(x).sum())(x)),
}


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from primitives(getattr(inner, "jaxpr", inner))


@pytest.fixture(scope="module")
def rationals():
    random = np.random.default_rng(0)

    def draw(*shape):
        entries = [Fraction(int(a), int(b)) for a, b in random.integers(1, 30, (int(np.prod(shape)), 2))]
        return np.array([sp.Rational(e.numerator, e.denominator) for e in entries], object).reshape(shape)

    return draw(2, 3), draw(3, 2)


def floats(tree):
    return [np.array([float(entry) for entry in np.ravel(np.asarray(leaf, object))]) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", sorted(CASES))
def test_every_rule_is_jax(name, rationals):
    with jax.enable_x64(True):
        found = set(primitives(jax.make_jaxpr(CASES[name])(*(x.astype(float) for x in rationals)).jaxpr))
    if name not in found and jax.__version_info__ < (0, 10):
        pytest.skip("this JAX spells it otherwise")
    assert name in found
    agree(CASES[name], rationals)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_functions_within_functions_are_followed(name, rationals):
    agree(CALLS[name], rationals)


def as_older_jax_names_it(params, consts, carried):
    return {**params, "num_consts": consts, "num_carry": carried}


def as_newer_jax_names_it(params, consts, carried):
    groups = [consts, carried, 1]
    return {**params, "ft_in": tuple((None,) * k for k in groups), "ft_out": ((None,) * carried, (None,))}


@pytest.mark.parametrize("spelling", [as_older_jax_names_it, as_newer_jax_names_it])
def test_a_scan_is_read_whatever_its_parameters_are_called(spelling):
    """Two constants, one carried vector, one scanned operand: the counts differ, so a mistaken one shows."""
    a, b = sp.symbols("a b")
    x = np.array(sp.symbols("x1:7"), object).reshape(3, 2)
    body = jax.jit(lambda a, b, c, row: (a * c + row, b * c))
    scalar, matrix = (jax.ShapeDtypeStruct(s, np.float64) for s in [(), (3, 2)])
    with jax.enable_x64(True):

        def scan(a, b, x):
            return jax.lax.scan(lambda c, row: body(a, b, c, row), x[0], x)

        (equation,) = (e for e in jax.make_jaxpr(scan)(scalar, scalar, matrix).eqns if e.primitive.name == "scan")
        common = {key: equation.params[key] for key in ("jaxpr", "length", "reverse")}
        final, stacked = interpret.RULES["scan"](equation.replace(params=spelling(common, 2, 1)), *map(exact, (a, b, x[0], x)))
    assert interpret.scan_layout(equation) == (2, 1)
    c = x[0]
    for k in range(3):
        assert (stacked[k] == b * c).all()
        c = a * c + x[k]
    assert (final == c).all()


def test_an_unknown_primitive_is_evaluated_by_the_function_that_it_calls():
    """Under a name that no version of JAX uses, and without an implementation."""
    unknown = Primitive("a_call_of_tomorrow")
    unknown.multiple_results = True
    unknown.def_abstract_eval(lambda x, a_function_of_tomorrow: a_function_of_tomorrow.out_avals)

    def call(x):
        function = jax.make_jaxpr(lambda x: jnp.sin(x) + jnp.arange(2.0))(x)
        return unknown.bind(x, a_function_of_tomorrow=function)[0]

    x1, x2 = sp.symbols("x1:3")
    assert fl.symbolic(call)(np.array([x1, x2], object)).tolist() == [sp.sin(x1), sp.sin(x2) + 1]


def test_an_unknown_primitive_is_evaluated_by_its_implementation():
    x = sp.Symbol("x")
    assert fl.symbolic(lambda x: checkpoint_name(2 * x, "doubled"))(x) == 2 * x

    def solve(x):
        return jax.lax.custom_linear_solve(lambda y: 4 * y, x, solve=lambda matvec, x: x / 4)

    assert fl.symbolic(solve)(x) == x / 4


def test_an_effect_is_refused_and_not_carried_out(capsys):
    with pytest.raises(fl.NoRule, match="primitive 'debug_"):
        fl.symbolic(lambda x: jax.debug.print("{x}", x=x))(sp.Symbol("x"))
    jax.effects_barrier()
    assert not capsys.readouterr().out


def test_a_nested_function_of_other_types_defines_nothing():
    """`reduce` carries a function of two numbers, and is not that function of its operands."""

    def product(x):
        return jax.lax.reduce(x, jnp.array(2.0), lambda a, b: a * b + 1, (0,))

    with pytest.raises(fl.NoRule, match="primitive 'reduce'"):
        fl.symbolic(product)(np.array(sp.symbols("x1:4"), object))


def agree(fn, rationals):
    exact = fl.symbolic(fn)(*rationals)
    with jax.enable_x64(True):
        expected = fn(*(jnp.asarray(x.astype(float)) for x in rationals))
    assert jax.tree.map(np.shape, exact) == jax.tree.map(np.shape, expected)
    for ours, theirs in zip(floats(exact), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, np.ravel(theirs), rtol=1e-13)


def test_every_case_is_of_a_rule():
    assert {*CASES, "unknown_function"} == set(RULES)


def test_literals_are_the_rationals_that_they_stand_for():
    x = sp.Symbol("x")
    assert fl.symbolic(lambda x: 0.1 * x)(x) == x / 10
    assert fl.symbolic(lambda x: x + 0.25)(x) == x + sp.Rational(1, 4)
    written = [0.999, 1e-8, -2.5e-20, 1 / 3, 22 / 7, 2.0**-52, 1e300, float(2**70), 123456789.25, float(np.float32(0.1)), 0.0]
    for number in written:
        assert constant(number).is_Rational
        assert float(constant(number)) == number
    assert (constant(1 / 3), constant(1e-8)) == (sp.Rational(1, 3), sp.Rational(1, 10**8))


def test_a_float_that_stands_for_no_rational_stays_one_and_proves_nothing():
    """Not even cos^2 + sin^2 = 1, which it is to rounding."""
    x = sp.Symbol("x", positive=True)
    for number in (np.cos(1), np.sqrt(2), np.pi, np.cos(2 * np.pi / 3), np.e * 1e-20):
        assert constant(float(number)) == sp.Float(number)
    one = fl.symbolic(lambda x: x * float(np.cos(2) ** 2) + x * float(np.sin(2) ** 2) - x * 1.0000000000000002)(x)
    assert not is_zero(one)
    assert 0 < relative_size(one, [x]) < 1e-15
    assert relative_size(one) == 1  # what is left does not show what it is a difference of
    assert relative_size((x + 1) ** 2 - x**2 - 2 * x - 1) < 1e-15
    assert relative_size(x**2 - 1.000001 * x**2) > 1e-7


def test_what_has_no_rule_is_named_with_a_remedy():
    with pytest.raises(fl.NoRule, match=r"primitive 'eigh'.*rational rotation"):
        fl.symbolic(jnp.linalg.eigh)(np.array([[sp.Symbol("a"), 0], [0, 1]], object))


def test_what_has_no_end_in_sight_is_refused():

    def loop(x):
        return jax.lax.fori_loop(0, 10**6, lambda _, x: x / (1 + x @ x), x)

    with pytest.raises(fl.NoRule, match=r"iterates too long to write out.*Take fewer steps"):
        fl.symbolic(loop)(np.array(sp.symbols("x1:3"), object))


def test_what_the_assumptions_leave_open_is_refused():
    x = sp.Symbol("x", real=True)
    with pytest.raises(fl.NoRule, match=r"do not decide the comparison x > 0.*positive=True"):
        fl.symbolic(lambda x: jnp.where(x > 0, x, 0))(x)
    y = sp.Symbol("y", positive=True)
    assert fl.symbolic(lambda y: jnp.where(y > 0, y, 0))(y) == y


def test_what_is_left_open_may_not_matter():
    x, y = sp.Symbol("x", real=True), sp.Symbol("y", positive=True)

    def unused(x, y):
        return jnp.where((y < 0) & (x > 0), x, y) + jnp.where(y == 0, jnp.where(x > 0, jnp.inf, x), y) + jnp.where(x > 0, y, y)

    assert fl.symbolic(unused)(x, y) == 3 * y
    for used in (lambda x: jnp.where((x > 0) | (x < -1), x, 0), lambda x: jnp.sum(x > 0) * x, lambda x: x > 0):
        with pytest.raises(fl.NoRule, match="do not decide the comparison"):
            fl.symbolic(used)(x)
    with pytest.raises(fl.NoRule, match="whether x is finite"):
        fl.symbolic(lambda x: jnp.where(jnp.isfinite(x), x, 0))(sp.Symbol("x"))


def test_a_function_may_be_known_by_name_alone():
    f, slope, x = sp.Function("f", real=True), sp.Function("f'", real=True), np.array(sp.symbols("x y"), object)
    assert fl.symbolic(unknown(f))(x).tolist() == [f(entry) for entry in x]
    assert fl.symbolic(jax.grad(lambda x: (3 * unknown(f, slope)(x)).sum()))(x).tolist() == [3 * slope(entry) for entry in x]


def test_trees_go_in_and_out():
    a, b = sp.symbols("a b")
    tree = fl.symbolic(lambda t: {"sum": t["x"] + t["y"][0], "both": (t["x"], t["y"])})({"x": a, "y": sp.Matrix([[b]])})
    assert tree["sum"].tolist() == [a + b]
    assert tree["both"][0] == a


def test_float32_is_not_asked_of_the_caller():
    assert not jax.config.jax_enable_x64
    fl.symbolic(lambda x: x * 2)(sp.Symbol("x"))
    assert not jax.config.jax_enable_x64


def test_what_is_read_out_of_bounds_is_the_fill():
    x = np.array(sp.symbols("x1:4"), object)
    where = jnp.array([5, 1])
    read = fl.symbolic(lambda x: x.at[where].get(mode="fill", fill_value=2.5))(x)
    assert read.tolist() == [sp.Rational(5, 2), x[1]]
    with pytest.raises(fl.NoRule, match="out of bounds"):
        fl.symbolic(lambda x: x.at[where].get(mode="fill"))(x)


def test_what_is_nan_in_jax_is_refused():
    with pytest.raises(fl.NoRule, match="is negative"):
        fl.symbolic(lambda x: jnp.sqrt(-x))(sp.Symbol("x", positive=True))


X, Y = sp.symbols("X Y", commutative=False)
a, b, c = sp.symbols("a b c", positive=True)
r = sp.Symbol("r", real=True)
ZERO = [
    sp.sqrt(2 * a + 2 * b) - sp.sqrt(2) * sp.sqrt(a + b),
    (1 - r**2) ** 2 / (1 + r**2) ** 2 + 4 * r**2 / (1 + r**2) ** 2 - 1,
    sp.sqrt(a + b) ** 3 - (a + b) * sp.sqrt(a + b),
    sp.log(a * b / sp.sqrt(c)) - sp.log(a) - sp.log(b) + sp.log(c) / 2,
    (X + Y) ** 2 - X**2 - X * Y - Y * X - Y**2,
    sp.sqrt(sp.sqrt(a) + b) ** 2 - sp.sqrt(a) - b,
]
NOT_ZERO = [
    X * Y - Y * X,
    sp.sqrt(r**2) - r,
    sp.sqrt(a) - a,
    a - sp.Symbol("a", real=True),
    1 / (a + b) - 1 / (a + c),
    sp.sqrt(a + b) - sp.sqrt(a) - sp.sqrt(b),
]


@pytest.mark.parametrize("expression", ZERO, ids=range(len(ZERO)))
def test_what_vanishes_is_zero(expression):
    assert is_zero(expression)


@pytest.mark.parametrize("expression", NOT_ZERO, ids=range(len(NOT_ZERO)))
def test_what_does_not_is_not(expression):
    assert not is_zero(expression)


def test_a_pole_refutes_nothing():
    assert not refuted(1 / (r - sp.Rational(7, 5)))
    assert not refuted(10**150 * (sp.sqrt(2 + sp.sqrt(3)) - (sp.sqrt(6) + sp.sqrt(2)) / 2))
    assert refuted(sp.sqrt(2) * r)
