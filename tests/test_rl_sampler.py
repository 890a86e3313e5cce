"""The sampler: which paths it keeps, that it is deterministic, and the returns of untrained policies."""

import numpy as np
import pytest

from rl.envs import FAMILIES
from rl.sampler import Sampler


def untrained(family, rng, inits, goals):
    """act() of `inits` untrained policies, each on `goals` tasks: Xavier-uniform, 100-100, standard deviation 1."""
    env = FAMILIES[family].env
    sizes = (env.observation_size, 100, 100, env.action_size)
    weights = [
        np.repeat(rng.uniform(-1, 1, (inits, *pair)) * np.sqrt(6 / sum(pair)), goals, axis=0)
        for pair in zip(sizes[:-1], sizes[1:])
    ]
    nonlinearity = np.tanh if family == "point" else lambda x: np.maximum(x, 0)  # as the authors' random policies

    def act(observations, noise):
        hidden = observations
        for weight in weights[:-1]:
            hidden = nonlinearity(hidden @ weight)
        return hidden @ weights[-1] + noise

    return act


# The range that untrained policies have to reach over inits, and the authors' single one, over 40 goals.
@pytest.mark.parametrize(
    "family, low, high, authors",
    [
        ("point", -88, -67, -82.7),
        ("cheetah_vel", -264, -188, -254.8),
        ("cheetah_dir", -43, -33, -35.7),
        ("ant_vel", -99, -66, -78.6),
        ("ant_dir", -6, 3.1, 3.1),
    ],
)
def test_untrained_policies_earn_what_the_paper_reports(family, low, high, authors):
    rng = np.random.default_rng(0)
    inits, goals = 8, 40
    tasks = np.tile(FAMILIES[family].env.sample_tasks(rng, goals).T, inits).T
    paths = Sampler(family, tasks, 1, seed=0).collect(untrained(family, rng, inits, goals))
    returns = paths.average_returns().reshape(inits, goals).mean(axis=1)
    print(family, returns.round(1), returns.mean(), np.mean([l.mean() for l in paths.path_lengths]))
