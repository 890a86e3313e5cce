"""The .gif of a policy before and after adaptation; test_rl_training.py makes one with main.py."""

import numpy as np
import pytest

import runtime
from rl import video
from rl.envs import FAMILIES
from runtime import UserError


def test_without_a_renderer_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, 'renderer', 'nonsense')
    with pytest.raises(UserError, match='needs a renderer') as error:
        video.check(str(tmp_path / 'a.gif'), 'cheetah_vel', 1.0)
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='no folder'):
        video.check(str(tmp_path / 'none' / 'a.gif'), 'point', np.zeros(2))


def test_what_keeps_an_environment_from_being_drawn_is_said(tmp_path, monkeypatch):
    """Not that MuJoCo had no renderer."""
    path, picture = str(tmp_path / 'a.gif'), np.zeros([9, 9, 3], np.uint8)
    with pytest.raises(UserError, match=r'PointEnv cannot be drawn \(ValueError: .* a task has shape \(2,\), not'):
        video.check(path, 'point', np.zeros(3))
    for wrong in (picture / 255, picture[..., 0], [0]):
        monkeypatch.setattr(video, 'pictures', lambda *_, wrong=wrong, **__: [wrong])
        with pytest.raises(UserError, match='render of PointEnv gives no uint8 array'):
            video.check(path, 'point', np.zeros(2))
    monkeypatch.setattr(video, 'pictures', lambda *_, **__: [picture])
    video.check(path, 'point', np.zeros(2))
    monkeypatch.setattr(FAMILIES['point'].env, 'metadata', {})
    with pytest.raises(UserError, match='render_fps'):
        video.check(path, 'point', np.zeros(2))


def test_the_video_replays_what_the_policy_did():
    """The actions of a path, with a shorter film where it ended early."""
    goal = np.array([0.05, 0.0])
    taken = video.actions('point', goal, True, lambda phi, seen, noise: 5 * (seen[..., 2:] - seen[..., :2]), {})
    env = FAMILIES['point'].env(goal, render_mode='rgb_array')
    env.reset(seed=0)
    ends = [env.step(action)[2] for action in taken]
    assert len(taken) < 100 and ends[-1] and not any(ends[:-1])
    film = video.replay('point', goal, taken, every=10)
    assert len(film) == 1 + -(-len(taken) // 10)
    np.testing.assert_array_equal(film[-1], env.render())
