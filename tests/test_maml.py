"""MAML's own parts, where the original's numbers do not reach: initial weights, learned step sizes, plain forms."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from golden_vectors import train_step

import utils
from maml import MAML
from networks import Convolutional, FullyConnected
from utils import Adam

SINUSOID = FullyConnected()
OMNIGLOT = Convolutional(img_size=28, channels=1)
MINIIMAGENET = Convolutional(img_size=84, channels=3, num_filters=32, max_pool=True, flatten=True)


def tasks(num_tasks=3, k=10, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-5, 5, [num_tasks, 2 * k, 1])
    y = rng.uniform(0.1, 5, [num_tasks, 1, 1]) * np.sin(x - rng.uniform(0, np.pi, [num_tasks, 1, 1]))
    x, y = np.float32(x), np.float32(y)
    return x[:, :k], y[:, :k], x[:, k:], y[:, k:]


def numpy_weights(model):
    return {name: weight.numpy() for name, weight in model.weights.items()}


def test_initial_weights():
    """Distributions of the original's initialisers (maml: maml.py:168-208)."""
    fc, omniglot, mini = (numpy_weights(MAML(network)) for network in (SINUSOID, OMNIGLOT, MINIIMAGENET))
    assert abs(fc['w2']).max() < 0.02 and abs(fc['w2'].std() - 0.0088) < 0.0005  # truncated at two deviations
    for weights, name, limit in (
        (omniglot, 'conv2', np.sqrt(6 / (9 * 128))),
        (mini, 'conv1', np.sqrt(6 / (9 * 35))),
        (mini, 'w5', np.sqrt(6 / 805)),
    ):
        assert 0.95 * limit < abs(weights[name]).max() <= limit
        np.testing.assert_allclose(weights[name].std(), limit / np.sqrt(3), rtol=0.06)
    assert mini['w5'].shape == (800, 5) and omniglot['w5'].shape == (64, 5)
    np.testing.assert_allclose(omniglot['w5'].std(), 1, rtol=0.15)
    assert all(not weights[f'b{i}'].any() for weights in (omniglot, mini) for i in range(1, 6))
    assert not np.array_equal(omniglot['conv2'], omniglot['conv3'])
    strided = Convolutional(84, 3, num_filters=32, flatten=True, norm='layer_norm').init(1)
    assert strided['w5'].shape == (6 * 6 * 32, 5)  # 42, 21, 11, 6: rounded up
    assert all((strided[f'bn/{i}/gamma'] == 1).numpy().all() for i in range(4))
    assert all(not weights['bn/3/beta'].numpy().any() for weights in (strided, OMNIGLOT.init(1)))


def test_weights_depend_on_the_seed():
    first, same, other = (numpy_weights(MAML(SINUSOID, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first['w2'], same['w2'])
    assert not np.array_equal(first['w2'], other['w2'])


@pytest.mark.parametrize('stop_grad', [False, True])
def test_meta_gradient_is_that_of_the_papers_formula(stop_grad):
    """Against central differences in float64: of L_b(theta - alpha grad L_a(theta)), and for first-order MAML of
    L_b(theta - constant)."""
    model = MAML(SINUSOID, num_updates=1, dtype=tf.float64, stop_grad=stop_grad)
    for name, weight in model.weights.items():  # away from the small start, where there is no curvature
        weight.assign(tf.random.stateless_normal(weight.shape, [7, len(name)], stddev=0.4, dtype=tf.float64))
    batch = [tf.constant(part, tf.float64) for part in tasks()]
    gradients, _ = tf.function(model.meta_gradient)(batch)
    direction = {
        name: tf.random.stateless_normal(w.shape, [8, len(name)], dtype=tf.float64) for name, w in model.weights.items()
    }
    theta = {name: tf.convert_to_tensor(weight) for name, weight in model.weights.items()}

    @tf.function
    def loss(epsilon):
        total = tf.constant(0, tf.float64)
        for inputa, labela, inputb, labelb in zip(*map(tf.unstack, batch)):
            moved = {name: theta[name] + epsilon * direction[name] for name in theta}
            start = theta if stop_grad else moved
            adapted, _, _ = model.inner_step(start, inputa, labela, 0)
            phi = {name: moved[name] + adapted[name] - start[name] for name in theta}
            total += model.loss_func(model.forward(inputb, phi), labelb)
        return total / 3

    slope = sum(float(tf.reduce_sum(gradients[name] * direction[name])) for name in gradients)
    forward, backward = (float(loss(tf.constant(epsilon, tf.float64))) for epsilon in (1e-6, -1e-6))
    np.testing.assert_allclose(slope, (forward - backward) / 2e-6, rtol=1e-4)


def test_learned_step_sizes():
    """At the start they change nothing; their gradient is -sum(grad L_b(theta') * grad L_a); training moves them."""
    plain, learned = MAML(SINUSOID, num_updates=2), MAML(SINUSOID, num_updates=2, learn_update_lr=True)
    batch = tasks()
    ours, _ = tf.function(plain.meta_gradient)(batch)
    gradients, _ = tf.function(learned.meta_gradient)(batch)
    assert set(gradients) - set(ours) == {f'update_lr/{name}' for name in ours}
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradients[name], gradient, rtol=1e-5, atol=1e-7)

    theta = {name: tf.convert_to_tensor(weight) for name, weight in plain.weights.items()}
    expected = 0
    for inputa, labela, inputb, labelb in zip(*(tf.constant(part) for part in batch)):
        first, _, _ = plain.inner_step(theta, inputa, labela, 0)
        second, _, _ = plain.inner_step(first, inputa, labela, 1)
        with tf.GradientTape() as tape:
            tape.watch(second)
            loss = plain.loss_func(plain.forward(inputb, second), labelb)
        inner = (first['w2'] - second['w2']) / 0.01
        expected -= tf.reduce_sum(tape.gradient(loss, second['w2']) * inner) / 3
    np.testing.assert_allclose(gradients['update_lr/w2'][1], expected, rtol=1e-3)

    train_step(learned, batch)
    assert abs(learned.weights['update_lr/w2'].numpy() - 0.01).min() > 1e-4
    assert learned.evaluate(batch, 4).shape == (3, 6)  # more steps than were trained


class Slide:
    """The outputs are x w and the loss is their mean, so that each inner step on x = 1 takes alpha off w."""

    adapted = ['w']

    def init(self, seed):
        return {'w': [5.0]}

    def forward(self, x, weights):
        return x * weights['w']


@pytest.mark.parametrize('dtype', [tf.float32, tf.float64])
def test_each_inner_step_takes_its_own_alpha_and_later_ones_the_last(dtype):
    """In training and tests, all in the model's precision; the query set's x is 2."""
    model, plain = (
        MAML(Slide(), lambda pred, _: tf.reduce_mean(pred), num_updates=2, learn_update_lr=learn, dtype=dtype)
        for learn in (True, False)
    )
    alpha = dtype.as_numpy_dtype(0.01)
    assert model.weights['update_lr/w'].numpy().tolist() == [alpha, alpha]
    assert plain.alpha(plain.weights, 'w', 0).numpy() == alpha and plain.alpha(plain.weights, 'w', 0).dtype == dtype
    model.weights['update_lr/w'].assign([0.5, 2.0])
    one, two = np.ones([1, 1, 1]), np.full([1, 1, 1], 2.0)
    np.testing.assert_array_equal(model.evaluate((one, one, two, two), 4), [[5, 10, 9, 5, 1, -3]])
    gradients, metrics = model.meta_gradient((one, one, two, two))
    np.testing.assert_array_equal(metrics, [5, 5])
    np.testing.assert_array_equal(gradients['update_lr/w'], [-2, -2])
    np.testing.assert_allclose(plain.meta_gradient((one, one, two, two), True)[1], [5, 9.96], rtol=1e-6)  # pretraining


def test_the_clip_is_for_meta_training_alone():
    """Each optimiser's first moment is a tenth of its first gradient."""
    model = MAML(SINUSOID, clip=1e-3)
    for pretrain, adam in ((True, model.pretrain_adam), (False, model.metatrain_adam)):
        gradients, _ = model.meta_gradient(tasks(), pretrain)
        assert max(abs(gradient.numpy()).max() for gradient in gradients.values()) > 2e-3
        model.outer_step(tasks(), pretrain)
        for name, gradient in gradients.items():
            limit = np.inf if pretrain else 1e-3
            np.testing.assert_allclose(10 * adam.slots[f'm/{name}'], np.clip(gradient, -limit, limit), rtol=1e-4)


def plain_convolutional(x, weights):
    """networks.Convolutional for Omniglot again, with explicit statistics of the batch."""
    x = tf.reshape(x, [-1, 28, 28, 1])
    for i in range(4):
        x = tf.nn.conv2d(x, weights[f'conv{i + 1}'], 2, 'SAME') + weights[f'b{i + 1}']
        mean = tf.reduce_mean(x, [0, 1, 2])
        variance = tf.reduce_mean((x - mean) ** 2, [0, 1, 2])
        x = tf.nn.relu((x - mean) / tf.sqrt(variance + 0.001) + weights[f'bn/{i}/beta'])
    return tf.reduce_mean(x, [1, 2]) @ weights['w5'] + weights['b5']


def test_the_omniglot_network_of_full_size_is_the_plain_one():
    """64 filters, 28x28: outputs, gradients and the meta-gradient of a 5-way 1-shot task."""
    xent = functools.partial(utils.xent, update_batch_size=1)
    model = MAML(OMNIGLOT, xent, update_lr=0.4)
    for name in ('bn/0/beta', 'bn/3/beta', 'b2'):
        model.weights[name].assign(tf.random.stateless_normal([64], [1, 2], stddev=0.3))
    theta = {name: tf.convert_to_tensor(weight) for name, weight in model.weights.items()}
    x, label = tf.random.stateless_uniform([2, 5, 784], [3, 4]), tf.eye(5)

    with tf.GradientTape() as outer:
        outer.watch(theta)
        with tf.GradientTape() as inner:
            inner.watch(theta)
            output = plain_convolutional(x[0], theta)
            loss = xent(output, label)
        gradients = inner.gradient(loss, theta)
        phi = {k: w - 0.4 * gradients[k] if k in model.adapted else w for k, w in theta.items()}
        meta_loss = xent(plain_convolutional(x[1], phi), label)
    task = (x[0], label, x[1], label)
    for ours, theirs in (
        (model.forward(x[0], theta), output),
        (model.task_pretrain(theta, task)[0], gradients),
        (model.task_metalearn(theta, task)[0], outer.gradient(meta_loss, theta)),
    ):
        ours, theirs = tf.nest.flatten(ours), tf.nest.flatten(theirs)
        size = max(np.linalg.norm(tensor) for tensor in theirs)
        for a, b in zip(ours, theirs):
            assert np.linalg.norm(a - b) < 1e-4 * np.linalg.norm(b) + 1e-6 * size


def test_a_block_is_its_steps():
    """One compiled call for many outer steps does what as many calls do, from any start within the block."""
    block = [np.stack(parts) for parts in zip(*(tasks(seed=seed) for seed in range(5)))]
    together, one_by_one = MAML(SINUSOID, vectorize=True), MAML(SINUSOID, vectorize=True)
    metrics = np.concatenate([together.train_block(block, 0, 3), together.train_block(block, 3, 5)])
    for step in range(5):
        np.testing.assert_allclose(train_step(one_by_one, [part[step] for part in block]), metrics[step], rtol=1e-4)
    for name, weight in together.weights.items():
        np.testing.assert_allclose(weight, one_by_one.weights[name], rtol=1e-3, atol=1e-6)


def test_what_would_be_trained_otherwise_in_silence_is_refused():
    block = [np.stack(parts) for parts in zip(*(tasks(seed=seed) for seed in range(2)))]
    with pytest.raises(ValueError, match='last=3, but the block has 2 batches'):
        MAML(SINUSOID, vectorize=True).train_block(block, 0, 3)
    with pytest.raises(ValueError, match='num_updates=0'):
        MAML(SINUSOID, num_updates=0)

    class Network(FullyConnected):
        def init(self, seed):
            return super().init(seed) | {'update_lr': tf.zeros([2])}

    with pytest.raises(ValueError, match='no weight can be called update_lr'):
        MAML(Network())


def test_adam_is_tf1s():
    """Against the formula of TF1's documentation, written in NumPy."""
    weights = {'w': tf.Variable([1.0, -2.0, 3.0])}
    adam, w, m, v = Adam(weights, 0.1), np.array([1.0, -2.0, 3.0]), 0, 0
    for t in range(1, 6):
        gradient = np.array([0.5, -1e-7, 2.0]) * t
        adam.apply(weights, {'w': tf.constant(gradient, tf.float32)})
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w = w - 0.1 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-8)
    np.testing.assert_allclose(weights['w'], w, rtol=2e-4)


def test_uint8_images_are_divided_by_255():
    model = MAML(Slide(), lambda pred, _: tf.reduce_mean(pred))
    tasks = (np.uint8([[[0], [51], [255]]]),) * 4
    np.testing.assert_allclose(model.evaluate(tasks, 0), [[2, 2]], rtol=1e-6)
    assert model.prepare(tasks)[1].numpy().max() == 255  # labels are no pixels
    for pretrain in (False, True):
        np.testing.assert_allclose(model.meta_gradient(tasks, pretrain)[1][0], 2, rtol=1e-6)


def test_batch_norm_of_many_examples_without_positions():
    """Fully connected layers have no height and width, which the fused operation would want."""
    x = tf.random.stateless_normal([1001, 4], [1, 2]) * 3 + 5
    y = utils.batch_norm(x, tf.fill([4], 0.5)).numpy()
    np.testing.assert_allclose(y.mean(axis=0), 0.5, atol=1e-4)
    np.testing.assert_allclose(y.std(axis=0), 1, rtol=1e-3)


@pytest.mark.parametrize('shape', [(5, 28, 28, 1), (2, 7, 7, 3), (1, 4, 5, 2), (3, 1, 1, 2)])
def test_a_small_convolution_is_tensorflows(shape):
    """The product of patches and kernel, its gradients, and the gradients of those, up to rounding."""
    rng = np.random.default_rng(0)
    x, kernel = tf.constant(rng.normal(size=shape)), tf.constant(rng.normal(size=[3, 3, shape[3], 4]))
    weight = tf.constant(rng.normal(size=tf.nn.conv2d(x, kernel, 2, 'SAME').shape))
    assert np.prod(weight.shape[:3]) * 9 * shape[3] <= utils.SMALL_CONVOLUTION[x.dtype]

    def derivatives(convolution):
        with tf.GradientTape() as outer:
            outer.watch((x, kernel))
            with tf.GradientTape() as inner:
                inner.watch((x, kernel))
                y = convolution(x, kernel)
                loss = tf.reduce_sum(weight * y**3)
            gradients = inner.gradient(loss, (x, kernel))
            norm = tf.add_n([tf.reduce_sum(g**2) for g in gradients])
        return y, *gradients, *outer.gradient(norm, (x, kernel))

    for ours, theirs in zip(
        derivatives(lambda *a: utils.conv2d(*a, 2)), derivatives(lambda *a: tf.nn.conv2d(*a, 2, 'SAME'))
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())
