"""Collects the paths of all tasks in one lockstep of tasks x rollouts simulations, the policy in the loop.

MuJoCo runs on the threads of `mujoco.batch`, inside this process: there is no worker that could die
unnoticed, and an error in a simulation is raised by `collect`. Advantages, baselines and log-probabilities
are not made here.
"""

import numpy as np

from rl.envs import FAMILIES
from rl.envs.base import with_task
from rl.samples import Paths


class Sampler:
    """Samples the tasks of one family, `rollouts` simulations a task.

    family: key of `rl.envs.FAMILIES`; tasks: [n, ...]; horizon: longest path, by default the family's;
    seed: int or sequence of ints; oracle: append the task to the observations; threads: of MuJoCo.

    Each task gets what sampling one path after the other until at least rollouts x horizon time steps would
    give: whole paths, in the order in which they started, up to and including the one that reaches that number
    (maml_rl: rllab/sampler/stateful_pool.py:172-185). A path is kept or not by what was started before it, never by
    its own length. (The original's vectorised sampler drops the paths in progress when the others suffice,
    which favours short ones.) Where no path ends early these are exactly `rollouts` paths of `horizon` steps.

    The same seed gives the same paths, whatever the number of threads. All random numbers of the n-th
    `collect` come from a stream named by (seed, n). To be able to resume at an iteration, call
    `restart(tasks, (seed, iteration))` at the start of each.
    """

    def __init__(self, family, tasks, rollouts, horizon=None, seed=0, oracle=False, threads=2):
        self.family = FAMILIES[family]
        self.rollouts = rollouts
        self.horizon = self.family.horizon if horizon is None else horizon
        self.oracle = oracle
        self._world = self.family.env.world(len(tasks) * rollouts, threads)
        self.restart(tasks, seed)

    def restart(self, tasks, seed):
        """Use other tasks (as many as before) and begin the stream of `seed`; cheaper than a new Sampler."""
        self.tasks = np.asarray(tasks, np.float64)
        self._env_tasks = np.repeat(self.tasks, self.rollouts, axis=0)
        self._seed = tuple(np.atleast_1d(seed).tolist())
        self._collected = 0

    def _observe(self):
        """Return observations of all simulations [tasks * rollouts, obs_dim] float32."""
        observations = self._world.observe()
        return (with_task(observations, self._env_tasks) if self.oracle else observations).astype(np.float32)

    def collect(self, act):
        """Collect Paths of all tasks.

        act(observations [tasks, rollouts, obs_dim] float32, noise [tasks, rollouts, act_dim] float32)
            -> actions [tasks, rollouts, act_dim], as mean + std * noise; noise is standard normal. It is
            called for all simulations each time; what it says for those that have finished is not used.

        Raises FloatingPointError when the policy's actions are not finite, or a half-cheetah diverges.
        """
        entropy = np.random.SeedSequence((*self._seed, self._collected))
        reset_rng, noise_rng = (np.random.Generator(np.random.Philox(child)) for child in entropy.spawn(2))
        self._collected += 1
        tasks, rollouts, horizon = len(self.tasks), self.rollouts, self.horizon
        env_class, n, wanted = self.family.env, tasks * rollouts, rollouts * horizon

        # Row e: simulation e's time steps. The last path starts before `horizon` and ends within another.
        shape = n, 2 * horizon
        self._world.reset(np.arange(n), reset_rng)
        observations = self._observe()
        all_observations = np.empty((*shape, observations.shape[1]), np.float32)
        all_actions = np.empty((*shape, env_class.action_size), np.float32)
        all_rewards = np.empty(shape)

        # Paths of a task, as started: (simulation, its first time step), and the length up to now.
        started = [[(task * rollouts + k, 0) for k in range(rollouts)] for task in range(tasks)]
        lengths = np.zeros((tasks, wanted), np.int64)
        task_of = np.repeat(np.arange(tasks), rollouts)
        path_of = np.tile(np.arange(rollouts), tasks)  # the path that a simulation is in
        running = np.ones(n, bool)

        step = 0
        while running.any():
            noise = noise_rng.standard_normal((tasks, rollouts, env_class.action_size), np.float32)
            actions = act(observations.reshape(tasks, rollouts, -1), noise)
            actions = np.asarray(actions, np.float32).reshape(n, -1)
            if not np.isfinite(actions).all():
                raise FloatingPointError(f"the policy's actions are not finite at time step {step}")
            ids = None if running.all() else np.flatnonzero(running)
            rewards, terminated = self._world.step(actions, self._env_tasks, ids)
            all_observations[:, step] = observations
            all_actions[:, step] = actions
            all_rewards[:, step] = rewards
            step += 1
            lengths[task_of[running], path_of[running]] += 1
            ended = running & (terminated | (lengths[task_of, path_of] == horizon))
            if step < horizon:  # the task has rollouts x step time steps so far, fewer than wanted
                ids = np.flatnonzero(ended)
                if len(ids):
                    self._world.reset(ids, reset_rng)
                for e in ids:
                    path_of[e] = len(started[task_of[e]])
                    started[task_of[e]].append((e, step))
            else:
                running &= ~ended & _needed(lengths, wanted)[task_of, path_of]
            observations = self._observe()

        needed = _needed(lengths, wanted)
        path_lengths = [row[keep] for row, keep in zip(lengths, needed)]
        kept = [
            [(e, slice(start, start + length)) for (e, start), length in zip(paths, kept_lengths)]
            for paths, kept_lengths in zip(started, path_lengths)
        ]
        arrays = (_lay_out(kept, source) for source in (all_observations, all_actions, all_rewards))
        return Paths(*arrays, path_lengths)


def _needed(lengths, wanted):
    """Tell which paths have begun while those before do not suffice: [tasks, paths] bool; lengths: as started.

    A running path counts with its length up to now, so a path that is not needed will never be needed.
    """
    return (np.cumsum(lengths, axis=1) - lengths < wanted) & (lengths > 0)


def _lay_out(kept, source):
    """Lay source [n, steps, ...] out as [tasks, rows, ...]; kept: each task's paths as (simulation, time steps)."""
    tasks = [np.concatenate([source[path] for path in paths]) for paths in kept]
    result = np.zeros((len(tasks), max(map(len, tasks)), *source.shape[2:]), source.dtype)
    for rows, samples in zip(result, tasks):
        rows[: len(samples)] = samples
    return result
