"""Reinforcement learning: the paper's settings, and how they reach training and tests."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from test_rl_training import TINY, run_here, saved_weights, settings

import experiments
import main
import naming
from rl import evaluation, training
from rl.envs import FAMILIES
from rl.maml_trpo import MetaIteration, meta_iteration
from rl.policy import GaussianPolicy
from rl.reinforce import adapt
from rl.sampler import Sampler
from rl.samples import collect
from rl.trpo import TrustRegion


@pytest.mark.parametrize(
    'datasource, training_set, test_set',
    [  # alpha, rollouts, workers, tasks, iterations, KL; steps, rollouts, workers, seed, alpha: MAML, pretrain, random
        ('point', (0.5, 20, 1, 20, 100, 0.01), (4, 40, 1, 1, [0.5, 0.5, 0.5])),
        ('point_squared', (0.5, 20, 1, 20, 100, 0.01), (4, 40, 1, 1, [0.5, 0.5, 0.5])),
        ('cheetah_vel', (0.1, 20, 8, 40, 500, 0.01), (3, 20, 4, 1, [0.1, 0.02, 0.1])),
        ('cheetah_dir', (0.1, 20, 8, 40, 500, 0.02), (3, 20, 4, 1, [0.1, 0.2, 0.5])),
        ('ant_vel', (0.1, 20, 8, 40, 500, 0.01), (3, 20, 4, 1, [0.1, 0.2, 1.0])),
        ('ant_dir', (0.1, 40, 8, 40, 500, 0.01), (3, 40, 4, 2, [0.1, 0.2, 1.0])),
    ],
)
def test_unset_flags_take_the_papers_values(datasource, training_set, test_set):
    config = settings(datasource)
    assert training_set == (
        config.update_lr,
        config.update_batch_size,
        config.sampling_workers,
        config.meta_batch_size,
        config.metatrain_iterations,
        config.meta_step_size,
    )
    step_sizes = [settings(datasource, baseline=b).test_update_lr for b in (None, 'pretrain', 'random')]
    assert test_set == (
        config.test_num_updates,
        config.test_update_batch_size,
        config.test_sampling_workers,
        config.test_seed,
        step_sizes,
    )
    assert config.num_test_tasks == 40 and config.num_updates == config.gae_lambda == 1


def test_the_originals_constants_reach_a_run():
    """The network, TRPO's settings, and the discount, 0.99 (docs/fidelity.md, reinforcement learning, 6, 9 and 11)."""
    model = training.make_model(settings('ant_vel'), threads=2)
    assert model.policy == GaussianPolicy(125, 8, (100, 100), 'relu', context_size=0, init_std=1.0, min_std=1e-6)
    assert model.settings.trust_region == TrustRegion(0.01, 10, 1e-10, 1e-5, 0.8, 15)
    model = training.make_model(settings(), threads=2)
    paths, estimates, _ = collect(model.policy, Sampler('point', np.full([1, 2], 0.3), 1), model.unadapted(1))
    steps = paths.path_lengths[0][0]
    discounted = (0.99 ** np.arange(steps) * paths.rewards[0, :steps]).sum()
    np.testing.assert_allclose(estimates.returns[0, 0], discounted, rtol=1e-6)


def test_each_family_is_a_data_source():
    assert set(FAMILIES) == {name for name, source in experiments.SOURCES.items() if source.rl}


def test_baselines_in_the_table():
    assert settings(baseline='random').nonlinearity == 'tanh'  # the authors' random point policy
    assert settings('ant_vel', baseline='random').nonlinearity == 'relu'
    assert settings(baseline='oracle').test_num_updates == 0
    limits = {b: settings('cheetah_dir', baseline=b).meta_step_size for b in (None, 'context', 'pretrain')}
    assert limits == {None: 0.02, 'context': 0.02, 'pretrain': 0.01}
    assert {settings(baseline=b).num_updates for b in ('pretrain', 'oracle', 'random')} == {0}
    assert settings(baseline='random').metatrain_iterations == 0 and settings().save_interval == 5
    assert settings(baseline='context').num_updates == 1
    others = [settings(), settings(baseline='oracle'), settings('ant_vel', baseline='pretrain')]
    assert {(config.meta_optimizer, config.meta_lr) for config in others} == {('trpo', None)}
    points = [settings(point, baseline='pretrain') for point in ('point', 'point_squared')]
    assert {(config.meta_optimizer, config.meta_lr) for config in points} == {('adam', 0.001)}
    assert settings(update_lr=0.3).test_update_lr == 0.3


def test_runs_that_differ_do_not_share_a_folder():
    given = [{}, {'stop_grad': True}, {'learn_update_lr': True}, {'num_updates': 2}, {'meta_step_size': 0.02}]
    given += [{'kl_constrain_step': 0}, {'hvp': 'exact'}, {'subsample_factor': 0.5}, {'gae_lambda': 0.9}]
    given += [{'likelihood_ratio': True}, {'meta_optimizer': 'adam'}, {'meta_optimizer': 'adam', 'meta_lr': 0.1}]
    given += [{'baseline': 'pretrain', 'meta_optimizer': 'trpo'}]
    given += [{'baseline': b} for b in ('pretrain', 'oracle', 'random', 'context')]
    assert len({naming.run_name(settings(**g)) for g in given}) == len(given)


def test_the_flags_reach_the_outer_step():
    given = {'num_updates': 2, 'kl_constrain_step': 1, 'stop_grad': True, 'meta_step_size': 0.5, 'hvp': 'exact'}
    given |= {'subsample_factor': 0.5, 'gae_lambda': 0.9}
    reached = training.make_model(settings(**given), threads=2).settings
    assert reached.trust_region.max_kl == given.pop('meta_step_size')
    assert given == {name: getattr(reached, name) for name in given}
    assert training.make_model(settings(likelihood_ratio=True), threads=2).settings.likelihood_ratio
    assert training.make_model(settings(baseline='pretrain'), threads=2).metatrain_adam.learning_rate == 0.001


def test_the_threads_reach_the_tasks(tmp_path, monkeypatch):
    """As many tasks side by side as threads were settled, in the inner step and in the outer one."""
    used, map_fn = [], tf.map_fn
    monkeypatch.setattr(tf, 'map_fn', lambda *args, **kwargs: used.append(kwargs) or map_fn(*args, **kwargs))
    run_here(tmp_path, threads=3, metatrain_iterations=1, test_num_updates=1)
    assert [kwargs['parallel_iterations'] for kwargs in used] == [3] * 4  # adapt, and the outer step's functions


def test_step_sizes_of_a_test():
    """Those of training, then half (paper, 5.3), whether alpha was given or learned."""
    learned = np.array([[1.0, 2.0], [3.0, 4.0]])
    alphas = evaluation.step_sizes(settings(test_update_lr=0.4), learned)
    assert alphas == [0.4, 0.2, 0.2, 0.2]
    assert evaluation.step_sizes(settings(test_update_lr=0.4, num_updates=2), learned) == [0.4, 0.4, 0.2, 0.2]
    assert evaluation.step_sizes(settings(baseline='oracle'), learned) == []
    assert evaluation.step_sizes(settings('ant_vel', baseline='random'), learned[:0]) == [1.0, 0.5, 0.5]
    alphas = evaluation.step_sizes(settings(learn_update_lr=True, num_updates=2), learned)
    np.testing.assert_array_equal(alphas, [[1, 2], [3, 4], [1.5, 2], [1.5, 2]])


def test_seeds_and_iterations_have_weights_tasks_and_noise_of_their_own(tmp_path, monkeypatch):
    """And so have tests, which meet no noise of a training again."""
    weights, tasks, noise = [], [], []

    def recorded(sampler, act):
        tasks.append(tuple(sampler.tasks[0]))
        noise.append([])
        return original(sampler, lambda seen, drawn: noise[-1].append(tuple(drawn[0, 0])) or act(seen, drawn))

    def no_step(maml, sampler):
        sampler.collect(lambda seen, drawn: drawn)
        return MetaIteration(maml.theta, *[0.0] * (len(training.METRICS) - 1))

    original = Sampler.collect
    monkeypatch.setattr(Sampler, 'collect', recorded)
    monkeypatch.setattr(training, 'meta_iteration', no_step)
    for seed in (1, 2):
        config = settings(**TINY, baseline='oracle', seed=seed, metatrain_iterations=2, logdir=str(tmp_path))
        config.test_seed = seed
        main.run(config, {}, str(tmp_path / str(seed)))
        weights.append(saved_weights(tmp_path / str(seed) / 'model2.npz')['W0'][0, 0])
    firsts = [drawn[0] for drawn in noise]
    assert len(set(weights)) == 2 and len(set(tasks)) == len(set(firsts)) == 6


def test_each_inner_step_goes_on_from_the_last_one(monkeypatch):
    """The first from theta; in a test and in an iteration of training, against the plain loop."""
    config = settings(**TINY, num_updates=2, gae_lambda=0.5)
    model, tasks, steps = training.make_model(config, threads=2), evaluation.test_tasks(config), []
    one, two, three = (Sampler('point', tasks, 2, seed=5) for _ in range(3))
    paths, phis = evaluation.adapt_and_measure(model, one, [0.5, 0.5])
    monkeypatch.setattr(model, 'step', lambda _, samples: steps.extend(samples) or SimpleNamespace(gradient=np.nan))
    with pytest.raises(FloatingPointError, match='meta-gradient'):
        meta_iteration(model, two)
    phi = model.unadapted(3)
    for phi_in_test, paths_in_test, samples_in_training in zip(phis, paths, steps, strict=True):
        for name, weight in phi.items():
            np.testing.assert_array_equal(phi_in_test[name], weight)
        collected, _, samples = collect(model.policy, three, phi, gae_lambda=0.5)
        np.testing.assert_array_equal(paths_in_test.rewards, collected.rewards)
        np.testing.assert_array_equal(samples_in_training.mean, samples.mean)
        np.testing.assert_array_equal(samples_in_training.advantages, samples.advantages)
        phi = adapt(model.policy, phi, samples, 0.5)


def test_another_seed_of_a_test_has_other_tasks_and_a_name_of_its_own():
    first, second = settings('cheetah_dir'), settings('cheetah_dir', test_seed=2)
    assert (evaluation.test_tasks(first) != evaluation.test_tasks(second)).any()
    assert naming.test_name(second) == naming.test_name(first) + '_seed2'
    assert naming.test_name(settings('ant_dir', test_seed=2)) == naming.test_name(settings('ant_dir'))
    one_worker = settings('cheetah_dir', test_sampling_workers=1)
    assert naming.test_name(one_worker) == naming.test_name(first) + '_workers1'
    less_noise = settings('cheetah_dir', gae_lambda=0.9)
    assert naming.test_name(less_noise) == naming.test_name(first) + '_lambda0.9'


def test_returns_by_direction():
    tasks, returns = np.array([1.0, -1.0, 1.0]), np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    means = {words: mean.tolist() for words, mean in evaluation.by_direction('ant_dir', tasks, returns).items()}
    assert means == {'runs backward (1 of 3 tasks)': [2.0, 20.0], 'runs forward (2 of 3 tasks)': [2.5, 25.0]}
    assert evaluation.by_direction('ant_vel', tasks, returns) == {}


def test_test_tasks_are_the_originals():
    np.random.seed(1)
    np.testing.assert_array_equal(evaluation.test_tasks(settings()), np.random.uniform(-0.5, 0.5, (40, 2)))
    np.random.seed(2)
    goals = np.random.uniform(0, 3, 40)
    np.testing.assert_array_equal(evaluation.test_tasks(settings('ant_dir')), np.where(goals < 1.5, -1.0, 1.0))
