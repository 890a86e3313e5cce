"""A network and a loss of the user's own: the README's example, as it stands there."""

import pathlib
import re

import numpy as np
import tensorflow as tf
from differences import assert_second_order

README = pathlib.Path(__file__).parent.parent / 'README.md'


def task_batches(iterations, tasks=20, k=8, seed=0):
    """Every symbol has a value of its own in each task; a sequence is worth the mean of its symbols' values."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=[iterations, tasks, 1, 1, 10])
    x = rng.integers(10, size=[iterations, tasks, 2 * k, 5])
    y = np.take_along_axis(values, x[..., None], 4).mean(axis=(3, 4))[..., None].astype(np.float32)
    return x[:, :, :k], y[:, :, :k], x[:, :, k:], y[:, :, k:]


def example():
    """What the README's lines leave behind."""
    code = re.search(r'## Use it as a library.*?```python\n(.*?)```', README.read_text(), re.DOTALL)[1]
    names = {'blocks': [task_batches(200, seed=s) for s in range(3)], 'tasks': [x[0] for x in task_batches(1, seed=9)]}
    exec(code, names)
    return names


def test_the_readmes_example_learns():
    names = example()
    errors = names['errors'].numpy().mean(axis=0)
    assert names['metrics'].shape == (200, 2) and errors.shape == (5,)
    assert errors[4] < 0.8 * errors[1]


def test_its_meta_gradient_is_of_second_order():
    """Against central differences of the query loss after the inner step, in float64."""
    names = example()
    model = names['MAML'](names['Attention'](), names['absolute_error'], update_lr=0.3, dtype=tf.float64)
    for name, weight in model.weights.items():
        weight.assign(tf.random.stateless_normal(weight.shape, [3, len(name)], dtype=tf.float64))
    tasks = [part[0, :3] for part in task_batches(1)]
    assert_second_order(model, tasks)
