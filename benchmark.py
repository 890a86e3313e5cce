"""Time the real training step of every experiment of the paper, beside the machine's matrix-multiply rate.

    python benchmark.py                                     all; two tables, seconds to minutes a row
    python benchmark.py --only=omniglot_5way_1shot          one
    python benchmark.py --out=mine.json                     keep the numbers
    python benchmark.py --compare=theirs.json               beside those of an earlier run

Each row runs in a process of its own, through the same functions as main.py, with real tasks where the data is
prepared and random images where it is not. "GEMM" is the rate of large matrix products, a product a core, measured
between the timed steps and with the same threads; all times are medians. "drawing" is what a batch of tasks costs,
"waiting" what the training step feels of it, both as shares of an iteration; "60,000" are the hours that so many
take. The limit of a meta-iteration of reinforcement learning is its time steps at the rate of bare physics and its
floating-point operations at that of GEMM. Nothing passes or fails.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import pathlib
import resource
import sys
import time

import experiments
import runtime
from main import read_flags

EXPERIMENTS = {
    'sinusoid': {'datasource': 'sinusoid'},
    **{
        f'omniglot_{n}way_{k}shot': {'datasource': 'omniglot', 'num_classes': n, 'update_batch_size': k}
        for n in (5, 20)
        for k in (1, 5)
    },
    **{
        f'omniglot_5way_{k}shot_noconv': {'datasource': 'omniglot', 'update_batch_size': k, 'conv': False}
        for k in (1, 5)
    },
    **{f'miniimagenet_5way_{k}shot': {'datasource': 'miniimagenet', 'update_batch_size': k} for k in (1, 5)},
}
RL = {name: {'datasource': name} for name in ('cheetah_vel', 'ant_vel')}  # the other goals cost the same


def dense_flops(*sizes):
    """Return the floating-point operations of fully connected layers of these sizes for one example."""
    return sum(2 * rows * columns for rows, columns in itertools.pairwise(sizes))


def forward_flops(network):
    """Return the floating-point operations of the network for one example; additions count apart."""
    if not hasattr(network, 'num_filters'):
        return dense_flops(network.dim_input, *network.dim_hidden, network.dim_output)
    size, channels, flops = network.img_size, network.channels, 0
    for _ in range(4):
        strided = -(-size // 2)
        flops += 2 * 9 * channels * network.num_filters * (size if network.max_pool else strided) ** 2
        size, channels = size // 2 if network.max_pool else strided, network.num_filters
    return flops + 2 * (size * size if network.flatten else 1) * channels * network.dim_output


def step_flops(config, network):
    """Return the FLOPs of a meta-iteration: a forward pass counts 1, its gradient 2, the gradient of both 6."""
    ways = network.dim_output
    support = config.num_updates * (3 if config.stop_grad else 9) * ways * config.update_batch_size
    return config.meta_batch_size * (support + 3 * ways * config.train_query) * forward_flops(network)


def gemm_timer(threads):
    """Return a function that measures GFLOP/s of float32 matrix products of size 1,024, one on each of the threads."""
    import tensorflow as tf

    matrices = tf.random.normal([2 * threads, 1024, 1024])

    @tf.function
    def multiply():
        return tf.map_fn(lambda m: tf.reduce_sum(tf.matmul(m, m)), matrices, parallel_iterations=threads)

    def measure():
        start = time.perf_counter()
        multiply().numpy()
        return len(matrices) * 2 * 1024**3 / (time.perf_counter() - start) / 1e9

    measure()
    return measure


def settings(flags):
    """Return the configuration that main.py has with these flags; None is unset."""
    return read_flags([f'--{name}={value}' for name, value in flags.items() if value is not None])[0]


def make_generator(config, source):
    """Return (task generator, whether its images are real)."""
    import numpy as np

    import training
    from data_generator import ImageGenerator

    folder = pathlib.Path(config.data_dir or pathlib.Path(__file__).parent / 'data' / source.folder)
    if not source.img_size or any(entry.is_dir() for entry in folder.glob('*')):
        return training.make_data(config, source)['train'], True
    classes = [range(30 * i, 30 * i + 30) for i in range(64)]
    images = np.random.default_rng(0).integers(0, 256, [30 * 64, source.dim_input], np.uint8)
    return ImageGenerator(
        images,
        classes,
        config.num_classes,
        config.update_batch_size,
        config.train_query,
        config.meta_batch_size,
        config.datasource == 'omniglot',
        config.seed,
    ), False


def measure(name, stop_grad, meta_batch_size, data_dir, seconds, threads, began):
    """Measure one row of the supervised table, a dictionary; began: when its process was asked for (time.time())."""
    threads = runtime.start(threads)
    import numpy as np

    import training
    from data_generator import prefetched

    flags = {'stop_grad': stop_grad, 'meta_batch_size': meta_batch_size, 'data_dir': data_dir}
    config = settings(EXPERIMENTS[name] | flags)
    source = experiments.SOURCES[config.datasource]
    generator, real = make_generator(config, source)
    model = training.make_model(config, source, threads)
    blocks = prefetched(generator.draw_block, 0)
    start = time.time()
    model.train_block(next(blocks), 0, source.block)
    first_step = time.time()
    gemm = gemm_timer(threads)
    times, waits, rates = [], [], [gemm() for _ in range(3)]
    while len(times) < 5 or (sum(times) < seconds and len(times) < 1000):
        before = time.perf_counter()
        block = next(blocks)
        drawn = time.perf_counter()
        model.train_block(block, 0, source.block)
        times.append(time.perf_counter() - before)
        waits.append(drawn - before)
        if sum(times) > len(rates) * seconds / 20:
            rates.append(gemm())
    if source.img_size:
        generator.images.max()  # a long run comes to read all of the file that is mapped
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    milliseconds = 1000 * np.array(times) / source.block
    draws = []
    for number in range(20):
        before = time.perf_counter()
        generator.draw_block(number)
        draws.append(time.perf_counter() - before)
    rate, flops, median = float(np.median(rates)), step_flops(config, model.network), float(np.median(milliseconds))
    return {
        'experiment': name,
        'first_order': stop_grad,
        'real_images': real,
        'threads': threads,
        'meta_batch_size': config.meta_batch_size,
        'ms': median,
        'ms_min': float(milliseconds.min()),
        'n': len(times),
        'gflop': flops / 1e9,
        'gflops': flops / median / 1e6,
        'gemm_gflops': rate,
        'step_over_gemm': median / (flops / rate / 1e6),
        'memory_gb': memory,
        'tracing_s': first_step - start,
        'first_step_s': first_step - began,
        'waiting': float(np.median(waits) / np.median(times)),
        'drawing': float(np.median(draws)) * 1000 / source.block / median,
        'hours_60000': median * 60000 / 3.6e6,
    }


def measure_rates(family, tasks=40, rollouts=20, steps=100, repeats=3, threads=2):
    """Measure the environment steps a second of a MuJoCo family in tasks x rollouts simulations, all in this call.

    Returns a dict, each rate the median of `repeats` in turn. `sampler`: samples kept by a whole `collect`, a
    fresh policy in the loop; `raw`: `mujoco.batch` stepping the same model `steps` times and nothing else;
    `sync_vector`: gymnasium's SyncVectorEnv given ready actions, steps / 4 times.
    """
    import gymnasium
    import numpy as np

    from rl.envs import FAMILIES
    from rl.policy import GaussianPolicy
    from rl.sampler import Sampler

    env, n, rng = FAMILIES[family].env, tasks * rollouts, np.random.default_rng(0)
    policy = GaussianPolicy(env.observation_size, env.action_size)
    weights = policy.init(seed=0)
    actions = np.clip(rng.standard_normal((steps, n, env.action_size), np.float32), -1, 1)
    sampler = Sampler(family, env.sample_tasks(rng, tasks), rollouts, threads=threads)
    world = env.world(n, threads)
    envs = gymnasium.make_vec(FAMILIES[family].id, num_envs=n, vectorization_mode='sync')

    def collect():
        return sampler.collect(lambda observations, noise: policy.act(weights, observations, noise)).valid.sum()

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
    """Measure the parts of a meta-iteration of these settings (one inner step) for a fresh policy: medians.

    Returns a dict: `seconds`, of it `sampling` (physics and policy), `gradient`, `conjugate_gradients` and
    `line_search` (with the loss before the step); `env_steps`; and `gflop`, as counted: 12 forward passes for a
    gradient through the inner step, 4 for a loss through it, 3 for the inner step, 2 for each sample.
    """
    import numpy as np

    from rl.maml_trpo import meta_iteration
    from rl.sampler import Sampler
    from rl.training import make_model, train_tasks

    model = make_model(config, threads)
    flops = dense_flops(model.policy.obs_dim, *model.policy.hidden_sizes, model.policy.act_dim)
    sampler = Sampler(
        config.datasource,
        train_tasks(config, 0),
        config.update_batch_size,
        threads=threads,
        workers=config.sampling_workers,
    )
    seconds, calls, rows = {}, {}, []

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
    for number in range(1 + repeats):  # the first compiles
        seconds.clear()
        calls.clear()
        sampler.restart(train_tasks(config, number), (config.seed, number))
        iteration = meta_iteration(model, sampler)
        model.theta = iteration.theta
        passes = 12 * (calls['gradient'] + calls['conjugate_gradients']) + 4 * calls['line_search'] + 3 + 2 * 2
        gflop = passes * iteration.env_steps / 2 * flops / 1e9  # half of the steps are of each of the two samplings
        rows.append({'seconds': iteration.seconds, **seconds, 'env_steps': iteration.env_steps, 'gflop': gflop})
    return {name: float(np.median([row[name] for row in rows[1:]])) for name in rows[-1]}


def measure_rl(name, threads):
    """Measure one row of the table of reinforcement learning as a dictionary."""
    threads = runtime.start(threads)
    import numpy as np

    gemm = gemm_timer(threads)
    rates = [gemm() for _ in range(10)]
    row = {'experiment': name, 'threads': threads, **measure_rates(name, threads=threads)}
    row.update(measure_iteration(settings(RL[name]), threads))
    rates += [gemm() for _ in range(10)]
    row['gemm_gflops'] = float(np.median(rates))
    row['limit_s'] = row['env_steps'] / row['raw'] + row['gflop'] / row['gemm_gflops']
    return {
        **row,
        'over_limit': row['seconds'] / row['limit_s'],
        'memory_gb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def in_a_process(function, *arguments):
    """Return function(*arguments), in a process of its own that has not loaded TensorFlow yet."""
    with runtime.ctrl_c_deferred():
        pool = multiprocessing.get_context('spawn').Pool(1)
    with pool:
        return pool.apply(function, arguments)


def supervised_rows(names, options, earlier):
    """Measure and print a row for each experiment and order of the gradient; return them."""
    print(
        f'{"":29s}{"ms":>9s}{"min":>9s}{"n":>5s}{"GFLOP/s":>9s}{"GEMM":>6s}{"step/GEMM":>10s}{"GB":>6s}'
        f'{"1st step":>9s}{"drawing":>8s}{"waiting":>8s}{"60,000":>8s}{"1st order":>10s}'
        + ('   earlier' if earlier else '')
    )
    rows = []
    for name, stop_grad in itertools.product(names, (False, True)):
        row = in_a_process(
            measure,
            name,
            stop_grad,
            options.meta_batch_size,
            options.data_dir,
            options.seconds,
            options.threads,
            time.time(),
        )
        row['over_second_order'] = row['ms'] / rows[-1]['ms'] if stop_grad else None
        rows.append(row)
        label = ('  first order' if stop_grad else name) + ('' if row['real_images'] else ' (random)')
        print(
            f'{label:29s}{row["ms"]:9.2f}{row["ms_min"]:9.2f}{row["n"]:5d}{row["gflops"]:9.1f}'
            f'{row["gemm_gflops"]:6.0f}{row["step_over_gemm"]:10.2f}{row["memory_gb"]:6.2f}'
            f'{row["first_step_s"]:7.1f} s{row["drawing"]:8.1%}{row["waiting"]:8.1%}{row["hours_60000"]:6.1f} h'
            + (f'{row["over_second_order"]:9.2f}x' if stop_grad else ' ' * 10)
            + (f'{earlier[name, stop_grad]["ms"]:10.2f}' if (name, stop_grad) in earlier else ''),
            flush=True,
        )
    return rows


def rl_rows(names, options, earlier):
    """Measure and print two lines for each family of tasks; return the rows."""
    rows = []
    for name in names:
        row = in_a_process(measure_rl, name, options.threads)
        rows.append(row)
        print(
            f'{name}: sampler {row["sampler"]:,.0f} time steps a second, {row["sampler"] / row["raw"]:.2f} x '
            f'mujoco.batch ({row["raw"]:,.0f}), {row["sampler"] / row["sync_vector"]:.1f} x SyncVectorEnv '
            f'({row["sync_vector"]:,.0f})'
        )
        print(
            f'  meta-iteration {row["seconds"]:.2f} s: sampling {row["sampling"]:.2f}, gradient '
            f'{row["gradient"]:.2f}, conjugate gradients {row["conjugate_gradients"]:.2f}, line search '
            f'{row["line_search"]:.2f}; limit {row["limit_s"]:.2f} s ({row["env_steps"]:,.0f} steps, '
            f'{row["gflop"]:,.0f} GFLOP at {row["gemm_gflops"]:.0f}/s), {row["over_limit"]:.2f} x; '
            f'{row["memory_gb"]:.2f} GB'
            + (f'; earlier {earlier[name, None]["seconds"]:.2f} s' if (name, None) in earlier else ''),
            flush=True,
        )
    return rows


def read_rows(path):
    """Return the rows of an earlier run by experiment and order of the gradient."""
    try:
        with open(path) as file:
            rows = json.load(file)['rows']
        return {
            (row['experiment'], row.get('first_order')): row
            for row in rows
            if row['ms' if 'first_order' in row else 'seconds']
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise runtime.UserError(f'{path} is no result of benchmark.py ({error!r}): give one that --out wrote') from None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=[*EXPERIMENTS, *RL], help='one experiment, by name')
    parser.add_argument('--seconds', type=float, default=10, help='how long to time each supervised row')
    parser.add_argument('--threads', type=int, help='cores to use; default: all')
    parser.add_argument('--meta_batch_size', type=int, help="tasks of a supervised step; default: the paper's")
    parser.add_argument('--data_dir', help='folder of the prepared images (with --only); default: in data/')
    parser.add_argument('--out', help='write the rows to this JSON file')
    parser.add_argument('--compare', help='JSON file of an earlier run to stand beside')
    with runtime.in_one_line():
        run(parser.parse_args())


def run(options):
    """Time what the options say; raises UserError for what the user can mend, before anything is timed."""
    earlier = read_rows(options.compare) if options.compare else {}
    if options.data_dir and not os.path.isdir(options.data_dir):
        raise runtime.UserError(f'--data_dir={options.data_dir} is no folder: name one, or drop it for random images')
    if options.out and not os.access(os.path.dirname(options.out) or '.', os.W_OK):
        raise runtime.UserError(f'--out={options.out} is in no folder that can be written to: name another')
    names = [options.only] if options.only else [*EXPERIMENTS, *RL]
    supervised, rl = ([name for name in names if name in table] for table in (EXPERIMENTS, RL))
    rows = supervised_rows(supervised, options, earlier) if supervised else []
    rows += rl_rows(rl, options, earlier)
    if options.out:
        with runtime.replacing(options.out) as file:
            json.dump({'cores': os.cpu_count(), 'python': sys.version.split()[0], 'rows': rows}, file, indent=1)


if __name__ == '__main__':
    main()
