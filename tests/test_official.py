"""Our optimizers make the steps of the original codes, once options hold the differences that docs/differences.md names.

`make slow` installs those codes where it can. What is compared, and how, is in benchmarks/official.py.
"""

import importlib.util
import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("official", ROOT / "benchmarks" / "official.py")
official = importlib.util.module_from_spec(spec)
spec.loader.exec_module(official)
ROWS = [(name, what) for name, pair in official.PAIRS.items() for what in pair.differences]
PAGE = (ROOT / "docs" / "differences.md").read_text()


def apart(name, *more, **options):
    pytest.importorskip("torch")
    try:
        return official.apart(name, *more, **options)
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", [name for name, pair in official.PAIRS.items() if pair.agree])
def test_it_makes_the_official_steps(name, transposed):
    assert apart(name, transposed=transposed) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "what"), ROWS)
def test_a_difference_is_as_large_as_the_page_says(name, what):
    # LAPACK's signs and random directions are other ones elsewhere, so that such figures are good to their size alone.
    assert abs(math.log(apart(name, what) / told(name, what))) < math.log(2)


def told(name, what):
    """The figure of a row on the page."""
    return float(re.search(rf"^\| {re.escape(name)} \| {re.escape(what)} \| (\S+) \|", PAGE, re.MULTILINE)[1])


def test_every_difference_has_its_figure_on_the_page():
    assert all(told(*row) > 0 for row in ROWS)
