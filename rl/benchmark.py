"""Times the parts of a meta-iteration for benchmark.py: the sampler beside bare physics, the outer step beside GEMM."""

import time
from itertools import pairwise

import gymnasium
import numpy as np

from rl import training
from rl.envs import FAMILIES
from rl.maml_trpo import meta_iteration
from rl.sampler import Sampler


def measure_rates(family, tasks=40, rollouts=20, steps=100, repeats=3, threads=2):
    """Environment steps a second of a MuJoCo family in tasks x rollouts simulations, all in this call.

    Returns a dict, each rate the median of `repeats` in turn. `sampler`: samples kept by a whole `collect`, a
    100-100 ReLU Gaussian policy in numpy in the loop; `raw`: `mujoco.batch` stepping the same model `steps`
    times and nothing else; `sync_vector`: gymnasium's SyncVectorEnv given ready actions, steps / 4 times.
    """
    env, n, rng = FAMILIES[family].env, tasks * rollouts, np.random.default_rng(0)
    sizes = (env.observation_size, 100, 100, env.action_size)
    weights = [(rng.uniform(-1, 1, pair) * np.sqrt(6 / sum(pair))).astype(np.float32) for pair in pairwise(sizes)]
    actions = np.clip(rng.standard_normal((steps, n, env.action_size), np.float32), -1, 1)
    sampler = Sampler(family, env.sample_tasks(rng, tasks), rollouts, threads=threads)
    world = env.world(n, threads)
    envs = gymnasium.make_vec(FAMILIES[family].id, num_envs=n, vectorization_mode='sync')

    def act(observations, noise):
        hidden = observations
        for weight in weights[:-1]:
            hidden = np.maximum(hidden @ weight, 0)
        return hidden @ weights[-1] + noise

    def collect():
        return sampler.collect(act).valid.sum()

    def step_raw():
        for action in actions:
            world.batch.ctrl[:] = action
            world.batch.step()
        return steps * n

    def step_sync_vector():
        for action in actions[::4]:
            envs.step(action)
        return len(actions[::4]) * n

    rates = {'sampler': [], 'raw': [], 'sync_vector': []}
    for _ in range(repeats):
        world.reset(np.arange(n), rng)
        envs.reset(seed=0)
        for name, run in zip(rates, (collect, step_raw, step_sync_vector)):
            start = time.perf_counter()
            count = run()
            rates[name].append(float(count / (time.perf_counter() - start)))
    envs.close()
    return {name: float(np.median(values)) for name, values in rates.items()}


def measure_iteration(config, threads, repeats=3):
    """The parts of a meta-iteration of these settings (one inner step), for a fresh policy: medians of `repeats`.

    Returns a dict: `seconds`, of it `sampling` (physics and policy), `gradient`, `conjugate_gradients` and
    `line_search` (with the loss before the step); `env_steps`; and `gflop`, as counted: 12 forward passes for a
    gradient through the inner step, 4 for a loss through it, 3 for the inner step, 2 for each sample.
    """
    model, env = training.make_model(config, threads), FAMILIES[config.datasource].env
    tasks = np.zeros((config.meta_batch_size, *env.task_shape))
    sampler = Sampler(config.datasource, tasks, config.update_batch_size, threads=threads)
    seconds, calls = {}, {}

    def timed(function, part):
        def run(*arguments):
            start = time.perf_counter()
            result = function(*arguments)
            seconds[part] = seconds.get(part, 0) + time.perf_counter() - start
            calls[part] = calls.get(part, 0) + 1
            return result

        return run

    model.loss_gradient = timed(model.loss_gradient, 'gradient')
    model.kl_gradient = timed(model.kl_gradient, 'conjugate_gradients')
    model.loss_and_kl = timed(model.loss_and_kl, 'line_search')
    sampler.collect = timed(sampler.collect, 'sampling')
    rows = []
    for number in range(1 + repeats):  # the first compiles
        seconds.clear()
        calls.clear()
        sampler.restart(training.train_tasks(config, number), (config.seed, number))
        start = time.perf_counter()
        iteration = meta_iteration(model, sampler)
        model.theta = iteration.theta
        seconds['seconds'] = time.perf_counter() - start
        passes = 12 * (calls['gradient'] + calls['conjugate_gradients']) + 4 * calls['line_search'] + 3 + 2 * 2
        rows_each = iteration.env_steps / 2  # of the two samplings
        gflop = passes * rows_each * forward_flops(model.policy) / 1e9
        rows.append({**seconds, 'env_steps': iteration.env_steps, 'gflop': gflop})
    return {name: float(np.median([row[name] for row in rows[1:]])) for name in rows[-1]}


def forward_flops(policy):
    """Floating-point operations of the policy's network for one observation."""
    sizes = policy.obs_dim, *policy.hidden_sizes, policy.act_dim
    return sum(2 * rows * columns for rows, columns in pairwise(sizes))
