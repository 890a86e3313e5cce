"""Exact products with the Hessian of the mean KL for TRPO (--hvp=exact), where the original takes finite differences.

At theta the adapted policies phi_i are those that sampled: the KL and its gradient are 0, and its Hessian is

    H = sum_i M_i^T F_i M_i / rows,    M_i = d phi_i / d theta

where F_i is the Fisher information of policy i over its time steps, and M_i has a factor I - alpha L_i'' for each
inner step (I with --stop_grad). F_i v and L_i'' v are derivatives along v of a gradient: a pass forwards and one
backwards that carry beside each value its derivative along v (Pearlmutter 1994, "Fast exact multiplication by the
Hessian", whose R is r_ below).

Autodiff does that too, and is what the tests compare with. But it computes the values themselves anew for each product,
which takes the work of 20 forward passes, where a finite difference takes 24. Here they are kept for an iteration: 16.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from rl.policy import flat_tensor, unflatten
from rl.reinforce import map_tasks, policy_gradient
from rl.samples import Samples

# The derivatives of a nonlinearity, by its value h: f', and f'' / f' (None: 0).
SLOPE = {'relu': lambda h: tf.cast(h > 0, h.dtype), 'tanh': lambda h: 1 - h**2}
BEND = {'relu': None, 'tanh': lambda h: -2 * h}


class Kept(NamedTuple):
    """What a task keeps of a policy for all products of an iteration; rows are those of Samples, with padding."""

    phi: dict  # its weights by name
    hidden: tuple  # values of the hidden layers, [rows, size] each
    # Of the policies before an inner step alone, whose loss is L:
    deltas: tuple = ()  # derivatives of L by what enters each nonlinearity and, the last, by the mean, [rows, size]
    gradient: tf.Tensor | tuple = ()  # of L by all weights, flat


class KlHessian:
    """The Hessian of a MamlTrpo's mean KL at the theta that sampled; the 1e-8 in the KL's denominator is left out.

    Raises ValueError for a policy that reads a context vector.
    """

    def __init__(self, maml):
        if maml.policy.context_size:
            raise ValueError('exact Hessian-vector products are not for a policy with a context vector')
        self.maml, self.policy = maml, maml.policy
        self.updates = maml.settings.kl_constrain_step % (maml.settings.num_updates + 1)  # before the KL's policy
        self.sizes = [int(np.prod(shape)) for shape in self.policy.shapes.values()]
        vector = tf.TensorSpec(maml.theta.shape)
        steps = (Samples.spec(self.policy),) * (maml.settings.num_updates + 1)
        kept = tf.nest.map_structure(lambda spec: tf.TensorSpec([None, *spec.shape]), self._kept_spec())
        self._keep = tf.function(self._keep_all, input_signature=[vector, steps])
        self._product = tf.function(self._mean_product, input_signature=[vector, vector, steps, kept])

    def at(self, theta, steps):
        """Return the function v -> H v, for flat float32 vectors like theta; `steps`: the Samples that theta drew."""
        theta, steps = tf.constant(theta), tuple(steps)
        kept = self._keep(theta, steps)
        return lambda v: self._product(theta, tf.constant(v), steps, kept).numpy()

    def _kept_spec(self):
        """Return the specification of what a task keeps: a Kept for each policy up to the one whose KL it is."""
        weights = {name: tf.TensorSpec(shape) for name, shape in self.policy.shapes.items()}
        hidden = tuple(tf.TensorSpec([None, size]) for size in self.policy.hidden_sizes)
        deltas = *hidden, tf.TensorSpec([None, self.policy.act_dim])
        inner = Kept(weights, hidden, deltas, tf.TensorSpec([sum(self.sizes)]))
        return (*[inner] * self.updates, Kept(weights, hidden))

    def _keep_all(self, theta, steps):
        def one_task(i):
            task = [samples.of_task(i) for samples in steps]
            phis = self.maml.policies(unflatten(theta, self.maml.shapes), task)
            inner = [keep_inner(self.policy, phis[j], steps[j], task[j], i) for j in range(self.updates)]
            phi, x = phis[self.updates], steps[self.updates].observations[i]
            return *inner, Kept({k: phi[k] for k in self.policy.shapes}, self.policy.layers(phi, x)[:-1])

        return map_tasks(one_task, steps[0], self._kept_spec(), self.maml.threads)

    def _mean_product(self, theta, v, steps, kept):
        policy, settings = self.policy, self.maml.settings
        stop_grad, learned, ratio = settings.stop_grad, settings.learn_update_lr, settings.likelihood_ratio
        tensors, weights = len(self.sizes), sum(self.sizes)
        alpha = self.maml.alpha(unflatten(theta, self.maml.shapes))
        v_phi, v_alpha = v[:weights], tf.reshape(v[weights:], [-1, tensors])  # the second of learned ones alone

        def each(values):
            return tf.repeat(values, self.sizes)  # from one a tensor to one a weight

        def one_task(i):
            policies = tf.nest.map_structure(lambda x: x[i], kept)

            def curvature(j, w):
                return 0.0 if stop_grad else inner_hessian(policy, policies[j], steps[j], i, w, ratio)

            w, by_alpha = v_phi, [tf.zeros([tensors])] * len(v_alpha)
            for j in range(self.updates):  # w = M v
                change = each(alpha[j]) * curvature(j, w)
                w -= change + each(v_alpha[j]) * policies[j].gradient if learned else change
            w = fisher(policy, policies[-1], steps[self.updates], i, w)
            for j in reversed(range(self.updates)):  # w = M^T w
                if learned:
                    by_alpha[j] = -tf.stack([tf.reduce_sum(x) for x in tf.split(policies[j].gradient * w, self.sizes)])
                w -= curvature(j, each(alpha[j]) * w)
            return tf.concat([w, *by_alpha], axis=0)

        products = map_tasks(one_task, steps[0], tf.TensorSpec(theta.shape), self.maml.threads)
        return tf.reduce_sum(products, axis=0) / tf.reduce_sum(steps[self.updates].valid)


def row_weights(samples, i):
    """Return the weight of each row's log-density in the inner loss, -A / rows and 0 for padding: [rows, 1]."""
    return (-samples.advantages[i] * samples.valid[i] / tf.reduce_sum(samples.valid[i]))[:, None]


def keep_inner(policy, phi, samples, task, i):
    """Return the Kept of task i's policy before an inner step; task: its samples without padding."""
    phi = {name: phi[name] for name in policy.shapes}
    *hidden, mean = policy.layers(phi, samples.observations[i])
    deltas = [row_weights(samples, i) * (samples.actions[i] - mean) / tf.exp(2 * policy.log_std(phi))]
    for k in reversed(range(len(hidden))):
        back = tf.matmul(deltas[0], phi[f'W{k + 1}'], transpose_b=True)
        deltas.insert(0, SLOPE[policy.nonlinearity](hidden[k]) * back)
    return Kept(phi, tuple(hidden), tuple(deltas), flat_tensor(policy_gradient(policy, phi, task)))


def inner_hessian(policy, kept, samples, i, v, likelihood_ratio):
    """Return L'' v for the inner loss L of task i, flat; with a likelihood ratio each row's weight changes along v."""
    weight, delta = row_weights(samples, i), kept.deltas[-1]
    precision = tf.exp(-2 * policy.log_std(kept.phi))
    by_mean = tf.math.divide_no_nan(delta, weight)  # the derivative of each row's log-density: (a - mean) / std^2
    squares = by_mean**2 / precision  # ((a - mean) / std)^2

    def output(r_mean, r_log_std):
        r_delta = -weight * precision * r_mean - 2 * delta * r_log_std
        r_last = -2 * tf.reduce_sum(delta * r_mean + weight * squares * r_log_std, axis=0)
        if not likelihood_ratio:
            return r_delta, r_last
        r_log_pi = tf.reduce_sum(by_mean * r_mean + (squares - 1) * r_log_std, axis=1, keepdims=True)
        return r_delta + delta * r_log_pi, r_last + tf.reduce_sum(weight * (squares - 1) * r_log_pi, axis=0)

    return r_gradient(policy, kept, samples.observations[i], v, output)


def fisher(policy, kept, samples, i, v):
    """Return F v, the second derivative along v of the sum of task i's KL from the policy itself, flat."""
    valid, precision = samples.valid[i][:, None], tf.exp(-2 * policy.log_std(kept.phi))

    def output(r_mean, r_log_std):
        return valid * precision * r_mean, 2 * tf.reduce_sum(valid) * r_log_std

    return r_gradient(policy, kept, samples.observations[i], v, output)


def r_gradient(policy, kept, x, v, output):
    """Return the derivative along v (flat) of a loss's gradient by the policy's weights, flat.

    output(r_mean, r_log_std) -> those of the loss's derivatives by the mean [rows, act_dim] and by the log std
    [act_dim]. These derivatives themselves are kept.deltas; without any they are 0.
    """
    slope, bend = SLOPE[policy.nonlinearity], BEND[policy.nonlinearity]
    phi, v, inputs = kept.phi, unflatten(v, policy.shapes), (x, *kept.hidden)
    r_inputs, last = [None], len(kept.hidden)
    for k, value in enumerate(inputs):
        r_sums = value @ v[f'W{k}'] + v[f'b{k}']
        r_sums += r_inputs[k] @ phi[f'W{k}'] if k else 0.0
        r_inputs.append(slope(inputs[k + 1]) * r_sums if k < last else r_sums)
    floor = tf.cast(phi['std_param'] >= np.float32(np.log(policy.min_std)), tf.float32)  # below it a log std stays
    r_delta, r_log_std = output(r_inputs[-1], floor * v['std_param'])
    r = {'std_param': floor * r_log_std}
    for k in reversed(range(last + 1)):
        r[f'W{k}'], r[f'b{k}'] = tf.matmul(inputs[k], r_delta, transpose_a=True), tf.reduce_sum(r_delta, axis=0)
        if not k:
            break
        r_back = tf.matmul(r_delta, phi[f'W{k}'], transpose_b=True)
        if kept.deltas:
            r[f'W{k}'] += tf.matmul(r_inputs[k], kept.deltas[k], transpose_a=True)
            r_back += tf.matmul(kept.deltas[k], v[f'W{k}'], transpose_b=True)
        r_delta = slope(inputs[k]) * r_back
        if kept.deltas and bend:
            back = tf.matmul(kept.deltas[k], phi[f'W{k}'], transpose_b=True)
            r_delta += bend(inputs[k]) * r_inputs[k] * back
    return flat_tensor({name: r[name] for name in policy.shapes})
