"""Levenberg-Marquardt for bundle adjustment: m unknowns that all views share, and k unknowns that each view has of its
own.

A view's own unknowns are eliminated by the Schur complement, so the system that is solved is m x m however many views
there are (Triggs et al. 2000, "Bundle adjustment: a modern synthesis"). Damping is Marquardt's: it scales the diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

DAMPING = (1e-10, 1e-4, 1e6)  # least, first, most
TRIES = 8  # dampings, each ten times the one before it, that a round tries until the cost goes down

State = TypeVar("State")
Terms = TypeVar("Terms")


@dataclass(frozen=True)
class Blocks:
    """Normal equations of one linearisation with v views. Gradients are those of the cost's descent (J^T W e)."""

    shared: np.ndarray  # float64[m,m]
    shared_gradient: np.ndarray  # float64[m]
    own: np.ndarray  # float64[v,k,k]
    own_gradient: np.ndarray  # float64[v,k]
    coupling: np.ndarray  # float64[v,m,k]

    def step(self, damping: float) -> tuple[np.ndarray, np.ndarray]:
        """Damped step of the shared unknowns float64[m] and of each view's own float64[v,k]."""
        k = self.own.shape[-1]
        inverses = np.linalg.inv(self.own * (1 + damping * np.eye(k)))
        through = self.coupling @ inverses
        damped = self.shared + damping * np.diag(np.diag(self.shared))
        gradient = self.shared_gradient - np.einsum("vij,vj->i", through, self.own_gradient)
        shared = np.linalg.solve(damped - _summed(through, self.coupling), gradient)
        rest = self.own_gradient - np.einsum("vij,i->vj", self.coupling, shared)
        return shared, np.einsum("vij,vj->vi", inverses, rest)

    def reduced(self) -> tuple[np.ndarray, np.ndarray]:
        """Normal matrix float64[m,m] of the shared unknowns with the others eliminated (its inverse is their
        covariance), and float64[v,m,k] that carries a view's own gradient into the shared one."""
        through = self.coupling @ np.linalg.inv(self.own)
        return self.shared - _summed(through, self.coupling), through


def _summed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum over the views of a[v] @ b[v].T, float64[m,m]."""
    return np.concatenate(a, 1) @ np.concatenate(b, 1).T


class Problem(Protocol[State, Terms]):
    """What is minimised."""

    def cost(self, state: State) -> tuple[float, Terms]:
        """The cost at `state` (infinite where it has none), and the residuals and derivatives behind it."""
        ...

    def blocks(self, state: State, terms: Terms) -> Blocks:
        """The normal equations at `state`, whose `terms` `cost` gave."""
        ...

    def moved(self, state: State, shared: np.ndarray, own: np.ndarray) -> State | None:
        """The state after a step of `shared` float64[m] and `own` float64[v,k]; None where the step leads to no
        possible state."""
        ...


@dataclass(frozen=True)
class Minimum(Generic[State, Terms]):
    """The state, its terms, and the normal equations of the last round, which led to it: theirs is the linearisation
    one small step before `state`."""

    state: State
    terms: Terms
    blocks: Blocks


def minimise(problem: Problem[State, Terms], state: State, rounds: int, tolerance: float) -> Minimum[State, Terms]:
    """Go down from `state` until a round lowers the cost by less than `tolerance` of it, or not at all, or after
    `rounds`."""
    least, damping, most = DAMPING
    cost, terms = problem.cost(state)
    for _ in range(rounds):
        blocks, improved = problem.blocks(state, terms), False
        for _ in range(TRIES):
            new = problem.moved(state, *blocks.step(damping))
            new_cost, new_terms = (np.inf, terms) if new is None else problem.cost(new)
            if new is not None and np.isfinite(new_cost) and new_cost <= cost:
                improved = cost - new_cost > tolerance * cost
                state, cost, terms = new, new_cost, new_terms
                damping = max(damping / 10, least)
                break
            damping = min(damping * 10, most)
        if not improved:
            break
    return Minimum(state, terms, blocks)
