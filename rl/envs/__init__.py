"""The five task families of section 5.3 of the paper, as gymnasium environments.

An environment is added here and nowhere else: one line in `FAMILIES` names it for the flags, registers it
with gymnasium and tells the sampler which class steps it.
"""

from typing import NamedTuple

import gymnasium

from rl.envs.ant import AntDirEnv, AntVelEnv
from rl.envs.half_cheetah import HalfCheetahDirEnv, HalfCheetahVelEnv
from rl.envs.point import PointEnv


class Family(NamedTuple):
    """A distribution of tasks: its gymnasium id, the class that defines it, and the length of an episode."""

    id: str
    env: type
    horizon: int


FAMILIES = {
    'point': Family('maml/Point-v0', PointEnv, 100),
    'cheetah_vel': Family('maml/HalfCheetahVel-v0', HalfCheetahVelEnv, 200),
    'cheetah_dir': Family('maml/HalfCheetahDir-v0', HalfCheetahDirEnv, 200),
    'ant_vel': Family('maml/AntVel-v0', AntVelEnv, 200),
    'ant_dir': Family('maml/AntDir-v0', AntDirEnv, 200),
}

for _family in FAMILIES.values():
    gymnasium.register(
        _family.id, entry_point=f'{_family.env.__module__}:{_family.env.__name__}', max_episode_steps=_family.horizon
    )
