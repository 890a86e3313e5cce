"""Tests of the supervised experiments: the original's test() (maml: main.py:165-215).

What a report is, is in report.py; rl/evaluation.py is the same for reinforcement learning.
"""

import functools
import os
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import report
from experiments import source_of
from images import pictures
from naming import test_name

DIVERGED = 100.0  # a squared error that no prediction within a sinusoid's range can have


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
    print(f'\nmean squared error on {len(tasks[0])} validation tasks for each step size:')
    print(', '.join(f'{step_size:g}: {error:.4g}' for step_size, error in zip(grid, errors)))
    print(f'the best: {config.update_lr:g}')
    return {'validation_tasks': len(tasks[0]), 'update_lr': grid, 'mean_squared_error': errors}


def test(config, model, data, folder, tested, paper):
    """Test on num_test_tasks tasks; print a table, write CSV (the original's name and rows) and JSON.

    tested: what `run.history` says of the model.
    """
    start, results = time.time(), []
    alpha = [tf.constant(config.update_lr)] if config.update_lr_grid else []  # what was compiled before has another
    os.makedirs(folder, exist_ok=True)  # whoever cannot write there learns it before the test, not after
    with tqdm(total=config.num_test_tasks, desc='testing', unit=' tasks', disable=None) as progress:
        for tasks in data.test_batches(config.num_test_tasks):
            results.append(model.evaluate(tasks, config.test_num_updates, *alpha).numpy())
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
    path = os.path.join(folder, test_name(config, tested['settings'].get('seed')))
    report.write(path, csv_rows(summary), result, samples)


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
            outputs = np.float64([model.outputs(parts, n)[:, 0] for n in steps]).round(4)
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
        samples[name] = pictures(images[rows], source)
    samples['predicted'] = model.outputs(task, steps)[rows].argmax(1)
    return samples


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
    """Return the original's rows (maml: main.py:210-215): update0 is the SUPPORT set, updateN the query set after N."""
    kept = [0, *range(2, len(summary['columns']))]
    return [[f'update{n}' for n in range(len(kept))], *(summary[key][kept] for key in ('mean', 'std', 'ci95'))]
