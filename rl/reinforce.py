"""The inner step: one step of REINFORCE on a task's own samples.

The same function serves the meta-objective, which differentiates through it, and sampling, where it gives the
adapted policies that act next.
"""

from functools import lru_cache

import numpy as np
import tensorflow as tf

from rl.policy import gaussian
from rl.samples import Samples


def surrogate_loss(policy, phi, samples, likelihood_ratio=False):
    """Return -mean over one task's time steps of log pi_phi(a | o) A; its gradient is the policy gradient.

    likelihood_ratio: of pi_phi / pi_old A instead, pi_old the policy that drew the samples. There the gradient is the
    same, but not its derivative: with the ratio it counts that other weights would have drawn other samples.
    Source: maml_rl: maml_npo.py, init_opt; the ratio: Rothfuss et al. 2019, "ProMP", low variance curvature.
    """
    log_pi = gaussian(*policy.mean_and_log_std(phi, samples.observations)).log_prob(samples.actions)
    if not likelihood_ratio:
        return -tf.reduce_mean(log_pi * samples.advantages)
    log_old = gaussian(samples.mean, samples.log_std).log_prob(samples.actions)
    return -tf.reduce_mean(tf.exp(log_pi - log_old) * samples.advantages)


def inner_step(policy, phi, samples, alpha, stop_grad=False, likelihood_ratio=False):
    """Return phi' = phi - alpha grad L(phi) on one task's samples, for the weights in `policy.adapted`.

    phi: dictionary of tensors; alpha: a step size, or a vector with one for each adapted weight tensor;
    stop_grad: take the gradient for a constant, as the first-order variant does; likelihood_ratio: as in
    `surrogate_loss`. Returns a new dictionary.
    Source: maml_rl: maml_minimal_gauss_mlp_policy.py, updated_dist_info_sym.
    """
    gradients = policy_gradient(policy, phi, samples, likelihood_ratio)
    if stop_grad:
        gradients = {name: tf.stop_gradient(g) for name, g in gradients.items()}
    alphas = tf.unstack(tf.broadcast_to(alpha, [len(gradients)]))
    return {**phi, **{name: phi[name] - a * gradients[name] for name, a in zip(gradients, alphas)}}


def policy_gradient(policy, phi, samples, likelihood_ratio=False):
    """Return the gradient of `surrogate_loss` by the weights in `policy.adapted`: a dictionary."""
    adapted = {name: tf.convert_to_tensor(phi[name]) for name in policy.adapted}
    with tf.GradientTape() as tape:
        tape.watch(adapted)
        loss = surrogate_loss(policy, {**phi, **adapted}, samples, likelihood_ratio)
    return tape.gradient(loss, adapted)


def adapt(policy, phi, samples, alpha, threads=2):
    """Do the inner step of every task, to get the policies that act next; not to be differentiated.

    phi: arrays [tasks, ...] (see `for_all_tasks`); samples: Samples of all tasks; alpha as in `inner_step`;
    threads: how many tasks side by side. Returns the adapted weights phi' as arrays [tasks, ...].
    Any number of steps: each from the last phi' and its own new samples (docs/fidelity.md, departure o).
    """
    alpha = np.broadcast_to(np.asarray(alpha, np.float32), len(policy.adapted))
    adapted = _compiled_adapt(policy, threads)({name: phi[name] for name in policy.shapes}, samples, alpha)
    return {name: w.numpy() for name, w in adapted.items()}


def for_all_tasks(theta, tasks):
    """Repeat theta for each task: float32 arrays [tasks, ...] (read-only views that cost no memory)."""
    return {name: np.broadcast_to(np.asarray(w, np.float32), (tasks, *w.shape)) for name, w in theta.items()}


@lru_cache
def _compiled_adapt(policy, threads):
    """Return the compiled inner step of all tasks; kept, so that each policy's is compiled once."""
    phi_spec = {name: tf.TensorSpec((None, *shape), tf.float32) for name, shape in policy.shapes.items()}
    alpha_spec = tf.TensorSpec([len(policy.adapted)], tf.float32)

    @tf.function(input_signature=[phi_spec, Samples.spec(policy), alpha_spec])
    def adapt_tasks(phi, samples, alpha):
        def one_task(i):
            return inner_step(policy, {name: w[i] for name, w in phi.items()}, samples.of_task(i), alpha)

        signature = {name: tf.TensorSpec(shape, tf.float32) for name, shape in policy.shapes.items()}
        return map_tasks(one_task, samples, signature, threads)

    return adapt_tasks


def map_tasks(one_task, samples, signature, threads):
    """Return one_task(i) of each task i of `samples`, stacked, of that `signature`; `threads` tasks side by side."""
    tasks = tf.range(tf.shape(samples.valid)[0])
    return tf.map_fn(one_task, tasks, fn_output_signature=signature, parallel_iterations=threads)
