"""What a class of tasks must be, checked before training: one of the user's own could go wrong in silence."""

import os
import traceback

import mujoco
import numpy as np

from rl.envs import FAMILIES
from rl.envs.base import TaskMujocoEnv
from runtime import UserError

STATE = {'qpos', 'qvel', 'act', 'ctrl', 'time'}  # of MjData, up to date after a step without computing anything


def check(name):
    """Take a step with three simulations of a family, and with the first alone; raises UserError for what is wrong."""
    if name not in FAMILIES:
        raise UserError(f'--datasource={name} has no line in FAMILIES (rl/envs/__init__.py): add one')
    family = FAMILIES[name]
    try:
        wrong = next(faults(family), None)
    except Exception as error:  # noqa: BLE001 (the user's code may raise anything)
        place = traceback.extract_tb(error.__traceback__)[-1]
        wrong = f'{type(error).__name__} in {os.path.basename(place.filename)}, line {place.lineno}: {error}'
    if wrong:
        raise UserError(f'--datasource={name}: {family.env.__name__}: {" ".join(wrong.split())}')


def faults(family):
    """Yield in words what is wrong with the class of a family."""
    env, n = family.env, 3
    for rng in (np.random.default_rng(0), np.random.RandomState(0)):  # of training and of tests
        tasks = np.asarray(env.sample_tasks(rng, n))
        if tasks.shape != (n, *env.task_shape) or tasks.dtype.kind not in 'if':
            wanted = n, *env.task_shape
            yield f'sample_tasks gives {tasks.dtype} {tasks.shape} for n = {n}, and numbers {wanted} are wanted'
    try:
        family.in_words(tasks[0])
    except (TypeError, ValueError, IndexError) as error:
        yield f'the words in FAMILIES cannot show a task such as {tasks[0]} ({error})'
    if issubclass(env, TaskMujocoEnv):
        model = env.compile_model()
        if model.nu != env.action_size:
            yield f'action_size is {env.action_size}, but the model has {model.nu} actuators'
        if not model.actuator_ctrllimited.all():
            yield 'an actuator of the model has no ctrlrange, to which actions from -1 to 1 could be scaled'
        if env.stage == mujoco.mjtStage.mjSTAGE_NONE.value and set(env.fields) - STATE:
            yield f'fields has {", ".join(set(env.fields) - STATE)}, which stage says up to where to compute'
    actions = np.random.default_rng(1).normal(size=(n, env.action_size)).astype(np.float32)
    rows = {}
    for number in (n, 1):
        world = env.world(number, 1)
        world.reset(np.arange(number), np.random.default_rng(2))
        before = world.observe().copy()
        rewards, terminated = world.step(actions[:number], tasks[:number])
        found = {'observe': before, 'reward': rewards, 'terminated': terminated}
        for what, shape in (
            ('observe', (number, env.observation_size)),
            ('reward', (number,)),
            ('terminated', (number,)),
        ):
            if np.shape(found[what]) != shape:
                yield f'{what} gives {np.shape(found[what])} for {number} simulations, and {shape} is wanted'
        if np.asarray(terminated).dtype != bool:
            yield f'terminated gives {np.asarray(terminated).dtype}, and bool is wanted'
        rows[number] = {what: np.array(values[0], float) for what, values in found.items()}
    for what, alone in rows[1].items():
        if not np.allclose(alone, rows[n][what], rtol=1e-4, atol=1e-6):
            yield f'{what} of a simulation depends on the others beside it: is an axis missing?'
