"""Time the real training step of every experiment of the paper, beside the machine's matrix-multiply rate.

    python benchmark.py                                     all; two tables, seconds to minutes a row
    python benchmark.py --only=omniglot_5way_1shot          one
    python benchmark.py --out=mine.json                     keep the numbers
    python benchmark.py --compare=theirs.json               beside those of an earlier run
    python benchmark.py --peers                             beside the same meta-iterations in PyTorch (peers.py)

Each row runs in a process of its own, through the same functions as main.py, with real tasks where the data is
prepared and random images where it is not. "GEMM" is the rate of large matrix products, a product a core, measured
between the timed steps and with the same threads; all times are medians. "drawing" is what a batch of tasks costs,
"waiting" what the training step feels of it, both as shares of an iteration; "60,000" are the hours that so many
take. The limit of a meta-iteration of reinforcement learning is its time steps at the rate of bare physics and its
floating-point operations at that of GEMM. Nothing passes or fails.
"""

import collections
import concurrent.futures
import importlib.util
import itertools
import json
import multiprocessing
import os
import resource
import signal
import statistics
import sys
import time

import runtime

with runtime.in_one_line():  # what must be installed
    import numpy as np

    import experiments
    from main import read_flags

EXPERIMENTS = {
    'sinusoid': dict(datasource='sinusoid'),
    'omniglot_5way_1shot': dict(datasource='omniglot', num_classes=5, update_batch_size=1),
    'omniglot_5way_5shot': dict(datasource='omniglot', num_classes=5, update_batch_size=5),
    'omniglot_20way_1shot': dict(datasource='omniglot', num_classes=20, update_batch_size=1),
    'omniglot_20way_5shot': dict(datasource='omniglot', num_classes=20, update_batch_size=5),
    'omniglot_5way_1shot_noconv': dict(datasource='omniglot', update_batch_size=1, conv=False),
    'omniglot_5way_5shot_noconv': dict(datasource='omniglot', update_batch_size=5, conv=False),
    'miniimagenet_5way_1shot': dict(datasource='miniimagenet', update_batch_size=1),
    'miniimagenet_5way_5shot': dict(datasource='miniimagenet', update_batch_size=5),
}
RL = ('cheetah_vel', 'ant_vel')  # the other goals cost the same


def dense_flops(*sizes):
    """Return the floating-point operations of fully connected layers of these sizes for one example."""
    return sum(2 * rows * columns for rows, columns in itertools.pairwise(sizes))


def forward_flops(network):
    """Return the floating-point operations of the network for one example; additions count apart."""
    if not hasattr(network, 'num_filters'):
        return dense_flops(network.dim_input, *network.dim_hidden, network.dim_output)
    size, channels, flops = network.img_size, network.channels, 0
    for _ in range(network.blocks):
        strided = -(-size // 2)
        flops += 2 * 9 * channels * network.num_filters * (size if network.max_pool else strided) ** 2
        size, channels = size // 2 if network.max_pool else strided, network.num_filters
    return flops + dense_flops((size * size if network.flatten else 1) * channels, network.dim_output)


def step_flops(config, network):
    """Return the FLOPs of a meta-iteration: a forward pass counts 1, its gradient 2, the gradient of both 6."""
    ways = network.dim_output
    support = config.num_updates * (3 if config.stop_grad else 9) * ways * config.update_batch_size
    return config.meta_batch_size * (support + 3 * ways * config.train_query) * forward_flops(network)


def timed(function, *arguments):
    """Return what function(*arguments) returns, and the seconds that it took."""
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def memory_gb():
    """Return the most memory that this process has had so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def gemm_timer(threads):
    """Return a function that measures GFLOP/s of float32 matrix products of size 1,024, one on each of the threads."""
    import tensorflow as tf

    matrices = tf.random.normal([2 * threads, 1024, 1024])

    @tf.function
    def multiply():
        return tf.map_fn(lambda m: tf.reduce_sum(tf.matmul(m, m)), matrices, parallel_iterations=threads)

    def measure():
        return len(matrices) * 2 * 1024**3 / timed(lambda: multiply().numpy())[1] / 1e9

    measure()
    return measure


def settings(flags):
    """Return the configuration that main.py has with these flags; None is unset."""
    return read_flags([f'--{name}={value}' for name, value in flags.items() if value is not None])[0]


def make_generator(config, source):
    """Return (task generator, whether its images are real)."""
    import training
    from data_generator import ImageGenerator
    from images import folder_of

    folder = folder_of(config, source)
    if not source.img_size or any(entry.is_dir() for entry in folder.glob('*')):
        return training.make_data(config, source)['train'], True
    images = np.random.default_rng(0).integers(0, 256, [64 * 30, source.dim_input], np.uint8)
    classes = np.arange(64 * 30).reshape(64, 30)
    sizes = config.num_classes, config.update_batch_size, config.train_query, config.meta_batch_size
    return ImageGenerator(images, classes, *sizes, source.drawings, config.seed), False


def measure(name, stop_grad, options, began):
    """Measure one row of the supervised table, a dictionary; began: when its process was asked for (time.time())."""
    threads = runtime.start(options.threads)
    import training
    from data_generator import prefetched

    given = {'stop_grad': stop_grad, 'meta_batch_size': options.meta_batch_size, 'data_dir': options.data_dir}
    config = settings(EXPERIMENTS[name] | given | {'precision': options.precision})
    source = experiments.SOURCES[config.datasource]
    generator, real = make_generator(config, source)
    model = training.make_model(config, source, threads)
    blocks = prefetched(generator.draw_block, 0)
    _, tracing = timed(lambda: model.train_block(next(blocks), 0, source.block))
    first_step = time.time() - began
    gemm = gemm_timer(threads)
    times, waits, rates = [], [], [gemm() for _ in range(3)]
    while len(times) < 5 or (sum(times) < options.seconds and len(times) < 1000):
        block, waited = timed(next, blocks)
        times.append(waited + timed(model.train_block, block, 0, source.block)[1])
        waits.append(waited)
        if sum(times) > len(rates) * options.seconds / 20:
            rates.append(gemm())
    if source.img_size:
        generator.images.max()  # a long run comes to read all of the file that is mapped
    memory = memory_gb()
    draws = [timed(generator.draw_block, number)[1] for number in range(20)]
    peers = in_turns(model, generator.draw_block(0), threads, options.seconds) if options.peers else {}
    rate, flops, seconds = statistics.median(rates), step_flops(config, model.network), statistics.median(times)
    ms = 1000 * seconds / source.block
    return {
        'experiment': name,
        'first_order': stop_grad,
        'real_images': real,
        'threads': threads,
        'precision': options.precision,
        'meta_batch_size': config.meta_batch_size,
        'ms': ms,
        'ms_min': 1000 * min(times) / source.block,
        'n': len(times),
        'gflop': flops / 1e9,
        'gflops': flops / ms / 1e6,
        'gemm_gflops': rate,
        'step_over_gemm': ms / (flops / rate / 1e6),
        'memory_gb': memory,
        'tracing_s': tracing,
        'first_step_s': first_step,
        'waiting': statistics.median(waits) / seconds,
        'drawing': statistics.median(draws) / seconds,
        'hours_60000': ms * 60000 / 3.6e6,
        **peers,
    }


def in_turns(model, block, threads, seconds):
    """Time our meta-iteration and those of the PyTorch peers by turns, three times or more: for so many seconds in all.

    Returns the medians over turns of the peers' milliseconds, and of their ratios to ours.
    """
    from peers import Peer

    tasks, iterations = [part[0] for part in block], len(block[0])
    ways = {way: Peer(model, way, threads) for way in ('loop', 'vmap')}
    for peer in ways.values():
        peer.step(tasks)
    turns = []
    while len(turns) < 3 or sum(map(sum, turns)) < 1000 * seconds:
        turn = [timed(model.train_block, block, 0, iterations)[1] / iterations]
        turn += [timed(peer.step, tasks)[1] for peer in ways.values()]
        turns.append([1000 * duration for duration in turn])
    ratios = [[theirs / ours for theirs in others] for ours, *others in turns]
    return {
        **{f'{way}_ms': statistics.median(turn[1 + k] for turn in turns) for k, way in enumerate(ways)},
        **{f'{way}_over_ours': statistics.median(ratio[k] for ratio in ratios) for k, way in enumerate(ways)},
    }


def measure_rates(family, tasks=40, rollouts=20, steps=100, threads=2):
    """Measure the environment steps a second of a MuJoCo family in tasks x rollouts simulations, all in this call.

    Returns a dict, each rate the median of three in turn. `sampler`: samples kept by a whole `collect`, a
    fresh policy in the loop; `raw`: `mujoco.batch` stepping the same model `steps` times and nothing else;
    `sync_vector`: gymnasium's SyncVectorEnv given ready actions, steps / 4 times.
    """
    import gymnasium

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

    rates = []
    for _ in range(3):
        world.reset(np.arange(n), rng)
        envs.reset(seed=0)
        rates.append([count / seconds for count, seconds in map(timed, (collect, step_raw, step_sync_vector))])
    envs.close()
    return dict(zip(('sampler', 'raw', 'sync_vector'), np.median(rates, axis=0).tolist()))


def measure_iteration(config, threads, repeats=3):
    """Measure the parts of a meta-iteration of these settings (one inner step) for a fresh policy: medians.

    Returns a dict: `seconds`, of it `sampling` (physics and policy), `gradient`, `conjugate_gradients` and
    `line_search` (with the loss before the step); `env_steps`; and `gflop`, as counted: 12 forward passes for a
    gradient through the inner step, two of them or 16 passes for a product with the KL's Hessian, 4 for a loss through
    the inner step, 3 for that, 2 for each sample.
    """
    from rl.maml_trpo import meta_iteration
    from rl.training import make_model, make_sampler, train_tasks

    model, sampler = make_model(config, threads), make_sampler(config, threads)
    flops = dense_flops(model.policy.obs_dim, *model.policy.hidden_sizes, model.policy.act_dim)
    spent, rows = collections.defaultdict(list), []  # seconds of each call of a part

    def clocked(function, part):
        def run(*arguments):
            result, seconds = timed(function, *arguments)
            spent[part].append(seconds)
            return result

        return run

    model.loss_gradient = clocked(model.loss_gradient, 'gradient')
    kl_hessian = model.kl_hessian
    model.kl_hessian = lambda *at: clocked(clocked(kl_hessian, 'kept')(*at), 'conjugate_gradients')
    model.loss_and_kl = clocked(model.loss_and_kl, 'line_search')
    sampler.collect = clocked(sampler.collect, 'sampling')
    for number in range(1 + repeats):  # the first compiles
        spent.clear()
        sampler.restart(train_tasks(config, number), (config.seed, number))
        iteration = meta_iteration(model, sampler)
        model.theta = iteration.theta
        passes = 12 + (16 if config.hvp == 'exact' else 24) * len(spent['conjugate_gradients'])
        passes += 4 * len(spent['line_search']) + 3 + 2 * 2
        spent['conjugate_gradients'] += spent.pop('kept')
        seconds = {part: sum(calls) for part, calls in spent.items()}
        gflop = passes * iteration.env_steps / 2 * flops / 1e9  # half of the time steps are of each of two samplings
        rows.append({'seconds': iteration.seconds, **seconds, 'env_steps': iteration.env_steps, 'gflop': gflop})
    return {name: float(np.median([row[name] for row in rows[1:]])) for name in rows[-1]}


def measure_rl(name, options):
    """Measure one row of the table of reinforcement learning as a dictionary."""
    threads = runtime.start(options.threads)
    gemm = gemm_timer(threads)
    rates = [gemm() for _ in range(10)]
    row = {'experiment': name, 'threads': threads, **measure_rates(name, threads=threads)}
    row |= measure_iteration(settings({'datasource': name}), threads)
    row['memory_gb'] = memory_gb()
    exact = measure_iteration(settings({'datasource': name, 'hvp': 'exact'}), threads)
    row |= {f'exact_{part}': exact[part] for part in ('seconds', 'conjugate_gradients')}
    row['exact_memory_gb'] = memory_gb()
    row['gemm_gflops'] = statistics.median(rates + [gemm() for _ in range(10)])
    row['limit_s'] = row['env_steps'] / row['raw'] + row['gflop'] / row['gemm_gflops']
    return {**row, 'over_limit': row['seconds'] / row['limit_s']}


def in_a_process(function, *arguments):
    """Return function(*arguments), in a process of its own that has not loaded TensorFlow yet; UserError if it dies."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        with runtime.ctrl_c_deferred():
            process = pool.submit(os.getpid).result()
        try:
            return pool.submit(function, *arguments).result()
        except concurrent.futures.process.BrokenProcessPool:
            message = 'the process that timed a row was killed, perhaps for want of memory: choose others by --only'
            raise runtime.UserError(message) from None
        except KeyboardInterrupt:
            os.kill(process, signal.SIGTERM)
            raise


def supervised_line(row, earlier):
    """Return a row of the supervised table; earlier: the milliseconds of an earlier run, None where there are none."""
    label = ('  first order' if row['first_order'] else row['experiment']) + ('' if row['real_images'] else ' (random)')
    line = (
        '{label:29s}{ms:9.2f}{ms_min:9.2f}{n:5d}{gflops:9.1f}{gemm_gflops:6.0f}{step_over_gemm:10.2f}{memory_gb:6.2f}'
        '{first_step_s:7.1f} s{drawing:8.1%}{waiting:8.1%}{hours_60000:6.1f} h'
    ).format(label=label, **row)
    line += f'{row["over_second_order"]:9.2f}x' if row['first_order'] else ' ' * 10
    if 'loop_ms' in row:
        line += '{loop_ms:11.1f} {loop_over_ours:6.2f}x{vmap_ms:11.1f} {vmap_over_ours:6.2f}x'.format(**row)
    return line + (f'{earlier:10.2f}' if earlier else '')


def rl_lines(row, earlier):
    """Return the three lines of a family of tasks; earlier: the seconds of an iteration of an earlier run, or None."""
    lines = (
        '{experiment}: sampler {sampler:,.0f} time steps a second, {over_raw:.2f} x mujoco.batch ({raw:,.0f}), '
        '{over_sync_vector:.1f} x SyncVectorEnv ({sync_vector:,.0f})\n'
        '  meta-iteration {seconds:.2f} s: sampling {sampling:.2f}, gradient {gradient:.2f}, conjugate gradients '
        '{conjugate_gradients:.2f}, line search {line_search:.2f}; limit {limit_s:.2f} s ({env_steps:,.0f} steps, '
        '{gflop:,.0f} GFLOP at {gemm_gflops:.0f}/s), {over_limit:.2f} x; {memory_gb:.2f} GB\n'
        '  with --hvp=exact {exact_seconds:.2f} s: conjugate gradients {exact_conjugate_gradients:.2f}; '
        '{exact_memory_gb:.2f} GB'
    ).format(over_raw=row['sampler'] / row['raw'], over_sync_vector=row['sampler'] / row['sync_vector'], **row)
    return lines + (f'; the first, earlier: {earlier:.2f} s' if earlier else '')


def read_times(path):
    """Return the milliseconds (reinforcement learning: seconds) of an earlier run by experiment and first order."""
    try:
        with open(path) as file:
            return {
                (row['experiment'], row.get('first_order')): row['ms' if 'first_order' in row else 'seconds']
                for row in json.load(file)['rows']
            }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise runtime.UserError(f'{path} is no result of benchmark.py ({error!r}): give one that --out wrote') from None


def main():
    parser = runtime.CommandLine(__doc__)
    parser.add_argument('--only', choices=[*EXPERIMENTS, *RL], help='one experiment, by name')
    parser.add_argument('--seconds', type=float, default=10, help='how long to time each supervised row')
    parser.add_argument('--threads', type=int, help='cores to use; default: all')
    parser.add_argument('--meta_batch_size', type=int, help="tasks of a supervised step; default: the paper's")
    parser.add_argument('--data_dir', help='folder of the prepared images (with --only); default: in data/')
    parser.add_argument('--precision', choices=['float32', 'mixed'], default='float32', help='as of main.py')
    parser.add_argument('--peers', action='store_true', help='time PyTorch too; supervised rows')
    parser.add_argument('--out', help='write the rows to this JSON file')
    parser.add_argument('--compare', help='JSON file of an earlier run to stand beside')
    with runtime.in_one_line():
        run(parser.parse_args())


def run(options):
    """Time what the options say; raises UserError for what the user can mend, before anything is timed."""
    earlier = read_times(options.compare) if options.compare else {}
    options.data_dir = options.data_dir and os.path.expanduser(options.data_dir)
    if options.data_dir and not os.path.isdir(options.data_dir):
        raise runtime.UserError(f'--data_dir={options.data_dir} is no folder: name one, or drop it for random images')
    for name in ('peers', 'meta_batch_size', 'data_dir'):
        if getattr(options, name) and options.only in RL:
            raise runtime.UserError(f'--{name} is for supervised learning, and --only={options.only} is not: drop one')
    images = {name: flags for name, flags in EXPERIMENTS.items() if experiments.SOURCES[flags['datasource']].img_size}
    mixed = [name for name, flags in images.items() if flags.get('conv', True)]
    if options.precision == 'mixed' and (options.peers or options.only not in [None, *mixed]):
        drop = '--peers' if options.peers else '--only'
        raise runtime.UserError(f'--precision=mixed is for rows of {", ".join(mixed)}, without peers: drop {drop}')
    if options.peers and not importlib.util.find_spec('torch'):
        raise runtime.UserError('--peers needs PyTorch: python -m pip install torch')
    if options.threads is not None and not 1 <= options.threads <= 1024:
        raise runtime.UserError(f'--threads={options.threads} makes no sense: give 1 to 1024')
    if options.out and os.path.isdir(options.out):
        raise runtime.UserError(f'--out={options.out} is a folder: name a file')
    if options.out and not os.access(os.path.dirname(options.out) or '.', os.W_OK):
        raise runtime.UserError(f'--out={options.out} is in no folder that can be written to: name another')
    every = mixed if options.precision == 'mixed' else [*EXPERIMENTS, *RL]
    names, rows = [options.only] if options.only else every, []
    if names[0] in EXPERIMENTS:
        header = 'ms      min    n  GFLOP/s  GEMM step/GEMM    GB 1st step drawing waiting  60,000 1st order'
        peers = '  PyTorch loop    ours   vmap        ours' if options.peers else ''
        print(' ' * 36 + header + peers + ('   earlier' if earlier else ''))
    for name in names:
        for first_order in [None] if name in RL else [False, True]:
            began, before = time.time(), earlier.get((name, first_order))
            if name in RL:
                row = in_a_process(measure_rl, name, options)
            else:
                row = in_a_process(measure, name, first_order, options, began)
                row['over_second_order'] = row['ms'] / rows[-1]['ms'] if first_order else None
            rows.append(row)
            print(rl_lines(row, before) if name in RL else supervised_line(row, before), flush=True)
    if options.out:
        with runtime.replacing(options.out) as file:
            json.dump({'cores': os.cpu_count(), 'python': sys.version.split()[0], 'rows': rows}, file, indent=1)


if __name__ == '__main__':
    main()
