"""Every public name has an example that runs, and every optimizer and transform describes each of its arguments."""

import doctest
import inspect
import re
import sys
import tomllib
from pathlib import Path

import optax
import pytest

import fimlens as fl
from fimlens.optimizers.docstrings import argument_lines
from fimlens.optimizers.full_chain import full_chain

ROOT = Path(__file__).parent.parent
PUBLIC = [name for name in dir(fl) if not name.startswith("_") and not inspect.ismodule(getattr(fl, name))]
ROOMS = ("fimlens.optimizers.", "fimlens.transforms.")
WITH_ARGUMENTS = [
    name for name in PUBLIC if inspect.isfunction(getattr(fl, name)) and getattr(fl, name).__module__.startswith(ROOMS)
]


@pytest.fixture(scope="module")
def collected():
    """The names of what `--doctest-modules` runs. It looks into modules, and leaves out what a module only imports."""
    modules = {getattr(fl, name).__module__ for name in PUBLIC}
    tests = [test for module in modules for test in doctest.DocTestFinder().find(sys.modules[module])]
    return {test.name for test in tests if test.examples}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_name_has_an_example_that_is_run(name, collected):
    public = getattr(fl, name)
    assert ">>>" in (public.__doc__ or ""), f"fl.{name} has no example in its docstring"
    assert f"{public.__module__}.{public.__qualname__}" in collected


def test_pytest_runs_the_examples_of_the_package():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "--doctest-modules" in options["addopts"].split()
    assert "fimlens" in options["testpaths"]


def differing(function):
    """The arguments that only the signature or only the docstring has."""
    return set(inspect.signature(function).parameters) ^ set(argument_lines(function.__doc__))


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_each_argument_has_a_line_in_the_signature_s_order(name):
    function = getattr(fl, name)
    assert not differing(function)
    assert list(argument_lines(function.__doc__)) == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", WITH_ARGUMENTS)
def test_what_is_claimed_of_a_family_is_a_claim(name):
    """The word in capitals after "H = {...}," or "H = LowRank(...),"."""
    claims = re.findall(r"H = [^.:]*?[})], (?:a |both diagonal, )?([A-Z_]{4,})", getattr(fl, name).__doc__)
    assert set(claims) <= set(fl.Claim.__members__)
    assert claims or name not in ("adam", "adafactor", "adafacdiag", "alice", "kl_shampoo", "racs", "shampoo", "soap")


def test_every_optimizer_and_direction_is_among_them():
    assert {"adam", "alice", "alice0", "racs", "adadiag_pp", "scale_by_structure", "matrices"} <= set(WITH_ARGUMENTS)


def scale_by_mutant(*, alpha=0.3, gamma=1.01):
    """A direction that describes one of its arguments, and one that it no longer has.

    Args:
        alpha: factor of the whole update.
        beta: decay of an average.
    """
    return optax.scale(alpha * gamma)


@pytest.mark.parametrize("make", [scale_by_mutant, full_chain(scale_by_mutant)])
def test_an_argument_without_a_line_is_found(make):
    assert "gamma" in differing(make)
    assert "alpha" not in differing(make)


def test_a_line_without_an_argument_is_found():
    assert differing(scale_by_mutant) == {"beta", "gamma"}
