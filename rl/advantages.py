"""Returns, the linear feature baseline and advantages, of all tasks at once, in NumPy and float64.

The baseline is fitted anew for each task and step, on the very paths it then predicts (paper, 5.3;
maml_rl: rllab/sampler/base.py:59-67).
"""

from typing import NamedTuple

import numpy as np


class Estimates(NamedTuple):
    """What `estimate` makes of the paths of all tasks: float64, [tasks, rows], 0 in padded rows."""

    returns: np.ndarray  # discounted sums of the rewards to come
    values: np.ndarray  # the baseline's predictions of them
    raw_advantages: np.ndarray  # generalised advantage estimates
    advantages: np.ndarray  # the same, standardised over each task
    coefficients: np.ndarray  # [tasks, 2 obs_dim + 4], the baselines


def estimate(observations, rewards, path_lengths, discount=0.99, gae_lambda=1.0):
    """Fit each task's baseline and estimate the advantages of its actions; returns Estimates.

    observations [tasks, rows, obs_dim] and rewards [tasks, rows], a task's paths one after the other along
    rows, then padding; path_lengths: for each task an array with the number of steps of each path. The value
    at the end of a path is 0, even if it ended by time-out.
    Raises ValueError if a task has more steps than rows.
    Source: maml_rl: rllab/sampler/base.py and rllab/algos/util.py, center_advantages.
    """
    tasks, rows = np.shape(rewards)
    estimates = Estimates(*np.zeros((4, tasks, rows)), np.zeros((tasks, 2 * np.shape(observations)[2] + 4)))
    for i, lengths in enumerate(path_lengths):
        n = int(np.sum(lengths))
        if n > rows:
            raise ValueError(f'task {i} has paths of {n} steps in all, but {rows} rows')
        r = np.asarray(rewards[i][:n], np.float64)
        returns = discounted_sums(r, lengths, discount)
        x = features(observations[i][:n], lengths)
        coefficients = fit(x, returns)
        values = x @ coefficients
        errors = r + discount * next_values(values, lengths) - values
        raw = discounted_sums(errors, lengths, discount * gae_lambda)
        estimates.returns[i, :n], estimates.values[i, :n], estimates.raw_advantages[i, :n] = (returns, values, raw)
        estimates.advantages[i, :n] = (raw - raw.mean()) / (raw.std() + 1e-8)
        estimates.coefficients[i] = coefficients
    return estimates


def features(observations, path_lengths):
    """Return [o, o^2, t, t^2, t^3, 1] of each row, o clipped to +-10, t in hundreds of steps: [rows, 2 obs_dim + 4].

    Source: maml_rl: rllab/baselines/linear_feature_baseline.py, _features.
    """
    o = np.clip(np.asarray(observations, np.float64), -10.0, 10.0)
    t = np.concatenate([np.arange(n) for n in path_lengths])[:, None] / 100.0
    return np.concatenate([o, o**2, t, t**2, t**3, np.ones_like(t)], axis=1)


def fit(x, y, ridge=1e-5):
    """Fit the coefficients w with least |x w - y|^2 + ridge |w|^2; x [rows, features], y [rows], w [features].

    Where that fails, the ridge grows by 10, up to 4 times. The normal equations are solved directly; the
    original's least-squares solver (maml_rl: linear_feature_baseline.py, fit) finds the same solution with ten
    times the work.
    Raises LinAlgError where no ridge helps.
    """
    xx, xy = x.T @ x, x.T @ y
    for power in range(5):
        try:
            w = np.linalg.solve(xx + ridge * 10.0**power * np.identity(len(xy)), xy)
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(w).all():
            return w
    raise np.linalg.LinAlgError('the normal equations of the baseline cannot be solved; are all observations finite?')


def discounted_sums(x, path_lengths, discount):
    """Return y with y_t = x_t + discount y_{t+1} along each path; x, y [rows], paths one after the other."""
    lengths = np.asarray(path_lengths)
    path = np.repeat(np.arange(len(lengths)), lengths)
    t = np.concatenate([np.arange(n) for n in lengths])
    y = np.zeros((lengths.max() + 1, len(lengths)))  # one column a path, all paths in step
    y[t, path] = x
    for s in range(lengths.max() - 1, -1, -1):
        y[s] += discount * y[s + 1]
    return y[t, path]


def next_values(values, path_lengths):
    """Return the value of the state after each row, [rows]: that of the next row, and 0 at the end of a path."""
    following = np.append(values[1:], 0.0)
    following[np.cumsum(path_lengths) - 1] = 0.0
    return following


def explained_variance(estimates, valid):
    """Return 1 - Var(returns - values) / Var(returns) of each task's samples, mean over tasks.

    valid: as in Samples.
    Source: maml_rl: rllab/misc/special.py, explained_variance_1d.
    """
    shares = []
    for returns, values, rows in zip(estimates.returns, estimates.values, valid.astype(bool)):
        shares.append(1 - np.var((returns - values)[rows]) / (np.var(returns[rows]) + 1e-8))
    return float(np.mean(shares))
