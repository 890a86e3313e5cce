"""Tasks of the user's own for reinforcement learning: the README's example, as it stands there."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest

import rl.evaluation
import rl.training
from rl.envs import FAMILIES, Family
from rl.envs.base import TaskEnv
from rl.envs.check import check
from runtime import UserError

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
FILE, CODE = re.search(r'```python\n# (rl/envs/.*?)\n(.*?)```', README, re.DOTALL).groups()
exec(CODE, names := {'__name__': 'swimmer'})
SWIMMER = Family('maml/SwimmerVel-v0', names['SwimmerVelEnv'], 200, 'swims at {:.2f} m/s'.format)


def added(tmp_path):
    """A copy of the program in which the README's environment was added."""
    for path in [*ROOT.glob('*.py'), *ROOT.glob('rl/**/*.py'), ROOT / 'results' / 'paper_returns.json']:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    (tmp_path / FILE).write_text(CODE)
    line = re.search(r"`('swimmer_vel': Family.*?,)`", README, re.DOTALL)[1]
    module = tmp_path / 'rl' / 'envs' / '__init__.py'
    text = module.read_text().replace('FAMILIES = {', 'FAMILIES = {\n    ' + line)
    module.write_text(text.replace('\n\n\nclass', '\nfrom rl.envs.swimmer import SwimmerVelEnv\n\n\nclass', 1))
    experiments = tmp_path / 'experiments.py'
    experiments.write_text(experiments.read_text().replace("['point', ", "['swimmer_vel', 'point', "))


def test_the_readmes_environment_is_trained_tested_and_drawn(tmp_path):
    added(tmp_path)
    flags = ['--datasource=swimmer_vel', '--metatrain_iterations=1', '--meta_batch_size=2', '--update_batch_size=2']
    flags += ['--num_test_tasks=3', '--test_num_updates=1', '--test_update_batch_size=2']
    command = [sys.executable, 'main.py', *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr.count('Traceback'), done.stdout + done.stderr
    (path,) = tmp_path.glob('logs/swimmer_vel/*/test*.json')
    result = json.loads(path.read_text())
    assert all(-0.2 <= task <= 0.2 for task in result['tasks']) and len(result['mean']) == 2
    assert all(mean < 0 for mean in result['mean']) and path.with_suffix('.png').exists()


def unlimited(spec):
    for actuator in spec.actuators:
        actuator.ctrllimited = False


def slowed(state):
    state.qvel = np.clip(state.qvel, -5, 5)


def shifted(state):
    state.qpos[:, 2] -= 0.05
    return np.concatenate([state.qpos[:, 2:], state.qvel], axis=1)


@pytest.mark.parametrize(
    'broken, words',
    [
        ({'observation_size': 7}, 'observe gives (3, 8) for 3 simulations, and (3, 7) is wanted'),
        ({'action_size': 1}, 'action_size is 1, but the model has 2 actuators'),
        ({'sample_tasks': staticmethod(lambda rng, n: rng.uniform(-1, 1, (n, 2)))}, 'sample_tasks gives'),
        (
            {'sample_tasks': staticmethod(lambda rng, n: rng.integers(0, 2, n))},
            'AttributeError in test_own_environment',
        ),
        ({'reward': staticmethod(lambda state, control, tasks: -np.square(control).sum())}, 'reward gives () for 3'),
        (
            {'reward': staticmethod(lambda state, control, tasks: tasks - np.square(control).sum())},
            'depends on the others',
        ),
        ({'terminated': staticmethod(lambda state: np.zeros(len(state.qpos), int))}, 'terminated gives int64'),
        ({'fields': ('qpos', 'qvel', 'xpos')}, 'fields has xpos'),
        ({'asset': 'no_such.xml'}, 'no_such.xml'),
        ({'edit': staticmethod(unlimited)}, 'no ctrlrange'),
        ({'sample_tasks': staticmethod(lambda rng, n: np.random.rand(n))}, 'gives other tasks for the same rng'),
        ({'observe': staticmethod(lambda state: [[0] * 8 for _ in state.qpos])}, 'observe gives a list'),
        ({'observe': staticmethod(shifted)}, 'read-only'),
        ({'reward': staticmethod(lambda state, control, tasks: tasks.__imul__(2))}, 'read-only'),
        ({'derive': staticmethod(slowed)}, 'derive replaces one of the fields'),
        ({'reward': staticmethod(lambda state, control, tasks: tasks + np.nan)}, 'reward gives numbers that are not'),
    ],
)
def test_what_does_not_fit_together_is_said_before_training(monkeypatch, broken, words):
    """README's class is sound, and one that breaks a thing of it is not."""
    monkeypatch.setitem(FAMILIES, 'own', SWIMMER)
    check('own')
    monkeypatch.setitem(FAMILIES, 'own', SWIMMER._replace(env=type('Broken', (SWIMMER.env,), broken)))
    with pytest.raises(UserError) as error:
        check('own')
    assert words in str(error.value) and '--datasource=own: Broken: ' in str(error.value)


@pytest.mark.parametrize('horizon', [200.0, 0])
def test_the_length_of_an_episode_is_checked(monkeypatch, horizon):
    monkeypatch.setitem(FAMILIES, 'own', SWIMMER._replace(horizon=horizon))
    with pytest.raises(UserError, match=f'has {horizon} time steps'):
        check('own')


class Carts(TaskEnv):
    """Carts on a line, without MuJoCo, that earn by how near they are to a place."""

    observation_size, action_size = 2, 1

    @staticmethod
    def sample_tasks(rng, n):
        return rng.uniform(-1, 1, n)

    @classmethod
    def world(cls, n, threads=2):
        return cls(n)

    def __init__(self, n):
        self.x, self.v = np.zeros([2, n])

    def reset(self, ids, rng):
        self.x[ids] = rng.uniform(-1, 1, len(ids))
        self.v[ids] = rng.uniform(-1, 1, len(ids))

    def observe(self):
        return np.stack([self.x, self.v], axis=1)

    def step(self, actions, tasks, ids=None):
        ids = slice(None) if ids is None else ids
        self.v[ids] += 0.1 * actions[ids, 0]
        self.x[ids] += 0.1 * self.v[ids]
        return -np.abs(self.x - tasks), np.abs(self.x) > 2


@pytest.mark.parametrize(
    'broken, words',
    [
        ({'reset': lambda self, ids, rng: Carts.reset(self, np.arange(len(self.x)), rng)}, 'reset changes other'),
        ({'step': lambda self, actions, tasks: Carts.step(self, actions, tasks)}, 'TypeError'),
        ({'observe': lambda self: (self.x.__iadd__(1), Carts.observe(self))[1]}, 'observe says something else'),
        ({'observe': lambda self: Carts.observe(self) - self.x.mean()}, 'observe after a step of a simulation depends'),
    ],
)
def test_simulations_without_mujoco_are_checked_too(monkeypatch, broken, words):
    """Sound where a reset draws twice; the others would end in a traceback, or spoil paths in silence."""
    monkeypatch.setitem(FAMILIES, 'own', Family('maml/Carts-v0', Carts, 20, 'goes to {:.2f}'.format))
    check('own')
    monkeypatch.setitem(FAMILIES, 'own', FAMILIES['own']._replace(env=type('Broken', (Carts,), broken)))
    with pytest.raises(UserError) as error:
        check('own')
    assert words in str(error.value)


def test_another_number_of_tasks_is_refused(monkeypatch):
    """Fewer goals than the meta-batch has tasks."""
    few = type('Few', (Carts,), {'sample_tasks': staticmethod(lambda rng, n: np.linspace(-1, 1, 5)[:n])})
    monkeypatch.setitem(FAMILIES, 'own', Family('maml/Carts-v0', few, 20, 'goes to {:.2f}'.format))
    check('own')
    for tasks in (rl.training.train_tasks, rl.evaluation.test_tasks):
        config = types.SimpleNamespace(datasource='own', seed=1, test_seed=1, meta_batch_size=5, num_test_tasks=5)
        assert len(tasks(config, *[0] * (tasks is rl.training.train_tasks))) == 5
        config.meta_batch_size = config.num_test_tasks = 20
        with pytest.raises(UserError, match='sample_tasks gives 5 tasks for n = 20'):
            tasks(config, *[0] * (tasks is rl.training.train_tasks))


def test_words_that_do_not_fit_and_a_name_alone_are_noticed_too(monkeypatch):
    monkeypatch.setitem(FAMILIES, 'own', SWIMMER._replace(in_words='goal ({0[0]:.2f})'.format))
    with pytest.raises(UserError, match='the words in FAMILIES cannot show a task such as'):
        check('own')
    with pytest.raises(UserError, match='no line in FAMILIES'):
        check('nowhere')


@pytest.mark.parametrize('name', FAMILIES)
def test_the_papers_families_are_sound(name):
    check(name)
