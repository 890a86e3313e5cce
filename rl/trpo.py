"""Trust region policy optimisation of any loss under any KL, both functions of a flat float32 vector.

Conjugate gradients on Hessian-vector products, by finite differences in the original, then a back-tracking line search
(Schulman et al. 2015, with the choices of maml_rl: conjugate_gradient_optimizer.py). Nothing here knows of policies.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TrustRegion:
    """The settings of a TRPO step; defaults as in the original."""

    max_kl: float = 0.01
    cg_iterations: int = 10
    cg_tolerance: float = 1e-10  # on the squared residual
    damping: float = 1e-5  # times the identity, added to the Hessian
    backtrack_ratio: float = 0.8
    max_backtracks: int = 15


@dataclass(frozen=True)
class TrpoStep:
    """Everything a TRPO step computed; theta is the start itself if the step was rejected."""

    theta: np.ndarray
    accepted: bool
    loss_before: float
    kl_before: float
    loss_after: float  # equal to loss_before if rejected, and so is the KL
    kl_after: float
    gradient: np.ndarray  # of the loss
    direction: np.ndarray  # H^-1 gradient
    step_size: float  # beta: a step of beta * direction has a KL of max_kl, were the KL quadratic
    trials: list  # (loss, kl) at theta - beta * backtrack_ratio^k * direction, k = 0, 1, ...


def trpo_step(loss_and_kl, loss_gradient, kl_hessian_product, theta, settings=TrustRegion(), linear=False):
    """Do one TRPO step from theta (float32 vector); returns a TrpoStep.

    loss_and_kl(theta) -> two numbers; loss_gradient(theta) -> a vector like theta; kl_hessian_product(v) -> H v, of the
    KL's Hessian at theta; linear: it is a product with a matrix, as a finite difference is not.
    Source: maml_rl: conjugate_gradient_optimizer.py:237-302.
    """

    def hessian_product(v):
        return kl_hessian_product(v) + settings.damping * v

    loss_before, kl_before = loss_and_kl(theta)
    gradient = loss_gradient(theta)
    direction, residual = conjugate_gradients(hessian_product, gradient, settings.cg_iterations, settings.cg_tolerance)
    hessian_direction = gradient - residual if linear else hessian_product(direction)
    beta = initial_step_size(direction, hessian_direction, settings.max_kl)
    found, trials = line_search(loss_and_kl, theta, beta * direction, loss_before, settings)
    before, accepted = (loss_before, kl_before), found is not None
    new, after = (found, trials[-1]) if accepted else (theta, before)
    return TrpoStep(new, accepted, *before, *after, gradient, direction, beta, trials)


def finite_difference_product(gradient, theta, v):
    """Return H v from symmetric differences of `gradient`, where v is scaled by 1 / (|theta| + 1e-8).

    That step is large on purpose: the original passes its number of slices, 1, for `base_eps`
    (maml_rl: conjugate_gradient_optimizer.py:62,163), and the 1e-8 it meant would leave theta where it is in float32.
    So this is a difference of the gradient along v, not an approximation of the exact product, and the
    directions that come of the two differ.
    """
    eps = np.float32(1.0 / (np.linalg.norm(theta) + 1e-8))
    return (gradient(theta + eps * v) - gradient(theta - eps * v)) / (2 * eps)


def conjugate_gradients(product, b, iterations=10, tolerance=1e-10):
    """Solve A x = b in at most `iterations`, where product(p) = A p; ends when |b - A x|^2 < tolerance.

    Returns x and the residual b - A x, vectors like b, in its precision.
    Source: maml_rl: rllab/misc/krylov.py, cg.
    """
    x, r, p = np.zeros_like(b), b.copy(), b.copy()
    rr = r @ r
    for _ in range(iterations):
        Ap = product(p)
        step = rr / (p @ Ap)
        x += step * p
        r -= step * Ap
        rr, last_rr = r @ r, rr
        p = r + (rr / last_rr) * p
        if rr < tolerance:
            break
    return x, r


def initial_step_size(direction, hessian_direction, max_kl):
    """Return beta with beta^2 d H d / 2 = max_kl, or 1 where d H d is negative or not a number.

    Source: maml_rl: conjugate_gradient_optimizer.py:270-275.
    """
    curvature = float(direction @ hessian_direction) + 1e-8
    return float(np.sqrt(2.0 * max_kl / curvature)) if curvature > 0 else 1.0


def line_search(loss_and_kl, theta, full_step, loss_before, settings=TrustRegion()):
    """Try theta - ratio^k full_step, k = 0, 1, ..., until the loss falls and the KL is within its limit.

    Returns the point, or None if there is none, and the list of (loss, kl) at each trial. The last test is
    stricter than the search's (KL below the limit, not at it), and a loss or KL that is no number fails both.
    Source: maml_rl: conjugate_gradient_optimizer.py:280-302.
    """
    trials = []
    for k in range(settings.max_backtracks):
        trial = theta - settings.backtrack_ratio**k * full_step
        loss, kl = loss_and_kl(trial)
        trials.append((loss, kl))
        if loss < loss_before and kl <= settings.max_kl:
            break
    return (trial if loss < loss_before and kl < settings.max_kl else None), trials
