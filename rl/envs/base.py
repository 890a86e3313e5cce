"""What the environments share: a task, the scaling of actions, and MuJoCo stepped alone or many at once.

Each environment class writes its observation, reward and end of episode once, for a leading axis [n, ...].
`TaskMujocoEnv` calls these formulas with n = 1, `MujocoWorld` with every simulation of the sampler.
"""

import copy
import functools
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco import mujoco_env
from gymnasium.spaces import Box
from mujoco.batch import Batch

ASSETS = Path(mujoco_env.__file__).parent / 'assets'
TORSO = 1  # body 0 is the world, body 1 the torso: the root of the tree in both models


def scale_action(action, low, high):
    """Map the policy's [-1, 1] to the environment's [low, high], clipped (maml_rl: normalized_env.py:82-83)."""
    return np.clip(low + (action + 1.0) * 0.5 * (high - low), low, high)


def with_task(observations, tasks):
    """Append the tasks [n, ...] to observations [n, obs], for the oracle."""
    return np.concatenate([observations, tasks.reshape(len(observations), -1)], axis=1)


class TaskEnv(gymnasium.Env):
    """A gymnasium environment whose task is set by the constructor or by `reset(options={"task": ...})`.

    A task that was set stays until another one is; without one, each reset draws a task.
    oracle: append the task to the observation.

    A subclass gives `task_shape`, `observation_size`, `action_size`, `sample_tasks(rng, n)` and `world(n, threads)`,
    what the sampler steps (see rl/envs/point.py). Raises ValueError for a task of another shape.
    """

    task_shape = ()

    def __init__(self, task=None, oracle=False):
        self.oracle = oracle
        self.task = None
        self._given_task = None if task is None else self._as_task(task)
        size = self.observation_size + oracle * int(np.prod(self.task_shape))
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float64)
        self.action_space = Box(-1.0, 1.0, (self.action_size,), np.float32)

    def reset(self, *, seed=None, options=None):
        if options and 'task' in options:
            self._given_task = self._as_task(options['task'])
        return super().reset(seed=seed)

    def _as_task(self, task):
        task = np.asarray(task, np.float64)
        if task.shape != self.task_shape:
            raise ValueError(f'{type(self).__name__}: a task has shape {self.task_shape}, not {task.shape}')
        return task

    def _choose_task(self):
        """Take the given task, or one drawn from the environment's own stream (after `reset` has seeded it)."""
        given = self._given_task
        self.task = self.sample_tasks(self.np_random, 1)[0] if given is None else given

    def _append_task(self, observation):
        """Return what the agent sees, [obs or obs + task], of an observation [1, obs]."""
        return (with_task(observation, self.task[None]) if self.oracle else observation)[0].copy()


class TaskMujocoEnv(TaskEnv, mujoco_env.MujocoEnv):
    """A MuJoCo environment with rllab's dynamics on the model that gymnasium ships, one time step an action.

    A subclass gives, besides what `TaskEnv` asks for, the class attributes below, maybe `edit` and `derive`, and
        observe(state) -> [n, obs]
        reward(state, control [n, act], tasks [n]) -> [n]
        terminated(state) -> [n] bool
    where `state` has the MjData fields named in `fields`, each with a leading axis n, read-only; `derive` adds others.
    """

    asset = None  # the model: a file of gymnasium's assets, or the whole path of another
    fields = ('qpos', 'qvel')
    # The mjtStage up to which the new state is computed after a step, so that `fields` belong to it.
    stage = mujoco.mjtStage.mjSTAGE_NONE.value
    metadata: ClassVar = {'render_modes': ['human', 'rgb_array']}

    def __init__(self, task=None, oracle=False, render_mode=None, **kwargs):
        TaskEnv.__init__(self, task, oracle)
        mujoco_env.MujocoEnv.__init__(self, self.asset, 1, self.observation_space, render_mode, **kwargs)
        self._state = SimpleNamespace(**{name: getattr(self.data, name)[None] for name in self.fields})

    @classmethod
    @functools.cache
    def compile_model(cls):
        """Return the MjModel of this class; callers that change it work on a copy."""
        spec = mujoco.MjSpec.from_file(str(ASSETS / cls.asset))
        cls.edit(spec)
        # A diverged simulation has to show in its state; MuJoCo would put it back to the start in silence.
        spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.*settotalmass.*')  # gymnasium's half_cheetah.xml
            return spec.compile()

    @staticmethod
    def edit(spec):
        """Turn gymnasium's model (MjSpec) into rllab's."""

    @staticmethod
    def derive(state):
        """Add to `state` what several of the formulas below share; here nothing."""

    @classmethod
    def initial_state(cls, noise):
        """Return the start of an episode, init + .01 N for positions, .1 N for velocities: qpos [n, nq], qvel [n, nv].

        noise: [n, nq + nv], standard normal. The initial pose is the model's own number `init_qpos` if it has one.
        Source: maml_rl: mujoco_env.py:78-83, 110-113.
        """
        model = cls.compile_model()
        pose = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_NUMERIC, 'init_qpos')
        qpos0 = model.qpos0 if pose < 0 else model.numeric(pose).data
        return qpos0 + 0.01 * noise[:, : model.nq], 0.1 * noise[:, model.nq :]

    @staticmethod
    def unstable(state):
        """Tell where the state is not finite, or as large as MuJoCo's limit for one (mjMAXVAL, 1e10): [n] bool."""
        square = sum(np.einsum('ij,ij->i', part, part) for part in (state.qpos, state.qvel))
        return ~(square < mujoco.mjMAXVAL**2)

    @classmethod
    def world(cls, n, threads=2):
        """Return n simulations of this environment that step together."""
        return MujocoWorld(cls, n, threads)

    def _initialize_simulation(self):
        # A copy: the renderer and the user may change the model of one environment.
        model = copy.copy(self.compile_model())
        view = model.vis.global_
        view.offwidth, view.offheight = max(view.offwidth, self.width), max(view.offheight, self.height)
        return model, mujoco.MjData(model)

    def reset_model(self):
        self._choose_task()
        noise = self.np_random.standard_normal((1, self.model.nq + self.model.nv))
        qpos, qvel = self.initial_state(noise)
        self.set_state(qpos[0], qvel[0])
        self.derive(self._state)
        return self._append_task(self.observe(self._state))

    def step(self, action):
        """Advance a time step, then mj_forward: all reads are of the new state (maml_rl: mujoco_env.py:184-188)."""
        control = scale_action(np.asarray(action, np.float64), *self.model.actuator_ctrlrange.T)
        self.data.ctrl[:] = control
        mujoco.mj_step(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)
        self.derive(self._state)
        terminated = bool(self.terminated(self._state)[0])
        reward = float(self.reward(self._state, control[None], self.task[None])[0])
        if self.render_mode == 'human':
            self.render()
        return self._append_task(self.observe(self._state)), reward, terminated, False, {}


class DirectionTask:
    """Task: direction d = -1 or +1, even odds; run_reward = d v. To be mixed into a `TaskMujocoEnv`.

    The original draws g ~ U(0, highest), d = -1 for the lower half, else +1.
    Source: maml_rl: half_cheetah_env_rand_direc.py:30-32, 41, 69-71, and ant_env_rand_direc.py:28-30, 39, 51.
    """

    @classmethod
    def sample_tasks(cls, rng, n):
        return np.where(rng.uniform(0.0, cls.highest, n) < cls.highest / 2, -1.0, 1.0)

    @staticmethod
    def run_reward(velocity, tasks):
        return tasks * velocity


class MujocoWorld:
    """n simulations of a `TaskMujocoEnv` class that step together on threads, bit for bit like n of it.

    `state`: live arrays [n, ...] of the class's `fields`; qpos and qvel can be written before `forward`. The class's
    formulas get them read-only.
    """

    def __init__(self, env, n, threads):
        self.env = env
        self.batch = Batch(env.compile_model(), n, threads)
        self.state = SimpleNamespace(**{name: self.batch.bind(name) for name in env.fields})
        self._seen = SimpleNamespace(**{name: read_only(array) for name, array in vars(self.state).items()})
        self._control = self.batch.bind('ctrl')
        self._bounds = self.batch.model.actuator_ctrlrange.T

    def reset(self, ids, rng):
        """Start the simulations `ids` (ascending) anew, their noise drawn from `rng` in that order."""
        model = self.batch.model
        noise = rng.standard_normal((len(ids), model.nq + model.nv))
        self.batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.state.qpos[ids], self.state.qvel[ids] = self.env.initial_state(noise)
        self.forward(ids)

    def forward(self, ids=None):
        """Compute `state` from qpos, qvel and the controls."""
        self.batch.forward(ids, stage=self.env.stage)
        self.env.derive(self._seen)

    def observe(self):
        """Return observations [n, obs] float64."""
        return self.env.observe(self._seen)

    def step(self, actions, tasks, ids=None):
        """Advance `ids` (ascending; None: all); returns rewards, terminated [n], stale for the others."""
        self._control[:] = scale_action(actions.astype(np.float64, copy=False), *self._bounds)
        self.batch.step(ids, stage=self.env.stage)
        self.env.derive(self._seen)
        terminated = self.env.terminated(self._seen)
        return self.env.reward(self._seen, read_only(self._control), read_only(tasks)), terminated

    def sees_its_state(self):
        """Whether the class's formulas still get the live arrays."""
        return all(np.shares_memory(getattr(self._seen, name), array) for name, array in vars(self.state).items())


def read_only(array):
    """Return a view of an array that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view
