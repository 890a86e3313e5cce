"""The training curves that a run logged, read from the files in its folder for figures.py."""

import collections
import csv
import json
import pathlib
import re

import runtime
from experiments import SOURCES
from runtime import UserError

# Today's lines of log.txt and those of older runs, whose validation came without a number.
LINE = re.compile(
    r'(Pretrain |Validation)?.*?(?:Iteration (?P<number>\d+):|results:) (?:\w+ )?(?P<before>[\d.e+-]+)(?: before)?, '
    r'(?P<after>[\d.e+-]+)'
)


def of_run(folder):
    """Return the name of the measure that a run in `folder` logged, and its curves: {label: {iteration: value}}."""
    found, folder = collections.defaultdict(dict), pathlib.Path(folder)
    try:
        if (folder / 'progress.csv').exists():
            read_progress(folder / 'progress.csv', found)
            measure, scale = 'average return', 1
        else:
            settings = json.loads((folder / 'config.json').read_text())['settings']
            image = SOURCES[settings['datasource']].img_size > 0
            measure, scale = ('accuracy in %', 100) if image else ('mean squared error', 1)
            measure += ' (standardised)' if settings['datasource'] == 'table' else ''
            if (folder / 'log.txt').exists():
                read_log((folder / 'log.txt').read_text(), found)
            if not found:
                read_events(folder, found)
    except FileNotFoundError:
        raise UserError(f'{folder} is no folder of a run, with progress.csv or config.json: name others') from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{folder} is no folder of a run ({error!r}): give one that main.py trained in') from None
    if not found:
        raise UserError(
            f'{folder} has no training curve: a run logs its first line after 100 iterations or more, and none with '
            '--log=False'
        )
    return measure, {label: {i: scale * value for i, value in curve.items()} for label, curve in found.items()}


def read_progress(path, found):
    """Add to `found` (see of_run) what progress.csv says."""
    with path.open(newline='') as file:
        for row in csv.DictReader(file):
            if None in row.values():  # a run that was killed was writing it
                continue
            for when in ('before', 'after'):
                found[f'training, {when}'][int(row['iteration'])] = float(row[f'return_{when}'])


def read_log(text, found):
    """Add to `found` (see of_run) what the lines of a log say; meta-training counts from where pretraining ended."""
    pretrained = number = 0
    for line in map(LINE.match, text.splitlines()):
        if line:
            number = int(line['number']) + (0 if line[1] else pretrained) if line['number'] else number
            pretrained = number if line[1] == 'Pretrain ' else pretrained
            for when in ('before', 'after'):
                found[f'{"validation" if line[1] == "Validation" else "training"}, {when}'][number] = float(line[when])


def read_events(folder, found):
    """Add to `found` (see of_run) what the TensorBoard summaries in `folder` say."""
    runtime.start()  # so that TensorFlow, which TensorBoard loads, says nothing
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder), {'tensors': 0})
    events.Reload()
    tags = events.Tags()['tensors']
    measure = 'accuracy' if any('accuracy' in tag for tag in tags) else 'loss'
    for tag in tags:
        kind = {'metatrain': 'training', 'metaval': 'validation'}.get(tag.split('_')[0])
        if kind and measure in tag:
            values = {event.step: make_ndarray(event.tensor_proto).item() for event in events.Tensors(tag)}
            found[f'{kind}, {"before" if "Pre-update" in tag else "after"}'] = values
