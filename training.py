"""Meta-training and testing of the supervised experiments: the original's train() and test() (main.py:73-201).

Batches come from data_generator.py, steps from maml.py; here is when to log, save, validate and stop.
"""

import csv
import itertools
import json
import math
import os
import pathlib
import re
import signal
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import checkpoint
import distribute
from data_generator import SinusoidGenerator, image_generators, prefetched
from experiments import SOURCES, run_name
from maml import MAML, Network
from runtime import UserError

SUMMARY_INTERVAL = 100
DIVERGED = 100.0  # a squared error that no prediction within a sinusoid's range can have
TEST_PRINT_INTERVAL = 500  # between two looks at the validation set (images only)
# Settings that may differ between the parts of one run, or between training and testing.
FREE = {
    'data_dir',
    'init_from',
    'log',
    'logdir',
    'resume',
    'save_interval',
    'train',
    'test_iter',
    'test_set',
    'num_test_tasks',
    'test_num_updates',
    'test_query',
    'test_update_batch_size',
    'test_update_lr',
    'test_seed',
    'video',
    'threads',
    'distribute',
    'pretrain_iterations',
    'metatrain_iterations',
}


def run(config, origins, threads):
    """Train (unless --train=False), then test; raises UserError for what the user can mend."""
    source = SOURCES[config.datasource]
    strategy = distribute.make_strategy(config.distribute, config.meta_batch_size)
    chief = distribute.is_chief(strategy)
    folder = os.path.join(config.logdir, run_name(config))
    print_settings(config, origins)
    data = make_data(config, source)
    with strategy.scope():
        model = make_model(config, source, threads)
    if config.train:
        iteration = train(config, origins, model, data, folder, source, strategy)
        if not chief:
            return
        from_path = os.path.join(folder, f'model{iteration}.npz')
    else:
        from_path = load_for_test(config, model, folder)
    test(config, model, data['test'], folder, from_path)


def print_settings(config, origins):
    """All settings, a line each, with the source of those that the user left unset."""
    for name, value in sorted(vars(config).items()):
        print(f'  {name}={value}' + (f'   ({origins[name]})' if name in origins else ''))


def make_data(config, source):
    """Generators by use: 'train', 'val' (while training) and 'test'; the last is the split that --test_set says."""
    if not source.img_size:
        common = dict(
            meta_batch_size=config.meta_batch_size,
            oracle=config.baseline == 'oracle',
            block=source.block,
            seed=config.seed,
        )
        return {
            'train': SinusoidGenerator(config.train_update_batch_size, query=config.train_query, **common),
            'test': SinusoidGenerator(config.update_batch_size, query=config.test_query, **common),
        }
    data_dir = config.data_dir or pathlib.Path(__file__).parent / 'data' / source.folder
    test_split = 'test' if config.test_set else 'val'
    splits = dict.fromkeys(['train', 'val', test_split] if config.train else [test_split])
    query = {'train': config.train_query, 'val': config.test_query, 'test': config.test_query}
    generators = image_generators(
        config.datasource,
        source,
        data_dir,
        splits,
        config.num_classes,
        config.update_batch_size,
        query,
        config.meta_batch_size,
        config.seed,
        optional=['val'] if config.test_set else [],  # else it is what the test uses
    )
    return {**generators, 'test': generators[test_split]}


def make_model(config, source, threads):
    """The MAML model of these settings, with fresh weights."""
    image = source.img_size > 0
    network = Network(
        dim_input=source.dim_input + (2 if config.baseline == 'oracle' else 0),
        dim_output=config.num_classes if image else 1,
        dim_hidden=source.dim_hidden,
        conv=image and config.conv,
        img_size=source.img_size,
        channels=source.channels,
        num_filters=config.num_filters,
        max_pool=config.max_pool,
        flatten=source.flatten,
        norm=config.norm,
    )
    return MAML(
        network,
        classification=image,
        update_batch_size=config.update_batch_size,
        update_lr=config.update_lr,
        num_updates=config.num_updates,
        stop_grad=config.stop_grad,
        learn_update_lr=config.learn_update_lr,
        meta_lr=config.meta_lr,
        clip=source.clip,
        vectorize=not image,
        parallel_tasks=threads,
        seed=config.seed,
    )


# ---- Training --------------------------------------------------------------------------------------------------


def train(config, origins, model, data, folder, source, strategy):
    """Train to the last iteration, or until stopped; returns the number of iterations done.

    Progress goes to the terminal, the scalars to TensorBoard under the original's names, checkpoints to `folder`.
    """
    total = config.pretrain_iterations + config.metatrain_iterations
    chief = distribute.is_chief(strategy)
    iteration = prepare_folder(config, origins, model, folder) if chief else 0
    iteration = distribute.share_state(strategy, checkpoint.variables(model).values(), iteration)
    train_block = distribute.block_trainer(strategy, model)
    writer = tf.summary.create_file_writer(folder) if chief and config.log else tf.summary.create_noop_writer()
    labels = ['loss', 'accuracy'] if model.classification else ['loss']
    recent, saved, start = [], iteration, time.time()
    progress = tqdm(total=total, initial=iteration, disable=None if chief else True, dynamic_ncols=True)
    with writer.as_default(), StopOnSignal() as stop:
        for block, begin, last, pretrain in pieces(config, source, data['train'], iteration, total):
            metrics = train_block(block, iteration - begin, last - begin, pretrain)
            for step, row in enumerate(metrics, start=iteration):
                check_finite(row, step, folder)
                recent.append(row)
                if step % SUMMARY_INTERVAL == 0:
                    write_summaries('metatrain', labels, row, config.num_updates, step)
            progress.update(last - iteration)
            iteration = last
            if chief and iteration % source.print_interval == 0:
                # The original prints accuracies where there are any, else losses (main.py:114-128).
                before, after = np.mean(recent, axis=0)[-2:]
                count = iteration if pretrain else iteration - config.pretrain_iterations
                tqdm.write(f'{"Pretrain Iteration" if pretrain else "Iteration"} {count}: {before}, {after}')
                progress.set_postfix_str(f'{labels[-1]} {before:.3f} -> {after:.3f}')
                recent = []
            if chief and 'val' in data and iteration % TEST_PRINT_INTERVAL == 0:
                results = model.evaluate(data['val'].validation_tasks(iteration), config.num_updates)
                before, after = results.numpy().mean(axis=0)[[0, -1]]
                tqdm.write(f'Validation results: {before}, {after}')
                write_summaries('metaval', labels[-1:], [before, after], config.num_updates, iteration)
            if chief and iteration % config.save_interval == 0:
                saved = save(folder, model, iteration, config.seed)
                writer.flush()
            if stop.requested:
                break
        progress.close()
        if chief and (saved != iteration or not checkpoint.find(folder)):
            save(folder, model, iteration, config.seed)
    print(f'{iteration} of {total} iterations done, {time.time() - start:.1f} s in this part; checkpoints: {folder}')
    if stop.requested:
        print('stopped: the same command goes on from here')
        raise SystemExit(130)
    return iteration


def pieces(config, source, generator, iteration, total):
    """What is trained in one compiled call each: (block of batches, number of its first, last + 1, pretrain or not).

    A piece ends with its block, where a checkpoint is due, or where pretraining ends.
    """
    numbers = itertools.count(iteration // source.block)
    blocks = prefetched(generator.train_block, iteration // source.block) if iteration < total else ()
    for number, block in zip(numbers, blocks):
        begin = number * source.block
        while iteration < min(begin + source.block, total):
            pretrain = iteration < config.pretrain_iterations
            last = min(
                begin + source.block,
                total,
                (iteration // config.save_interval + 1) * config.save_interval,
                config.pretrain_iterations if pretrain else total,
            )
            yield block, begin, last, pretrain
            iteration = last
        if iteration >= total:
            return


def save(folder, model, iteration, seed):
    """Save a checkpoint, unless the weights have become useless; returns the iteration."""
    for name, weight in model.weights.items():
        if not np.all(np.isfinite(weight)):
            raise UserError(
                f'{name} is not finite after iteration {iteration}: training stopped, the last good '
                f'checkpoint in {folder} is kept; try a smaller --update_lr or --meta_lr'
            )
    checkpoint.save(folder, model, iteration, seed)
    return iteration


def check_finite(metrics, iteration, folder):
    """Stop the run, with the iteration named, when a loss is NaN or infinite."""
    if not np.all(np.isfinite(metrics)):
        raise UserError(
            f'the loss is not finite at iteration {iteration}: training stopped, the last good checkpoint '
            f'in {folder} is kept; try a smaller --update_lr or --meta_lr'
        )


def write_summaries(prefix, labels, values, num_updates, step):
    """TensorBoard scalars under the original's names, as TF1 wrote them (maml.py:157-165)."""
    for label, (before, after) in zip(labels, np.reshape(values, [-1, 2])):
        tf.summary.scalar(f'{prefix}_Pre-update_{label}', before, step)
        tf.summary.scalar(f'{prefix}_Post-update_{label}__step_{num_updates}', after, step)


def prepare_folder(config, origins, model, folder):
    """Make or take up the run's folder and bring the model to its starting point; returns the iteration."""
    settings = os.path.join(folder, 'config.json')
    if not config.resume and checkpoint.find(folder):
        aside = next(f'{folder}.{n}' for n in itertools.count(1) if not os.path.exists(f'{folder}.{n}'))
        os.rename(folder, aside)
        print(f'--resume=False: the run that was in {folder} is now in {aside}')
    os.makedirs(folder, exist_ok=True)
    path = None
    if checkpoint.find(folder):
        check_same_run(config, settings)
        path, iteration = checkpoint.restore_latest(folder, model)
        print(f'Restoring model weights from {path}: {iteration} iterations are done')
    elif config.init_from:
        checkpoint.restore_weights(config.init_from, model)
        print(f'Starting from the weights of {config.init_from}')
    with open(settings + '.tmp', 'w') as file:
        json.dump({'settings': vars(config), 'from_the_paper': origins}, file, indent=1)
    os.replace(settings + '.tmp', settings)
    return iteration if path else 0


def check_same_run(config, path):
    """Refuse to go on with a run whose settings were others."""
    try:
        with open(path) as file:
            before = json.load(file)['settings']
    except (OSError, ValueError, KeyError):
        return
    for name, value in before.items():
        if name not in FREE and value != getattr(config, name, value):
            raise UserError(
                f'the run in {os.path.dirname(path)} was made with --{name}={value}, not '
                f'{getattr(config, name)}: use that, another --logdir, or --resume=False to start anew'
            )


class StopOnSignal:
    """Turns the first Ctrl-C (or SIGTERM) into `requested`, so that the loop can save; a second one ends at once."""

    def __enter__(self):
        self.requested = False
        self.before = {number: signal.signal(number, self.request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def request(self, *_):
        self.requested = True
        self.__exit__()

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


# ---- Testing ---------------------------------------------------------------------------------------------------


def load_for_test(config, model, folder):
    """Bring the model to the checkpoint to test; returns its path."""
    if config.init_from:
        checkpoint.restore_weights(config.init_from, model)
        return config.init_from
    if config.test_iter > 0:
        path = os.path.join(folder, f'model{config.test_iter}.npz')
        checkpoint.restore(path, model)
        return path
    path, _ = checkpoint.restore_latest(folder, model)
    if path is None:
        raise UserError(f'no checkpoint in {folder}: train first with the same flags, or name one with --init_from')
    return path


def test(config, model, data, folder, from_path):
    """Test on num_test_tasks tasks; prints a table, writes CSV (the original's name and rows) and JSON."""
    start, results = time.time(), []
    with tqdm(total=config.num_test_tasks, desc='testing', disable=None) as progress:
        for tasks in data.test_batches(config.num_test_tasks):
            results.append(model.evaluate(tasks, config.test_num_updates).numpy())
            progress.update(len(results[-1]))
    summary = summarise(np.concatenate(results)[: config.num_test_tasks], model.classification)
    print(
        f'\n{summary["measure"]} over {config.num_test_tasks} tasks, {config.update_batch_size}-shot, '
        f'{config.test_query} query examples{" a class" if model.classification else ""}, of {from_path}'
    )
    print_summary(summary, config.paper_steps)

    os.makedirs(folder, exist_ok=True)
    name = f'test_ubs{config.update_batch_size}_stepsize{config.update_lr}'
    if model.classification:
        name += ('' if config.test_set else '_val') + (
            f'_query{config.test_query}' if config.test_query != config.update_batch_size else ''
        )
    path = os.path.join(folder, name)
    write_csv(path + '.csv', summary)
    numbers = {key: finite(value) if isinstance(value, np.ndarray) else value for key, value in summary.items()}
    write_json(
        path + '.json',
        {
            **numbers,
            'checkpoint': str(from_path),
            'seconds': round(time.time() - start, 1),
            'tensorflow': tf.__version__,
            'settings': vars(config),
        },
    )
    print(f'written to {path}.csv and .json')


def summarise(results, classification):
    """Statistics over the tasks of `results` [tasks, 2 + steps], as MAML.task_evaluate orders its columns.

    A single task whose inner steps grow without bound outweighs all others in a mean, so these are counted
    (`diverging_tasks`), and the mean of the others stands beside.
    """
    steps = results.shape[1] - 2
    steady = (results < DIVERGED).all(axis=1)
    with np.errstate(all='ignore'):
        stds = results.std(axis=0)  # of the population (main.py:183)
        return {
            'measure': 'accuracy' if classification else 'mean squared error',
            'columns': [
                'support, before adaptation',
                'query, before adaptation',
                *(f'query, after {n} step{"s" if n > 1 else ""}' for n in range(1, steps + 1)),
            ],
            'mean': results.mean(axis=0),
            'std': stds,
            'ci95': 1.96 * stds / math.sqrt(len(results)),
            'median': np.median(np.where(np.isnan(results), np.inf, results), axis=0),
            'diverging_tasks': int((~steady).sum()),
            'mean_of_the_others': results[steady].sum(axis=0) / max(steady.sum(), 1),
        }


def print_summary(summary, paper_steps):
    """The table of a test; marks the steps that the paper reads."""
    print(f'{"":26s}{"mean":>10s}{"std":>10s}{"95 %":>12s}{"median":>10s}')
    for step, row in enumerate(zip(*(summary[key] for key in ('columns', 'mean', 'std', 'ci95', 'median'))), start=-1):
        mark = '   <- the paper reads this' if step in paper_steps else ''
        print('{:26s}{:10.4g}{:10.4g}  ±{:9.4g}{:10.4g}'.format(*row) + mark)
    if summary['diverging_tasks']:
        steps = [step for step in paper_steps if step + 1 < len(summary['columns'])]
        print(
            f'{summary["diverging_tasks"]} of the tasks diverge ({summary["measure"]} above {DIVERGED:g}); mean of '
            f'the others after {", ".join(map(str, steps))} steps: '
            + ', '.join(f'{summary["mean_of_the_others"][step + 1]:.4g}' for step in steps)
        )


def write_csv(path, summary):
    """The original's file (main.py:190-201): update0 is the SUPPORT set, updateN the query set after N steps."""
    kept = [0, *range(2, len(summary['columns']))]
    with open(path, 'w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow([f'update{n}' for n in range(len(kept))])
        rows.writerows(summary[key][kept] for key in ('mean', 'std', 'ci95'))


def write_json(path, result):
    """The dictionary `result` as a file for people and machines: a list of numbers takes one line."""
    text = json.dumps(result, indent=1)
    with open(path, 'w') as file:
        file.write(re.sub(r'\[[^][{}"]*\]', lambda numbers: ' '.join(numbers[0].split()), text) + '\n')


def finite(numbers):
    """A list for JSON, which knows no NaN and no infinity: those become null."""
    return [float(number) if np.isfinite(number) else None for number in numbers]
