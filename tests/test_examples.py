"""The examples: each runs as a script, its loss falls, and Alice gets the matrices of the layers and Adam all other leaves."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import fimlens as fl

EXAMPLES = Path(__file__).parent.parent / "examples"
PARAMETERS = {
    "plain_jax.py": lambda example: example["init"](jax.random.key(0)),
    "plain_flax.py": lambda example: nnx.state(example["LanguageModel"](nnx.Rngs(0)), nnx.Param),
}
pytestmark = [pytest.mark.system, pytest.mark.parametrize("name", PARAMETERS)]


def test_the_loss_falls(name):
    command = [sys.executable, str(EXAMPLES / name), "--steps", "12"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    losses = [float(loss) for loss in re.findall(r"held-out loss (\S+)", ended.stdout)]
    assert len(losses) == 7
    assert losses[-1] < losses[0] - 1


def test_alice_has_the_matrices_of_the_layers(name):
    params = PARAMETERS[name](runpy.run_path(str(EXAMPLES / name)))
    tx = fl.matrices(optax.identity(), optax.set_to_zero())  # leaves that are not Alice's become zero
    routed, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(routed):
        of_a_layer = re.search(r"'(query|key|value|output|up|down)'", jax.tree_util.keystr(path))
        assert leaf.mean() == bool(of_a_layer), path


def test_a_text_that_is_too_short_is_refused(name, tmp_path, monkeypatch, capsys):
    short = tmp_path / "short.txt"
    short.write_text("To be, or not to be")
    monkeypatch.setattr(sys, "argv", [name, "--text", str(short)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert "--text: 19 bytes are too few" in capsys.readouterr().err
