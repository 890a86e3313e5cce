"""Half-cheetah: run at a goal velocity, or in a goal direction."""

import functools
from typing import ClassVar

import numpy as np

from rl.envs.base import TORSO, DirectionTask, TaskMujocoEnv


class HalfCheetahEnv(TaskMujocoEnv):
    """rllab's half-cheetah, the part that both families share.

    Observation, 20 numbers: qpos without x (8), qvel (9), and the centre of mass of the whole body (3). Action: 6
    torques in [-1, 1]. An episode never ends by itself.
    reward = run_reward(v, task) - 0.05 |a|^2, a the clipped action and v the x velocity (m/s) of the centre of mass
    of the WHOLE body, not of the torso.
    Time step 0.01 s; gymnasium's half_cheetah.xml is rllab's model as it is.
    Source: maml_rl: half_cheetah_env_rand.py:42-46, 61-63, and maml_rl: rllab/mujoco_py/mjcore.py:58-81.
    """

    asset = 'half_cheetah.xml'
    observation_size, action_size = 20, 6
    metadata: ClassVar = {**TaskMujocoEnv.metadata, 'render_fps': 100}

    @classmethod
    @functools.cache
    def levers(cls):
        """Return what each body's rotation adds to the centre of mass, x, z [bodies] at angle 0, and the start [3].

        The tree is planar: com = start + (qpos[0], 0, qpos[1]) + sum over bodies of R(angle) lever, where the
        lever is (mass of the body * its centre + for each child, mass of its subtree * its place) / all mass.
        Also returns (body, parent) of all bodies but the torso, which is body 0 here.
        """
        model = cls.compile_model()
        lever = model.body_mass[:, None] * model.body_ipos
        for body in range(TORSO + 1, model.nbody):
            lever[model.body_parentid[body]] += model.body_subtreemass[body] * model.body_pos[body]
        x, _, z = lever[TORSO:].T / model.body_subtreemass[TORSO]
        parents = (model.body_parentid[TORSO + 1 :] - TORSO).tolist()
        return x, z, model.body_pos[TORSO], list(enumerate(parents, start=1))

    @classmethod
    def centre_of_mass(cls, qpos, qvel):
        """Return the whole body's centre of mass [n, 3] (m) and its x velocity [n] (m/s), of qpos, qvel [n, 9].

        Equal to MuJoCo's subtree_com and subtree_linvel of the torso at the new state, which `mujoco.batch`
        would need a second evaluation of each step for: 40 % of its time.
        """
        x, z, start, tree = cls.levers()
        angle, turn = angle_and_turn = np.stack([qpos[:, 2:], qvel[:, 2:]])
        for body, parent in tree:
            angle_and_turn[..., body] += angle_and_turn[..., parent]
        cos, sin = np.cos(angle), np.sin(angle)
        height = z * cos - x * sin
        com = np.zeros((len(qpos), 3)) + start
        com[:, 0] += qpos[:, 0] + (x * cos + z * sin).sum(axis=1)
        com[:, 2] += qpos[:, 1] + height.sum(axis=1)
        return com, qvel[:, 0] + (turn * height).sum(axis=1)

    @classmethod
    def derive(cls, state):
        state.com, state.velocity = cls.centre_of_mass(state.qpos, state.qvel)

    @staticmethod
    def observe(state):
        return np.concatenate([state.qpos[:, 1:], state.qvel, state.com], axis=1)

    @classmethod
    def reward(cls, state, control, tasks):
        return cls.run_reward(state.velocity, tasks) - 0.05 * np.square(control).sum(axis=1)

    @classmethod
    def terminated(cls, state):
        """Return False for all. Raises FloatingPointError when one has diverged; rllab would have trained on it."""
        unstable = cls.unstable(state)
        if unstable.any():
            raise FloatingPointError(f'{cls.__name__}: {unstable.sum()} of {len(unstable)} simulations diverged')
        return unstable


class HalfCheetahVelEnv(HalfCheetahEnv):
    """Task: goal velocity g ~ U(0, 2) m/s; run_reward = -|v - g| (maml_rl: half_cheetah_env_rand.py:23-24, 62)."""

    @staticmethod
    def sample_tasks(rng, n):
        return rng.uniform(0.0, 2.0, n)

    @staticmethod
    def run_reward(velocity, tasks):
        return -np.abs(velocity - tasks)


class HalfCheetahDirEnv(DirectionTask, HalfCheetahEnv):
    """Task: a direction."""

    highest = 2.0
