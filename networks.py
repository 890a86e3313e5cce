"""The two networks of the paper's supervised experiments, with the original's weight names and initial values.

MAML adapts any object with these three members, so a network of your own needs no more (README, "Use it as a library"):

    init(seed)            fresh weights: a dictionary, name -> array
    adapted               names of the weights that the inner loop adapts; the outer loop trains all of them
    forward(x, weights)   outputs [examples, ...] for the inputs x [examples, ...] of one task
"""

import dataclasses

import numpy as np
import tensorflow as tf

from utils import add_bias, conv_block, normalize


@dataclasses.dataclass(frozen=True)
class FullyConnected:
    """Hidden layers with norm and ReLU, then a linear layer; the defaults are the sinusoid's (maml: maml.py:23-47)."""

    dim_input: int = 1
    dim_output: int = 1
    dim_hidden: tuple = (40, 40)
    norm: str = 'None'  # or 'batch_norm', 'layer_norm'

    @property
    def adapted(self):
        """w1, b1, w2, …; norm parameters are not adapted."""
        return [f'{kind}{i}' for i in range(1, len(self.dim_hidden) + 2) for kind in 'wb']

    @property
    def norm_scopes(self):
        """The original's names of the norm layers: 0, 2, 3, …, one for each hidden layer (maml: maml.py:178-184)."""
        return [0, *range(2, len(self.dim_hidden) + 1)]

    def init(self, seed):
        """Return matrices of truncated normals of deviation 0.01, and biases 0 (maml: maml.py:168-176)."""
        sizes = [self.dim_input, *self.dim_hidden, self.dim_output]
        weights = {}
        for i, (rows, columns) in enumerate(zip(sizes, sizes[1:]), start=1):
            weights[f'w{i}'] = tf.random.stateless_truncated_normal([rows, columns], [seed, i], stddev=0.01)
            weights[f'b{i}'] = tf.zeros([columns])
        return weights | norm_weights(self.norm, self.norm_scopes, self.dim_hidden)

    def forward(self, x, weights):
        """Return [examples, dim_output] for x [examples, dim_input]."""
        for i, scope in enumerate(self.norm_scopes, start=1):
            x = add_bias(tf.matmul(x, weights[f'w{i}']), weights[f'b{i}'], self.norm)
            x = tf.nn.relu(normalize(x, weights, self.norm, scope))
        last = len(self.dim_hidden) + 1
        return tf.matmul(x, weights[f'w{last}']) + weights[f'b{last}']


@dataclasses.dataclass(frozen=True)
class Convolutional:
    """Four blocks of 3x3 convolution, norm and ReLU, strided or max-pooled, then a linear layer (section 5.2).

    Each block halves the image; of one below 16x16 there are as many as that allows. The last layer always is w5, b5.
    """

    img_size: int
    channels: int
    dim_output: int = 5
    num_filters: int = 64
    max_pool: bool = False
    flatten: bool = False  # head: on all positions (MiniImagenet), or on their mean (Omniglot; maml: maml.py:203,223)
    norm: str = 'batch_norm'  # or 'layer_norm', 'None'
    compute_dtype: str | None = None  # of convolutions and the maps between them, 'bfloat16'; None: as the weights

    @property
    def blocks(self):
        """Number of convolutional blocks."""
        return min(4, self.img_size.bit_length() - 1)

    @property
    def adapted(self):
        """conv1, b1, … conv4, b4, w5, b5; norm parameters are not adapted."""
        return [name for i in range(1, self.blocks + 1) for name in (f'conv{i}', f'b{i}')] + ['w5', 'b5']

    def init(self, seed):
        """Return Xavier-uniform kernels and w5 (standard normal after a mean), biases 0 (maml: maml.py:186-208)."""
        weights, channels, size = {}, self.channels, self.img_size
        for i in range(1, self.blocks + 1):
            weights[f'conv{i}'] = xavier_uniform([3, 3, channels, self.num_filters], [seed, i])
            weights[f'b{i}'] = tf.zeros([self.num_filters])
            channels = self.num_filters
            size = size // 2 if self.max_pool else -(-size // 2)  # VALID pool, SAME stride
        if self.flatten:
            weights['w5'] = xavier_uniform([size * size * channels, self.dim_output], [seed, 5])
        else:
            weights['w5'] = tf.random.stateless_normal([channels, self.dim_output], [seed, 5])
        weights['b5'] = tf.zeros([self.dim_output])
        return weights | norm_weights(self.norm, range(self.blocks), [self.num_filters] * self.blocks)

    def forward(self, x, weights):
        """Return [examples, dim_output] for flat images x [examples, dim_input]."""
        x = tf.reshape(x, [x.shape[0], self.img_size, self.img_size, self.channels])
        x = tf.cast(x, self.compute_dtype or x.dtype)
        for layer in range(1, self.blocks + 1):
            x = conv_block(x, weights, layer, self.norm, self.max_pool)
        x = tf.cast(x, weights['w5'].dtype)
        x = tf.reshape(x, [x.shape[0], -1]) if self.flatten else tf.reduce_mean(x, [1, 2])
        return tf.matmul(x, weights['w5']) + weights['b5']


@dataclasses.dataclass(frozen=True)
class WithContext:
    """A network that reads a context z beside its input; the inner step changes z alone (appendix C.2, Table 3).

    z is joined to each input as one more channel: free parameters, one for each of `positions` (pixels), from 0.
    `network` is one of the above, with inputs of that size. The paper gives neither the size of z nor its start.
    """

    network: Convolutional | FullyConnected
    positions: int
    adapted = ('context',)

    def init(self, seed):
        """Return the network's fresh weights, and z, zeros [positions]."""
        return {**self.network.init(seed), 'context': tf.zeros([self.positions])}

    def forward(self, x, weights):
        """Return [examples, dim_output] for x [examples, positions * channels]."""
        pixels = tf.reshape(x, [x.shape[0], self.positions, -1])
        z = tf.broadcast_to(weights['context'][:, None], [x.shape[0], self.positions, 1])
        return self.network.forward(tf.reshape(tf.concat([pixels, z], 2), [x.shape[0], -1]), weights)


def norm_weights(norm, scopes, sizes):
    """Return the norms' parameters: one set for all inner steps and both sets, trained by the outer loop alone."""
    weights = {}
    if norm in ('batch_norm', 'layer_norm'):
        weights.update({f'bn/{scope}/beta': tf.zeros([size]) for scope, size in zip(scopes, sizes)})
    if norm == 'layer_norm':
        weights.update({f'bn/{scope}/gamma': tf.ones([size]) for scope, size in zip(scopes, sizes)})
    return weights


def xavier_uniform(shape, seed):
    """Uniform in ±sqrt(6 / (fan in + fan out)) (Glorot and Bengio 2010); kernels count their 3x3 positions."""
    receptive = int(np.prod(shape[:-2]))
    limit = np.sqrt(6 / (receptive * (shape[-2] + shape[-1])))
    return tf.random.stateless_uniform(shape, seed, -limit, limit)
