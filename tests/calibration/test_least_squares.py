"""Elimination of a view's own unknowns, against the whole system solved at once, and the descent to a minimum."""

from typing import Any

import numpy as np
import pytest

from calibration.least_squares import Blocks, minimise

VIEWS, SHARED, OWN = 4, 5, 3


def normal_equations(rng):
    """Blocks of random views, and the same as one matrix and gradient."""
    J = rng.normal(0, 1, (VIEWS, 12, SHARED + OWN))
    e = rng.normal(0, 1, (VIEWS, 12))
    shared, own = J[..., :SHARED], J[..., SHARED:]
    blocks = Blocks(
        np.einsum("vij,vik->jk", shared, shared),
        np.einsum("vij,vi->j", shared, e),
        np.einsum("vij,vik->vjk", own, own),
        np.einsum("vij,vi->vj", own, e),
        np.einsum("vij,vik->vjk", shared, own),
    )
    whole = np.zeros((VIEWS, 12, SHARED + VIEWS * OWN))
    whole[..., :SHARED] = shared
    for v in range(VIEWS):
        whole[v, :, SHARED + v * OWN : SHARED + (v + 1) * OWN] = own[v]
    flat = whole.reshape(VIEWS * 12, -1)
    return blocks, flat.T @ flat, flat.T @ e.ravel()


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_a_step_is_that_of_the_whole_damped_system(damping):
    blocks, N, g = normal_equations(np.random.default_rng(1))
    shared, own = blocks.step(damping)
    expected = np.linalg.solve(N + damping * np.diag(np.diag(N)), g)
    assert np.allclose(np.concatenate([shared, own.ravel()]), expected, rtol=1e-10)


def test_the_reduced_matrix_holds_the_covariance_of_the_shared_unknowns():
    blocks, N, g = normal_equations(np.random.default_rng(2))
    normal, through = blocks.reduced()
    assert np.allclose(np.linalg.inv(normal), np.linalg.inv(N)[:SHARED, :SHARED], rtol=1e-10)
    gradient = blocks.shared_gradient - np.einsum("vij,vj->i", through, blocks.own_gradient)
    assert np.allclose(np.linalg.solve(normal, gradient), np.linalg.solve(N, g)[:SHARED], rtol=1e-10)


class Curve:
    """y = exp(a x) + b of each view, with a > `least` common to all and b of the view: state (a, b float64[v])."""

    def __init__(self, least: float):
        self.x, self.least = np.linspace(0, 1, 9), least
        self.y = np.exp(1.5 * self.x) + np.array([[0.0], [2.0], [-1.0]])

    def cost(self, state: Any) -> tuple[float, np.ndarray]:
        residual = self.y - np.exp(state[0] * self.x) - state[1][:, None]
        return float((residual**2).sum()), residual

    def blocks(self, state: Any, residual: np.ndarray) -> Blocks:
        j = self.x * np.exp(state[0] * self.x)
        views, n = residual.shape
        return Blocks(
            np.array([[views * (j @ j)]]),
            np.array([(residual @ j).sum()]),
            np.full((views, 1, 1), float(n)),
            residual.sum(1)[:, None],
            np.full((views, 1, 1), j.sum()),
        )

    def moved(self, state: Any, shared: np.ndarray, own: np.ndarray) -> Any:
        a = state[0] + shared[0]
        return (a, state[1] + own[:, 0]) if a > self.least else None


def test_the_minimum_is_found_from_afar():
    found = minimise(Curve(least=-9), (4.0, np.zeros(3)), rounds=50, tolerance=1e-12)
    assert found.state[0] == pytest.approx(1.5) and np.allclose(found.state[1], [0, 2, -1], atol=1e-6)


def test_a_step_to_no_possible_state_is_not_taken():
    start = (2.0, np.zeros(3))
    found = minimise(Curve(least=1.6), start, rounds=50, tolerance=1e-12)
    assert 1.6 < found.state[0] <= 2.0
