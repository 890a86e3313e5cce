"""A meta-trained model on new classes, or a new table: main.py --adapt=… --predict=… --init_from=WEIGHTS.

The model's own inner steps adapt the weights to a few images of each new class, or to a few rows; then images are
classified, or y is predicted for other rows. Where there are fewer classes than outputs, the spare outputs are left out
of loss and answer.

Batch norm normalises by the batch at hand, so that an answer depends on what else is in the batch. Here that is the
support set and the one image: no answer depends on the other images that are asked about, unlike in the paper's tests,
where a task's query images are one batch (docs/fidelity.md says how much that matters).
"""

import csv
import math
import os

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import checkpoint
import report
import training
from experiments import source_of
from images import OWN_ENDINGS, decode_own, entries, is_image, own_files, pictures, warn_of_unused
from regression import PREDICTIONS, of_tables, read_columns, read_csv, standardised, trained_settings
from run import keep_to
from runtime import UserError, replacing
from utils import xent

PICTURE = PREDICTIONS.replace('.csv', '.png')


def run(config):
    """Adapt the weights of config.init_from to config.adapt; predict for config.predict, and keep them, if asked."""
    (adapt_to_table if config.datasource == 'table' else adapt_to_images)(config)


def keep(config, theta, what):
    """Say to what the weights were adapted, and how; write them, if asked."""
    steps, size = config.test_num_updates, 'learned sizes' if config.learn_update_lr else f'size {config.update_lr:g}'
    print(f'adapted to {what}, in {steps} step{"s" if steps > 1 else ""} of {size}')
    if config.save_adapted:
        earlier = report.in_place_of(config.save_adapted)
        checkpoint.write_adapted(config, theta)
        print(f'adapted weights: {config.save_adapted}{earlier}')


def write_predictions(config, rows):
    """Write predictions.csv in config.logdir; return where it is, and whether there was one before, in words."""
    rows = list(rows)  # before anything is written, since it may raise
    os.makedirs(config.logdir, exist_ok=True)
    path = os.path.join(config.logdir, PREDICTIONS)
    if os.path.exists(path) and any(os.path.samefile(path, table) for table in (config.adapt, config.predict)):
        raise UserError(f'{path} would be written over: rename it, or choose another folder by --logdir')
    earlier = report.in_place_of(path)
    with replacing(path, newline='', encoding='utf-8', errors='surrogateescape') as file:
        csv.writer(file).writerows(rows)
    return path + earlier


# ---- Images ----------------------------------------------------------------------------------------------------


def adapt_to_images(config):
    """Adapt to the classes in config.adapt; classify the images in config.predict."""
    source = source_of(config)
    for name in ('adapt', 'predict'):
        if getattr(config, name) and not os.path.isdir(getattr(config, name)):
            raise UserError(f'--{name}={getattr(config, name)} is no folder: give the folder that the images are in')
    how = source.img_size, source.channels, source.drawings
    classes = new_classes(config)
    files = files_below(config.predict) if config.predict else []
    support = decode_own(sum(classes.values(), []), *how)
    labels = np.repeat(np.arange(len(classes)), list(map(len, classes.values())))
    queries = decode_own(files, *how) if files else None
    model = training.make_model(config, source, threads=1)
    checkpoint.restore_weights(config.init_from, model)
    theta = adapted(model, support, np.eye(len(classes), dtype=np.float32)[labels], config.test_num_updates)
    keep(config, theta, ', '.join(f'{len(files)} of {name}' for name, files in classes.items()))
    if config.predict:
        answers = predict(model, theta, support, queries, len(classes))
        written = write_predictions(config, of_images(list(classes), files, answers))
        print(f'{len(files)} images of {config.predict} classified, each together with the support set: {written}')
        if config.log:
            first = np.unique(labels, return_index=True)[1]
            shown = pictures(support[first], source), pictures(queries, source)
            path = os.path.join(config.logdir, PICTURE)
            report.draw(path, lambda figures: figures.of_predictions(list(classes), *shown, answers))


def new_classes(config):
    """Return the images of each new class, {name: files}; UserError where they cannot be adapted to."""
    classes, unused = own_files(config.adapt)
    warn_of_unused(unused)
    for name, files in classes.items():
        if not files:
            raise UserError(f'{os.path.join(config.adapt, name)} has no images: add some or remove it')
    if len(classes) < 2:
        raise UserError(f'{config.adapt} has {len(classes)} folders of classes: at least 2 are needed')
    if len(classes) > config.num_classes:
        raise UserError(
            f'{config.adapt} has {len(classes)} folders of classes, but {config.init_from} has outputs for '
            f'{config.num_classes}: train with --num_classes={len(classes)}, or remove some'
        )
    return classes


def files_below(folder):
    """List the images in `folder` and the folders in it."""
    files, unused, places = [], [], [folder]
    while places:
        for entry in entries(place := places.pop()):
            if entry.is_dir():
                places.append(entry.path)
            elif entry.name == PICTURE:
                unused.append((entry.path, 'called as what --predict writes'))
            elif is_image(entry.name, own=True):
                files.append(entry.path)
            else:
                unused.append((os.path.join(place, entry.name), f'not called {", ".join(OWN_ENDINGS)}'))
    warn_of_unused(unused)
    if not files:
        raise UserError(f'no images in {folder}: name another folder by --predict')
    return sorted(files)


def adapted(model, support, labels, steps):
    """Return the model's weights after so many inner steps on support [examples, pixels], labels [examples, classes].

    The loss is that of training for the first outputs, as many as there are classes, with K = examples / classes.
    """
    examples, classes = labels.shape
    model.loss_func = lambda outputs, labels: xent(outputs[:, :classes], labels, examples / classes)
    return model.adapt(support, labels, steps)


def predict(model, theta, support, queries, classes):
    """Return the probabilities [queries, classes] of images, each one batch with the support set, for batch norm."""
    (support,) = model.prepare([support])

    @tf.function
    def answer(image):
        (image,) = model.prepare([image])
        outputs = model.forward(tf.concat([support, image[None]], 0), theta)
        return tf.nn.softmax(outputs[-1, :classes])

    progress = tqdm(queries, 'predicting', unit=' images', disable=None)
    answers = np.stack([answer(tf.constant(image)).numpy() for image in progress])
    if not np.isfinite(answers).all():
        raise UserError('the adapted model has outputs that are not finite: try a smaller --update_lr')
    return answers


def of_images(names, files, answers):
    """Yield the rows of predictions.csv: the file, the class and the probability of each class for every image."""
    yield ['file', 'class', *(f'p({name})' for name in names)]
    for file, answer in zip(files, answers):
        yield [file, names[answer.argmax()], *(f'{p:.6f}' for p in answer)]


# ---- Tables ----------------------------------------------------------------------------------------------------


def adapt_to_table(config):
    """Adapt to the rows of the table config.adapt; predict y in config.predict."""
    trained = trained_settings(config.init_from)
    keep_to(config, trained, ['x_columns', 'y_columns', 'hidden', 'norm'])
    x, y, standard = config.x_columns, config.y_columns, trained['standard']
    support = standardised(read_columns(config.adapt, x + y), standard)
    new = standardised(read_columns(config.predict, x), standard) if config.predict else None
    model = training.make_model(config, of_tables(config, source_of(config)), threads=1)
    checkpoint.restore_weights(config.init_from, model)
    inputs = support[:, : len(x)]
    theta = model.adapt(inputs, support[:, len(x) :], config.test_num_updates)
    keep(config, theta, f'{len(support)} rows of {config.adapt}')
    if config.predict:
        mean, deviation = (np.array(standard[key][len(x) :]) for key in ('mean', 'deviation'))
        outputs = model.forward(new, theta)
        if config.norm == 'batch_norm':  # each row together with the support set, as each image above
            outputs = tf.vectorized_map(lambda row: model.forward(tf.concat([inputs, row[None]], 0), theta)[-1], new)
        answers = np.float64(outputs) * deviation + mean
        written = write_predictions(config, of_rows(*read_csv(config.predict), y, answers, deviation))
        print(f'{", ".join(y)} of {len(new)} rows of {config.predict}: {written}')


def of_rows(header, rows, names, answers, deviation):
    """Yield the rows of predictions.csv: those of a table with all its columns, and the predicted ones.

    These are rounded to a millionth of the columns' deviation in training, which is what float32 can say.
    """
    if not np.isfinite(answers).all():
        raise UserError('the predictions are not finite: try a smaller --update_lr')
    yield [*header, *(f'predicted {name}' for name in names)]
    digits = [6 - math.floor(math.log10(size)) for size in deviation]
    for (_, row), answer in zip(rows, answers):
        yield [*row, *(f'{round(value, n):.15g}' for value, n in zip(answer, digits))]
