"""Batches of few-shot tasks: sinusoids, Omniglot and MiniImagenet (maml: data_generator.py).

A batch is a function of the seed and its number alone, not of the file system, of time or of threads, so the
iteration number is the whole state of a sampler and a resumed run sees the tasks that it would have seen.
"""

import concurrent.futures
import itertools
import pathlib
import random
import sys

import numpy as np
import tensorflow as tf

from images import SPLITS, TooFew, load_folders

TRAIN, VALIDATION, TEST, REGRESSOR = 1, 2, 3, 4  # streams of task draws, part of the random generator's key
TEST_BATCH = 50  # tasks of a test that are drawn and evaluated together


def prefetched(batch, first):
    """Yield batch(first), batch(first + 1), … as tuples of tensors, each drawn while the one before is in use."""

    def draw(number):
        return tuple(tf.convert_to_tensor(array) for array in batch(number))

    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        coming = thread.submit(draw, first)
        for number in itertools.count(first + 1):
            tensors, coming = coming.result(), thread.submit(draw, number)
            yield tensors


class SinusoidGenerator:
    """Tasks y = A sin(x - phase), A in [0.1, 5], phase in [0, pi], x in [-5, 5] (the paper, section 5.1).

    Inputs are [tasks, K, 1], or [tasks, K, 3] for the oracle, which sees amplitude and phase too.
    """

    amp_range, phase_range, input_range = (0.1, 5.0), (0, np.pi), (-5.0, 5.0)

    def __init__(self, update_batch_size, meta_batch_size, query=None, oracle=False, block=100, seed=1):
        self.update_batch_size, self.query = update_batch_size, query or update_batch_size
        self.meta_batch_size, self.oracle, self.block, self.seed = meta_batch_size, oracle, block, seed

    def generate_sinusoid_batch(self, rng, num_tasks, num_samples):
        """Draw tasks: inputs and outputs [tasks, samples, 1], amplitudes and phases [tasks].

        Source: maml: data_generator.py:162-174.
        """
        amp = rng.uniform(*self.amp_range, num_tasks)
        phase = rng.uniform(*self.phase_range, num_tasks)
        inputs = rng.uniform(*self.input_range, [num_tasks, num_samples, 1])
        return inputs, amp[:, None, None] * np.sin(inputs - phase[:, None, None]), amp, phase

    def draw_block(self, number):
        """Draw block `number` of the training stream: arrays [block, tasks, K, …]."""
        rng = np.random.default_rng([self.seed, TRAIN, number])
        tasks = self.split(
            *self.generate_sinusoid_batch(rng, self.block * self.meta_batch_size, self.update_batch_size + self.query)
        )
        return tuple(part.reshape(self.block, self.meta_batch_size, *part.shape[1:]) for part in tasks)

    def draw_test(self, num_tasks):
        """Draw the first tasks of a test, as generate_sinusoid_batch returns them.

        Drawn one by one from NumPy's legacy generator as the original did, so that with seed 1 they are its own.
        """
        rng = np.random.RandomState(self.seed)
        draws = [self.generate_sinusoid_batch(rng, 1, self.update_batch_size + self.query) for _ in range(num_tasks)]
        return [np.concatenate(parts) for parts in zip(*draws)]

    def test_batches(self, num_tasks):
        """Yield the tasks of a test, in one batch."""
        yield self.split(*self.draw_test(num_tasks))

    def drawn_tasks(self, num_tasks, points=51):
        """Return the first tasks of a test with a grid over the input range as query set, for figures.py.

        By where the support set lies: in the whole range, as in the test, or moved into the right half of it.
        """
        inputs, _, amp, phase = self.draw_test(num_tasks)
        support, highest = inputs[:, : self.update_batch_size], self.input_range[1]
        grid = np.broadcast_to(np.linspace(*self.input_range, points)[:, None], [num_tasks, points, 1])
        tasks = {}
        for where, inputs in (('whole range', support), ('right half', (support + highest) / 2)):
            inputs = np.concatenate([inputs, grid], 1)
            tasks[where] = self.split(inputs, amp[:, None, None] * np.sin(inputs - phase[:, None, None]), amp, phase)
        return tasks

    def validation_batches(self, num_tasks):
        """Yield, in one batch, the tasks on which a test chooses its step size: none of the test's own."""
        rng = np.random.default_rng([self.seed, VALIDATION])
        yield self.split(*self.generate_sinusoid_batch(rng, num_tasks, self.update_batch_size + self.query))

    def split(self, inputs, outputs, amp, phase):
        """Split into (inputa, labela, inputb, labelb) float32; for the oracle the inputs have the task's id."""
        if self.oracle:
            task_id = np.broadcast_to(np.stack([amp, phase], 1)[:, None], [*inputs.shape[:2], 2])
            inputs = np.concatenate([inputs, task_id], 2)
        inputs, outputs, k = np.float32(inputs), np.float32(outputs), self.update_batch_size
        return inputs[:, :k], outputs[:, :k], inputs[:, k:], outputs[:, k:]


class ImageGenerator:
    """N-way K-shot tasks over folders of images, one folder a class.

    `images` is uint8 [images, pixels]; `classes` lists each class's row numbers. With `rotations` every class of
    every task is turned by 0, 90, 180 or 270 degrees, at validation and test as well (maml: data_generator.py:138,147).
    """

    def __init__(
        self, images, classes, num_classes, update_batch_size, query, meta_batch_size, rotations=False, seed=1
    ):
        self.num_classes, self.update_batch_size, self.query = num_classes, update_batch_size, query
        self.meta_batch_size, self.seed, self.rotations = meta_batch_size, seed, 4 if rotations else 1
        self.images, self.stride = images, len(images)
        if rotations:
            size = int(np.sqrt(images.shape[1]))
            square = np.asarray(images).reshape(-1, size, size)
            self.images = np.concatenate([np.rot90(square, k, (1, 2)) for k in range(4)]).reshape(-1, size * size)
        self.sizes = np.array([len(rows) for rows in classes])
        self.rows = np.zeros([len(classes), self.sizes.max()], np.int64)
        for index, rows in enumerate(classes):
            self.rows[index, : len(rows)] = rows
        self.missing = np.arange(self.rows.shape[1]) >= self.sizes[:, None]

    def draw_block(self, number):
        """Draw batch `number` of the training stream, as a block of one: arrays [1, tasks, examples, …]."""
        return tuple(part[None] for part in self.batch(TRAIN, number, self.meta_batch_size))

    def test_batches(self, num_tasks, stream=TEST):
        """Yield the tasks of a test in batches of at most TEST_BATCH."""
        for number in range(-(-num_tasks // TEST_BATCH)):
            left = num_tasks - number * TEST_BATCH
            yield tuple(part[:left] for part in self.batch(stream, number, TEST_BATCH))

    def validation_batches(self, num_tasks):
        """Yield the tasks of a look at the validation set while training, always the same ones."""
        return self.test_batches(num_tasks, VALIDATION)

    def batch(self, stream, number, num_tasks):
        """Draw (inputa, labela, inputb, labelb): uint8 pixels [tasks, examples, pixels], one-hot float32 labels.

        Every N consecutive examples hold each class once, in a random order (maml: data_generator.py:141-150).
        """
        rng = np.random.default_rng([self.seed, stream, number])
        ways, samples = self.num_classes, self.update_batch_size + self.query
        classes = choose(rng.random([num_tasks, len(self.rows)]), ways)  # [tasks, N]
        keys = rng.random([num_tasks, ways, self.rows.shape[1]])
        keys[self.missing[classes]] = np.inf
        examples = np.take_along_axis(self.rows[classes], choose(keys, samples), 2)  # [tasks, N, K + query]
        examples += self.stride * rng.integers(self.rotations, size=[num_tasks, ways, 1])
        labels = rng.permuted(np.broadcast_to(np.arange(ways), [num_tasks, samples, ways]), axis=2)
        examples = np.take_along_axis(examples.swapaxes(1, 2), labels, 2).reshape(num_tasks, -1)
        labels = np.eye(ways, dtype=np.float32)[labels.reshape(num_tasks, -1)]
        (a, b), (labela, labelb) = (np.split(part, [ways * self.update_batch_size], 1) for part in (examples, labels))
        return self.images[a], labela, self.images[b], labelb


def choose(keys, number):
    """Return the indices of the `number` smallest keys of the last axis: a random sample in random order."""
    chosen = np.argpartition(keys, number - 1, axis=-1)[..., :number]
    order = np.argsort(np.take_along_axis(keys, chosen, -1), axis=-1)
    return np.take_along_axis(chosen, order, -1)


# ---- Folders of images -----------------------------------------------------------------------------------------


def image_generators(
    source, data_dir, splits, num_classes, update_batch_size, query, meta_batch_size, seed, optional=()
):
    """An ImageGenerator for each of `splits` ('train', 'val', 'test'); `query` maps a split to images a class.

    A split that is among `optional` and has too few classes or images is left out, with a warning.
    Raises UserError when the data is missing or cannot serve the tasks asked for.
    """
    generators, data_dir = {}, pathlib.Path(data_dir)
    for split in splits:
        sizes = num_classes, update_batch_size, query[split]
        try:
            images, classes, digest = load_enough(source, data_dir, split, *sizes)
        except TooFew as error:
            if split not in optional:
                raise
            print(f'warning: training goes on without the {split} split: {error}', file=sys.stderr)
            continue
        generators[split] = ImageGenerator(images, classes, *sizes, meta_batch_size, source.drawings, seed)
        generators[split].digest = digest  # tells which files these are
    return generators


def load_enough(source, data_dir, split, num_classes, update_batch_size, query):
    """Load (images uint8 [n, pixels], rows of each class, digest) of a split; raises TooFew if they do not suffice."""
    images, classes, names, digest = load_split(source, data_dir, split)
    needed = update_batch_size + query
    if len(classes) < num_classes:
        raise TooFew(
            f'{data_dir} has {len(classes)} classes in its {split} split, too few for '
            f'{num_classes}-way tasks: lower --num_classes or bring more data'
        )
    for name, rows in zip(names, classes):
        if len(rows) < needed:
            raise TooFew(
                f'{name} has {len(rows)} images, but a task needs {needed} of a class '
                f'({update_batch_size} + {query} query): add images, remove the class, or lower '
                f'--{"train" if split == "train" else "test"}_query'
            )
    return images, classes, digest


def load_split(source, data_dir, split):
    """Load (images uint8 [n, pixels], rows of each class, class folders, digest of all files) of one split, checked.

    One set of class folders (source.split) is sorted, shuffled with seed 1 and cut in the proportion that the split
    says, Omniglot's 1,623 characters into 1,100 / 100 / 423; MiniImagenet has a folder for each split.
    """
    part, folder = SPLITS.index(split), data_dir if source.split else data_dir / split
    how = dict(invert=source.drawings, own=source.own)
    images, classes, names, digest = load_folders(folder, source.depth, source.img_size, source.channels, **how)
    if source.full_size:
        num_classes, num_images = source.full_size[part]
        if len(classes) != num_classes or any(len(rows) != num_images for rows in classes):
            print(
                f'warning: {folder} has {len(classes)} classes with {sum(map(len, classes))} images, not the full '
                f'{num_classes} x {num_images}: results will not compare with the paper',
                file=sys.stderr,
            )
    if not source.split:
        return images, classes, names, digest
    order = list(range(len(classes)))
    random.Random(1).shuffle(order)
    cuts = [round(len(order) * sum(source.split[:i]) / sum(source.split)) for i in (part, part + 1)]
    order = order[slice(*cuts)]
    ends = np.cumsum([0] + [len(classes[i]) for i in order])
    images = np.concatenate([images[classes[i]] for i in order] or [images[:0]])
    return images, [range(*ends[i : i + 2]) for i in range(len(order))], [names[i] for i in order], digest
