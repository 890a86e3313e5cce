"""A network and a loss of the user's own: the README's example, as it stands there."""

import contextlib
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
from differences import assert_second_order

import checkpoint

README = pathlib.Path(__file__).parent.parent / 'README.md'


@pytest.fixture(scope='module')
def example(tmp_path_factory):
    """What the README's lines leave behind."""
    code = re.search(r'## Use it as a library.*?```python\n(.*?)```', README.read_text(), re.DOTALL)[1]
    with contextlib.chdir(tmp_path_factory.mktemp('library')):
        exec(code, names := {})
        names['kept'] = checkpoint.read('attention.npz')
    return names


def test_the_readmes_example_learns(example):
    errors = example['errors'].numpy().mean(axis=0)
    assert example['metrics'].shape == (200, 2) and errors.shape == (5,)
    assert errors[4] < 0.8 * errors[1]
    first = np.abs(example['predicted'] - example['labelb']).mean()
    np.testing.assert_allclose(first, example['errors'][0, 4], rtol=1e-5)
    np.testing.assert_array_equal(example['kept']['weights/out'], example['model'].weights['out'])


def test_its_meta_gradient_is_of_second_order(example):
    """Against central differences of the query loss after the inner step, in float64."""
    model = example['MAML'](example['Attention'](), example['absolute_error'], update_lr=0.3, dtype=tf.float64)
    for name, weight in model.weights.items():
        weight.assign(tf.random.stateless_normal(weight.shape, [3, len(name)], dtype=tf.float64))
    tasks = [part[0, :3] for part in example['draw'](0, 1)]
    assert_second_order(model, tasks)
