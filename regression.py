"""Regression of one's own (--datasource=table): a task is a table, a CSV file, and its rows are the examples.

Columns are standardised by their mean and deviation over all rows of the training tables, which config.json keeps, so
that tests and predictions use the same. The network sees and says standardised numbers; results are in the units of y.
"""

import csv
import dataclasses
import hashlib
import math
import os
import sys

import numpy as np

import checkpoint
from data_generator import TEST, TRAIN, VALIDATION
from experiments import config_beside, read_config
from images import TooFew, entries, warn_of_leak, warn_of_unused
from run import keep_to
from runtime import UserError

PREDICTIONS = 'predictions.csv'  # what --predict writes (adapt.py)
SPLITS = {'train': 0.6, 'val': 0.2, 'test': 0.2}  # folders, or shares of the tables of one folder


class TableGenerator:
    """Tasks of `tables`: of each some rows are the support set, and others the query set.

    tables: standardised float32 [rows, inputs + outputs]; names: of their files; scale, unit: by what a squared error
    is multiplied to be in the units of y, and what these are called.
    """

    def __init__(self, tables, names, inputs, scale, unit, config, train, block):
        self.tables, self.inputs, self.scale, self.unit = tables, inputs, scale, unit
        self.update_batch_size = config.train_update_batch_size if train else config.update_batch_size
        self.query = config.train_query if train else config.test_query
        self.meta_batch_size, self.block, self.seed = config.meta_batch_size, block, config.seed
        needed = self.update_batch_size + self.query
        for name, table in zip(names, tables):
            if len(table) < needed:
                raise TooFew(
                    f'{name} has {len(table)} rows, but a task needs {needed} ({self.update_batch_size} + {self.query} '
                    f'query): add rows, remove it, or lower --update_batch_size or '
                    f'--{"train" if train else "test"}_query'
                )

    def draw(self, rng, chosen):
        """Draw a task of each table whose number is in `chosen`: (inputa, labela, inputb, labelb)."""
        k, number = self.update_batch_size, self.update_batch_size + self.query
        tables = [self.tables[index] for index in chosen]
        rows = np.stack([table[rng.choice(len(table), number, replace=False)] for table in tables])
        x, y = rows[..., : self.inputs], rows[..., self.inputs :]
        return x[:, :k], y[:, :k], x[:, k:], y[:, k:]

    def draw_block(self, number):
        """Draw block `number` of the training stream: arrays [block, tasks, rows, columns]."""
        rng = np.random.default_rng([self.seed, TRAIN, number])
        tasks = self.draw(rng, rng.integers(len(self.tables), size=self.block * self.meta_batch_size))
        return tuple(part.reshape(self.block, self.meta_batch_size, *part.shape[1:]) for part in tasks)

    def test_batches(self, num_tasks, stream=TEST):
        """Yield the tasks of a test in one batch, from one table after the other, over and over."""
        yield self.draw(np.random.default_rng([self.seed, stream]), np.arange(num_tasks) % len(self.tables))

    def validation_batches(self, num_tasks):
        """Yield the tasks on which training looks and a step size is chosen, always the same ones."""
        return self.test_batches(num_tasks, VALIDATION)

    def of_each_table(self, results):
        """Return the mean over the tasks of each table from the `results` [tasks, columns] of a test.

        Tasks of one table resemble each other: intervals must be over tables.
        """
        number = len(self.tables)
        return np.stack([results[index::number].mean(axis=0) for index in range(min(number, len(results)))])


def make_data(config, source, folder):
    """Return generators by use, as training.make_data does, and the Source with the columns of these tables.

    Completes the settings: x_columns and y_columns; standard, {'mean': …, 'deviation': …} of all columns; data_digest.
    A test takes these, and the seed of the split, from the run in `folder` or that of --init_from.
    """
    trained = None if config.train else trained_settings(config.init_from or checkpoint.to_test(folder)[0])
    files, digest = find_tables(config.data_dir, (trained or vars(config))['seed'])
    if trained:
        keep_to(config, trained, ['x_columns', 'y_columns'])
        config.standard = trained['standard']
        by_seed, same = digest['split'] == 'seed', digest['value'] == trained['data_digest']
        if not same and (by_seed or files['train'] and not config.init_from):
            drew = ', which drew from them what to test on' * by_seed
            other = 'put tables to test on in a folder test/ there' if by_seed else 'use --init_from'
            raise UserError(f'{config.data_dir} has not the tables of the training{drew}: bring them back, or {other}')
    elif config.init_from:
        before = config_beside(config.init_from)
        if digest == {'split': 'seed', 'value': before.get('data_digest')} and before['seed'] != config.seed:
            raise UserError(
                f'{config.init_from} was trained on other tables of {config.data_dir}, among them some to test on now: '
                f'use its --seed={before["seed"]}'
            )
    test_split = 'test' if config.test_set else 'val'
    wanted = dict.fromkeys(
        [*(['train', 'val'] if config.train else []), *['val'] * bool(config.update_lr_grid), test_split]
    )
    for split in list(wanted):
        if not files[split]:
            if split != 'val' or not config.test_set or config.update_lr_grid:
                raise TooFew(f'{config.data_dir} has no tables for its {split} split: see the README, "Your own data"')
            print('warning: there are no validation tables: training goes on without looking at them', file=sys.stderr)
            del wanted[split]
    print('tables: ' + ', '.join(f'{split} {len(paths)}' for split, paths in files.items()))
    if not trained:
        choose_columns(config, read_csv(files['train'][0])[0], files['train'][0])
    columns = config.x_columns + config.y_columns
    tables = {split: [read_columns(path, columns) for path in files[split]] for split in wanted}
    if not trained:
        rows = np.concatenate(tables['train'])
        with np.errstate(over='ignore'):
            deviation = np.where(np.ptp(rows, axis=0) > 0, rows.std(axis=0), 1)  # that of equal numbers is not always 0
        for name, size in zip(columns, deviation):
            if not math.isfinite(size):
                raise UserError(
                    f'column {name} of {files["train"][0]} and others is too large to be standardised: scale it'
                )
        config.standard = {'mean': rows.mean(axis=0).tolist(), 'deviation': deviation.tolist()}
    scale, unit = units(config)
    generators = {}
    for split, found in tables.items():
        found = [standardised(table, config.standard) for table in found]
        how = (len(config.x_columns), scale, unit, config, split == 'train', source.block)
        generators[split] = TableGenerator(found, files[split], *how)
        generators[split].digest = digest['value'] if split == 'train' else hashed(files[split])
    return {**generators, 'test': generators[test_split]}, of_tables(config, source)


def of_tables(config, source):
    """Return the Source with the columns of these tables, and the network's layers, from the settings."""
    sizes = {'dim_input': len(config.x_columns), 'dim_output': len(config.y_columns)}
    return dataclasses.replace(source, **sizes, dim_hidden=tuple(config.hidden))


def trained_settings(weights):
    """Return the settings of the run on tables that made the checkpoint `weights`, from the config.json beside it."""
    settings = read_config(os.path.dirname(weights))
    if 'standard' not in settings:
        raise UserError(f'{weights} was not trained on tables: name other weights, or the --datasource of these')
    return settings


def find_tables(folder, seed):
    """Return the CSV files by split, and {'split': how they are split, 'value': hash over what must not change}.

    They are those in the folders train/, val/ and test/; where there are none of these, those in `folder`, split by the
    seed. The hash is over the training tables, and if the seed splits them, over all: names and contents.
    """
    if not folder:
        raise UserError('--datasource=table needs the folder of the tables: give --data_dir')
    if not os.path.isdir(folder):
        raise UserError(f'--data_dir={folder} is no folder: name one with a CSV file for each task')
    inside = {split: os.path.join(folder, split) for split in SPLITS}
    if any(map(os.path.isdir, inside.values())):
        files = {split: csv_files(path) if os.path.isdir(path) else [] for split, path in inside.items()}
        trained = {hashed([path], with_names=False) for path in files['train']}
        again = [path for path in files['val'] + files['test'] if hashed([path], with_names=False) in trained]
        warn_of_leak(again, 'tables')
        warn_of_unused([(path, 'not in train, val or test') for path in csv_files(folder)])
        return files, {'split': 'folders', 'value': hashed(files['train'])}
    paths = csv_files(folder)
    if len(paths) < 3:
        raise TooFew(
            f'{folder} has {len(paths)} CSV files, too few to split: bring a table for each of at least 3 tasks'
        )
    order = np.random.default_rng(seed).permutation(len(paths))
    cuts = [max(1, round(len(paths) * SPLITS['train'])), min(len(paths) - 1, round(len(paths) * (1 - SPLITS['test'])))]
    parts = np.split(order, cuts)
    files = {split: [paths[index] for index in sorted(part)] for split, part in zip(SPLITS, parts)}
    return files, {'split': 'seed', 'value': hashed(paths)}


def csv_files(folder):
    """List the CSV files in a folder, sorted; names on stderr one that --predict wrote."""
    found = [entry.path for entry in entries(folder) if entry.name.lower().endswith('.csv')]
    ours = [path for path in found if os.path.basename(path) == PREDICTIONS and b'predicted ' in first_line(path)]
    warn_of_unused([(path, 'called as what --predict writes') for path in ours])
    return [path for path in found if path not in ours]


def first_line(path):
    """Return the first line of a file, as it is there."""
    with open(path, 'rb') as file:
        return file.readline()


def hashed(paths, with_names=True):
    """Return a hash over the names and contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, 'rb') as file:
            name = os.fsencode(os.path.basename(path)) if with_names else b''
            digest.update(name + hashlib.sha256(file.read()).digest())
    return digest.hexdigest()[:16]


def read_csv(path):
    """Return the names of the columns of a CSV file and its rows, as (number of the line, texts)."""
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:
            reader = csv.reader(file, skipinitialspace=True)
            lines = [(reader.line_num, row) for row in reader if row not in ([], [''])]
            while lines and not any(lines[-1][1]):  # as some programs end a table
                lines.pop()
            (_, header), *rows = lines or [(1, [])]
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror}): mend that, or name another file') from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{path} is no CSV file in UTF-8 ({error}): save it as one') from None
    header = [name.strip() for name in header]
    if not header or len(set(header)) < len(header) or '' in header:
        raise UserError(f'{path} does not begin with a line of names, one for each column: {",".join(header)[:60]!r}')
    if len(header) == 1 and any(separator in header[0] for separator in ';\t'):
        raise UserError(f'{path} has no commas between its columns: save it with commas')
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f'{path}, line {line}: {len(row)} values for {len(header)} columns: mend it')
    return header, rows


def read_columns(path, columns):
    """Return these columns of a CSV file, float64 [rows, columns]; UserError where one is missing or no number."""
    header, rows = read_csv(path)
    if not rows:
        raise TooFew(f'{path} has no rows below the names of its columns: add some or remove it')
    for name in columns:
        if name not in header:
            raise UserError(f'{path} has no column {name}, but {", ".join(header)}: mend it, or choose other columns')
    places, values = [header.index(name) for name in columns], np.empty([len(rows), len(columns)])
    for index, (line, row) in enumerate(rows):
        for column, place in enumerate(places):
            try:
                values[index, column] = float(row[place].replace('_', '?'))  # which Python would pass over
            except ValueError:
                values[index, column] = math.nan
            if not math.isfinite(values[index, column]):
                raise UserError(
                    f'{path}, line {line}: {row[place]!r} in column {columns[column]} is no number: mend it, or choose '
                    'other columns by --x_columns and --y_columns'
                )
    return values


def choose_columns(config, header, path):
    """Complete config.x_columns and config.y_columns: unless they are given, the last column is y, and all others x."""
    config.y_columns = config.y_columns or [name for name in header if name not in (config.x_columns or ())][-1:]
    config.x_columns = config.x_columns or [name for name in header if name not in config.y_columns]
    both = [*config.x_columns, *config.y_columns]
    if not config.x_columns or not config.y_columns or len(set(both)) < len(both):
        raise UserError(
            f'x would be {",".join(config.x_columns) or "nothing"} and y {",".join(config.y_columns)} of the columns '
            f'{", ".join(header)} of {path}: give --x_columns and --y_columns, and each column once'
        )


def standardised(table, standard):
    """Return the columns of a table as the network sees them, float32; fewer columns than `standard` has: the first."""
    mean, deviation = (np.array(standard[key][: table.shape[1]]) for key in ('mean', 'deviation'))
    return np.float32((table - mean) / deviation)


def units(config):
    """Return by what a squared error of the network is to be multiplied, and what it is in then."""
    if len(config.y_columns) > 1:  # there is no unit that several columns share
        return 1.0, f'squared deviations of {", ".join(config.y_columns)}'
    return config.standard['deviation'][-1] ** 2, f'the squared unit of {config.y_columns[0]}'
