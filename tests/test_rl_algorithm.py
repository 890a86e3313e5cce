"""The outer and the inner step against plain restatements, and TRPO on problems solved by hand."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from test_rl_golden import compiled, load, relative_error

from rl.maml_trpo import MamlTrpo, MetaSettings
from rl.policy import GaussianPolicy, flatten, unflatten
from rl.reinforce import adapt, for_all_tasks
from rl.samples import Samples
from rl.trpo import TrustRegion, finite_difference_product, initial_step_size, line_search, trpo_step

POLICY = GaussianPolicy(3, 2, hidden_sizes=(8, 8), nonlinearity='tanh')
ROWS = [[7, 12, 9], [10, 5, 12], [12, 11, 3]]  # of each task at each step


def random_samples(policy, phi, rows, rng, total=12):
    """Samples that phi drew for tasks with these numbers of rows, of `total`; padding 0, advantages any."""
    shape = (len(rows), total)
    valid = (np.arange(total) < np.array(rows)[:, None]).astype(np.float32)
    observations = rng.standard_normal((*shape, policy.obs_dim)) * valid[..., None]
    actions = policy.act(phi, observations, rng.standard_normal((*shape, policy.act_dim))) * valid[..., None]
    return Samples.drawn_by(policy, phi, observations, actions, rng.standard_normal(shape) * valid, valid)


def meta_problem(policy=POLICY, moved=0.1, **settings):
    """MamlTrpo, a theta that is `moved` from the one that drew the samples, and those samples."""
    rng = np.random.default_rng(0)
    maml = compiled(policy, MetaSettings(update_lr=0.3, **settings))
    theta = flatten(maml.init(seed=1))
    maml.theta = theta = (theta + 0.1 * rng.standard_normal(theta.shape)).astype(np.float32)
    phi, steps = maml.unadapted(3), []
    for rows, alpha in zip(ROWS, [*maml.step_sizes(), None]):
        steps.append(random_samples(policy, phi, rows, rng))
        if alpha is not None:
            phi = adapt(policy, phi, steps[-1], alpha)
    return maml, (theta + moved * rng.standard_normal(theta.shape)).astype(np.float32), steps


def plain_loss_and_kl(maml, theta, steps):
    """The objective again, from the paper: loops, nested tapes, nothing of the program but the shapes."""
    s, policy, names = maml.settings, maml.policy, list(maml.policy.shapes)
    losses, kls = [], []

    def log_density(x, mean, log_std):
        return tf.reduce_sum(-((x - mean) ** 2) / (2 * tf.exp(2 * log_std)) - log_std - 0.5 * np.log(2 * np.pi), 1)

    def forward(phi, observations):
        h = observations
        if policy.context_size:
            h = tf.concat([h, tf.repeat(phi['context'][None], len(h), 0)], 1)
        for i in range(2):
            h = tf.tanh(tf.matmul(h, phi[f'W{i}']) + phi[f'b{i}'])
        return tf.matmul(h, phi['W2']) + phi['b2'], tf.maximum(phi['std_param'], np.log(1e-6))

    for i in range(len(ROWS[0])):
        phi = unflatten(theta, maml.shapes)
        for j, samples in enumerate(steps):
            n = ROWS[j][i]
            o, a, adv, old = (
                x[i, :n] for x in (samples.observations, samples.actions, samples.advantages, samples.mean)
            )
            with tf.GradientTape() as tape:
                tape.watch(phi)
                mean, log_std = forward(phi, o)
                inner = log_density(a, mean, log_std)
                if s.likelihood_ratio:
                    inner = tf.exp(inner - log_density(a, old, samples.log_std[i]))
                inner = -tf.reduce_mean(inner * adv)
            if j == s.kl_constrain_step % len(steps):
                terms = ((old - mean) ** 2 + tf.exp(2 * samples.log_std[i])) / (2 * tf.exp(2 * log_std)) - 0.5
                kls += tf.unstack(tf.reduce_sum(terms + log_std - samples.log_std[i], 1))
            if j == s.num_updates:
                ratio = tf.exp(log_density(a, mean, log_std) - log_density(a, old, samples.log_std[i]))
                losses.append(-tf.reduce_mean(ratio * adv))
                continue
            gradients = {k: g for k, g in tape.gradient(inner, phi).items() if k in names}
            for k, name in enumerate(policy.adapted):
                g = tf.stop_gradient(gradients[name]) if s.stop_grad else gradients[name]
                phi[name] = phi[name] - (phi['alpha'][j, k] if s.learn_update_lr else s.update_lr) * g
    return tf.reduce_mean(losses), tf.reduce_mean(kls)


@pytest.mark.parametrize(
    'settings',
    [
        {'num_updates': 1},
        {'num_updates': 2},
        {'num_updates': 2, 'stop_grad': True},
        {'num_updates': 2, 'likelihood_ratio': True},
        {'num_updates': 2, 'kl_constrain_step': 0, 'policy': dataclasses.replace(POLICY, context_size=4)},
        {'num_updates': 2, 'kl_constrain_step': 1, 'learn_update_lr': True},
        {'num_updates': 0},
    ],
    ids=['one', 'two', 'first_order', 'likelihood_ratio', 'context', 'learned_alpha', 'none'],
)
def test_objective_is_the_plain_one(settings):
    maml, theta, steps = meta_problem(**settings)
    steps = steps[: maml.settings.num_updates + 1]
    variable = tf.constant(theta)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(variable)
        loss, mean_kl = plain_loss_and_kl(maml, variable, steps)
    np.testing.assert_allclose(maml.loss_and_kl(theta, steps), (loss, mean_kl), rtol=1e-5, atol=1e-6)
    assert relative_error(maml.loss_gradient(theta, steps), tape.gradient(loss, variable)) < 1e-5
    assert relative_error(maml.kl_gradient(theta, steps), tape.gradient(mean_kl, variable)) < 1e-5


def test_adam_pretrains_by_the_policy_gradient():
    """Two of TF1's steps on the mean over tasks of -mean(log pi A); what is the user's to set stays as it is."""
    maml, theta, _ = meta_problem(moved=0.0, num_updates=0, meta_optimizer='adam', meta_lr=0.01)
    m = v = 0
    for t in (1, 2):
        maml.theta = theta
        samples = random_samples(maml.policy, maml.unadapted(3), ROWS[0], np.random.default_rng(t))
        variable = tf.constant(theta)
        with tf.GradientTape() as tape:
            tape.watch(variable)
            mean, log_std = maml.policy.mean_and_log_std(unflatten(variable, maml.shapes), samples.observations)
            density = -((samples.actions - mean) ** 2) / (2 * tf.exp(2 * log_std)) - log_std
            terms = tf.reduce_sum(density, -1) * samples.advantages * samples.valid
            loss = -tf.reduce_mean(tf.reduce_sum(terms, 1) / tf.reduce_sum(samples.valid, 1))
        g = tape.gradient(loss, variable).numpy()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = maml.step(theta, [samples])
        expected = theta - 0.01 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-8)
        np.testing.assert_allclose(step.theta, expected, atol=1e-5)
        assert step.accepted and step.loss_after == maml.loss_and_kl(step.theta, [samples])[0] < step.loss_before
        np.testing.assert_array_equal(maml.theta, theta)
        theta = step.theta


def test_stop_grad_changes_the_gradient_alone():
    (full, theta, steps), (first_order, _, _) = (
        meta_problem(num_updates=2),
        meta_problem(num_updates=2, stop_grad=True),
    )
    assert full.loss_and_kl(theta, steps) == pytest.approx(first_order.loss_and_kl(theta, steps), abs=1e-7)
    assert relative_error(first_order.loss_gradient(theta, steps), full.loss_gradient(theta, steps)) > 0.01


@pytest.mark.parametrize('kl_constrain_step', [-1, 0, 1, 2])
def test_kl_is_zero_at_the_policies_that_sampled(kl_constrain_step):
    maml, theta, steps = meta_problem(moved=0.0, num_updates=2, kl_constrain_step=kl_constrain_step)
    loss, mean_kl = maml.loss_and_kl(theta, steps)
    assert abs(mean_kl) < 1e-6
    post = steps[-1]
    mean_advantage = np.sum(post.advantages, axis=1) / np.sum(post.valid, axis=1)  # all likelihood ratios are 1
    assert loss == pytest.approx(-mean_advantage.mean(), abs=1e-6)
    assert maml.loss_and_kl(theta + 0.1, steps)[1] > 1e-3


def test_kl_constrain_step_out_of_range():
    for step in (-2, 2):
        with pytest.raises(ValueError, match='kl_constrain_step'):
            MamlTrpo(POLICY, MetaSettings(num_updates=1, kl_constrain_step=step))


def test_hvp_of_no_known_kind_or_with_a_context():
    with pytest.raises(ValueError, match='hvp'):
        MamlTrpo(POLICY, MetaSettings(hvp='exakt'))
    with pytest.raises(ValueError, match='meta_optimizer'):
        MamlTrpo(POLICY, MetaSettings(meta_optimizer='sgd'))
    with pytest.raises(ValueError, match='context'):
        MamlTrpo(dataclasses.replace(POLICY, context_size=4), MetaSettings(hvp='exact'))


def test_padded_rows_do_not_matter():
    maml, theta, steps = meta_problem(num_updates=2)
    rng = np.random.default_rng(5)

    def garbage(x):
        x = np.concatenate([x, np.zeros((3, 4, *x.shape[2:]), np.float32)], axis=1)  # four rows more
        return np.where(padding.reshape(padding.shape + (1,) * (x.ndim - 2)), 1e3 * rng.standard_normal(x.shape), x)

    dirty = []
    for samples, rows in zip(steps, ROWS):
        padding = np.arange(16) >= np.array(rows)[:, None]
        fields = [garbage(x.numpy()).astype(np.float32) for x in (*samples[:3], samples.mean)]
        dirty.append(Samples(*fields[:3], (~padding).astype(np.float32), fields[3], samples.log_std))
    for function in (maml.loss_and_kl, maml.loss_gradient, maml.kl_gradient):
        np.testing.assert_allclose(function(theta, dirty), function(theta, steps), rtol=1e-6, atol=1e-7)
    exact, v = meta_problem(num_updates=2, hvp='exact')[0].kl_hessian, rng.standard_normal(theta.shape)
    products = [exact(theta, samples)(v.astype(np.float32)) for samples in (dirty, steps)]
    assert relative_error(*products) < 1e-5
    phi = for_all_tasks(unflatten(theta, maml.shapes), 3)
    for name, weight in adapt(POLICY, phi, dirty[0], 0.3).items():
        np.testing.assert_allclose(weight, adapt(POLICY, phi, steps[0], 0.3)[name], rtol=1e-6, atol=1e-7)


def test_order_of_rows_and_of_tasks():
    maml, theta, steps = meta_problem(num_updates=2)
    expected = [f(theta, steps) for f in (maml.loss_and_kl, maml.loss_gradient, maml.kl_gradient)]

    def reversed_rows(samples, rows):
        order = np.array([[*reversed(range(n)), *range(n, 12)] for n in rows])
        return Samples(*[tf.gather(x, order, batch_dims=1) for x in samples[:-1]], samples.log_std)

    rows = [reversed_rows(samples, n) for samples, n in zip(steps, ROWS)]
    tasks = [Samples(*[x[::-1] for x in samples]) for samples in steps]
    mixed = [tasks[0], *steps[1:]]  # the inner samples of other tasks: this must be seen
    for other in (rows, tasks):
        got = [f(theta, other) for f in (maml.loss_and_kl, maml.loss_gradient, maml.kl_gradient)]
        for a, b in zip(got, expected):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert relative_error(maml.loss_gradient(theta, mixed), expected[1]) > 0.01


def test_compiled_once():
    maml, theta, steps = meta_problem(num_updates=2)
    few = [Samples(*[x[:2, :12] for x in samples[:-1]], samples.log_std[:2]) for samples in steps]
    for data in (steps, few):
        maml.loss_and_kl(theta, data), maml.loss_gradient(theta, data), maml.kl_gradient(theta, data)
    for function in (maml._loss_and_kl, maml._loss_gradient, maml._kl_gradient):
        assert function.experimental_get_tracing_count() == 1


def test_outer_step_keeps_its_promises():
    maml, theta, steps = meta_problem(moved=0.0, num_updates=1, learn_update_lr=True)
    step = maml.step(theta, steps[:2])
    assert step.accepted and step.loss_after < step.loss_before and step.kl_after < 0.01
    assert (step.loss_after, step.kl_after) == pytest.approx(maml.loss_and_kl(step.theta, steps[:2]), abs=1e-7)
    maml.theta = step.theta
    assert np.abs(maml.step_sizes() - 0.3).max() > 1e-3
    assert maml.step_sizes().shape == (1, len(POLICY.adapted))


def test_inner_step_changes_the_context_alone():
    policy = dataclasses.replace(POLICY, context_size=4)
    phi = for_all_tasks(policy.init(seed=0), 3)
    samples = random_samples(policy, phi, ROWS[0], np.random.default_rng(0))
    changed = {name for name, w in adapt(policy, phi, samples, 0.5).items() if not np.array_equal(w, phi[name])}
    assert changed == {'context'}
    phi = for_all_tasks(POLICY.init(seed=0), 3)
    samples = random_samples(POLICY, phi, ROWS[0], np.random.default_rng(0))
    changed = {name for name, w in adapt(POLICY, phi, samples, 0.5).items() if not np.array_equal(w, phi[name])}
    assert changed == set(POLICY.shapes)  # the log std too


def test_exact_hessian_is_another_algorithm():
    """The original's finite difference takes too large a step to be the Hessian; autodiff must disagree."""
    case = load('trpo_point_tanh')
    v, golden = case.g['hvp/v_grad'], case.g['hvp/Hv_grad']

    def product(step):
        scaled = v * np.float32(step)
        return finite_difference_product(lambda t: case.maml.kl_gradient(t, case.steps), case.theta, scaled) / step

    theta = tf.constant(case.theta)
    with tf.GradientTape() as outer:
        outer.watch(theta)
        with tf.GradientTape() as inner:
            inner.watch(theta)
            mean_kl = mean_kl_without_map_fn(case.maml, theta, case.steps)
        slope = tf.reduce_sum(inner.gradient(mean_kl, theta) * v)
    exact = outer.gradient(slope, theta).numpy() + 1e-5 * v
    assert relative_error(product(1.0) + 1e-5 * v, golden) < 1e-3
    assert relative_error(exact, golden) > 0.1
    assert relative_error(product(0.05) + 1e-5 * v, exact) < 0.02  # a small step would approach it


@pytest.mark.parametrize(
    'settings',
    [
        {'num_updates': 1},
        {'num_updates': 1, 'policy': dataclasses.replace(POLICY, nonlinearity='relu', hidden_sizes=(7, 5, 6))},
        {'num_updates': 2, 'learn_update_lr': True},
        {'num_updates': 2, 'learn_update_lr': True, 'stop_grad': True},
        {'num_updates': 2, 'learn_update_lr': True, 'likelihood_ratio': True},
        {'num_updates': 2, 'learn_update_lr': True, 'kl_constrain_step': 1},
        {'num_updates': 0},
    ],
    ids=['one', 'relu', 'learned_alpha', 'first_order', 'likelihood_ratio', 'constrained_before_the_last', 'none'],
)
def test_exact_hessian_products(settings):
    """Against autodiff through the KL's gradient, whose terms with the gradient of the KL vanish, as it is 0."""
    maml, theta, steps = meta_problem(moved=0.0, hvp='exact', **settings)
    steps = steps[: maml.settings.num_updates + 1]
    variable = tf.constant(theta)
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(variable)
        with tf.GradientTape() as inner:
            inner.watch(variable)
            mean_kl = mean_kl_without_map_fn(maml, variable, steps)
        gradient = inner.gradient(mean_kl, variable)
    product, rng = maml.kl_hessian(theta, steps), np.random.default_rng(3)
    for _ in range(2):  # the second takes what was kept
        v = rng.standard_normal(theta.shape).astype(np.float32)
        assert relative_error(product(v), outer.gradient(gradient, variable, output_gradients=v)) < 1e-5


@pytest.mark.parametrize('hvp', ['finite_difference', 'exact'])
def test_products_over_a_share_of_the_tasks(hvp):
    """They are those of the first tasks alone; all else in the outer step is over all tasks."""
    some, theta, steps = meta_problem(moved=0.0, hvp=hvp, num_updates=1, subsample_factor=0.7)  # 2 of 3 tasks
    every, v = meta_problem(moved=0.0, hvp=hvp, num_updates=1)[0], np.linspace(-1, 1, theta.size, dtype=np.float32)
    steps = steps[:2]
    first = [Samples(*[x[:2] for x in samples]) for samples in steps]
    product = some.kl_hessian(theta, steps)(v)
    assert relative_error(product, every.kl_hessian(theta, first)(v)) < 1e-6
    assert relative_error(product, every.kl_hessian(theta, steps)(v)) > 0.01
    ours, theirs = some.step(theta, steps), every.step(theta, steps)
    np.testing.assert_array_equal(ours.gradient, theirs.gradient)
    assert (ours.loss_after, ours.kl_after) == pytest.approx(every.loss_and_kl(ours.theta, steps), abs=1e-6)
    assert relative_error(ours.direction, theirs.direction) > 0.01
    least = meta_problem(moved=0.0, hvp=hvp, num_updates=1, subsample_factor=0.01)[0]  # one task
    first = [Samples(*[x[:1] for x in samples]) for samples in steps]
    assert relative_error(least.kl_hessian(theta, steps)(v), every.kl_hessian(theta, first)(v)) < 1e-6


def mean_kl_without_map_fn(maml, theta, steps):
    """The mean KL so that it can be differentiated twice from outside without compiling it."""
    tasks = [[samples.of_task(i) for samples in steps] for i in range(len(ROWS[0]))]
    weights = unflatten(theta, maml.shapes)
    total = tf.add_n([maml._task_kl(maml.policies(weights, task), task) for task in tasks])
    return total / tf.reduce_sum(steps[maml.settings.kl_constrain_step].valid)


# TRPO alone, on problems that can be solved by hand.

MATRIX = np.array([[4.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 2.0]], np.float32)
SLOPE = np.array([1.0, -2.0, 0.5], np.float32)
START = np.array([0.3, -0.2, 0.4], np.float32)


def quadratic_step(loss_scale=1.0, damping=1e-5):
    def loss_and_kl(theta):
        d = theta - START
        return loss_scale * float(SLOPE @ d), float(d @ MATRIX @ d) / 2

    return trpo_step(loss_and_kl, lambda t: SLOPE, lambda v: MATRIX @ v, START, TrustRegion(damping=damping))


def test_trpo_on_a_quadratic():
    step = quadratic_step(damping=0.0)
    np.testing.assert_allclose(step.direction, np.linalg.solve(MATRIX, SLOPE), rtol=1e-4)
    assert step.trials[0][1] == pytest.approx(0.01, rel=1e-4)  # beta is made for that
    assert step.accepted and step.loss_after < step.loss_before
    np.testing.assert_allclose(step.theta, START - step.step_size * step.direction * 0.8 ** (len(step.trials) - 1))
    damped = quadratic_step(damping=1.0)
    np.testing.assert_allclose(damped.direction, np.linalg.solve(MATRIX + np.eye(3), SLOPE), rtol=1e-4)


@pytest.mark.parametrize('linear, products', [(False, 3), (True, 2)])
def test_trpo_with_a_linear_product_spares_the_last(linear, products):
    """H times the direction follows from the residual of the conjugate gradients."""
    calls, settings = [], TrustRegion(cg_iterations=2, damping=0.1)  # two of three: a residual is left

    def product(v):
        calls.append(v)
        return MATRIX @ v

    step = trpo_step(lambda theta: (0.0, 0.0), lambda theta: SLOPE, product, START, settings, linear)
    curvature = step.direction @ (MATRIX + 0.1 * np.eye(3)) @ step.direction
    assert len(calls) == products and step.step_size == pytest.approx(np.sqrt(0.02 / curvature), rel=1e-5)


def test_trpo_rejects_a_step_that_does_not_help():
    step = quadratic_step(loss_scale=-1.0)
    assert not step.accepted and len(step.trials) == 15
    np.testing.assert_array_equal(step.theta, START)
    assert (step.loss_after, step.kl_after) == (step.loss_before, step.kl_before)


@pytest.mark.parametrize(
    'values, trials, accepted',
    [
        ([(-1, 0.02), (-1, 0.011), (-1, 0.009)], 3, True),
        ([(1, 0.001), (0, 0.001), (-1, 0.001)], 3, True),  # a loss that stays is no progress
        ([(-1, 0.01)], 1, False),  # the search stops at the limit, the last test wants less
        ([(float('nan'), 0.001), (-1, float('nan')), (-1, 0.001)], 3, True),
        ([(float('nan'), 0.001)] * 15, 15, False),
        ([(-1, 0.02)] * 15, 15, False),
    ],
)
def test_line_search(values, trials, accepted):
    queue, points = iter(values), []
    found, made = line_search(lambda t: points.append(t) or next(queue), START, SLOPE, loss_before=0.0)
    assert made == values[:trials] and (found is not None) == accepted
    np.testing.assert_allclose(points[-1], START - 0.8 ** (trials - 1) * SLOPE, rtol=1e-6)
    assert points[-1].dtype == np.float32


def test_finite_difference_is_symmetric_with_a_step_of_one_over_theta():
    v = np.array([0.5, 1.0, -1.0], np.float32)
    eps = 1 / np.linalg.norm(START)
    expected = 3 * START**2 * v + eps**2 * v**3 + 2 * START * v  # of theta^3 + theta^2 + 5: even powers of eps v cancel
    np.testing.assert_allclose(finite_difference_product(lambda t: t**3 + t**2 + 5, START, v), expected, rtol=1e-4)


def test_initial_step_size_without_curvature():
    assert initial_step_size(SLOPE, -SLOPE, 0.01) == 1.0
    assert initial_step_size(SLOPE, np.full(3, np.nan, np.float32), 0.01) == 1.0
    assert initial_step_size(SLOPE, SLOPE, 0.01) == pytest.approx(np.sqrt(0.02 / (SLOPE @ SLOPE)))
