"""A meta-trained model on new classes: main.py --adapt=FOLDER --predict=FOLDER --init_from=WEIGHTS.

The model's own inner steps adapt the weights to a few images of each new class; then images are classified. Where there
are fewer classes than outputs, the spare outputs are left out of loss and answer.

Batch norm normalises by the batch at hand, so that an answer depends on what else is in the batch. Here that is the
support set and the one image: no answer depends on the other images that are asked about, unlike in the paper's tests,
where a task's query images are one batch (docs/fidelity.md says how much that matters).
"""

import csv
import functools
import os

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import checkpoint
import report
import training
from experiments import source_of
from images import OWN_ENDINGS, decode, entries, is_image, own_files, warn_of_unused
from runtime import UserError, replacing
from utils import xent


def run(config):
    """Adapt to the classes in config.adapt; classify the images in config.predict, and keep the weights, if asked."""
    source = source_of(config)
    read = functools.partial(
        decode, img_size=source.img_size, channels=source.channels, invert=config.datasource == 'omniglot', own=True
    )
    classes = new_classes(config)
    files = files_below(config.predict) if config.predict else []
    support, labels = (
        read(sum(classes.values(), [])),
        np.repeat(np.arange(len(classes)), list(map(len, classes.values()))),
    )
    queries = read(files) if files else None
    model = training.make_model(config, source, threads=1)
    checkpoint.restore_weights(config.init_from, model)
    theta = adapted(model, support, np.eye(len(classes), dtype=np.float32)[labels], config.test_num_updates)
    images = ', '.join(f'{len(files)} of {name}' for name, files in classes.items())
    print(f'adapted to {images}, {report.in_steps(config)}')
    if config.save_adapted:
        earlier = report.in_place_of(config.save_adapted)
        checkpoint.write_adapted(config, theta)
        print(f'adapted weights: {config.save_adapted}{earlier}')
    if config.predict:
        answers = predict(model, theta, support, queries, len(classes))
        os.makedirs(config.logdir, exist_ok=True)
        path = os.path.join(config.logdir, 'predictions')
        table = path + '.csv' + report.in_place_of(path + '.csv')
        write(path + '.csv', list(classes), files, answers)
        print(f'{len(files)} images of {config.predict} classified, each together with the support set: {table}')
        if config.log:
            shape = [-1, source.img_size, source.img_size, source.channels]
            if config.datasource == 'images' and source.channels == 1:  # 0 is black, not paper
                support, queries = support[..., None].repeat(3, 2), queries[..., None].repeat(3, 2)
                shape[3] = 3
            first = np.unique(labels, return_index=True)[1]
            draw(path + '.png', list(classes), support[first].reshape(shape), queries.reshape(shape), answers)


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


def write(path, names, files, answers):
    """Write the file, the class and the probability of each class for every image, as a table."""
    with replacing(path, newline='', encoding='utf-8', errors='surrogateescape') as file:
        rows = csv.writer(file)
        rows.writerow(['file', 'class', *(f'p({name})' for name in names)])
        for name, answer in zip(files, answers):
            rows.writerow([name, names[answer.argmax()], *(f'{p:.6f}' for p in answer)])


def draw(path, names, support, queries, answers):
    """Draw an image of each class, and below what the first queries are taken for; where that fails a line says so."""
    try:
        import figures  # which needs matplotlib

        figures.write(figures.of_predictions(names, support, queries, answers), path)
        print(f'drawn in {path}')
    except (ImportError, UserError) as error:
        print(f'no picture of it: {error}')
