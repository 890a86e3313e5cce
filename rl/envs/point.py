"""2D navigation: a point that has to reach a goal it cannot see."""

from typing import ClassVar

import numpy as np

from rl.envs.base import TaskEnv, scale_action

SPEED = 0.1  # bound on the move of one step along each axis (maml_rl: point_env_randgoal.py:17-18)
NEAR = 0.01  # an episode ends this close to the goal along both axes (maml_rl: point_env_randgoal.py:43)


class PointEnv(TaskEnv):
    """Task: goal g ~ U(-0.5, 0.5)^2. The point starts at (0, 0).

    Observation: position x (2). Action: 2 numbers, +-1 is a move of +-0.1, clipped there.
    reward = -|x - g| at the new position; the paper says squared (`PointSquaredEnv`), the code of its results does not.
    Ends when the point is within 0.01 of the goal along both axes.
    Source: maml_rl: point_env_randgoal.py:20 (goal), 42 (reward), 43 (end).
    """

    task_shape = (2,)
    observation_size, action_size = 2, 2
    squared = False
    metadata: ClassVar = {'render_modes': ['rgb_array'], 'render_fps': 10}

    def __init__(self, task=None, oracle=False, render_mode=None):
        super().__init__(task, oracle)
        self.render_mode = render_mode
        self._world = self.world(1)

    @staticmethod
    def sample_tasks(rng, n):
        return rng.uniform(-0.5, 0.5, (n, 2))

    @classmethod
    def world(cls, n, threads=2):
        """Return n points that step together; numpy alone, so `threads` does nothing."""
        return PointWorld(n, cls.squared)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self._choose_task()
        self._world.reset([0])
        return self._append_task(self._world.observe()), {}

    def step(self, action):
        rewards, terminated = self._world.step(np.asarray(action, np.float64)[None], self.task[None])
        return self._append_task(self._world.observe()), float(rewards[0]), bool(terminated[0]), False, {}

    def render(self):
        """Draw the square +-1, goal green, point red: [200, 200, 3] uint8."""
        image = np.full((200, 200, 3), 255, np.uint8)
        for place, colour in ((self.task, (0, 160, 0)), (self._world.observe()[0], (200, 0, 0))):
            column, row = np.clip(100 + 100 * place * (1, -1), 3, 196).astype(int)
            image[row - 3 : row + 4, column - 3 : column + 4] = colour
        return image


class PointSquaredEnv(PointEnv):
    """The same with the reward of the paper's text, -|x - g|^2 (section 5.3)."""

    squared = True


class PointWorld:
    """n points that step together; the interface is that of `MujocoWorld`."""

    def __init__(self, n, squared):
        self.position, self.squared = np.zeros((n, 2)), squared

    def reset(self, ids, rng=None):
        """Put the points `ids` back to (0, 0); there is no noise, so `rng` is not used."""
        self.position[ids] = 0.0

    def observe(self):
        """Return positions [n, 2]."""
        return self.position.copy()

    def step(self, actions, tasks, ids=None):
        """Move `ids` (None for all); returns rewards [n] and terminated [n], stale for the others."""
        ids = slice(None) if ids is None else ids
        self.position[ids] += scale_action(actions.astype(np.float64, copy=False), -SPEED, SPEED)[ids]
        offset = self.position - tasks
        square = np.square(offset).sum(axis=1)
        return -square if self.squared else -np.sqrt(square), (np.abs(offset) < NEAR).all(axis=1)
