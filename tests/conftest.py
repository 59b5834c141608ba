"""Eight simulated devices for every test, set before JAX starts, no network, and what tests would otherwise do again and again.

The three shortcuts below change no check and no program. They replace private functions, and only those that are there.
"""

import functools
import gc
import itertools
import os
from pathlib import Path

import jax
import jaxtyping._decorator
import pytest
from jax._src.interpreters import mlir

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"


def made_once(make):
    """Make one function for each name and signature."""
    made = {}

    def remembered(name, qualname, module, signature, output):
        key = module, qualname, str(signature), output  # printed, because Float[Array, "m n"] is not equal to itself
        if key not in made:
            made[key] = make(name, qualname, module, signature, output)
        return made[key]

    return remembered


# The run-time checks of a nested function are made whenever the outer one is called: 32,000 times, and a millisecond each.
# JAX makes a context of MLIR, in 4 ms, for each of 6,000 programs, most of which are one operation.
for module, name, shortcut in (
    (jaxtyping._decorator, "_make_fn_with_signature", made_once),
    (jaxtyping._decorator, "_apply_typechecker", functools.cache),
    (mlir, "make_ir_context", functools.cache),
):
    if hasattr(module, name):
        setattr(module, name, shortcut(getattr(module, name)))


@pytest.fixture
def programs_within_programs(monkeypatch):
    """Programs that read files, or many samples in parts, compile others while they are lowered: not in one shared context."""
    monkeypatch.setattr(mlir, "make_ir_context", getattr(mlir.make_ir_context, "__wrapped__", mlir.make_ir_context))


def pytest_collection_finish() -> None:
    """Keep the collector off what is imported: tracing allocates much, and would have all of it walked again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


TESTS, MAPS, MOST_MAPS = itertools.count(1), Path("/proc/self/maps"), 40_000


def pytest_runtest_teardown() -> None:
    """Forget compiled programs before their memory maps reach the 65,530 that Linux allows, where JAX would crash."""
    if next(TESTS) % 50 == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
