"""Meta-training and testing of the supervised experiments: the original's train() and test() (maml: main.py:73-201).

Batches come from data_generator.py, steps from maml.py, and what a run and a test's report are from run.py and
report.py; here is when to train, log, validate and test.
"""

import functools
import itertools
import math
import os
import pathlib
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import checkpoint
import distribute
import multitask
import regression
import report
from data_generator import SinusoidGenerator, image_generators, prefetched
from experiments import MULTITASK, beyond_the_paper, print_settings, source_of
from images import settle
from maml import MAML
from networks import Convolutional, FullyConnected, WithContext
from run import Run, history
from runtime import UserError
from utils import accuracy, mse, xent

SUMMARY_INTERVAL = 100
DIVERGED = 100.0  # a squared error that no prediction within a sinusoid's range can have
# Times the usual loss: its square stays in Adam's second moments for 1,000 ln(JUMP² / 1,000) iterations and more.
JUMP = 100
TEST_PRINT_INTERVAL = 500  # between two looks at the validation set (not for sinusoids)
# Tasks of a look, the same at each, so that two differ by their weights alone. Each costs less than half of a task in
# training, of which there are 1,000 (MiniImagenet, 5-shot) to 16,000 (Omniglot) between two looks.
VALIDATION_TASKS = 100


def run(config, origins, threads, folder, paper):
    """Train (unless --train=False), then test; raises UserError for what the user can mend.

    paper: the paper's values for this test by number of steps.
    """
    if config.datasource == 'images':
        settle(config, origins)
    source = source_of(config)
    strategy = distribute.make_strategy(config.distribute, config.meta_batch_size)
    if config.datasource == 'table':
        data, source = regression.make_data(config, source, folder)
    else:
        data = make_data(config, source)
    config.data_digest = getattr(data.get('train'), 'digest', None)
    with strategy.scope():
        model = make_model(config, source, threads)
    if config.train and config.baseline in MULTITASK:
        multitask.train(config, origins, threads, model, folder)
    elif config.train:
        train(config, origins, threads, model, data, folder, source, strategy)
    if 'test' not in data:
        print('not tested, since there is no validation split: --test_set tests on the test split')
    elif distribute.is_chief(strategy):
        tested = {'chosen': chosen(config), **history(config, *load_for_test(config, model, folder))}
        if not config.train:
            print_settings(config, origins, threads)
        record = os.path.join(os.path.dirname(tested['checkpoint']), multitask.RECORD)
        if config.baseline in MULTITASK and os.path.exists(record):
            tested['regressors'] = multitask.read_record(record)
        if config.update_lr_grid:
            tested['tuned'] = tune(config, model, data.get('val', data['test']))
            tested['settings']['update_lr'] = config.update_lr
        test(config, model, data['test'], folder, tested, paper)


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
        # Else it is what the test uses, without which the paper's experiments are not done.
        optional=['val'] if config.test_set or (config.train and config.datasource == 'images') else [],
    )
    return generators | ({'test': generators[test_split]} if test_split in generators else {})


def make_model(config, source, threads):
    """Return the MAML model of these settings, with fresh weights."""
    image, context = source.img_size > 0, config.baseline == 'context'
    pixels = source.img_size**2
    if image and config.conv:
        network = Convolutional(
            img_size=source.img_size,
            channels=source.channels + context,
            dim_output=config.num_classes,
            num_filters=config.num_filters,
            max_pool=config.max_pool,
            flatten=source.flatten,
            norm=config.norm,
        )
    else:
        network = FullyConnected(
            dim_input=source.dim_input + (2 if config.baseline == 'oracle' else pixels * context),
            dim_output=config.num_classes if image else source.dim_output,
            dim_hidden=source.dim_hidden,
            norm=config.norm,
        )
    return MAML(
        WithContext(network, pixels) if context else network,
        loss_func=functools.partial(xent, update_batch_size=config.update_batch_size) if image else mse,
        measure=accuracy if image else None,
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


def train(config, origins, threads, model, data, folder, source, strategy):
    """Train to the last iteration, or until stopped.

    Progress goes to the terminal, the scalars to TensorBoard under the original's names. Apart from the newest
    checkpoints the weights that were best on the validation set are kept, of equals the later ones.
    """
    total = config.pretrain_iterations + config.metatrain_iterations
    labels = ['loss', 'accuracy'] if model.measure else ['loss']
    words = f'Iteration {{}}: {labels[-1]} {{:#.4g}} before, {{:#.4g}} after the inner updates'
    recent, usual = [], None
    with Run(config, origins, folder, model, total, distribute.is_chief(strategy)) as run:
        if run.chief:
            print_settings(config, origins, threads)
        run.iteration = distribute.share_state(strategy, checkpoint.variables(model).values(), run.iteration)
        best = checkpoint.best_so_far(folder, run.iteration, 'score') if run.chief else None
        train_block = distribute.block_trainer(strategy, model)
        for block, begin, last, pretrain in pieces(config, source, data['train'], run.iteration, total):
            metrics = train_block(block, run.iteration - begin, last - begin, pretrain)
            for step, row in enumerate(metrics, start=run.iteration):
                if not np.all(np.isfinite(row)):
                    raise run.not_finite('the loss is', step)
                usual = warn_of_jump(row[:2].max(), usual, step)
                recent.append(row)
                if step % SUMMARY_INTERVAL == 0:
                    write_summaries('metatrain', labels, row, config.num_updates, step)
            run.advance(last)
            if run.chief and last % source.print_interval == 0:
                # The original prints accuracies where there are any, else losses (maml: main.py:114-128).
                before, after = np.mean(recent, axis=0)[-2:]
                count = last if pretrain else last - config.pretrain_iterations
                tqdm.write(('Pretrain ' if pretrain else '') + words.format(count, before, after))
                run.progress.set_postfix_str(f'{labels[-1]} {before:.3f} -> {after:.3f}')
                recent = []
            if run.chief and 'val' in data and last % TEST_PRINT_INTERVAL == 0:
                looks = data['val'].validation_batches(VALIDATION_TASKS)
                results = np.concatenate([model.evaluate(tasks, config.num_updates) for tasks in looks])
                before, after = results.mean(axis=0)[[0, -1]]
                tqdm.write('Validation, ' + words.format(last, before, after))
                write_summaries('metaval', labels[-1:], [before, after], config.num_updates, last)
                score = after if model.measure else -after
                if score >= best:
                    best, path = score, os.path.join(folder, checkpoint.BEST)
                    checkpoint.write(path, model, iteration=last, seed=config.seed, score=float(score))
            if not run.goes_on():
                break


def warn_of_jump(loss, usual, step):
    """Say so, once, when the loss is JUMP times what is usual; return what then is usual, a running mean."""
    usual = usual or loss
    if loss > JUMP * usual:
        tqdm.write(
            f'warning: the loss jumped from {usual:.2g} to {loss:.2g} at iteration {step}: Adam may stand still for '
            'thousands of iterations; try a smaller --update_lr'
        )
        return math.inf
    return usual + 0.01 * (loss - usual) if usual < math.inf else usual


def pieces(config, source, generator, iteration, total):
    """What is trained in one compiled call each: (block of batches, number of its first, last + 1, pretrain or not).

    A piece ends with its block, where a checkpoint is due, or where pretraining ends.
    """
    numbers = itertools.count(iteration // source.block)
    blocks = prefetched(generator.draw_block, iteration // source.block) if iteration < total else ()
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


def write_summaries(prefix, labels, values, num_updates, step):
    """TensorBoard scalars under the original's names, as TF1 wrote them (maml: maml.py:157-165)."""
    for label, (before, after) in zip(labels, np.reshape(values, [-1, 2])):
        tf.summary.scalar(f'{prefix}_Pre-update_{label}', before, step)
        tf.summary.scalar(f'{prefix}_Post-update_{label}__step_{num_updates}', after, step)


# ---- Testing ---------------------------------------------------------------------------------------------------


def load_for_test(config, model, folder):
    """Bring the model to the checkpoint to test; return its path and numbers."""
    if config.init_from and not config.train:
        return config.init_from, checkpoint.restore_weights(config.init_from, model)
    if config.test_iter != -1:
        path = os.path.join(folder, checkpoint.BEST if config.test_iter == 'best' else f'model{config.test_iter}.npz')
        if not os.path.exists(path):
            raise UserError(f'{path} is not there: name another --test_iter, or drop it to test the newest checkpoint')
        return path, checkpoint.restore(path, model)
    path, state = checkpoint.restore_latest(folder, model)
    if path is None:
        raise UserError(f'no checkpoint in {folder}: train first with the same flags, or name one with --init_from')
    return path, state


def chosen(config):
    """Return in words by what the checkpoint to test is chosen."""
    if config.init_from and not config.train:
        return 'by --init_from'
    names = {-1: 'the newest', 'best': f'the best on {VALIDATION_TASKS} validation tasks'}
    return names.get(config.test_iter, 'by --test_iter')


def tune(config, model, data):
    """Give `model` the step size of config.update_lr_grid with which fine-tuning is best on validation tasks.

    The best has the lowest error, averaged over the tasks and over 1 … test_num_updates steps (section 5.1: "an
    automatically tuned step size"). Returns what each came to.
    """
    grid, (tasks,) = config.update_lr_grid, data.validation_batches(config.num_test_tasks)
    with np.errstate(all='ignore'):
        errors = [model.evaluate(tasks, config.test_num_updates, tf.constant(a)).numpy()[:, 2:].mean() for a in grid]
        errors = np.float64(errors) * getattr(data, 'scale', 1)  # of tables
    config.update_lr = model.update_lr = grid[int(np.argmin(np.nan_to_num(errors, nan=np.inf)))]
    print(f'\nmean squared error on {len(tasks[0])} validation tasks for each step size, of which the best is taken:')
    print(', '.join(f'{step_size:g}: {error:.4g}' for step_size, error in zip(grid, errors)))
    return {'validation_tasks': len(tasks[0]), 'update_lr': grid, 'mean_squared_error': errors}


def test(config, model, data, folder, tested, paper):
    """Test on num_test_tasks tasks; print a table, write CSV (the original's name and rows) and JSON.

    tested: what `run.history` says of the model.
    """
    start, results = time.time(), []
    os.makedirs(folder, exist_ok=True)  # whoever cannot write there learns it before the test, not after
    with tqdm(total=config.num_test_tasks, desc='testing', unit=' tasks', disable=None) as progress:
        for tasks in data.test_batches(config.num_test_tasks):
            results.append(model.evaluate(tasks, config.test_num_updates).numpy())
            progress.update(len(results[-1]))
    image = model.measure is not None
    measure = 'accuracy' if image else 'mean squared error'
    results, scale, over, unit = np.concatenate(results), 1, f'{config.num_test_tasks} tasks', None
    if config.datasource == 'table':
        results, scale, unit = data.of_each_table(results), data.scale, data.unit
        over = f'{config.num_test_tasks} draws from {len(results)} tables'
    summary = summarise(results, scale, ddof=int(unit is not None))
    split = f' of the {"test" if config.test_set else "validation"} set' if config.datasource != 'sinusoid' else ''
    print(
        f'\n{measure}{" in %" if image else ""}{f" in {unit}" if unit else ""} over {over}{split}, '
        f'{f"{config.num_classes}-way " if image else ""}{config.update_batch_size}-shot'
    )
    print(f'query examples{" of a class" if image else ""}: {config.test_query}')
    report.print_checkpoint(tested)
    print_summary(summary, measure, dict.fromkeys(config.paper_steps) | paper, DIVERGED * scale)

    result = {
        'measure': measure,
        'unit': unit,
        **summary,
        'split': ('test' if config.test_set else 'val') if split else None,
        'test_seed': config.seed,
        'seconds': round(time.time() - start, 1),
        **tested,
    }
    if config.datasource == 'sinusoid':
        result['fits'] = fits(model, data, config)
    samples = functools.partial(image_samples, model, data, config) if image else None
    report.write(os.path.join(folder, test_name(config)), csv_rows(summary), result, samples)


def fits(model, data, config, number=3):
    """Return how sinusoids are fitted before any, after one and after all steps, on the first tasks of a test.

    Rounded, for figures.py: the grid of x, and of each task the truth on it, then by where the support set lies its
    points and the model's outputs on the grid.
    """
    steps = sorted({0, 1, config.test_num_updates})
    tasks = [{} for _ in range(min(number, config.num_test_tasks))]
    for where, arrays in data.drawn_tasks(len(tasks)).items():
        for task, *parts in zip(tasks, *arrays):
            inputa, labela, grid, truth = (np.float64(part[:, 0]).round(4) for part in parts)
            outputs = np.float64(model.outputs(parts, config.test_num_updates)[steps, :, 0]).round(4)
            task |= {'truth': truth, where: {'points': [inputa, labela], 'outputs': outputs}}
    return {'steps': steps, 'x': grid, 'tasks': tasks}


def image_samples(model, data, config, classes=10):
    """Return for figures.py an image of each class, at most so many, of the first test task's support and query set.

    Bytes [classes, side, side, channels] by class; with them what the query images are taken for, after which steps.
    """
    task = [part[0] for part in next(data.test_batches(1))]
    steps = min([*config.paper_steps[-1:], config.test_num_updates])
    source = source_of(config)
    samples = {'steps': steps}
    for name, images, labels in (('support', *task[:2]), ('query', *task[2:])):
        rows = labels[: config.num_classes].argmax(1).argsort()[:classes]  # the first N hold each class once
        samples[name] = images[rows].reshape(-1, source.img_size, source.img_size, source.channels)
        if config.datasource == 'images' and source.channels == 1:  # 0 is black, not paper
            samples[name] = samples[name].repeat(3, axis=3)
    samples['predicted'] = model.outputs(task, steps)[-1][rows].argmax(1)
    return samples


def test_name(config):
    """Return the name of a test's files, the original's (maml: main.py:190); more where two tests would share it."""
    name = f'test_ubs{config.update_batch_size}_stepsize{"tuned" if config.update_lr_grid else config.update_lr}'
    if config.datasource != 'sinusoid':
        name += '' if config.test_set else '_val'
        name += f'_query{config.test_query}' if config.test_query != config.update_batch_size else ''
    return name + (f'_itr{config.test_iter}' if config.test_iter != -1 else '') + beyond_the_paper(config)


def summarise(results, scale=1, ddof=0):
    """Return the statistics over the tasks of `results` [tasks, 2 + steps], whose columns are `MAML.task_evaluate`'s.

    A single task whose inner steps grow without bound outweighs all others in a mean, or makes it NaN, so these are
    counted (`diverging_tasks`), and the mean of the others stands beside.
    scale: by what all is multiplied then; ddof: see report.statistics.
    """
    steady, results = (results < DIVERGED).all(axis=1), results * np.float64(scale)
    others = report.statistics(results[steady], ddof) if steady.any() else {}
    with np.errstate(all='ignore'):
        return {
            'columns': [
                'support, before adaptation',
                'query, before adaptation',
                *(f'query, after {n} step{"s" if n > 1 else ""}' for n in range(1, results.shape[1] - 1)),
            ],
            **report.statistics(results, ddof),
            'diverging_tasks': int((~steady).sum()),
            **{f'{key}_of_the_others': others.get(key, np.full(results.shape[1], np.nan)) for key in ('mean', 'ci95')},
        }


def print_summary(summary, measure, paper, limit=DIVERGED):
    """Print the table of a test and how many tasks diverge, by an error above `limit`.

    paper: the steps that it reads, with its values or None.
    """
    last, scale = len(summary['columns']) - 2, 100 if measure == 'accuracy' else 1
    steps = [step for step in paper if step <= last]
    marks = {summary['columns'][step + 1]: paper[step] for step in steps}
    report.print_table(summary['columns'], summary, marks, scale)
    if summary['diverging_tasks']:
        why = 'outputs that are not finite' if measure == 'accuracy' else f'{measure} above {limit:g}'
        print(
            f'{summary["diverging_tasks"]} of the tasks diverge ({why});\nmean of the others after '
            f'{", ".join(map(str, steps or [last]))} steps: '
            + ', '.join(f'{scale * summary["mean_of_the_others"][step + 1]:.4g}' for step in steps or [last])
        )


def csv_rows(summary):
    """Return the original's rows (maml: main.py:190-201): update0 is the SUPPORT set, updateN the query set after N."""
    kept = [0, *range(2, len(summary['columns']))]
    return [[f'update{n}' for n in range(len(kept))], *(summary[key][kept] for key in ('mean', 'std', 'ci95'))]
