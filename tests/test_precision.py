"""--precision=mixed: convolutions and the maps between them in bfloat16, all else in float32."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from golden_vectors import Case
from program import run_here
from test_own_images import SHORT, folders, names

import runtime
import training
import utils

EPSILON = 2.0**-8  # what two neighbours in bfloat16 differ by, relatively


has_it = pytest.mark.skipif(not runtime.has_bfloat16(), reason='the processor has no bfloat16, or is slow at it')


@pytest.fixture(params=[False, pytest.param(True, marks=has_it)])
def by_the_processor(request, monkeypatch):
    """Convolutions written out in float32, and left to the processor where it has bfloat16."""
    monkeypatch.setattr(runtime, 'has_bfloat16', lambda: request.param)


@pytest.mark.parametrize('name', ['omniglot_5way_1shot', 'miniimagenet_5way_1shot'])
def test_the_meta_gradient_is_the_originals_up_to_rounding(by_the_processor, name):
    """In float32 it is nearer than 1e-4; strides and max-pools."""
    case = Case(name)
    model = case.model()
    model.forward = dataclasses.replace(model.network, compute_dtype='bfloat16').forward
    gradients, metrics = tf.function(model.meta_gradient)(case.tasks)
    assert {gradient.dtype for gradient in gradients.values()} == {tf.float32}
    losses = case['total_loss1'], case['total_losses2'][model.num_updates - 1]
    np.testing.assert_allclose(metrics[:2], losses, rtol=2e-2)
    assert 1e-3 < case.error(gradients, 'g') < 0.3


def derivatives(function, x, w):
    """Return function(x, w), the gradients of a weighted sum of its cubes, and the gradients of their squares."""
    with tf.GradientTape() as outer:
        outer.watch((x, w))
        with tf.GradientTape() as inner:
            inner.watch((x, w))
            y = function(x, w)
            weight = tf.random.stateless_normal(y.shape, [5, 6], dtype=tf.float64)
            loss = tf.reduce_sum(weight * tf.cast(y, tf.float64) ** 3)
        gradients = inner.gradient(loss, (x, w))
        total = tf.add_n([tf.reduce_sum(tf.cast(g, tf.float64) ** 2) for g in gradients])
    return y, *gradients, *outer.gradient(total, (x, w))


def errors(function, x, w):
    """Return the relative errors of derivatives in bfloat16 against those in float64 at the same place."""
    x = tf.cast(x, tf.bfloat16)
    low, high = derivatives(function, x, w), derivatives(function, tf.cast(x, tf.float64), tf.cast(w, tf.float64))
    norm = tf.linalg.norm
    return [float(norm(tf.cast(a, tf.float64) - b) / norm(b)) for a, b in zip(low, high)]


@pytest.mark.parametrize('norm', ['batch_norm', 'layer_norm'])
def test_norms_to_the_second_derivative(norm):
    """The mean is 20 deviations from 0; statistics and the gradient of beta are not in bfloat16."""
    x = tf.random.stateless_normal([5, 7, 7, 3], [1, 2]) + 20
    beta = tf.constant([0.5, -0.5, 1.0])

    def normalize(x, beta):
        return utils.normalize(x, {'bn/0/beta': beta, 'bn/0/gamma': tf.ones_like(beta)}, norm, 0)

    assert max(errors(normalize, x, beta)) < 5 * EPSILON


@pytest.mark.parametrize('stride, examples', [(1, 5), (2, 5), (2, 40)])
def test_a_convolution_rounds_its_sums_alone(by_the_processor, stride, examples):
    """Not its 288 summands: as a convolution, and with a few examples and stride 2 as a product."""
    x = tf.random.stateless_normal([examples, 14, 14, 32], [1, 2])
    kernel = tf.cast(tf.cast(tf.random.stateless_normal([3, 3, 32, 8], [3, 4]), tf.bfloat16), tf.float32)
    y, *gradients = errors(lambda x, w: utils.conv2d(x, w, stride), x, kernel)
    assert y < EPSILON / 2 and max(gradients) < 3 * EPSILON


def test_float32_is_float32_on_a_gpu_too():
    """TensorFlow's default there, TensorFloat-32, has errors of 3e-4 a product, and the conformance vectors fail."""
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


@pytest.mark.parametrize(
    'cpuinfo, fast',
    [
        ('vendor_id : AuthenticAMD\nflags : avx2 avx512f avx512_bf16', True),
        ('vendor_id : GenuineIntel\nflags : avx2 avx512f avx512_bf16 amx_bf16', True),
        ('vendor_id : GenuineIntel\nflags : avx2 avx512f avx512_bf16', False),
        ('vendor_id : AuthenticAMD\nflags : avx2', False),
    ],
)
@pytest.mark.skipif(bool(tf.config.list_physical_devices('GPU')), reason='a GPU has bfloat16')
def test_which_processors_are_fast_at_it(tmp_path, cpuinfo, fast):
    """A convolution in Intel's avx512_bf16 takes 1.2 to 2.1 times as long as in float32."""
    (tmp_path / 'cpuinfo').write_text(cpuinfo)
    assert runtime.has_bfloat16(tmp_path / 'cpuinfo') is fast


def test_training_and_its_test(tmp_path, monkeypatch, capsys):
    """A folder of its own; one line says that it is slow here."""
    monkeypatch.setattr(training, 'has_bfloat16', lambda: False)
    folders(tmp_path / 'data', names(10), size=10)
    flags = ['--datasource=images', f'--data_dir={tmp_path}/data', f'--logdir={tmp_path}', '--metatrain_iterations=1']
    flags += ['--test_num_updates=1', '--split=5,0,5', '--test_set', *SHORT]
    folder = run_here(*flags, '--precision=mixed')
    warnings = [line for line in capsys.readouterr().err.splitlines() if 'bf16' in line]
    assert len(warnings) == 1 and '--precision=mixed' in warnings[0]
    result = json.loads(next(folder.glob('test*.json')).read_text())
    assert result['settings']['precision'] == 'mixed' and folder.name.endswith('mixed')
    assert run_here(*flags) != folder and 'bf16' not in capsys.readouterr().err
