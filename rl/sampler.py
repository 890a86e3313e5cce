"""Collects the paths of all tasks in one lockstep of many simulations of each, the policy in the loop.

MuJoCo runs on the threads of `mujoco.batch`, inside this process: there is no worker that could die
unnoticed, and an error in a simulation is raised by `collect`. Advantages, baselines and log-probabilities
are not made here.
"""

import heapq

import numpy as np

from rl.envs import FAMILIES
from rl.envs.base import with_task
from rl.samples import Paths


class Sampler:
    """Samples the tasks of one family.

    family: key of `rl.envs.FAMILIES`; tasks: [n, ...]; horizon: longest path, by default the family's;
    seed: int or sequence of ints; oracle: append the task to the observations; threads: of MuJoCo.

    Each task gets the whole paths that `workers` workers would deliver, all at the same pace, path after path
    each. A worker that ends a path adds its length to the task's count (of those that end one at the same time step,
    the first worker first), and begins another unless the count has reached rollouts x horizon by then. Paths
    in progress are finished, and all are kept (maml_rl: rllab/sampler/stateful_pool.py:204-217, one worker: 172-186).
    So a path is kept or not by what ended before it began, never by its own length. Where no path ends early
    these are rollouts + workers - 1 paths of `horizon` steps.

    What is simulated is as many paths of a task side by side, each followed by others during the first `horizon`
    time steps. A path does not depend on those before it: the k-th that begins here is the one that a worker
    begins as the k-th. They never need more than there are, see `_needed`.

    The same seed gives the same paths, whatever the number of threads. All random numbers of the n-th
    `collect` come from a stream named by (seed, n). To be able to resume at an iteration, call
    `restart(tasks, (seed, iteration))` at the start of each.
    """

    def __init__(self, family, tasks, rollouts, horizon=None, seed=0, oracle=False, threads=2, workers=1):
        self.family = FAMILIES[family]
        self.rollouts, self.workers = rollouts, workers
        self.simulations = rollouts + workers - 1  # of a task
        self.horizon = self.family.horizon if horizon is None else horizon
        self.oracle = oracle
        self._world = self.family.env.world(len(tasks) * self.simulations, threads)
        self.restart(tasks, seed)

    def restart(self, tasks, seed):
        """Use other tasks (as many as before) and begin the stream of `seed`; cheaper than a new Sampler."""
        self.tasks = np.asarray(tasks, np.float64)
        self._env_tasks = np.repeat(self.tasks, self.simulations, axis=0)
        self._seed = tuple(np.atleast_1d(seed).tolist())
        self._collected = 0

    def _observe(self):
        """Return observations of all simulations [tasks * simulations, obs_dim] float32."""
        observations = self._world.observe()
        return (with_task(observations, self._env_tasks) if self.oracle else observations).astype(np.float32)

    def collect(self, act):
        """Collect Paths of all tasks.

        act(observations [tasks, simulations, obs_dim] float32, noise [tasks, simulations, act_dim] float32)
            -> actions [tasks, simulations, act_dim], as mean + std * noise; noise is standard normal. It is
            called for all simulations each time; what it says for those that have finished is not used.

        Raises FloatingPointError when actions, observations or rewards are not finite, or a half-cheetah diverges.
        """
        entropy = np.random.SeedSequence((*self._seed, self._collected))
        reset_rng, noise_rng = (np.random.Generator(np.random.Philox(child)) for child in entropy.spawn(2))
        self._collected += 1
        tasks, simulations, horizon = len(self.tasks), self.simulations, self.horizon
        env_class, n, enough = self.family.env, tasks * simulations, simulations * horizon

        # Row e: simulation e's time steps. The last path starts before `horizon` and ends within another.
        shape = n, 2 * horizon
        self._world.reset(np.arange(n), reset_rng)
        observations = self._observe()
        all_observations = np.empty((*shape, observations.shape[1]), np.float32)
        all_actions = np.empty((*shape, env_class.action_size), np.float32)
        all_rewards = np.empty(shape)

        # Paths of a task, as started: (simulation, its first time step), and the length up to now.
        started = [[(task * simulations + k, 0) for k in range(simulations)] for task in range(tasks)]
        lengths = np.zeros((tasks, enough), np.int64)
        task_of = np.repeat(np.arange(tasks), simulations)
        path_of = np.tile(np.arange(simulations), tasks)  # the path that a simulation is in
        running = np.ones(n, bool)

        step = 0
        while running.any():
            noise = noise_rng.standard_normal((tasks, simulations, env_class.action_size), np.float32)
            actions = act(observations.reshape(tasks, simulations, -1), noise)
            actions = np.where(running[:, None], np.asarray(actions, np.float32).reshape(n, -1), 0)
            if not np.isfinite(actions).all():
                which = "the policy's actions are" if np.isfinite(observations[running]).all() else 'an observation is'
                raise FloatingPointError(f'{which} not finite at time step {step}')
            ids = None if running.all() else np.flatnonzero(running)
            rewards, terminated = self._world.step(actions, self._env_tasks, ids)
            all_observations[:, step] = observations
            all_actions[:, step] = actions
            all_rewards[:, step] = rewards
            step += 1
            lengths[task_of[running], path_of[running]] += 1
            ended = running & (terminated | (lengths[task_of, path_of] == horizon))
            if step < horizon:  # the task has simulations x step time steps so far, not enough
                ids = np.flatnonzero(ended)
                if len(ids):
                    self._world.reset(ids, reset_rng)
                for e in ids:
                    path_of[e] = len(started[task_of[e]])
                    started[task_of[e]].append((e, step))
            else:
                running &= ~ended & _needed(lengths, enough)[task_of, path_of]
            observations = self._observe()

        path_lengths = [row[: _begun(row, self.workers, self.rollouts * horizon)] for row in lengths]
        kept = [
            [(e, slice(start, start + length)) for (e, start), length in zip(paths, kept_lengths)]
            for paths, kept_lengths in zip(started, path_lengths)
        ]
        observations, actions, rewards = (_lay_out(kept, a) for a in (all_observations, all_actions, all_rewards))
        if not np.isfinite(rewards).all():
            raise FloatingPointError('a reward is not finite')
        return Paths(observations, actions, rewards, path_lengths)


def _needed(lengths, enough):
    """Tell which paths have begun while those before do not suffice: [tasks, paths] bool; lengths: as started.

    A running path counts with its length up to now, so a path that is not needed will never be needed: where a worker
    begins one, workers - 1 others are in progress, and those that ended have fewer than rollouts x horizon time steps,
    together fewer than `enough`, which is (rollouts + workers - 1) x horizon.
    """
    return (np.cumsum(lengths, axis=1) - lengths < enough) & (lengths > 0)


def _begun(lengths, workers, wanted):
    """Return how many paths the workers begin until those that ended have `wanted` time steps; lengths: as begun."""
    ends = sorted((length, worker, length) for worker, length in enumerate(lengths[:workers]))
    begun, count = workers, 0
    while True:
        time, worker, length = ends[0]
        count += length
        if count >= wanted:
            return begun
        heapq.heapreplace(ends, (time + lengths[begun], worker, lengths[begun]))
        begun += 1


def _lay_out(kept, source):
    """Lay source [n, steps, ...] out as [tasks, rows, ...]; kept: each task's paths as (simulation, time steps)."""
    tasks = [np.concatenate([source[path] for path in paths]) for paths in kept]
    result = np.zeros((len(tasks), max(map(len, tasks)), *source.shape[2:]), source.dtype)
    for rows, samples in zip(result, tasks):
        rows[: len(samples)] = samples
    return result
