"""The sampler: which paths it keeps, that it is deterministic, and the returns of untrained policies."""

from itertools import pairwise

import numpy as np
import pytest

from rl.envs import FAMILIES
from rl.sampler import Sampler


def arrays(paths):
    return paths.observations, paths.actions, paths.rewards, np.concatenate(paths.path_lengths)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(arrays(one), arrays(other)))


def random_actions(observations, noise):
    return noise


class ScriptedWorld:
    """A world whose i-th started path of a task has the i-th of given lengths; it observes (task, i, age)."""

    def __init__(self, lengths, simulations):
        self.lengths, self.simulations = lengths, simulations
        self.begun = np.zeros(len(lengths), int)
        self.state = np.zeros((len(lengths) * simulations, 3))

    def reset(self, ids, rng):
        for e in ids:
            task = e // self.simulations
            self.state[e] = task, self.begun[task], 0
            self.begun[task] += 1

    def observe(self):
        return self.state.copy()

    def step(self, actions, tasks, ids=None):
        ids = np.arange(len(self.state)) if ids is None else ids
        self.state[ids, 2] += 1
        task, path, age = self.state.T.astype(int)
        assert (age[ids] <= self.lengths[task, path][ids]).all()  # a finished simulation is left alone
        return self.state[:, 2] - 1, age >= self.lengths[task, path]


def delivered(lengths, workers, wanted):
    """What the original's workers deliver (maml_rl: rllab/sampler/stateful_pool.py:204-217), a time step each in turn.

    lengths: of the paths in the order in which they begin. Returns those of the paths that began.
    """
    source, count, begun = iter(lengths), 0, []
    left = []  # time steps left of each worker's path; 0: it stopped
    own = []  # the length of that path
    for _ in range(workers):
        begun.append(next(source))
        left.append(begun[-1])
        own.append(begun[-1])
    while any(left):
        for worker in range(workers):
            if left[worker] == 0:
                continue
            left[worker] -= 1
            if left[worker] == 0:
                count += own[worker]
                if count < wanted:
                    begun.append(next(source))
                    left[worker] = own[worker] = begun[-1]
    return begun


@pytest.mark.parametrize('seed', range(60))
def test_keeps_what_the_workers_would_deliver(seed):
    """Against the plain loop over time steps; one worker takes paths as started until there are enough time steps."""
    rng = np.random.default_rng(seed)
    tasks, rollouts, horizon = 3, int(rng.integers(1, 6)), int(rng.integers(2, 9))
    workers = int(rng.integers(2, 10)) if seed % 3 else 1
    simulations = rollouts + workers - 1
    lengths = rng.integers(1, rng.integers(2, horizon + 4), (tasks, simulations * horizon))
    sampler = Sampler('point', np.zeros((tasks, 2)), rollouts, horizon, workers=workers)
    sampler._world = ScriptedWorld(lengths, simulations)
    paths = sampler.collect(random_actions)
    for task in range(tasks):
        expected = delivered(np.minimum(lengths[task], horizon).tolist(), workers, rollouts * horizon)
        if workers == 1:
            assert sum(expected[:-1]) < rollouts * horizon <= sum(expected)
        np.testing.assert_array_equal(paths.path_lengths[task], expected)
        rows = [(task, i, age) for i, length in enumerate(expected) for age in range(length)]
        np.testing.assert_array_equal(paths.observations[task, : len(rows)], rows)
        np.testing.assert_array_equal(paths.rewards[task, : len(rows)], [age for _, _, age in rows])
        np.testing.assert_array_equal(paths.valid[task], np.arange(paths.valid.shape[1]) < len(rows))
        for array in (paths.observations, paths.actions, paths.rewards):
            assert not array[task, len(rows) :].any()


def test_point_paths_replay_in_the_environment():
    """Every kept row is what the gymnasium environment gives for the same goal and actions, bit for bit."""
    tasks = FAMILIES['point'].env.sample_tasks(np.random.default_rng(3), 4)
    sampler = Sampler('point', tasks, rollouts=5, horizon=12, oracle=True)
    paths = sampler.collect(lambda seen, noise: 10 * (seen[..., 2:] - seen[..., :2]) + 0.1 * noise)
    env = FAMILIES['point'].env(oracle=True)
    early = 0
    for task, lengths in enumerate(paths.path_lengths):
        row = 0
        for length in lengths:
            observation, _ = env.reset(options={'task': tasks[task]})
            for t in range(length):
                np.testing.assert_array_equal(paths.observations[task, row], observation.astype(np.float32))
                observation, reward, done, _, _ = env.step(paths.actions[task, row])
                assert reward == paths.rewards[task, row]
                assert done == (t == length - 1) or t == 11
                row += 1
            early += length < 12
    assert early > 10
    total = [paths.rewards[task].sum() / len(lengths) for task, lengths in enumerate(paths.path_lengths)]
    np.testing.assert_allclose(paths.average_returns(), total)


@pytest.mark.parametrize('workers, paths', [(8, 27), (4, 23), (1, 20)])
def test_paths_of_twenty_rollouts(workers, paths):
    """What the original gives where no path ends early: 8 workers in training, 4 in tests (the point: 1)."""
    assert delivered([200] * 50, workers, 20 * 200) == [200] * paths
    sampler = Sampler('cheetah_vel', [0.5, 1.5], 20, 200, workers=workers)
    sampler._world = ScriptedWorld(np.full((2, paths), 200), paths)
    assert [list(lengths) for lengths in sampler.collect(lambda _, noise: noise).path_lengths] == [[200] * paths] * 2


def test_cheetah_gives_exactly_the_rollouts_asked_for():
    paths = Sampler('cheetah_vel', [0.5, 1.5], rollouts=3, horizon=7).collect(random_actions)
    assert paths.observations.shape == (2, 21, 20) and paths.observations.dtype == np.float32
    assert paths.actions.shape == (2, 21, 6) and paths.rewards.shape == (2, 21)
    assert paths.valid.all() and [list(lengths) for lengths in paths.path_lengths] == [[7, 7, 7]] * 2
    start = paths.observations[:, ::7, 8:17]  # velocities after a reset: 0.1 N
    assert 0.07 < start.std() < 0.13 and abs(paths.observations[:, 1::7, 8:17]).max() > 1


@pytest.mark.parametrize('workers', [1, 5])
@pytest.mark.parametrize('family, horizon', [('point', 30), ('cheetah_dir', 20), ('ant_vel', 60)])
def test_same_seed_same_paths_whatever_the_threads(family, horizon, workers):
    tasks = FAMILIES[family].env.sample_tasks(np.random.default_rng(0), 3)
    one, two, three = (Sampler(family, tasks, 4, horizon, seed=7, threads=t, workers=workers) for t in (1, 2, 3))
    first = one.collect(random_actions)
    assert same(first, two.collect(random_actions)) and same(first, three.collect(random_actions))
    second = one.collect(random_actions)
    assert not np.array_equal(first.actions[:, 0], second.actions[:, 0])
    assert same(second, two.collect(random_actions))
    if family == 'ant_vel':
        assert len(np.concatenate(first.path_lengths)) > 3 * (4 + workers - 1)  # some ended early


@pytest.mark.parametrize('workers', [1, 4])
def test_restart_resumes_at_an_iteration(workers):
    tasks = np.array([[0.3, 0.2], [-0.1, 0.4]])
    running = Sampler('point', tasks, 3, 10, seed=(5, 0), workers=workers)
    running.collect(random_actions)
    running.restart(tasks[::-1], (5, 1))
    resumed = Sampler('point', tasks[::-1], 3, 10, seed=(5, 1), workers=workers)
    assert same(running.collect(random_actions), resumed.collect(random_actions))
    resumed.restart(tasks[::-1], (5, 2))
    assert not same(running.collect(random_actions), resumed.collect(random_actions))


def test_oracle_observes_its_own_task():
    paths = Sampler('ant_dir', [-1.0, 1.0], 2, 5, oracle=True).collect(random_actions)
    assert paths.observations.shape[2] == 126
    for task, direction in enumerate((-1, 1)):
        assert (paths.observations[task][paths.valid[task] == 1, 125] == direction).all()


def test_what_cannot_be_sampled_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warning to MUJOCO_LOG.TXT
    sampler = Sampler('cheetah_vel', [1.0], 2, 5)
    with pytest.raises(FloatingPointError, match='actions are not finite at time step 0'):
        sampler.collect(lambda observations, noise: noise + np.nan)

    def diverge(observations, noise):
        sampler._world.state.qvel[1] = np.inf
        return noise

    with pytest.raises(FloatingPointError, match='1 of 2 simulations diverged'):
        sampler.collect(diverge)


@pytest.mark.parametrize(
    'name, words', [('step', 'a reward is not finite'), ('observe', 'an observation is not finite at time step 1')]
)
def test_an_environment_that_says_nothing_finite_is_an_error(name, words):
    """Also where no gradient is computed from it."""
    sampler = Sampler('point', np.zeros([2, 2]) + 1, 2, 5)
    world, calls = sampler._world, []
    right = getattr(world, name)

    def spoilt(*given):
        found = right(*given)
        calls.append(1)
        (found[0] if name == 'step' else found)[0] = np.nan if len(calls) > 1 else 0
        return found

    setattr(world, name, spoilt)
    with pytest.raises(FloatingPointError, match=words):
        sampler.collect(lambda observations, noise: observations + noise)


def test_a_diverged_ant_only_ends_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sampler = Sampler('ant_vel', [1.0], 2, 5)
    calls = []

    def diverge_once(observations, noise):
        calls.append(1)
        if len(calls) == 2:
            sampler._world.state.qvel[0] = np.nan
        return noise

    paths = sampler.collect(diverge_once)
    assert list(paths.path_lengths[0]) == [2, 5, 5]
    assert paths.rewards[0, 1] == 0 and all(np.isfinite(array).all() for array in arrays(paths))


def test_an_ant_that_diverges_in_its_last_path_spoils_nothing(tmp_path, monkeypatch):
    """It stays as it is while others go on, and a policy that sees it answers with NaN."""
    monkeypatch.chdir(tmp_path)
    sampler = Sampler('ant_vel', [1.0], 4, 5)
    world, calls = sampler._world, []
    ends = {1: 0, 2: 1}  # the time step in which a simulation's first path ends; the second lasts to 6 and to 7

    def early(cls, state):
        ended = cls.unstable(state)
        ended[[simulation for call, simulation in ends.items() if call == len(calls)]] = True
        return ended

    def act(observations, noise):
        calls.append(1)
        if len(calls) == 6:
            world.state.qvel[0] = np.nan
        return noise + 0 * observations[..., :1]

    monkeypatch.setattr(world.env, 'terminated', classmethod(early))
    paths = sampler.collect(act)
    assert list(paths.path_lengths[0]) == [1, 2, 5, 5, 5, 5] and len(calls) == 7
    assert all(np.isfinite(array).all() for array in arrays(paths))


def untrained(family, rng, inits, goals):
    """act() of `inits` untrained policies, each on `goals` tasks: Xavier-uniform, 100-100, std 1."""
    env = FAMILIES[family].env
    sizes = (env.observation_size, 100, 100, env.action_size)
    xavier = [rng.uniform(-1, 1, (inits, *pair)) * np.sqrt(6 / sum(pair)) for pair in pairwise(sizes)]
    weights = [np.repeat(weight.astype(np.float32), goals, axis=0) for weight in xavier]
    # As the authors' random policies: tanh for the point, ReLU elsewhere.
    nonlinearity = np.tanh if family == 'point' else lambda x: np.maximum(x, 0)

    def act(observations, noise):
        hidden = observations
        for weight in weights[:-1]:
            hidden = nonlinearity(hidden @ weight)
        return hidden @ weights[-1] + noise

    return act


# The range over untrained policies in which the authors' own lie: -82.7, -254.8, -35.7, -78.6 and 3.1.
@pytest.mark.parametrize(
    'family, inits, low, high',
    [
        ('point', 40, -88, -67),
        ('cheetah_vel', 8, -264, -188),
        ('cheetah_dir', 8, -43, -33),
        ('ant_vel', 4, -99, -66),
        ('ant_dir', 4, -6, 3),
    ],
)
def test_untrained_policies_earn_what_the_paper_reports(family, inits, low, high):
    """Figures 4 and 5, random policy before any step, on the authors' 40 test goals (NumPy seed 1)."""
    goals = FAMILIES[family].env.sample_tasks(np.random.RandomState(1), 40)
    policies = untrained(family, np.random.default_rng(0), inits, len(goals))
    paths = Sampler(family, np.concatenate([goals] * inits), rollouts=1).collect(policies)
    # The median: one policy in ten drives the point far away.
    earned = np.median(paths.average_returns().reshape(inits, -1).mean(axis=1))
    margin = (high - low) / 5
    assert low - margin < earned < high + margin
    if family.startswith('ant'):  # gymnasium's own ant: -20 to -42 for velocities, in 75 time steps
        assert 135 < np.concatenate(paths.path_lengths).mean() < 175
