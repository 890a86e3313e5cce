"""What the policies of all tasks collected: their Paths, the Estimates made of these, and the Samples to learn from.

`collect` is the way from weights to samples, which training and tests take.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from rl.advantages import Estimates, estimate


class Paths(NamedTuple):
    """The paths of all tasks, one after the other along rows, as started; 0 after a task's last valid row."""

    observations: np.ndarray  # [tasks, rows, obs_dim] float32
    actions: np.ndarray  # [tasks, rows, act_dim] float32, as the policy drew them: neither scaled nor clipped
    rewards: np.ndarray  # [tasks, rows] float64
    path_lengths: list[np.ndarray]  # of each task; their sum is its number of valid rows

    @property
    def valid(self):
        """1 where a row is a sample, 0 where it fills up: [tasks, rows] float32."""
        rows = np.array([lengths.sum() for lengths in self.path_lengths])
        return (np.arange(self.rewards.shape[1]) < rows[:, None]).astype(np.float32)

    def average_returns(self):
        """Return the undiscounted return, mean over each task's paths: [tasks]."""
        return self.rewards.sum(axis=1) / [len(lengths) for lengths in self.path_lengths]


class Samples(NamedTuple):
    """What the policies of all tasks collected for one step, and the distributions that drew the actions; float32.

    Rows are time steps, padded at the end to one number for all tasks; padded rows may hold anything finite.
    """

    observations: tf.Tensor  # [tasks, rows, obs_dim]
    actions: tf.Tensor  # [tasks, rows, act_dim]
    advantages: tf.Tensor  # [tasks, rows]
    valid: tf.Tensor  # [tasks, rows], 1 for a task's first rows, those that exist, then 0
    mean: tf.Tensor  # [tasks, rows, act_dim]
    log_std: tf.Tensor  # [tasks, act_dim]

    @classmethod
    def drawn_by(cls, policy, phi, observations, actions, advantages, valid):
        """Make Samples of arrays of the shapes above, drawn by the policies with weights phi, [tasks, ...]."""
        observations = tf.constant(observations, tf.float32)
        data = [tf.constant(np.asarray(x, np.float32)) for x in (actions, advantages, valid)]
        mean, log_std = policy.mean_and_log_std(phi, observations)
        return cls(observations, *data, mean, log_std)

    @classmethod
    def spec(cls, policy):
        """Return the specification with which a function is compiled once, for any number of tasks and rows."""
        rows, obs, act = (None, None), policy.obs_dim, policy.act_dim
        shapes = cls((*rows, obs), (*rows, act), rows, rows, (*rows, act), (None, act))
        return cls(*[tf.TensorSpec(shape, tf.float32) for shape in shapes])

    def of_task(self, i):
        """Return the samples of task i without its padding: fields [rows, ...], log_std [act_dim]."""
        n = tf.cast(tf.reduce_sum(self.valid[i]), tf.int32)
        return Samples(*[x[i, :n] for x in self[:-1]], self.log_std[i])


def collect(policy, sampler, phi, gae_lambda=1.0) -> tuple[Paths, Estimates, Samples]:
    """Collect the sampler's next paths with the policies of weights phi [tasks, ...].

    Raises what `Sampler.collect` and `advantages.fit` raise: FloatingPointError, LinAlgError.
    """
    paths = sampler.collect(lambda observations, noise: policy.act(phi, observations, noise))
    estimates = estimate(paths.observations, paths.rewards, paths.path_lengths, gae_lambda=gae_lambda)
    samples = Samples.drawn_by(policy, phi, paths.observations, paths.actions, estimates.advantages, paths.valid)
    return paths, estimates, samples
