"""The outer step of MAML for reinforcement learning: TRPO on the objective of the adapted policies.

    minimise over theta   - mean_i E[ pi_phi_i(a | o) / pi_old_i(a | o)  A ]
    where                 phi_i = theta - alpha grad L_i(theta)
    subject to            mean KL(pi_old_i || pi_phi_i) <= max_kl

(paper, algorithm 3, line 10). The samples are given: collecting them is not done here.
"""

from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from rl.policy import flatten, gaussian, kl, unflatten
from rl.reinforce import inner_step, map_tasks
from rl.samples import Samples
from rl.trpo import TrustRegion, trpo_step


@dataclass(frozen=True)
class MetaSettings:
    """The settings of the outer step; trust_region holds TRPO's own."""

    num_updates: int = 1  # inner steps; 0 is plain TRPO, with no adaptation
    update_lr: float = 0.1  # alpha, or where each learned step size starts
    learn_update_lr: bool = False  # a step size per adapted weight tensor and inner step, part of theta
    stop_grad: bool = False  # take the inner gradient for a constant
    kl_constrain_step: int = -1  # whose KL is limited: the post-update policy, or that before inner step k
    trust_region: TrustRegion = field(default_factory=TrustRegion)


class MamlTrpo:
    """MAML's outer step for one policy. Everywhere theta is the flat float32 vector of `init`.

    `steps` is a sequence of num_updates + 1 Samples: those of each inner step, then those of the adapted
    policies. Tasks are mapped one by one with both gradients, inner and outer, inside the mapped function:
    memory does not grow with the tasks. Each function is compiled once, for any number of tasks and rows.

    Raises ValueError for a `kl_constrain_step` that names no policy.
    """

    def __init__(self, policy, settings=MetaSettings()):
        if not -1 <= settings.kl_constrain_step <= settings.num_updates:
            raise ValueError(f'kl_constrain_step {settings.kl_constrain_step} of {settings.num_updates} inner steps')
        self.policy, self.settings = policy, settings
        self.shapes = dict(policy.shapes)
        if settings.learn_update_lr:
            self.shapes['alpha'] = (settings.num_updates, len(policy.adapted))
        vector = tf.TensorSpec([sum(int(np.prod(shape)) for shape in self.shapes.values())], tf.float32)
        signature = [vector, (Samples.spec(policy),) * (settings.num_updates + 1)]
        self._loss_and_kl = tf.function(self._mean_loss_and_kl, input_signature=signature)
        self._loss_gradient = tf.function(self._mean_loss_gradient, input_signature=signature)
        self._kl_gradient = tf.function(self._mean_kl_gradient, input_signature=signature)

    def init(self, seed):
        """A fresh theta: the policy's weights, then the step sizes if they are learned."""
        theta = self.policy.init(seed)
        if self.settings.learn_update_lr:
            theta['alpha'] = np.full(self.shapes['alpha'], self.settings.update_lr)
        return flatten(theta)

    def weights(self, theta):
        """theta's weights of the policy, as a dictionary of arrays."""
        theta = unflatten(theta, self.shapes)
        return {name: theta[name].numpy() for name in self.policy.shapes}

    def step_sizes(self, theta):
        """alpha of each inner step and adapted weight tensor, as an array [num_updates, tensors]."""
        return np.array(self._alpha(unflatten(theta, self.shapes)))

    def loss_and_kl(self, theta, steps):
        """Surrogate loss (mean over tasks of mean over time steps) and mean KL (over all time steps)."""
        return tuple(float(x) for x in self._loss_and_kl(theta, tuple(steps)))

    def loss_gradient(self, theta, steps):
        """Gradient of the surrogate loss at theta, through the inner steps unless stop_grad."""
        return self._loss_gradient(theta, tuple(steps)).numpy()

    def kl_gradient(self, theta, steps):
        """Gradient of the mean KL at theta, through the inner steps unless stop_grad."""
        return self._kl_gradient(theta, tuple(steps)).numpy()

    def step(self, theta, steps):
        """The outer step: a TrpoStep with the new theta and all that was computed on the way."""
        return trpo_step(
            lambda t: self.loss_and_kl(t, steps),
            lambda t: self.loss_gradient(t, steps),
            lambda t: self.kl_gradient(t, steps),
            theta,
            self.settings.trust_region,
        )

    # What a single task contributes. `steps` holds that task's samples only, and theta is a dictionary.

    def _alpha(self, theta):
        if self.settings.learn_update_lr:
            return theta['alpha']
        return np.full((self.settings.num_updates, len(self.policy.adapted)), self.settings.update_lr, np.float32)

    def _policies(self, theta, steps):
        """[phi_0 = theta, phi_1, ...]: the task's policy before each inner step and after the last one."""
        phis, alpha = [theta], self._alpha(theta)
        for j in range(self.settings.num_updates):
            phis.append(inner_step(self.policy, phis[j], steps[j], alpha[j], self.settings.stop_grad))
        return phis

    def _task_loss(self, phis, steps):
        """-mean of likelihood ratio times advantage, under the policy that drew the last samples."""
        phi, post = phis[-1], steps[-1]
        new = gaussian(*self.policy.mean_and_log_std(phi, post.observations)).log_prob(post.actions)
        old = gaussian(post.mean, post.log_std).log_prob(post.actions)
        return -tf.reduce_mean(tf.exp(new - old) * post.advantages)

    def _task_kl(self, phis, steps):
        """Sum of the KL over time steps, for the policy and samples that kl_constrain_step names."""
        phi, samples = phis[self.settings.kl_constrain_step], steps[self.settings.kl_constrain_step]
        mean, log_std = self.policy.mean_and_log_std(phi, samples.observations)
        return tf.reduce_sum(kl(samples.mean, samples.log_std, mean, log_std))

    # The same over all tasks, theta flat: what is compiled.

    def _mean_loss_and_kl(self, theta, steps):
        def one_task(i):
            task = [samples.of_task(i) for samples in steps]
            phis = self._policies(unflatten(theta, self.shapes), task)
            return self._task_loss(phis, task), self._task_kl(phis, task)

        losses, kls = map_tasks(one_task, steps[0], (tf.float32, tf.float32))
        return tf.reduce_mean(losses), tf.reduce_sum(kls) / self._kl_rows(steps)

    def _mean_loss_gradient(self, theta, steps):
        return tf.reduce_mean(self._task_gradients(self._task_loss, theta, steps), axis=0)

    def _mean_kl_gradient(self, theta, steps):
        return tf.reduce_sum(self._task_gradients(self._task_kl, theta, steps), axis=0) / self._kl_rows(steps)

    def _task_gradients(self, objective, theta, steps):
        def one_task(i):
            with tf.GradientTape() as tape:
                tape.watch(theta)
                task = [samples.of_task(i) for samples in steps]
                value = objective(self._policies(unflatten(theta, self.shapes), task), task)
            return tape.gradient(value, theta)

        return map_tasks(one_task, steps[0], tf.TensorSpec(theta.shape, tf.float32))

    def _kl_rows(self, steps):
        return tf.reduce_sum(steps[self.settings.kl_constrain_step].valid)
