"""What a test prints and writes, for every kind of learning: statistics over tasks, a table, a CSV and a JSON file."""

import csv
import json
import math
import os
import platform
import re
import subprocess
from importlib import metadata

import numpy as np

import runtime

STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def student(degrees):
    """Return the 97.5 % quantile of Student's t."""
    return STUDENT[degrees - 1] if degrees <= len(STUDENT) else 1.96 + 2.372 / degrees + 2.82 / degrees**2


def statistics(results, ddof):
    """Return mean, std, 95 % interval and median over the tasks of `results` [tasks, columns].

    The interval is 1.96 std / sqrt(tasks), of a sample of fewer than 30 tasks Student's, and NaN of a single task.
    ddof: 0 for the deviation of the population, as the original's supervised tests (maml: main.py:200), 1 for the
    sample's, which we take for the few tasks of reinforcement learning and for tables. NaN counts as infinite in
    the median.
    """
    with np.errstate(all='ignore'):
        n = len(results)
        stds = results.std(axis=0, ddof=ddof) if n > ddof else np.full(results.shape[1], np.nan)
        width = math.nan if n == 1 else student(n - 1) if ddof and n < 30 else 1.96
        return {
            'mean': results.mean(axis=0),
            'std': stds,
            'ci95': width * stds / math.sqrt(n),
            'median': np.median(np.where(np.isnan(results), np.inf, results), axis=0),
        }


def by_steps(result):
    """Return what a test measured after 0, 1, … steps: means and 95 % half-widths [2, 1 + steps].

    Accuracies are in percent, and tasks that diverge are left out, as in the tables.
    """
    which, first = '_of_the_others' if result.get('diverging_tasks') else '', result['columns'][0].startswith('support')
    rows = [np.array(result[key + which], float).reshape(len(result['columns'])) for key in ('mean', 'ci95')]
    return (100 if result['measure'] == 'accuracy' else 1) * np.array(rows)[:, int(first) :]


def print_checkpoint(tested):
    """Print which checkpoint a test is of; tested: what `run.history` says of it."""
    iteration = tested.get('iteration')
    chosen = f' ({tested["chosen"]})' if 'chosen' in tested else ''
    print(f'checkpoint: {tested["checkpoint"]}' + ('' if iteration is None else f', iteration {iteration}') + chosen)
    if 'adapted' in tested:
        print(f'these weights are no longer those of the training: --adapt took {tested["adapted"]} steps from there')
    others = tested.get('trained_with', {})
    if others is None:
        print('with what flags these weights were trained is not known: there is no config.json beside them')
    elif others:
        flags = ' '.join(f'--{name}={value}' for name, value in others.items())
        print(f'these weights were trained with other flags than those of this test: {flags}')


def print_table(columns, numbers, marks, scale=1):
    """Print a line for each column of a test with its `numbers` (see `statistics`), at most 80 characters.

    marks: the columns that the paper reads, with its value where it has one (None); scale: 100 for percent.
    """
    width = max(map(len, columns))
    print(f'{"":{width}s}{"mean":>10s}{"std":>9s}{"95 %":>10s}{"median":>10s}')
    for name, *row in zip(columns, *(scale * numbers[key] for key in ('mean', 'std', 'ci95', 'median'))):
        mean, std, ci95, median = (f'{number:.{digits}g}' for number, digits in zip(row, (4, 3, 3, 4)))
        paper = marks.get(name)
        mark = '' if name not in marks else ' <- the paper' if paper is None else f' <- paper {paper:.4g}'
        print(f'{name:{width}s}{mean:>10s}{std:>9s}{"±" + ci95:>10s}{median:>10s}{mark}')


def write(path, rows, result, samples=None):
    """Write the `rows` of a table to path.csv, and `result`, a dictionary, with the `circumstances` to path.json.

    Then draw it, unless --log=False: path.png. samples: returns what figures.of_test wants of images (None: no images).
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    earlier = in_place_of(path + '.json')
    with runtime.replacing(path + '.csv', newline='') as file:
        csv.writer(file).writerows(rows)
    write_json(path + '.json', {**result, **circumstances()})
    print(f'written to {path}.csv and .json{earlier}')
    if result['settings']['log']:
        draw(path + '.png', lambda figures: figures.of_test(result, samples and samples()))


def in_place_of(path):
    """Return what to say of a file that is about to be written: whether there was one before."""
    return ', in place of earlier ones' if os.path.exists(path) else ''


def draw(path, figure):
    """Draw `figure` (figures.py), a figure; where that cannot be done a line says so, since its numbers are written."""
    try:
        import figures  # which needs matplotlib

        figures.write(figure(figures), path)
        print(f'drawn in {path}')
    except (ImportError, runtime.UserError) as error:
        print(f'no picture of it: {error}')


def circumstances():
    """Return on what a number was computed: the machine, the versions of what counts, the revision of this code."""
    packages = ('tensorflow', 'numpy', 'mujoco')
    here = os.path.dirname(os.path.abspath(__file__))
    git = ['git', '-C', here, 'describe', '--always', '--dirty', '--exclude=*']
    try:
        revision = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = None
    return {
        'machine': {'cores': runtime.available_cores(), 'cpu': cpu_model()},
        'versions': {'python': platform.python_version(), **{name: version(name) for name in packages}},
        'revision': revision,
    }


def version(package):
    """Return the version of a package; None where it is not installed: supervised learning does without MuJoCo."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_model():
    """Return the name of the processor as the system gives it."""
    try:
        with open('/proc/cpuinfo') as file:
            return next(line.split(':', 1)[1].strip() for line in file if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write_json(path, result):
    """Write a dictionary for people and machines, whole or not at all; a list of numbers takes one line."""
    text = json.dumps(plain(result), indent=1, allow_nan=False)
    text = re.sub(r'\[[^][{}"]*\]', lambda numbers: ' '.join(numbers[0].split()), text)
    with runtime.replacing(path) as file:
        file.write(text + '\n')


def plain(value):
    """Return `value` with lists for arrays and, since JSON knows neither NaN nor infinity, null for those."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
