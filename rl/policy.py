"""The Gaussian policy, functions of a dictionary of weights, so that adapted weights run as easily as theta.

A multi-layer perceptron gives the mean of the action; the log standard deviation is a free parameter, the
same in every state. No weights are kept here and nothing is sampled from an environment here.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

# Name -> the function for tensors and the one for NumPy arrays; --hvp=exact needs its derivatives too (hessian.py).
NONLINEARITIES = {'relu': (tf.nn.relu, lambda x: np.maximum(x, 0.0)), 'tanh': (tf.tanh, np.tanh)}


@dataclass(frozen=True)
class GaussianPolicy:
    """pi(a | o) = N(MLP(o), diag(exp(std_param))^2), hidden layers of 100 and 100 (paper, 5.3).

    With `context_size` > 0 the network also reads a context vector z, free parameters that are joined to the
    observation; the inner step then changes z alone (paper, appendix, tables 4 and 5).

    Weights are a dictionary with the names and order of `shapes`. Every method also takes weights with a
    leading axis of tasks, [tasks, ...]; observations are then [tasks, rows, obs_dim].
    Raises ValueError for an unknown nonlinearity.
    Source: maml_rl: sandbox/rocky/tf/policies/maml_minimal_gauss_mlp_policy.py.
    """

    obs_dim: int
    act_dim: int
    hidden_sizes: tuple = (100, 100)
    nonlinearity: str = 'relu'
    context_size: int = 0
    init_std: float = 1.0
    min_std: float = 1e-6

    def __post_init__(self):
        if self.nonlinearity not in NONLINEARITIES:
            raise ValueError(f'nonlinearity {self.nonlinearity!r} is none of {sorted(NONLINEARITIES)}')

    @property
    def shapes(self):
        """Name -> shape of each weight, in the order of the flat vector: W0 b0 ... std_param [context]."""
        sizes = (self.obs_dim + self.context_size, *self.hidden_sizes, self.act_dim)
        shapes = {}
        for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            shapes |= {f'W{i}': (fan_in, fan_out), f'b{i}': (fan_out,)}
        shapes['std_param'] = (self.act_dim,)
        if self.context_size:
            shapes['context'] = (self.context_size,)
        return shapes

    @property
    def adapted(self):
        """Names of the weights that the inner step changes: all of them, or z alone if there is a context."""
        return ('context',) if self.context_size else tuple(self.shapes)

    def init(self, seed):
        """Return fresh weights as float32 arrays: Xavier-uniform matrices, log init_std, everything else 0."""
        rng = np.random.default_rng(seed)
        theta = {name: np.zeros(shape, np.float32) for name, shape in self.shapes.items()}
        for name, shape in self.shapes.items():
            if name.startswith('W'):
                theta[name][:] = rng.uniform(-1.0, 1.0, shape) * np.sqrt(6.0 / sum(shape))
        theta['std_param'][:] = np.log(self.init_std)
        return theta

    def mean_and_log_std(self, weights, observations):
        """Return the action distribution's parameters: mean [..., rows, act_dim] and log std [..., act_dim]."""
        return self.layers(weights, observations)[-1], self.log_std(weights)

    def log_std(self, weights):
        """Return the log standard deviation of the actions, [..., act_dim]."""
        return tf.maximum(weights['std_param'], np.float32(np.log(self.min_std)))

    def act(self, weights, observations, noise):
        """Return actions of all tasks' policies, mean + std * noise, in NumPy alone: the sampler's path.

        weights: arrays [tasks, ...] (or without tasks, one policy for all); observations
        [tasks, rows, obs_dim]; noise [tasks, rows, act_dim], standard normal. Returns float32
        [tasks, rows, act_dim], neither scaled nor clipped.
        """
        mean = self.layers(weights, np.asarray(observations, np.float32), arrays=True)[-1]
        log_std = np.maximum(weights['std_param'], np.float32(np.log(self.min_std)))
        return mean + np.exp(log_std)[..., None, :] * np.asarray(noise, np.float32)

    def layers(self, weights, x, arrays=False):
        """Return the values of the hidden layers and the mean, [..., rows, size] each; arrays: in NumPy alone."""
        nonlinearity = NONLINEARITIES[self.nonlinearity][arrays]
        W, b = weights['W0'], weights['b0']
        if self.context_size:  # [o, z] W = o W[:obs_dim] + z W[obs_dim:], and the second term is one for all rows
            b = b + (weights['context'][..., None, :] @ W[..., self.obs_dim :, :])[..., 0, :]
            W = W[..., : self.obs_dim, :]
        layers = [x]
        for i in range(len(self.hidden_sizes)):
            layers.append(nonlinearity(layers[-1] @ W + b[..., None, :]))
            W, b = weights[f'W{i + 1}'], weights[f'b{i + 1}']
        return *layers[1:], layers[-1] @ W + b[..., None, :]


def gaussian(mean, log_std):
    """Return the action distribution, of TensorFlow Probability; log_prob and entropy sum over the actions.

    mean [..., rows, act_dim], log_std [..., act_dim]. Its kl_divergence is not the original's: use `kl`.
    """
    return tfp.distributions.MultivariateNormalDiag(mean, tf.exp(log_std)[..., None, :])


def kl(old_mean, old_log_std, mean, log_std):
    """Return KL(old || new) of each row, [..., rows]; arguments as for `gaussian`.

    Written out instead of TensorFlow Probability's kl_divergence because the original adds 1e-8 to the
    denominator (maml_rl: diagonal_gaussian.py:60), which halves the first term of a policy at a std of 7e-5.
    """
    old_log_std, log_std = old_log_std[..., None, :], log_std[..., None, :]
    variance = tf.exp(log_std) ** 2
    numerator = (old_mean - mean) ** 2 + tf.exp(old_log_std) ** 2 - variance
    return tf.reduce_sum(numerator / (2.0 * variance + 1e-8) + log_std - old_log_std, axis=-1)


def entropy(log_std):
    """Return the entropy of Gaussian policies with log standard deviations [tasks, act_dim], mean over tasks."""
    return float((log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(axis=1).mean())


def flatten(weights):
    """Return the weights (without a tasks axis) one after the other, row-major, as a float32 vector."""
    return np.concatenate([np.ravel(w) for w in weights.values()]).astype(np.float32)


def flat_tensor(weights):
    """Return what `flatten` does, of tensors: a tensor."""
    return tf.concat([tf.reshape(w, [-1]) for w in weights.values()], axis=0)


def unflatten(flat, shapes):
    """Return the dictionary of tensors, of these `shapes`, that `flatten` made into the vector `flat`."""
    pieces = tf.split(flat, [int(np.prod(shape)) for shape in shapes.values()])
    return {name: tf.reshape(piece, shape) for piece, (name, shape) in zip(pieces, shapes.items())}
