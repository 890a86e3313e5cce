"""The reinforcement-learning half against numbers that the original (cbfinn/maml_rl 9c8e2eb) gave.

tests/golden/rl/ holds them: one outer step on three point tasks with all that it computes on the way
(trpo_*.npz), and small cases of the NumPy parts (rl_small.npz). The tolerances are those of
tolerances.json beside them.
"""

import json
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from rl.advantages import discounted_sums, estimate, features
from rl.maml_trpo import MamlTrpo, MetaSettings
from rl.policy import GaussianPolicy, flatten, gaussian, kl, unflatten
from rl.reinforce import adapt, for_all_tasks, surrogate_loss
from rl.samples import Samples
from rl.trpo import conjugate_gradients, finite_difference_product, initial_step_size

GOLDEN = Path(__file__).parent / 'golden' / 'rl'
TOLERANCE = json.loads((GOLDEN / 'tolerances.json').read_text())
TASKS = range(3)
compiled = lru_cache(MamlTrpo)  # tests with the same policy and settings need not compile them again


def relative_error(a, b):
    return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


def load(name, row_limit=None):
    """A golden outer step: the file, its policy, MamlTrpo, theta and Samples, padded to one number of rows.

    row_limit emulates a defect of the original, which in the outer problem cuts the arrays of all tasks to
    the number of rows of the first task.
    """
    g = np.load(GOLDEN / f'{name}.npz')
    config = dict(g['meta/config'])
    policy = GaussianPolicy(2, 2, nonlinearity=config['hidden_nonlinearity'])
    maml = compiled(policy, MetaSettings(update_lr=0.5, stop_grad=config['stop_grad'] == 'True'))
    steps = []
    for s in range(2):
        fields = {
            k: [g[f'task{i}/step{s}/{k}'][:row_limit] for i in TASKS]
            for k in ('observations', 'actions', 'advantages', 'agent_mean')
        }
        lengths = [len(x) for x in fields['advantages']]
        padded = [np.stack([pad(x, max(lengths)) for x in field]) for field in fields.values()]
        valid = np.stack([pad(np.ones(n), max(lengths)) for n in lengths])
        log_std = np.stack([g[f'task{i}/step{s}/agent_log_std'][0] for i in TASKS])
        arrays = (*padded[:3], valid, padded[3], log_std)
        steps.append(Samples(*[tf.constant(x.astype(np.float32)) for x in arrays]))
    return SimpleNamespace(g=g, policy=policy, maml=maml, theta=g['theta'], steps=steps)


def pad(x, rows):
    return np.concatenate([x, np.zeros((rows - len(x), *x.shape[1:]))])


@pytest.fixture(scope='module', params=['trpo_point', 'trpo_point_stopgrad', 'trpo_point_tanh', 'trpo_point_rowcut'])
def case(request):
    limit = 80 if request.param == 'trpo_point_rowcut' else None
    return load(request.param, limit)


@pytest.fixture(scope='module')
def step(case):
    return case.maml.step(case.theta, case.steps)


def test_flat_order(case):
    assert list(case.policy.shapes) == list(case.g['meta/param_keys'])
    np.testing.assert_array_equal(flatten({k: case.g[f'params/{k}'] for k in case.policy.shapes}), case.theta)
    case.maml.theta = case.theta
    for name, weight in case.maml.weights.items():
        np.testing.assert_array_equal(weight, case.g[f'params/{name}'])
    np.testing.assert_array_equal(case.maml.theta, case.theta)


@pytest.mark.parametrize('name', ['trpo_point', 'trpo_point_tanh', 'trpo_point_rowcut'])
def test_inner_step(name):
    case = load(name)  # all rows: what is sampled with was never cut
    theta = unflatten(case.theta, case.policy.shapes)
    phi = adapt(case.policy, for_all_tasks(theta, 3), case.steps[0], alpha=0.5)
    for i in TASKS:
        with tf.GradientTape() as tape:
            tape.watch(theta)
            loss = surrogate_loss(case.policy, theta, case.steps[0].of_task(i))
        assert abs(loss - case.g[f'task{i}/inner_loss']) < TOLERANCE['inner loss (abs)']
        gradient = flatten(tape.gradient(loss, theta))
        assert relative_error(gradient, case.g[f'task{i}/inner_grad']) < TOLERANCE['inner gradient']
        adapted, golden = flatten({k: w[i] for k, w in phi.items()}), case.g[f'task{i}/adapted_flat']
        assert relative_error(adapted, golden) < TOLERANCE['adapted parameters']
        assert relative_error(adapted - case.theta, golden - case.theta) < TOLERANCE['adapted - theta']


def test_action_distribution(case):
    g, limit = case.g, TOLERANCE['post-update mean/log_std (abs)']
    for i in TASKS:
        for s, weights in enumerate([case.theta, g[f'task{i}/adapted_flat']]):
            observations = g[f'task{i}/step{s}/observations'].astype(np.float32)
            mean, log_std = case.policy.mean_and_log_std(unflatten(weights, case.policy.shapes), observations)
            assert np.abs(mean - g[f'task{i}/step{s}/agent_mean']).max() < limit
            assert np.abs(log_std - g[f'task{i}/step{s}/agent_log_std']).max() < limit


def test_objective(case):
    loss, mean_kl = case.maml.loss_and_kl(case.theta, case.steps)
    assert abs(loss - case.g['outer/loss_before']) < TOLERANCE['surrogate loss before (abs)']
    assert abs(mean_kl - case.g['outer/kl_before']) < TOLERANCE['mean KL before (abs)']
    gradient = case.maml.loss_gradient(case.theta, case.steps)
    assert relative_error(gradient, case.g['outer/grad']) < TOLERANCE['gradient of loss']
    error = np.linalg.norm(case.maml.kl_gradient(case.theta, case.steps) - case.g['outer/kl_grad'])
    assert error < 1e-5 * np.linalg.norm(case.g['outer/grad'])  # mere rounding, but where the row cut acts


def test_objective_with_all_rows():
    case = load('trpo_point_rowcut')
    loss, mean_kl = case.maml.loss_and_kl(case.theta, case.steps)
    assert abs(loss - case.g['outer/loss_before_all_rows']) < TOLERANCE['surrogate loss before (abs)']
    assert abs(mean_kl - case.g['outer/kl_before_all_rows']) < TOLERANCE['mean KL before (abs)']
    gradient = case.maml.loss_gradient(case.theta, case.steps)
    assert relative_error(gradient, case.g['outer/grad_all_rows']) < TOLERANCE['gradient of loss']
    assert relative_error(gradient, case.g['outer/grad']) > 100 * TOLERANCE['gradient of loss']


def hessian_product(case, v):
    return finite_difference_product(lambda t: case.maml.kl_gradient(t, case.steps), case.theta, v) + 1e-5 * v


@pytest.mark.parametrize('v, Hv', [('v1', 'Hv1'), ('v2', 'Hv2'), ('v_grad', 'Hv_grad')])
def test_hessian_vector_product(case, v, Hv):
    product = hessian_product(case, case.g[f'hvp/{v}'])
    assert relative_error(product, case.g[f'hvp/{Hv}']) < TOLERANCE['FD-HVP']


def test_hessian_vector_product_along_cg(case):
    errors = [relative_error(hessian_product(case, p), Hp) for p, Hp in zip(case.g['cg/p'], case.g['cg/Hp'])]
    assert max(errors) < TOLERANCE['FD-HVP, worst of the CG iterates']


def test_step_direction(case, step):
    g = case.g
    assert relative_error(step.direction, g['cg/direction']) < TOLERANCE['CG direction']
    assert abs(step.step_size / g['ls/initial_step_size'] - 1) < TOLERANCE['initial step size beta']
    assert relative_error(step.step_size * step.direction, g['ls/full_step']) < TOLERANCE['full step beta*d']
    beta = initial_step_size(g['cg/direction'], g['cg/H_direction'], 0.01)
    assert abs(beta / g['ls/initial_step_size'] - 1) < 1e-6


def test_line_search(case, step):
    g = case.g
    losses, kls = np.array(step.trials).T
    assert len(losses) == len(g['ls/ratios'])
    assert np.abs(losses - g['ls/loss']).max() < TOLERANCE['line-search loss, same ratios (abs)']
    assert np.abs(kls / g['ls/kl'] - 1).max() < TOLERANCE['line-search KL, same ratios']
    assert step.accepted == g['ls/accepted']
    assert (step.loss_after, step.kl_after) == step.trials[-1]
    assert relative_error(step.theta, g['ls/final_params']) < TOLERANCE['accepted parameters']
    moved, golden = step.theta - case.theta, g['ls/final_params'] - case.theta
    assert relative_error(moved, golden) < TOLERANCE['accepted parameters - theta']
    for theta, loss, mean_kl in zip(g['ls/params'], g['ls/loss'], g['ls/kl']):
        own_loss, own_kl = case.maml.loss_and_kl(theta, case.steps)
        assert abs(own_loss - loss) < TOLERANCE['loss at stored trial parameters (abs)']
        assert abs(own_kl / mean_kl - 1) < TOLERANCE['KL at stored trial parameters']


@pytest.mark.parametrize('name', ['trpo_point', 'trpo_point_tanh', 'trpo_point_rowcut'])
@pytest.mark.parametrize('s', [0, 1])
def test_baseline_of_the_outer_step(name, s):
    g = np.load(GOLDEN / f'{name}.npz')
    lengths = [g[f'task{i}/step{s}/path_lengths'] for i in TASKS]
    rows = max(n.sum() for n in lengths) + 3
    o, r = ([pad(g[f'task{i}/step{s}/{k}'], rows) for i in TASKS] for k in ('observations', 'rewards'))
    estimates = estimate(o, r, lengths, discount=0.99, gae_lambda=1.0)
    names = {'returns': 'returns', 'baseline_pred': 'values', 'advantages_raw': 'raw_advantages'}
    names['advantages'] = 'advantages'
    for i in TASKS:
        for key, field in names.items():
            np.testing.assert_allclose(
                getattr(estimates, field)[i], pad(g[f'task{i}/step{s}/{key}'], rows), rtol=1e-7, atol=1e-7, err_msg=key
            )
        np.testing.assert_allclose(estimates.coefficients[i], g[f'task{i}/step{s}/baseline_coeffs'], rtol=1e-7)


def test_baseline():
    g = np.load(GOLDEN / 'rl_small.npz')
    o, r, lengths = (g[f'lfb/{k}'] for k in ('observations', 'rewards', 'path_lengths'))
    np.testing.assert_allclose(features(o, lengths), g['lfb/features'], rtol=1e-12)
    for gae_lambda, suffix in [(1.0, ''), (0.95, '_lam0.95')]:
        estimates = estimate(o[None], r[None], [lengths], discount=0.99, gae_lambda=gae_lambda)
        np.testing.assert_allclose(estimates.coefficients[0], g['lfb/coeffs'], rtol=1e-7)
        np.testing.assert_allclose(estimates.values[0], g['lfb/predictions'], rtol=1e-7)
        np.testing.assert_allclose(estimates.returns[0], g['lfb/returns'], rtol=1e-12)
        np.testing.assert_allclose(estimates.raw_advantages[0], g['lfb/advantages_raw' + suffix], rtol=1e-7)
        np.testing.assert_allclose(estimates.advantages[0], g['lfb/advantages' + suffix], rtol=1e-7)


def test_discounted_sums():
    g = np.load(GOLDEN / 'rl_small.npz')
    x = g['discount/x']
    np.testing.assert_allclose(discounted_sums(x, [len(x)], 0.99), g['discount/cumsum_0.99'], rtol=1e-12)
    columns = g['discount/x2'].T
    sums = discounted_sums(columns.ravel(), [columns.shape[1]] * len(columns), 0.5)
    np.testing.assert_allclose(sums, g['discount/x2_cumsum_0.5'].T.ravel(), rtol=1e-12)


def test_conjugate_gradients():
    g = np.load(GOLDEN / 'rl_small.npz')
    calls = []

    def product(A):
        return lambda p: calls.append(p) or A @ p

    for iterations in (1, 2, 3, 10):
        x, _ = conjugate_gradients(product(g['cg/A']), g['cg/b'], iterations)
        np.testing.assert_allclose(x, g[f'cg/x_{iterations}'], rtol=1e-7)
    assert len(calls) == 1 + 2 + 3 + 6  # solved after six, where the tolerance ends it
    calls.clear()
    np.testing.assert_allclose(conjugate_gradients(product(g['cg/A2']), g['cg/b2'])[0], g['cg/x2'], rtol=1e-7)
    assert len(calls) == g['cg/x2_iters']
    x, _ = conjugate_gradients(product(g['cg/A3_f32']), g['cg/b3_f32'])
    assert x.dtype == np.float32 and relative_error(x, g['cg/x3_f32_10']) < 1e-5


def test_gaussian():
    g = np.load(GOLDEN / 'rl_small.npz')
    # One row at a time, because these standard deviations differ from row to row.
    old, new = ([g[f'gauss/{k}_mean'][:, None], g[f'gauss/{k}_log_std']] for k in ('old', 'new'))
    x = g['gauss/x'][:, None]
    np.testing.assert_allclose(kl(*old, *new)[:, 0], g['gauss/kl_old_new'], rtol=1e-12)
    np.testing.assert_allclose(gaussian(*old).log_prob(x)[:, 0], g['gauss/loglik_old'], rtol=1e-7)
    np.testing.assert_allclose(gaussian(*new).log_prob(x)[:, 0], g['gauss/loglik_new'], rtol=1e-7)
    np.testing.assert_allclose(gaussian(*old).entropy()[:, 0], g['gauss/entropy_old'], rtol=1e-7)
