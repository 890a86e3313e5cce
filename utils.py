"""Losses, the layers that networks.py is made of, and the outer step's optimiser (maml: utils.py)."""

import functools

import numpy as np
import tensorflow as tf

import runtime

BATCH_NORM_EPSILON = 1e-3  # tf.contrib.layers.batch_norm's default (maml: utils.py:41)
LAYER_NORM_EPSILON = 1e-12  # tf.contrib.layers.layer_norm's
# Numbers in its patches, up to which a strided convolution is faster as a matrix product.
SMALL_CONVOLUTION = {tf.float64: 2**16, tf.float32: 2**16, tf.bfloat16: 2**18}


def mse(pred, label):
    """Return the mean squared error over all entries, a scalar (maml: utils.py:51-54)."""
    return tf.reduce_mean(tf.square(tf.reshape(pred, [-1]) - tf.reshape(label, [-1])))


def xent(pred, label, update_batch_size):
    """Return the cross entropies of `pred` [examples, classes] with one-hot `label`, SUMMED and divided by K.

    So the support loss is N times the mean over its N*K examples, and the query loss is divided by K too,
    whatever its own size (maml: utils.py:56-58; maml: maml.py:136 reduces with a sum).
    """
    return tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(label, pred)) / update_batch_size


def accuracy(pred, label):
    """Share of rows of `pred` [examples, classes] whose largest entry is the label's; NaN if `pred` is not finite."""
    hits = tf.equal(tf.argmax(pred, axis=1), tf.argmax(label, axis=1))
    share = tf.reduce_mean(tf.cast(hits, pred.dtype))
    return tf.where(tf.reduce_all(tf.math.is_finite(pred)), share, np.nan)  # else argmax would say class 0


def batch_norm(x, beta):
    """Batch normalisation over all axes but the last, with the statistics of the batch at hand; no scale.

    The variance is written out, or left to the fused operation, because MAML differentiates twice:
    tf.nn.moments stops the gradient at the mean inside the variance, which leaves the first derivative right
    and makes the second, so the meta-gradient, wrong by up to 82 % (docs/conformance.md).
    """
    if x.shape.rank == 4 and x.dtype in (tf.float32, tf.bfloat16):
        return fused_batch_norm(x, beta)
    axes = list(range(x.shape.rank - 1))
    centred = x - tf.reduce_mean(x, axes)
    return centred * tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axes) + BATCH_NORM_EPSILON) + beta


def fused_batch_norm(x, beta):
    """batch_norm of images by the fused kernels, with the second derivative written by hand (docs/performance.md).

    With h the normalised x, s its inverse deviation and n the number of positions, the gradient d of the output
    becomes G(d) = s (d - mean(d) - h mean(d h)), which is its own transpose. The gradient of sum(u G(d)) with
    respect to x is -s (mean(d h) G(u) + mean(u h) G(d) + mean(u G(d)) h). Can be differentiated twice, not more.
    Maps are float32 or bfloat16, statistics and beta float32.
    """
    axes, n = [0, 1, 2], int(np.prod(x.shape[:-1]))
    scale, shifted = tf.ones_like(beta), tf.stop_gradient(x)
    if x.dtype == tf.float32:
        # The kernel loses digits where the mean is far from 0. A batch norm does not feel a shift of its input, so
        # taking the first example's mean away first changes neither its value nor any derivative.
        shifted -= tf.stop_gradient(tf.reduce_mean(x[:1], axes))

    @tf.custom_gradient
    def normalise(x, beta):
        y, _, variance, *reserved = tf.raw_ops.FusedBatchNormV3(
            x=shifted, scale=scale, offset=beta, mean=[], variance=[], epsilon=BATCH_NORM_EPSILON
        )
        spaces = {f'reserve_space_{i}': space for i, space in enumerate(reserved, start=1)}
        s = tf.math.rsqrt(variance * ((n - 1) / n) + BATCH_NORM_EPSILON)  # the kernel's variance is unbiased

        def g_and_sum(d):
            """G(d) and sum(d h)."""
            return tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=d, x=shifted, scale=scale, epsilon=BATCH_NORM_EPSILON, **spaces
            )[:2]

        @tf.custom_gradient
        def gradient(_, d):
            g_d, sum_dh = g_and_sum(d)

            def second(u):
                g_u, sum_uh = g_and_sum(u)
                sum_ug = tf.cast(tf.reduce_sum(u * g_d, axes), s.dtype)
                a, b, c = (tf.cast(-s / n * total, x.dtype) for total in (sum_dh, sum_uh, sum_ug))
                return a * g_u + b * g_d + c * (y - tf.cast(beta, x.dtype)), g_u

            return g_d, second

        return y, lambda d: (gradient(x, d), tf.cast(tf.reduce_sum(d, axes), beta.dtype))

    return normalise(x, beta)


def layer_norm(x, gamma, beta):
    """Layer normalisation over all axes but the first; gamma and beta have the size of the last axis."""
    axes = list(range(1, x.shape.rank))
    centred = x - tf.reduce_mean(x, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), axes, keepdims=True)
    return centred * tf.math.rsqrt(variance + LAYER_NORM_EPSILON) * gamma + beta


def normalize(x, weights, norm, scope):
    """Normalise `x` as `norm` says ('batch_norm', 'layer_norm' or 'None') with the parameters bn/<scope>/… ."""
    if norm == 'batch_norm':
        return batch_norm(x, weights[f'bn/{scope}/beta'])
    if norm == 'layer_norm':
        gamma, beta = weights[f'bn/{scope}/gamma'], weights[f'bn/{scope}/beta']
        return tf.cast(layer_norm(tf.cast(x, beta.dtype), gamma, beta), x.dtype)
    return x


def add_bias(x, bias, norm):
    """Return x + bias, except where a batch norm follows and would take it away again (saves 3-7 % of a step)."""
    return x if norm == 'batch_norm' else x + tf.cast(bias, x.dtype)


def conv2d(x, kernel, stride):
    """Do tf.nn.conv2d with padding 'SAME' in the dtype of `x`, as a product of patches and kernel where that is faster.

    Faster with few images and stride 2. `x` is [examples, height, width, channels], `kernel` [size, size, channels,
    filters] (docs/performance.md). bfloat16 is multiplied in float32 and the sums are rounded, as the processors that
    have it do; where the processor has not, or is slow at it, that is written out.
    """
    kernel = tf.cast(kernel, x.dtype)
    if x.dtype == tf.bfloat16 and not runtime.has_bfloat16():
        return tf.cast(conv2d(tf.cast(x, tf.float32), kernel, stride), x.dtype)
    examples, height, width, channels = x.shape
    size, _, _, filters = kernel.shape
    positions = [examples, -(-height // 2), -(-width // 2)]
    if stride != 2 or np.prod(positions) * size * size * channels > SMALL_CONVOLUTION[x.dtype]:
        return tf.nn.conv2d(x, kernel, stride, 'SAME')
    return tf.reshape(patches(x, size) @ tf.reshape(kernel, [-1, filters]), [*positions, filters])


def patches(x, size):
    """Return what a size x size kernel of stride 2 sees of `x` at each position: [positions, size * size * channels].

    This is linear: its gradient is its transpose, whose gradient is the map again. TensorFlow knows as much, but
    takes longer for the second.
    """
    pixels, channels = patch_pixels(*x.shape[:3], size), x.shape[3]

    @tf.custom_gradient
    def take(x):
        rows = tf.pad(tf.reshape(x, [-1, channels]), [[1, 0], [0, 0]])  # row 0 is the padding
        return tf.reshape(tf.gather(rows, pixels), [-1, size * size * channels]), give

    @tf.custom_gradient
    def give(d):
        rows = tf.reshape(d, [-1, channels])
        return tf.reshape(tf.math.unsorted_segment_sum(rows, pixels - 1, np.prod(x.shape[:3])), x.shape), take

    return take(x)


@functools.cache
def patch_pixels(examples, height, width, size):
    """Return for each entry of each patch the pixel that it shows, counted from 1; 0 for the padding."""
    pixels = np.arange(1, examples * height * width + 1, dtype=np.int32).reshape(examples, height, width)
    margins = [max((-(-side // 2) - 1) * 2 + size - side, 0) for side in (height, width)]
    pixels = np.pad(pixels, [(0, 0)] + [(m // 2, m - m // 2) for m in margins])
    return np.lib.stride_tricks.sliding_window_view(pixels, (size, size), (1, 2))[:, ::2, ::2].reshape(-1)


def max_pool2d(x):
    """Return the 2x2 max-pool of `x` [examples, height, width, channels], without an odd last row or column.

    The gradient puts d where each maximum is. Its own gradient, which reads u there, is a product and an average
    pool here: TensorFlow's kernel for it is slow (docs/performance.md). Can be differentiated twice, not more.
    """
    windows = dict(ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding='VALID')
    fixed = tf.stop_gradient(x)

    @tf.custom_gradient
    def pool(x):
        y = tf.raw_ops.MaxPool(input=x, **windows)

        def put(d):
            return tf.raw_ops.MaxPoolGrad(orig_input=fixed, orig_output=y, grad=d, **windows)

        @tf.custom_gradient
        def gradient(d):
            return put(d), lambda u: 4 * tf.nn.avg_pool2d(u * put(tf.ones_like(y)), 2, 2, 'VALID')

        return y, gradient

    return pool(x)


def conv_block(x, weights, layer, norm, max_pool):
    """3x3 convolution, bias, norm, ReLU, and either stride 2 or a 2x2 max-pool (maml: utils.py:25-38).

    `x` is [examples, height, width, channels]; `layer` counts from 1, its norm scope is layer - 1.
    """
    x = add_bias(conv2d(x, weights[f'conv{layer}'], 1 if max_pool else 2), weights[f'b{layer}'], norm)
    x = normalize(x, weights, norm, layer - 1)
    if max_pool:  # before the ReLU: the two commute, gradients too, and the map is 4 x smaller
        x = max_pool2d(x)
    return tf.nn.relu(x)


class Adam:
    """Adam with TF1's kernel: step lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon).

    The epsilon stands outside the bias correction. `slots` maps 'm/NAME', 'v/NAME' and 't' to variables.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, weights, learning_rate):
        self.learning_rate = learning_rate
        self.slots = {
            f'{slot}/{name}': tf.Variable(tf.zeros_like(weight), name=f'{slot}/{name}')
            for slot in 'mv'
            for name, weight in weights.items()
        }
        self.slots['t'] = tf.Variable(0, dtype=tf.int64, name='t')

    def apply(self, weights, gradients):
        """Update the variables of `weights` in place with `gradients`, a dictionary of the same names."""
        # Raw operations, so that each replica of a tf.distribute strategy updates its own copy, all of them alike.
        tf.raw_ops.AssignAddVariableOp(resource=self.slots['t'].handle, value=tf.constant(1, tf.int64))
        steps = tf.raw_ops.ReadVariableOp(resource=self.slots['t'].handle, dtype=tf.int64)
        for name, gradient in gradients.items():
            t = tf.cast(steps, gradient.dtype)
            tf.raw_ops.ResourceApplyAdam(
                var=weights[name].handle,
                m=self.slots[f'm/{name}'].handle,
                v=self.slots[f'v/{name}'].handle,
                beta1_power=self.BETA1**t,
                beta2_power=self.BETA2**t,
                lr=self.learning_rate,
                beta1=self.BETA1,
                beta2=self.BETA2,
                epsilon=self.EPSILON,
                grad=gradient,
            )
