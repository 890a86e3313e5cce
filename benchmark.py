"""Time the real training step of every supervised experiment of the paper, beside the machine's matrix-multiply rate.

    python benchmark.py                                     all; a table, seconds to minutes a row
    python benchmark.py --only=omniglot_5way_1shot          one
    python benchmark.py --out=mine.json                     keep the numbers
    python benchmark.py --compare=theirs.json               beside those of an earlier run

Each row runs in a process of its own, through the same functions as main.py, with real tasks where the data is
prepared and random images where it is not. "drawing" is what a batch of tasks costs, "waiting" what the training
step feels of it, both as shares of an iteration; "60,000" are the hours that so many take. Nothing passes or fails.
"""
import argparse
import json
import multiprocessing
import os
import pathlib
import resource
import sys
import time
import types

import experiments
import runtime

EXPERIMENTS = {
    'sinusoid': {'datasource': 'sinusoid'},
    **{f'omniglot_{n}way_{k}shot': {'datasource': 'omniglot', 'num_classes': n, 'update_batch_size': k}
       for n in (5, 20) for k in (1, 5)},
    **{f'omniglot_5way_{k}shot_noconv': {'datasource': 'omniglot', 'update_batch_size': k, 'conv': False}
       for k in (1, 5)},
    **{f'miniimagenet_5way_{k}shot': {'datasource': 'miniimagenet', 'update_batch_size': k} for k in (1, 5)},
}


def forward_flops(network):
    """Floating-point operations of the network for one example, multiplications and additions counted apart."""
    if not network.conv:
        sizes = [network.dim_input, *network.dim_hidden, network.dim_output]
        return sum(2 * rows * columns for rows, columns in zip(sizes, sizes[1:]))
    size, channels, flops = network.img_size, network.channels, 0
    for _ in range(4):
        strided = -(-size // 2)
        flops += 2 * 9 * channels * network.num_filters * (size if network.max_pool else strided) ** 2
        size, channels = size // 2 if network.max_pool else strided, network.num_filters
    return flops + 2 * (size * size if network.flatten else 1) * channels * network.dim_output


def step_flops(config, network):
    """FLOPs of a meta-iteration: a forward pass counts 1, its gradient 2, the gradient of both 6."""
    ways = network.dim_output
    support = config.num_updates * (3 if config.stop_grad else 9) * ways * config.update_batch_size
    return config.meta_batch_size * (support + 3 * ways * config.train_query) * forward_flops(network)


def gemm_rate(threads):
    """GFLOP/s of float32 matrix products of size 1,024, one on each of the program's threads."""
    import tensorflow as tf
    matrices = tf.random.normal([4 * threads, 1024, 1024])

    @tf.function
    def multiply():
        return tf.map_fn(lambda m: tf.reduce_sum(tf.matmul(m, m)), matrices, parallel_iterations=threads)

    multiply()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        multiply().numpy()
        seconds.append(time.perf_counter() - start)
    return len(matrices) * 2 * 1024 ** 3 / min(seconds) / 1e9


def settings(name, stop_grad, data_dir):
    """The configuration that main.py would have for an experiment."""
    unset = {flag: None for _, values, _ in experiments.PAPER for flag in values}
    given = {**unset, 'baseline': None, 'logdir': None, 'train_query': None, 'test_query': None, 'data_dir': data_dir,
             'train_update_batch_size': -1, 'train_update_lr': -1, 'seed': 1, 'train': True, 'test_set': False,
             'learn_update_lr': False, 'stop_grad': stop_grad, **EXPERIMENTS[name]}
    return types.SimpleNamespace(**experiments.resolve(given)[0])


def make_generator(config, source):
    """(task generator, whether its images are real)."""
    import numpy as np

    import training
    from data_generator import ImageGenerator
    folder = pathlib.Path(config.data_dir or pathlib.Path(__file__).parent / 'data' / source.folder)
    if not source.img_size or any(entry.is_dir() for entry in folder.glob('*')):
        return training.make_data(config, source)['train'], True
    classes = [range(30 * i, 30 * i + 30) for i in range(64)]
    images = np.random.default_rng(0).integers(0, 256, [30 * 64, source.dim_input], np.uint8)
    return ImageGenerator(images, classes, config.num_classes, config.update_batch_size, config.train_query,
                          config.meta_batch_size, config.datasource == 'omniglot', config.seed), False


def measure(name, stop_grad, seconds, threads, data_dir, began):
    """One row of the table as a dictionary; `began` is when the process was asked for (time.time())."""
    threads = runtime.start(threads)
    import numpy as np

    import training
    from data_generator import prefetched
    config = settings(name, stop_grad, data_dir)
    source = experiments.SOURCES[config.datasource]
    generator, real = make_generator(config, source)
    model = training.make_model(config, source, threads)
    blocks = iter(prefetched(generator.train_block, 0))
    start = time.time()
    model.train_block(next(blocks), 0, source.block)
    first_step = time.time()
    times, waits = [], []
    while len(times) < 5 or (sum(times) < seconds and len(times) < 1000):
        before = time.perf_counter()
        block = next(blocks)
        drawn = time.perf_counter()
        model.train_block(block, 0, source.block)
        times.append(time.perf_counter() - before)
        waits.append(drawn - before)
    milliseconds = 1000 * np.array(times) / source.block
    draws = []
    for number in range(20):
        before = time.perf_counter()
        generator.train_block(number)
        draws.append(time.perf_counter() - before)
    gemm, flops = gemm_rate(threads), step_flops(config, model.network)
    median = float(np.median(milliseconds))
    return {'experiment': name, 'first_order': stop_grad, 'real_images': real, 'threads': threads,
            'ms': median, 'ms_min': float(milliseconds.min()), 'n': len(times), 'gflop': flops / 1e9,
            'gflops': flops / median / 1e6, 'gemm_gflops': gemm, 'step_over_gemm': median / (flops / gemm / 1e6),
            'memory_gb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 'tracing_s': first_step - start,
            'first_step_s': first_step - began, 'waiting': sum(waits) / sum(times),
            'drawing': float(np.median(draws)) * 1000 / source.block / median,
            'hours_60000': median * 60000 / 3.6e6}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', choices=EXPERIMENTS, help='one experiment, by name')
    parser.add_argument('--seconds', type=float, default=10, help='how long to time each row')
    parser.add_argument('--threads', type=int, help='cores to use; default: all')
    parser.add_argument('--data_dir', help='folder of the prepared images (with --only); default: in data/')
    parser.add_argument('--out', help='write the rows to this JSON file')
    parser.add_argument('--compare', type=argparse.FileType(), help='JSON file of an earlier run to stand beside')
    options = parser.parse_args()
    earlier = {(row['experiment'], row['first_order']): row for row in json.load(options.compare)['rows']} \
        if options.compare else {}

    print(f'{"":29s}{"ms":>9s}{"min":>9s}{"n":>5s}{"GFLOP/s":>9s}{"GEMM":>6s}{"step/GEMM":>10s}{"GB":>6s}'
          f'{"1st step":>9s}{"drawing":>8s}{"waiting":>8s}{"60,000":>8s}{"1st order":>10s}'
          + ('   earlier' if earlier else ''))
    rows = []
    for name in [options.only] if options.only else EXPERIMENTS:
        for stop_grad in (False, True):
            with multiprocessing.get_context('spawn').Pool(1) as pool:
                row = pool.apply(measure, (name, stop_grad, options.seconds, options.threads, options.data_dir,
                                           time.time()))
            row['over_second_order'] = row['ms'] / rows[-1]['ms'] if stop_grad else None
            rows.append(row)
            label = ('  first order' if stop_grad else name) + ('' if row['real_images'] else ' (random)')
            print(f'{label:29s}{row["ms"]:9.2f}{row["ms_min"]:9.2f}{row["n"]:5d}{row["gflops"]:9.1f}'
                  f'{row["gemm_gflops"]:6.0f}{row["step_over_gemm"]:10.2f}{row["memory_gb"]:6.2f}'
                  f'{row["first_step_s"]:7.1f} s{row["drawing"]:8.1%}{row["waiting"]:8.1%}{row["hours_60000"]:6.1f} h'
                  + (f'{row["over_second_order"]:9.2f}x' if stop_grad else ' ' * 10)
                  + (f'{earlier[name, stop_grad]["ms"]:10.2f}' if (name, stop_grad) in earlier else ''), flush=True)
    if options.out:
        with open(options.out, 'w') as file:
            json.dump({'cores': os.cpu_count(), 'python': sys.version.split()[0], 'rows': rows}, file, indent=1)


if __name__ == '__main__':
    main()
