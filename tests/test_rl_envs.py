"""The environments against rllab's: recorded trajectories, and the returns of untrained policies."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rl.envs import FAMILIES
from rl.envs.base import scale_action

GOLDEN = Path(__file__).parent / 'golden' / 'rl'
MUJOCO = ['cheetah_vel', 'cheetah_dir', 'ant_vel', 'ant_dir']
EPISODES = range(4)


@pytest.fixture(scope='module')
def golden():
    """Four episodes of rllab's models in rllab's order of calls, and small vectors of the original code."""
    data = {**np.load(GOLDEN / 'mujoco_trajectories.npz'), **np.load(GOLDEN / 'rl_small.npz')}
    if data['mujoco_version'] != mujoco.__version__:
        pytest.fail(f'recorded with mujoco {data["mujoco_version"]}; ant trajectories differ by version')
    return data


class Recorded:
    """The recorded episodes of one family, and its tasks."""

    def __init__(self, golden, family):
        model, kind = family.split('_')
        for name in ('qpos0', 'qvel0', 'actions', 'obs', 'done', 'length', 'qpos', 'qvel'):
            setattr(self, name, golden[f'{model}/{name}'])
        self.reward = golden[f'{model}/reward_{kind}']
        self.tasks = golden[f'{model}/goal_{kind}']

    def before(self, episode, t):
        """State (qpos, qvel) in which action t is taken."""
        if t == 0:
            return self.qpos0[episode], self.qvel0[episode]
        return self.qpos[episode, t - 1], self.qvel[episode, t - 1]

    def check(self, episode, t, observation, reward, done, tolerance):
        np.testing.assert_allclose(observation, self.obs[episode, t + 1], rtol=0, atol=tolerance)
        assert reward == pytest.approx(self.reward[episode, t], rel=0, abs=tolerance)
        assert done == bool(self.done[episode, t])


@pytest.mark.parametrize('family', MUJOCO)
def test_every_step_of_the_environment(golden, family):
    recorded = Recorded(golden, family)
    env = FAMILIES[family].env()
    for episode in EPISODES:
        env.reset(options={'task': recorded.tasks[episode]})
        for t in range(recorded.length[episode]):
            env.set_state(*recorded.before(episode, t))
            observation, reward, done, _, _ = env.step(recorded.actions[episode, t])
            recorded.check(episode, t, observation, reward, done, 1e-9)


@pytest.mark.parametrize('family', MUJOCO)
def test_every_step_of_the_world(golden, family):
    recorded = Recorded(golden, family)
    steps = [(episode, t) for episode in EPISODES for t in range(recorded.length[episode])]
    world = FAMILIES[family].env.world(len(steps))
    world.state.qpos[:], world.state.qvel[:] = map(np.array, zip(*(recorded.before(*step) for step in steps)))
    episodes, times = np.array(steps).T
    rewards, done = world.step(recorded.actions[episodes, times], recorded.tasks[episodes])
    observations = world.observe()
    for i, (episode, t) in enumerate(steps):
        recorded.check(episode, t, observations[i], rewards[i], done[i], 1e-9)


@pytest.mark.parametrize('family', MUJOCO)
def test_whole_episodes_alone_and_together(golden, family):
    """Within 1e-6 of the recording (ant: 20 steps, it is chaotic); world and environments bit for bit."""
    recorded = Recorded(golden, family)
    envs = [FAMILIES[family].env(task) for task in recorded.tasks]
    for episode, env in enumerate(envs):
        env.reset()
        mujoco.mj_resetData(env.model, env.data)  # no warm start and no control left of the reset
        env.set_state(recorded.qpos0[episode], recorded.qvel0[episode])
    world = FAMILIES[family].env.world(len(envs))
    world.state.qpos[:], world.state.qvel[:] = recorded.qpos0, recorded.qvel0
    world.forward()
    np.testing.assert_allclose(world.observe(), recorded.obs[:, 0], rtol=0, atol=1e-12)
    for t in range(recorded.actions.shape[1]):
        running = np.flatnonzero(t < recorded.length)
        rewards, done = world.step(np.nan_to_num(recorded.actions[:, t]), recorded.tasks, running)
        observations = world.observe()
        for episode in running:
            alone = envs[episode].step(recorded.actions[episode, t])
            np.testing.assert_array_equal(alone[0], observations[episode])
            assert alone[1:3] == (rewards[episode], done[episode])
            if 'cheetah' in family or t < 20:
                recorded.check(episode, t, *alone[:3], 1e-6)


def test_point(golden):
    env = FAMILIES['point'].env(golden['point/goal'])
    observation, _ = env.reset()
    np.testing.assert_array_equal(observation, golden['point/observations'][0])
    for t, action in enumerate(golden['point/actions']):
        observation, reward, done, _, _ = env.step(action)
        np.testing.assert_allclose(observation, golden['point/observations'][t + 1], rtol=0, atol=1e-15)
        assert reward == pytest.approx(golden['point/rewards'][t], rel=0, abs=1e-15)
        assert done == golden['point/dones'][t]
        if t == 0:
            squared = FAMILIES['point_squared'].env(golden['point/goal'])
            squared.reset()
            assert squared.step(action)[1] == pytest.approx(-(reward**2), rel=1e-12) and reward**2 < 0.9 * -reward


@pytest.mark.parametrize('name', ['point', 'cheetah', 'ant', 'asym'])
def test_action_scaling(golden, name):
    scaled = scale_action(golden['normenv/actions'], *golden[f'normenv/bounds_{name}'])
    np.testing.assert_allclose(scaled, golden[f'normenv/env_action_{name}'], rtol=1e-15)


@pytest.mark.filterwarnings('ignore:.*Box observation space.*infinity:UserWarning')
@pytest.mark.parametrize('oracle', [False, True])
@pytest.mark.parametrize('family', FAMILIES)
def test_gymnasium_accepts_it(family, oracle):
    env = gymnasium.make(FAMILIES[family].id, oracle=oracle)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.unwrapped.render_mode is None
    env.reset(seed=0)
    assert not any(env.step(np.zeros(env.action_space.shape))[3] for _ in range(5))


def test_importing_the_package_registers_them():
    """Without TensorFlow, beside which the pictures of rl/video.py could not be made."""
    code = "import sys, gymnasium, rl; gymnasium.make('maml/HalfCheetahVel-v0'); assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parent.parent)


def test_point_image():
    env = FAMILIES['point'].env([0.5, 0.25], render_mode='rgb_array')
    env.reset()
    image = env.render()
    assert image.shape == (200, 200, 3) and image.dtype == np.uint8
    red = np.argwhere((image == (200, 0, 0)).all(axis=2)).mean(axis=0)
    green = np.argwhere((image == (0, 160, 0)).all(axis=2)).mean(axis=0)
    np.testing.assert_array_equal(green - red, (-25, 50))  # up is a smaller row


@pytest.mark.parametrize(
    'family, low, high',
    [
        *[('point', -0.5, 0.5), ('point_squared', -0.5, 0.5), ('cheetah_vel', 0, 2), ('ant_vel', 0, 3)],
        *[('cheetah_dir', -1, 1), ('ant_dir', -1, 1)],
    ],
)
def test_tasks(family, low, high):
    tasks = FAMILIES[family].env.sample_tasks(np.random.default_rng(0), 4000)
    assert tasks.shape == (4000, *FAMILIES[family].env.task_shape)
    assert low <= tasks.min() < low + 0.01 and high - 0.01 < tasks.max() <= high
    assert abs(tasks.mean() - (low + high) / 2) < 0.05
    assert family[-3:] != 'dir' or set(tasks) == {-1.0, 1.0}


@pytest.mark.parametrize('family', FAMILIES)
def test_task_is_kept_drawn_and_observed(family):
    env = FAMILIES[family].env(oracle=True)
    plain = FAMILIES[family].env()
    size = env.task.size if env.task is not None else int(np.prod(env.task_shape))
    first, _ = env.reset(seed=1)
    np.testing.assert_array_equal(first[-size:], np.ravel(env.task))
    np.testing.assert_array_equal(plain.reset(seed=1)[0], first[:-size])
    given = FAMILIES[family].env.sample_tasks(np.random.default_rng(5), 1)[0]
    env.reset(options={'task': given})
    again, _ = env.reset()
    np.testing.assert_array_equal(again[-size:], np.ravel(given))
    with pytest.raises(ValueError, match='a task has shape'):
        env.reset(options={'task': np.zeros(3)})


def test_a_diverged_simulation_ends(tmp_path, monkeypatch):
    """Not a number in the state: the ant's episode ends, and the cheetah says so in one line."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warning to MUJOCO_LOG.TXT
    for family in ('ant_vel', 'cheetah_vel'):
        env = FAMILIES[family].env(1.0)
        env.reset(seed=0)
        env.data.qvel[0] = np.nan
        if family == 'ant_vel':
            _, reward, done, _, _ = env.step(np.zeros(8))
            assert done and reward == 0.0
        else:
            with pytest.raises(FloatingPointError, match='1 of 1 simulations diverged'):
                env.step(np.zeros(6))


def test_cheetah_centre_of_mass_is_mujocos():
    """The closed form against MuJoCo's subtree_com and mj_subtreeVel, at random states."""
    env = FAMILIES['cheetah_vel'].env()
    rng = np.random.default_rng(0)
    for _ in range(50):
        qpos, qvel = rng.standard_normal((2, 9)) * [[2], [5]]
        env.set_state(qpos, qvel)
        mujoco.mj_subtreeVel(env.model, env.data)
        com, velocity = env.centre_of_mass(qpos[None], qvel[None])
        np.testing.assert_allclose(com[0], env.data.subtree_com[1], rtol=0, atol=1e-13)
        assert velocity[0] == pytest.approx(env.data.subtree_linvel[1, 0], rel=0, abs=1e-12)


def test_ant_quaternion_is_normalised_after_the_noise():
    noise = np.random.default_rng(0).standard_normal((50, 29))
    qpos, _ = FAMILIES['ant_vel'].env.initial_state(noise)
    np.testing.assert_allclose(np.linalg.norm(qpos[:, 3:7], axis=1), 1, rtol=0, atol=1e-15)
    assert qpos[:, 2].mean() == pytest.approx(0.55, abs=0.01)  # gymnasium's ant starts from 0.75
