"""Every public name has an example that runs: pytest collects those of the modules, and here is that this leaves none out."""

import doctest
import inspect
import sys
import tomllib
from pathlib import Path

import pytest

import fimlens as fl

ROOT = Path(__file__).parent.parent
PUBLIC = [name for name in dir(fl) if not name.startswith("_") and not inspect.ismodule(getattr(fl, name))]


@pytest.fixture(scope="module")
def collected():
    """The names of what `--doctest-modules` runs: it looks into modules, and leaves out what a module only imports."""
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
