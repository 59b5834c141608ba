"""The decompositions that accelerators use, run on the CPU: each must be an eigh or an svd, at full and at low rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fimlens.linalg.decompositions import iterated_eigh, svd_by_qr


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rank", [8, 48])
def test_accelerators_have_eigenvectors_and_singular_vectors(rank, dtype):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        G = jnp.asarray(rng.normal(size=(3, 48, rank)) * (1 + np.arange(rank)), dtype)
        values, U = map(np.asarray, jax.jit(jax.vmap(iterated_eigh))(G @ G.mT))
        L, s, Rt = map(np.asarray, jax.jit(jax.vmap(svd_by_qr))(G))
    eps, G, one = np.finfo(dtype).eps, np.asarray(G, np.float64), np.eye(48)
    assert values.dtype == U.dtype == L.dtype == dtype
    assert (np.diff(values, axis=-1) >= -50 * eps * values.max()).all()
    assert np.abs(U.mT @ U - one).max() < 50 * eps
    assert np.abs((U * values[:, None]) @ U.mT - G @ G.mT).max() < 50 * eps * values.max()
    assert np.abs(U[:, :, : 48 - rank].mT @ G).max(initial=0) < 50 * eps * s.max()
    assert (np.diff(s, axis=-1) <= 0).all()
    assert np.abs(L.mT @ L - np.eye(rank)).max() < 50 * eps
    assert np.abs(L * s[:, None] @ Rt - G).max() < 50 * eps * s.max()
