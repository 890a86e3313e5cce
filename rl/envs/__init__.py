"""The task families of section 5.3 of the paper, as gymnasium environments.

A line in `FAMILIES` registers an environment with gymnasium and tells the sampler which class steps it; the same name
in `SOURCES` (experiments.py) makes it a --datasource. README.md, "Your own data", adds one.
"""

from collections.abc import Callable
from typing import NamedTuple

import gymnasium
import numpy as np

from rl.envs.ant import AntDirEnv, AntVelEnv
from rl.envs.half_cheetah import HalfCheetahDirEnv, HalfCheetahVelEnv
from rl.envs.point import PointEnv, PointSquaredEnv
from runtime import UserError


class Family(NamedTuple):
    """A distribution of tasks: gymnasium id, the class that defines it, length of an episode, and a task in words."""

    id: str
    env: type
    horizon: int
    in_words: Callable


def direction(task):
    """Say which of the two directions is a task."""
    return 'runs backward' if task < 0 else 'runs forward'


FAMILIES = {
    'point': Family('maml/Point-v0', PointEnv, 100, 'goal ({0[0]:.2f}, {0[1]:.2f})'.format),
    'point_squared': Family('maml/PointSquared-v0', PointSquaredEnv, 100, 'goal ({0[0]:.2f}, {0[1]:.2f})'.format),
    'cheetah_vel': Family('maml/HalfCheetahVel-v0', HalfCheetahVelEnv, 200, 'runs at {:.2f} m/s'.format),
    'cheetah_dir': Family('maml/HalfCheetahDir-v0', HalfCheetahDirEnv, 200, direction),
    'ant_vel': Family('maml/AntVel-v0', AntVelEnv, 200, 'runs at {:.2f} m/s'.format),
    'ant_dir': Family('maml/AntDir-v0', AntDirEnv, 200, direction),
}


def draw_tasks(name, rng, n):
    """Return n tasks of the family `name`, [n, ...]; UserError where its class draws another number."""
    tasks = np.asarray(FAMILIES[name].env.sample_tasks(rng, n))
    if len(tasks) != n:
        raise UserError(
            f'--datasource={name}: sample_tasks gives {len(tasks)} tasks for n = {n}: let it give n of them'
        )
    return tasks


for _family in FAMILIES.values():
    gymnasium.register(
        _family.id, entry_point=f'{_family.env.__module__}:{_family.env.__name__}', max_episode_steps=_family.horizon
    )
