"""MAML for reinforcement learning (paper, algorithm 3): `meta_iteration`, and its outer step.

That step is TRPO on the objective of the adapted policies (line 10):

    minimise over theta   - mean_i E[ pi_phi_i(a | o) / pi_old_i(a | o)  A ]
    where                 phi_i = theta - alpha grad L_i(theta)
    subject to            mean KL(pi_old_i || pi_phi_i) <= max_kl

The inner step is in reinforce.py; what both learn from is collected by samples.py.
"""

import time
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from rl.advantages import explained_variance
from rl.hessian import KlHessian
from rl.policy import entropy, flatten, gaussian, kl, unflatten
from rl.reinforce import adapt, for_all_tasks, inner_step, map_tasks
from rl.samples import Samples, collect
from rl.trpo import TrpoStep, TrustRegion, finite_difference_product, trpo_step
from utils import Adam


@dataclass(frozen=True)
class MetaSettings:
    """The settings of an iteration; trust_region holds TRPO's own."""

    num_updates: int = 1  # inner steps; 0 is one policy for all tasks, with no adaptation
    update_lr: float = 0.1  # alpha, or where each learned step size starts
    learn_update_lr: bool = False  # a step size per adapted weight tensor and inner step, part of theta
    gae_lambda: float = 1.0  # of the advantages in both steps (advantages.py)
    stop_grad: bool = False  # take the inner gradient for a constant
    likelihood_ratio: bool = False  # differentiate it as that of a likelihood ratio (reinforce.py, surrogate_loss)
    kl_constrain_step: int = -1  # whose KL is limited: the post-update policy, or that before inner step k
    hvp: str = 'finite_difference'  # products with the KL's Hessian: the original's, or 'exact' ones (hessian.py)
    subsample_factor: float = 1.0  # share of the tasks that these products are taken over, the first
    meta_optimizer: str = 'trpo'  # of the outer step: or 'adam', without a trust region, with step size meta_lr
    meta_lr: float = 0.001
    trust_region: TrustRegion = field(default_factory=TrustRegion)


class MetaIteration(NamedTuple):
    """What an iteration gave: the new theta, and the columns of progress.csv in their order."""

    theta: np.ndarray
    return_before: float  # average undiscounted return of the policy theta, over all tasks
    return_after: float  # the same of the adapted policies
    loss_before: float  # surrogate loss before and after the outer step
    loss_after: float
    kl_before: float  # mean KL from the policies that sampled
    kl_after: float
    accepted: int  # 1, or 0 where the line search found no step
    trials: int  # of the line search
    entropy: float  # of the adapted policies, mean over tasks
    explained_variance: float  # by the adapted policies' baselines, mean over tasks
    env_steps: int  # time steps that were kept
    env_steps_per_second: float  # the same in the time of sampling alone
    seconds: float


def meta_iteration(maml, sampler):
    """Do lines 3 to 10 of algorithm 3 on the sampler's tasks; returns a MetaIteration, `maml` stays as it is.

    Without inner steps this is an iteration of TRPO, or Adam, on all tasks together. Adam keeps its moments in `maml`.
    Raises FloatingPointError for a meta-gradient that is not finite, and what `Sampler.collect` and `fit` raise.
    """
    start, phi = time.time(), maml.unadapted(len(sampler.tasks))
    steps, returns, sampling = [], [], 0.0
    for alpha in [*maml.step_sizes(), None]:  # lines 4 to 9, of all tasks at once; the last paths are line 8's
        before = time.time()
        paths, estimates, samples = collect(maml.policy, sampler, phi, maml.settings.gae_lambda)
        sampling += time.time() - before
        steps.append(samples)
        returns.append(paths.average_returns().mean())
        if alpha is not None:
            phi = adapt(maml.policy, phi, samples, alpha, maml.threads)
    outer = maml.step(maml.theta, steps)  # line 10
    if not np.isfinite(outer.gradient).all():
        raise FloatingPointError('the meta-gradient is not finite')
    env_steps = sum(int(samples.valid.numpy().sum()) for samples in steps)
    return MetaIteration(
        theta=outer.theta,
        return_before=returns[0],
        return_after=returns[-1],
        loss_before=outer.loss_before,
        loss_after=outer.loss_after,
        kl_before=outer.kl_before,
        kl_after=outer.kl_after,
        accepted=int(outer.accepted),
        trials=len(outer.trials),
        entropy=entropy(steps[-1].log_std.numpy()),
        explained_variance=explained_variance(estimates, paths.valid),
        env_steps=env_steps,
        env_steps_per_second=env_steps / sampling,
        seconds=time.time() - start,
    )


class MamlTrpo:
    """A policy's weights theta, and MAML's outer step for them.

    `weights` holds theta as variables by name: the policy's, then the step sizes `alpha` if they are learned.
    Everywhere else theta is the flat float32 vector of these, an argument, because TRPO tries many of them.

    `steps` is a sequence of num_updates + 1 Samples: those of each inner step, then those of the adapted
    policies. Tasks are mapped one by one, `threads` of them side by side, with both gradients, inner and outer,
    inside the mapped function: memory does not grow with the tasks. Each function is compiled once, for any
    number of tasks and rows.

    Raises ValueError for a `kl_constrain_step` that names no policy, an unknown `hvp` or `meta_optimizer`, and what
    KlHessian raises.
    """

    def __init__(self, policy, settings=MetaSettings(), seed=0, threads=2):
        if not -1 <= settings.kl_constrain_step <= settings.num_updates:
            raise ValueError(f'kl_constrain_step {settings.kl_constrain_step} of {settings.num_updates} inner steps')
        if settings.hvp not in ('finite_difference', 'exact'):
            raise ValueError(f'hvp {settings.hvp!r} is neither finite_difference nor exact')
        if settings.meta_optimizer not in ('trpo', 'adam'):
            raise ValueError(f'meta_optimizer {settings.meta_optimizer!r} is neither trpo nor adam')
        self.policy, self.settings, self.threads = policy, settings, threads
        self.weights = {name: tf.Variable(weight, name=name) for name, weight in self.init(seed).items()}
        self.shapes = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        vector = tf.TensorSpec(self.theta.shape, tf.float32)
        signature = [vector, (Samples.spec(policy),) * (settings.num_updates + 1)]
        self._loss_and_kl = tf.function(self._mean_loss_and_kl, input_signature=signature)
        self._loss_gradient = tf.function(self._mean_loss_gradient, input_signature=signature)
        self._kl_gradient = tf.function(self._mean_kl_gradient, input_signature=signature)
        self._kl_hessian = KlHessian(self) if settings.hvp == 'exact' else None
        if settings.meta_optimizer == 'adam':
            self.metatrain_adam = Adam(self.weights, settings.meta_lr)

    def init(self, seed):
        """Return fresh `weights` as float32 arrays."""
        return self.policy.init(seed) | ({'alpha': self.alpha({})} if self.settings.learn_update_lr else {})

    @property
    def theta(self):
        """All weights as one flat float32 vector; can be set."""
        return flatten(self.weights)

    @theta.setter
    def theta(self, flat):
        for name, weight in unflatten(flat, self.shapes).items():
            self.weights[name].assign(weight)

    def unadapted(self, tasks):
        """Return the weights of so many tasks' policies before any inner step: float32 arrays [tasks, ...]."""
        return for_all_tasks({name: self.weights[name].numpy() for name in self.policy.shapes}, tasks)

    def step_sizes(self):
        """Return alpha of each inner step and adapted weight tensor, as an array [num_updates, tensors]."""
        return tf.convert_to_tensor(self.alpha(self.weights)).numpy()

    def loss_and_kl(self, theta, steps):
        """Return the surrogate loss (mean over tasks of mean over time steps) and mean KL (over all time steps)."""
        return tuple(float(x) for x in self._loss_and_kl(theta, tuple(steps)))

    def loss_gradient(self, theta, steps):
        """Return the gradient of the surrogate loss at theta, through the inner steps unless stop_grad."""
        return self._loss_gradient(theta, tuple(steps)).numpy()

    def kl_gradient(self, theta, steps):
        """Return the gradient of the mean KL at theta, through the inner steps unless stop_grad."""
        return self._kl_gradient(theta, tuple(steps)).numpy()

    def kl_hessian(self, theta, steps):
        """Return the function v -> H v of flat vectors, H the Hessian of the mean KL at the theta that drew `steps`.

        With a subsample_factor the mean is over that share of the tasks alone, at least one: the first, which are any,
        since all are drawn anew for each iteration (maml_rl: conjugate_gradient_optimizer.py:243-253 draws rows).
        """
        if self.settings.subsample_factor < 1:
            tasks = max(1, round(self.settings.subsample_factor * len(steps[0].valid)))
            steps = [Samples(*[x[:tasks] for x in samples]) for samples in steps]
        if self._kl_hessian:
            return self._kl_hessian.at(theta, steps)
        return lambda v: finite_difference_product(lambda t: self.kl_gradient(t, steps), theta, v)

    def step(self, theta, steps):
        """Do the outer step from theta; returns a TrpoStep with the new theta and all that was computed on the way."""
        if self.settings.meta_optimizer == 'adam':
            return self.adam_step(theta, steps)
        return trpo_step(
            lambda t: self.loss_and_kl(t, steps),
            lambda t: self.loss_gradient(t, steps),
            self.kl_hessian(theta, steps),
            theta,
            self.settings.trust_region,
            linear=self.settings.hvp == 'exact',
        )

    def adam_step(self, theta, steps):
        """Do the outer step by Adam; without inner steps that is a policy gradient step on all tasks together.

        So the original pretrains the point, whose `use_maml=False` takes this optimizer (maml_rl: maml_npo.py:31-36).
        """
        gradient = self.loss_gradient(theta, steps)
        self.theta = theta
        self.metatrain_adam.apply(self.weights, unflatten(gradient, self.shapes))
        new, self.theta = self.theta, theta
        before, after = self.loss_and_kl(theta, steps), self.loss_and_kl(new, steps)
        return TrpoStep(new, True, *before, *after, gradient, direction=theta - new, step_size=1.0, trials=[after])

    # What a single task contributes. `steps` holds that task's samples only, and theta is a dictionary.

    def alpha(self, theta):
        """Return the learned step sizes where theta has them, else update_lr: [num_updates, adapted tensors]."""
        shape = self.settings.num_updates, len(self.policy.adapted)
        return theta['alpha'] if 'alpha' in theta else np.full(shape, self.settings.update_lr, np.float32)

    def policies(self, theta, steps):
        """Return [phi_0 = theta, phi_1, ...]: the task's policy before each inner step and after the last one."""
        phis, alpha, s = [theta], self.alpha(theta), self.settings
        for j in range(s.num_updates):
            phis.append(inner_step(self.policy, phis[j], steps[j], alpha[j], s.stop_grad, s.likelihood_ratio))
        return phis

    def _task_loss(self, phis, steps):
        """Return -mean of likelihood ratio times advantage, under the policy that drew the last samples."""
        phi, post = phis[-1], steps[-1]
        new = gaussian(*self.policy.mean_and_log_std(phi, post.observations)).log_prob(post.actions)
        old = gaussian(post.mean, post.log_std).log_prob(post.actions)
        return -tf.reduce_mean(tf.exp(new - old) * post.advantages)

    def _task_kl(self, phis, steps):
        """Return the sum of the KL over time steps, for the policy and samples that kl_constrain_step names."""
        phi, samples = phis[self.settings.kl_constrain_step], steps[self.settings.kl_constrain_step]
        mean, log_std = self.policy.mean_and_log_std(phi, samples.observations)
        return tf.reduce_sum(kl(samples.mean, samples.log_std, mean, log_std))

    # The same over all tasks, theta flat: what is compiled.

    def _mean_loss_and_kl(self, theta, steps):
        def one_task(i):
            task = [samples.of_task(i) for samples in steps]
            phis = self.policies(unflatten(theta, self.shapes), task)
            return self._task_loss(phis, task), self._task_kl(phis, task)

        losses, kls = map_tasks(one_task, steps[0], (tf.float32, tf.float32), self.threads)
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
                value = objective(self.policies(unflatten(theta, self.shapes), task), task)
            return tape.gradient(value, theta)

        return map_tasks(one_task, steps[0], tf.TensorSpec(theta.shape, tf.float32), self.threads)

    def _kl_rows(self, steps):
        return tf.reduce_sum(steps[self.settings.kl_constrain_step].valid)
