"""What a class of tasks must be, checked before training: one of the user's own could go wrong in silence."""

import copy
import os
import traceback

import mujoco
import numpy as np

from rl.envs import FAMILIES
from rl.envs.base import TaskMujocoEnv
from runtime import UserError

STATE = {'qpos', 'qvel', 'act', 'ctrl', 'time'}  # of MjData, up to date after a step without computing anything


def check(name):
    """Take the first steps of three simulations of a family, and of one; raises UserError for what is wrong."""
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
    if not isinstance(family.horizon, int | np.integer) or family.horizon < 1:
        yield f'an episode in FAMILIES has {family.horizon} time steps, and a whole number from 1 on is wanted'
    for generator in (np.random.default_rng, np.random.RandomState):  # of training and of tests
        tasks, again = (np.asarray(env.sample_tasks(generator(0), n)) for _ in range(2))
        if tasks.shape != (n, *env.task_shape) or tasks.dtype.kind not in 'if':
            wanted = n, *env.task_shape
            yield f'sample_tasks gives {tasks.dtype} {tasks.shape} for n = {n}, and numbers {wanted} are wanted'
        if not np.array_equal(tasks, again):
            yield 'sample_tasks gives other tasks for the same rng: draw all that is random from it'
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
    world, found = first_step(env, actions, tasks)
    for number, said in ((n, found), (1, first_step(env, actions[:1], tasks[:1])[1])):
        yield from faults_in(said, number, env.observation_size)
    others, other_tasks = actions.copy(), tasks.copy()
    others[1:], other_tasks[1:] = -2 * actions[1:], env.sample_tasks(np.random.default_rng(3), n)[1:]
    for what, values in first_step(env, others, other_tasks)[1].items():
        if not np.allclose(found[what][0], values[0], rtol=1e-4, atol=1e-6):
            why = 'is an axis missing, or is something random that is not drawn from the rng of reset?'
            yield f'{what} of a simulation depends on the others beside it: {why}'
    before = world.observe().copy()
    if not np.array_equal(before, world.observe()):
        yield 'observe says something else when it is called again: let it change and draw nothing'
    world.reset(np.array([1]), np.random.default_rng(4))
    if not np.array_equal(before[[0, 2]], world.observe()[[0, 2]]):
        yield 'reset changes other simulations than those in ids'
    if issubclass(env, TaskMujocoEnv) and not world.sees_its_state():
        yield 'derive replaces one of the fields: give what it computes another name'


def first_step(env, actions, tasks):
    """Return as many simulations as there are actions, always begun alike, and what they say of a step, by its name."""
    world = env.world(len(actions), 1)
    world.reset(np.arange(len(actions)), np.random.default_rng(2))
    before = copy.copy(world.observe())
    reward, terminated = world.step(actions, tasks, None)
    after = {'reward': reward, 'terminated': terminated, 'observe after a step': world.observe()}
    return world, {'observe': before, **after}


def faults_in(found, number, size):
    """Yield in words what is wrong with what so many simulations said (`first_step`); size: of an observation."""
    for what, values in found.items():
        observed = what.startswith('observe')
        shape = (number, size) if observed else (number,)
        if np.shape(values) != shape:
            yield f'{what} gives {np.shape(values)} for {number} simulations, and {shape} is wanted'
        if observed and not isinstance(values, np.ndarray):
            yield f'{what} gives a {type(values).__name__}, and a NumPy array is wanted'
        if what == 'terminated' and np.asarray(values).dtype != bool:
            yield f'terminated gives {np.asarray(values).dtype}, and bool is wanted'
        if not np.isfinite(values).all():
            yield f'{what} gives numbers that are not finite'
