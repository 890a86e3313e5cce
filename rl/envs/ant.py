"""Ant: walk at a goal velocity, or in a goal direction."""

from typing import ClassVar

import mujoco
import numpy as np

from rl.envs.base import TORSO, DirectionTask, TaskMujocoEnv


class AntEnv(TaskMujocoEnv):
    """rllab's ant, the part that both families share. It is not gymnasium's Ant task: see `edit`.

    Observation, 125 numbers: qpos (15, with x and y), qvel (14), contact forces of the 14 bodies clipped to
    [-1, 1] (84), rotation matrix of the torso (9), centre of mass of the whole body (3). Action: 8 numbers in
    [-1, 1], scaled to torques of +-150.
    reward = run_reward(v, task) + 0.05 - 0.005 |a|^2 - 0.0005 |clip(contact forces)|^2, a the clipped action in
    [-1, 1], v the x velocity (m/s) of the whole body's centre of mass. An episode ends when the torso is not at
    0.2 <= z <= 1 m, or the state is not finite; a step into such a state earns 0, so that it cannot spoil the
    other samples.
    Source: maml_rl: ant_env_rand.py:21-28 (observation), 52-59 (reward), 60-63 (end).
    """

    asset = 'ant.xml'
    observation_size, action_size = 125, 8
    fields = ('qpos', 'qvel', 'subtree_com', 'subtree_linvel', 'cfrc_ext', 'xmat')
    stage = mujoco.mjtStage.mjSTAGE_ACC.value
    metadata: ClassVar = {**TaskMujocoEnv.metadata, 'render_fps': 50}

    @staticmethod
    def edit(spec):
        """Set the time step and the softer contacts of rllab's ant.xml; its torques are the same."""
        spec.option.timestep = 0.02
        for geom in spec.geoms:
            geom.solimp[:3] = 0.8, 0.8, 0.01
        # MuJoCo fills two of the fields only for a sensor that needs them: subtree_linvel and cfrc_ext.
        for kind in (mujoco.mjtSensor.mjSENS_SUBTREELINVEL, mujoco.mjtSensor.mjSENS_FRAMELINACC):
            spec.add_sensor(name=kind.name, type=kind, objtype=mujoco.mjtObj.mjOBJ_BODY, objname='torso')

    @classmethod
    def initial_state(cls, noise):
        qpos, qvel = super().initial_state(noise)
        # MuJoCo 1.31 normalised the quaternion in place; today's leaves the noise on it until the first step.
        qpos[:, 3:7] /= np.linalg.norm(qpos[:, 3:7], axis=1, keepdims=True)
        return qpos, qvel

    @staticmethod
    def derive(state):
        state.contact = np.clip(state.cfrc_ext, -1.0, 1.0).reshape(len(state.cfrc_ext), -1)

    @staticmethod
    def observe(state):
        torso = state.xmat[:, TORSO], state.subtree_com[:, TORSO]
        return np.concatenate([state.qpos, state.qvel, state.contact, *torso], axis=1)

    @classmethod
    def reward(cls, state, control, tasks):
        contact_cost = 0.0005 * np.square(state.contact).sum(axis=1)
        control_cost = 0.005 * np.square(control).sum(axis=1)
        run = cls.run_reward(state.subtree_linvel[:, TORSO, 0], tasks)
        return np.where(cls.unstable(state), 0.0, run + 0.05 - control_cost - contact_cost)

    @classmethod
    def terminated(cls, state):
        z = state.qpos[:, 2]
        return cls.unstable(state) | ~((z >= 0.2) & (z <= 1.0))


class AntVelEnv(AntEnv):
    """Task: goal velocity g ~ U(0, 3) m/s; run_reward = 1 - |v - g| (maml_rl: ant_env_rand.py:30-31, 52)."""

    @staticmethod
    def sample_tasks(rng, n):
        return rng.uniform(0.0, 3.0, n)

    @staticmethod
    def run_reward(velocity, tasks):
        return 1.0 - np.abs(velocity - tasks)


class AntDirEnv(DirectionTask, AntEnv):
    """Task: a direction; the reward is without the velocity family's +1."""

    highest = 3.0
