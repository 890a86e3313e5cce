"""The policy's two forms, TensorFlow and NumPy, and the baseline on cases that can be worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_probability as tfp

from rl.advantages import estimate, explained_variance, features, fit, next_values
from rl.policy import GaussianPolicy, entropy, flatten, gaussian, kl


def test_initial_weights():
    policy = GaussianPolicy(20, 6, init_std=0.5, context_size=5)
    theta = policy.init(seed=3)
    assert theta['W0'].shape == (25, 100) and list(theta) == list(policy.shapes)
    for name in ('W0', 'W1', 'W2'):
        limit = np.sqrt(6 / sum(theta[name].shape))
        assert 0.95 * limit < np.abs(theta[name]).max() <= limit and abs(theta[name].mean()) < 0.1 * limit
    np.testing.assert_allclose(np.exp(theta['std_param']), 0.5, rtol=1e-6)
    np.testing.assert_array_equal(flatten(theta), flatten(policy.init(seed=3)))
    assert not np.array_equal(flatten(theta), flatten(policy.init(seed=4)))
    with pytest.raises(ValueError, match='nonlinearity'):
        GaussianPolicy(20, 6, nonlinearity='sigmoid')


@pytest.mark.parametrize('nonlinearity', ['relu', 'tanh'])
@pytest.mark.parametrize('context_size', [0, 4])
def test_act_is_the_distribution(nonlinearity, context_size):
    policy = GaussianPolicy(3, 2, (8, 8), nonlinearity, context_size)
    rng = np.random.default_rng(0)
    phi = {k: rng.standard_normal((5, *shape)).astype(np.float32) for k, shape in policy.shapes.items()}
    phi['std_param'][0] = -50.0  # below the smallest std
    observations, noise = rng.standard_normal((5, 7, 3)), rng.standard_normal((5, 7, 2))
    actions = policy.act(phi, observations, noise)
    assert actions.dtype == np.float32
    for i in range(5):
        mean, log_std = policy.mean_and_log_std({k: w[i] for k, w in phi.items()}, observations[i].astype(np.float32))
        np.testing.assert_allclose(actions[i], mean + np.exp(log_std) * noise[i], rtol=1e-5, atol=1e-5)
    assert np.exp(log_std) == pytest.approx(np.exp(phi['std_param'][4]))
    batched_mean, batched_log_std = policy.mean_and_log_std(phi, observations.astype(np.float32))
    np.testing.assert_allclose(batched_mean[4], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.exp(batched_log_std[0]), 1e-6, rtol=1e-5)
    one_for_all = policy.act({k: w[4] for k, w in phi.items()}, observations, noise)
    np.testing.assert_allclose(one_for_all[4], actions[4], rtol=1e-5, atol=1e-5)


def test_kl_differs_from_tensorflow_probability_by_the_constant():
    mean, log_std = np.zeros((1, 1)), np.array([np.log(0.5)])
    other = mean + 0.3, log_std + 0.2
    theirs = tfp.distributions.kl_divergence(gaussian(mean, log_std), gaussian(*other))
    np.testing.assert_allclose(kl(mean, log_std, *other), theirs, rtol=1e-6)
    tiny = np.array([np.log(1e-4)])
    theirs = tfp.distributions.kl_divergence(gaussian(mean, tiny), gaussian(mean + 1e-4, tiny))
    np.testing.assert_allclose(theirs, [0.5], rtol=1e-6)
    np.testing.assert_allclose(kl(mean, tiny, mean + 1e-4, tiny), [1 / 3], rtol=1e-6)


def test_baseline_fits_a_linear_value():
    rng = np.random.default_rng(0)
    lengths = np.array([30, 1, 50])
    x = features(rng.uniform(-9, 9, (81, 2)), lengths)
    w = rng.standard_normal(x.shape[1])
    np.testing.assert_allclose(x @ fit(x, x @ w), x @ w, atol=1e-3)
    np.testing.assert_allclose(fit(x, x @ w, ridge=0.0), w, atol=1e-7)


def test_baseline_raises_the_ridge_where_the_equations_have_no_solution():
    x, y = np.ones((4, 2)), np.array([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(fit(x, y), [1.25, 1.25], rtol=1e-4)  # the ridge shares it out
    np.testing.assert_allclose(3e5 * fit(3e5 * x, y).sum(), 2.5, rtol=0.05)  # the first is lost beside such numbers
    with pytest.raises(np.linalg.LinAlgError, match='finite'):
        fit(x * np.nan, y)


def test_estimate_by_hand():
    observations, rewards = (np.zeros((2, 5, 1)), np.array([[1.0, 2.0, 4.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]]))
    estimates = estimate(observations, rewards, [[2, 1], [5]], discount=0.5, gae_lambda=0.0)
    np.testing.assert_allclose(estimates.returns[0], [2, 2, 4, 0, 0])
    v = estimates.values[0]
    errors = [1 + 0.5 * v[1] - v[0], 2 - v[1], 4 - v[2]]  # nothing follows the end of a path
    np.testing.assert_allclose(estimates.raw_advantages[0, :3], errors)
    np.testing.assert_allclose(estimates.advantages[0, :3], (errors - np.mean(errors)) / np.std(errors), rtol=1e-6)
    for field in estimates[:4]:
        np.testing.assert_array_equal(field[0, 3:], 0.0)
    alone = estimate(observations[1:], rewards[1:], [[5]], discount=0.5, gae_lambda=0.0)
    np.testing.assert_allclose(estimates.advantages[1], alone.advantages[0])  # each task for itself
    np.testing.assert_array_equal(next_values(np.array([5.0, 6.0, 7.0]), [2, 1]), [6.0, 0.0, 0.0])
    with pytest.raises(ValueError, match='rows'):
        estimate(observations, rewards, [[4, 2], [5]])


def test_entropy_and_explained_variance():
    assert entropy(np.zeros((3, 2))) == pytest.approx(np.log(2 * np.pi * np.e))
    values = np.array([[0.0, 1.0, 2.0, 9.0], [1.0, 1.0, 1.0, 1.0]])
    estimates = SimpleNamespace(returns=np.array([[0.0, 1, 2, 0], [0, 1, 2, 3]]), values=values)
    valid = np.array([[1.0, 1, 1, 0], [1, 1, 1, 1]])
    assert explained_variance(estimates, valid) == pytest.approx(0.5)
