"""A .gif of one task: the policy before and after adaptation, side by side. No display is needed.

The pictures are made in a process of its own that never loads TensorFlow: Mesa's software renderer and TensorFlow
each bring an LLVM, and together they crash. That process imports this module, so nothing here may import
TensorFlow at the top.
"""

import atexit
import concurrent.futures
import multiprocessing
import os
import sys
import warnings

import numpy as np
from PIL import Image, ImageDraw

import runtime
from rl.envs import FAMILIES

FRAME_RATE = 25  # a second, at most
SIZE = 240  # pixels, width and height of MuJoCo's pictures
CAPTION = 30  # pixels, height of the two lines above them: the task, and which policy


def check(path, family, task):
    """Make sure that `path` can be written and the family rendered here; raises UserError where it cannot."""
    folder = os.path.dirname(path) or '.'
    if not os.access(folder, os.W_OK):
        raise runtime.UserError(f'--video={path}: {folder} is no folder that can be written to')
    env = FAMILIES[family].env
    (picture,) = pictures(family, task, np.zeros((0, env.action_size)), every=1)
    if getattr(picture, 'dtype', None) != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise runtime.UserError(f'--video: render of {env.__name__} gives no uint8 array [height, width, 3]: mend it')
    if not hasattr(env, 'asset') and 'render_fps' not in env.metadata:
        raise runtime.UserError(f'--video: {env.__name__}.metadata has no render_fps, frames a second: add it')


def write(path, family, task, oracle, act, weights):
    """Write the .gif `path` of a path of each policy; weights: caption -> weights (without tasks axis).

    act: `GaussianPolicy.act`. All act under the same noise from the same start; a path that has ended shows its
    last picture. Raises UserError where there is no renderer.
    """
    env = FAMILIES[family].env
    fps = round(1 / env.compile_model().opt.timestep) if hasattr(env, 'asset') else env.metadata['render_fps']
    every = max(1, fps // FRAME_RATE)
    films = [pictures(family, task, actions(family, task, oracle, act, phi), every) for phi in weights.values()]
    frames = []
    for i in range(max(map(len, films))):
        images = [film[min(i, len(film) - 1)] for film in films]
        white, black = ((CAPTION, 0), (0, 0), (0, 0)), ((0, 0), (0, 2), (0, 0))  # above; between two pictures
        divided = [np.pad(np.pad(image, white, constant_values=255), black) for image in images]
        frame = Image.fromarray(np.concatenate(divided, axis=1)[:, :-2])
        for n, caption in enumerate(weights):
            text = f'{FAMILIES[family].in_words(task)}\n{caption}'
            ImageDraw.Draw(frame).text((n * divided[0].shape[1] + 4, 2), text, (0, 0, 0))
        frames.append(frame)
    with runtime.replacing(path, 'wb') as file:
        frames[0].save(file, 'GIF', save_all=True, append_images=frames[1:], duration=round(1000 * every / fps), loop=0)


def actions(family, task, oracle, act, phi):
    """Return what the policy with weights phi does in one path from seed 0: [time steps, act_dim]."""
    env, rng = FAMILIES[family].env(task=task, oracle=oracle), np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    taken, terminated = [], False
    while len(taken) < FAMILIES[family].horizon and not terminated:
        noise = rng.standard_normal((1, 1, env.action_size))
        taken.append(act(phi, observation[None, None], noise)[0, 0])
        observation, _, terminated, _, _ = env.step(taken[-1])
    return np.array(taken)


def pictures(family, task, actions, every):
    """Call `replay` in a process of its own; raises UserError where it fails."""
    spawn = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(1, spawn, prepare, (runtime.renderer,)) as process:
        try:
            with runtime.ctrl_c_deferred():
                film = process.submit(replay, family, task, actions, every)
            return film.result()
        except Exception as error:  # each of MuJoCo's renderers fails in its own way
            env, reason = FAMILIES[family].env, ' '.join(str(error).split())
            if not hasattr(env, 'asset'):
                raise runtime.UserError(
                    f'--video: {env.__name__} cannot be drawn ({type(error).__name__}: {reason}): mend its render, or '
                    'drop --video'
                ) from None
            raise runtime.UserError(
                f'--video needs a renderer, and MuJoCo found none here ({reason}): set MUJOCO_GL=egl, or install '
                'libosmesa6 and set MUJOCO_GL=osmesa, or drop --video'
            ) from None


def prepare(renderer):
    """Settle what a process renders with, as MUJOCO_GL does; None: EGL without a display, else MuJoCo's choice."""
    if renderer is None and sys.platform == 'linux' and not os.environ.keys() & {'DISPLAY', 'WAYLAND_DISPLAY'}:
        renderer = 'egl'
    if renderer is not None:
        os.environ['MUJOCO_GL'] = renderer
    warnings.simplefilter('ignore')  # what GLFW has to say comes in the error too
    atexit.register(os._exit, 0)  # OSMesa complains when Python takes it down


def replay(family, task, actions, every):
    """Return pictures [height, width, 3] of the path from seed 0: its start, after each `every` actions, its end."""
    env_class = FAMILIES[family].env
    view = {'width': SIZE, 'height': SIZE, 'camera_name': 'track'} if hasattr(env_class, 'asset') else {}
    env = env_class(task=task, render_mode='rgb_array', **view)
    env.reset(seed=0)
    film = [env.render()]
    for step, action in enumerate(actions, start=1):
        env.step(action)
        if step % every == 0 or step == len(actions):
            film.append(env.render())
    env.close()
    return film
