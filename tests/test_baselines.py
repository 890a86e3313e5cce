"""The supervised baselines: fine-tuning with a tuned step size, averaged regressors, a context vector."""

import json
import types

import numpy as np
import pytest
import tensorflow as tf
from differences import assert_second_order
from program import assert_same_state, run_here

import evaluation
import experiments
import multitask
import training
from data_generator import SinusoidGenerator
from maml import MAML
from networks import Convolutional, FullyConnected, WithContext
from run import locked
from runtime import UserError

SOURCE = experiments.SOURCES['sinusoid']


def tiny_images(num_tasks=2, ways=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.eye(ways)[np.tile(np.arange(ways), 2)]
    x, y = rng.random([2, num_tasks, 2 * ways, 8 * 8]), np.broadcast_to(labels, [num_tasks, *labels.shape])
    return [tf.constant(part) for part in (x[0], y, x[1], y)]


# ---- A context vector (Table 3) ------------------------------------------------------------------------------------


def context_model(**how):
    network = WithContext(Convolutional(8, channels=2, dim_output=3, num_filters=4), positions=64)
    model = MAML(network, update_lr=0.5, dtype=tf.float64, **how)
    for name, weight in model.weights.items():
        weight.assign(tf.random.stateless_normal(weight.shape, [5, len(name)], stddev=0.5, dtype=tf.float64))
    return model


def test_the_context_is_one_more_channel_and_the_same_for_all_examples():
    model = context_model()
    theta = {name: tf.convert_to_tensor(weight) for name, weight in model.weights.items()}
    x = tiny_images()[0][0]
    joined = np.stack([x, np.broadcast_to(theta['context'], x.shape)], axis=2).reshape(len(x), -1)
    np.testing.assert_allclose(model.forward(x, theta), model.network.network.forward(joined, theta), rtol=1e-12)
    assert not model.network.init(1)['context'].numpy().any()


def test_the_inner_step_changes_the_context_alone_and_the_outer_one_everything():
    """The meta-gradient against central differences, in float64."""
    model, tasks = context_model(), tiny_images()
    theta = {name: tf.convert_to_tensor(weight) for name, weight in model.weights.items()}
    adapted, _, _ = model.inner_step(theta, tasks[0][0], tasks[1][0], 0)
    assert [name for name in theta if np.any(adapted[name] != theta[name])] == ['context']
    gradients = assert_second_order(model, tasks)
    assert all(np.any(gradients[name] != 0) for name in theta if name not in ('b1', 'b2', 'b3', 'b4'))  # batch norm


# ---- Averaged regressors (Table 2) ---------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def regressor():
    return multitask.Regressor(FullyConnected(), 0.01, seed=1)


def zeros():
    return {name: tf.Variable(tf.zeros_like(weight)) for name, weight in FullyConnected().init(1).items()}


def test_a_regressor_learns_its_own_sinusoid(regressor):
    weights, error, steps = regressor.fit(3, zeros(), 0)
    (amp, phase), x = regressor.sinusoid(3), np.linspace(-5, 5, 200)[:, None]
    output = regressor.network.forward(np.float32(x), weights)
    np.testing.assert_allclose(np.mean((output - amp * np.sin(x - phase)) ** 2), error, rtol=1e-3)
    assert error < multitask.GOOD and 0 < steps < multitask.AT_MOST
    again, *same = regressor.fit(3, zeros(), 0)
    assert same == [error, steps] and all(np.array_equal(again[name], weights[name]) for name in weights)
    other = regressor.fit(4, zeros(), 0)[0]
    assert not np.array_equal(other['w2'], weights['w2'])


def test_regularisation_pulls_towards_its_centre(regressor):
    near = {name: weight + 0.3 for name, weight in zeros().items()}
    for centre in (zeros(), near):
        free, pulled = (regressor.fit(3, centre, strength)[0] for strength in (0, 0.003))
        distances = [sum(np.sum((w[name] - centre[name]) ** 2) for name in w) for w in (free, pulled)]
        assert distances[1] < 0.7 * distances[0]


@pytest.mark.parametrize('kind', ['no_reg', 'l2', 'mean_theta'])
def test_the_mean_is_that_of_all_regressors(regressor, kind):
    mean, fits = zeros(), []
    for number in range(3):
        centre = (
            zeros() if kind != 'mean_theta' else {name: tf.constant(weight.numpy()) for name, weight in mean.items()}
        )
        strength = 0 if kind == 'no_reg' or (kind == 'mean_theta' and not fits) else 0.001
        fits.append(regressor.fit(number, centre, strength)[0])
        multitask.add(regressor, number, mean, kind, strength=0 if kind == 'no_reg' else 0.001)
    for name, weight in mean.items():
        np.testing.assert_allclose(weight, np.mean([fit[name] for fit in fits], axis=0), rtol=1e-4, atol=1e-6)


def test_the_strength_is_the_largest_that_leaves_the_fits_good(regressor, monkeypatch):
    monkeypatch.setattr(multitask, 'PROBES', 2)
    monkeypatch.setattr(multitask, 'AT_MOST', 1000)
    going = types.SimpleNamespace(stop_requested=False)
    found = multitask.search(regressor, 'l2', going)
    *failed, last = found['search']
    assert found['strength'] == last['strength'] > 0 and last['largest_error'] < multitask.GOOD
    assert failed and all(one['largest_error'] >= multitask.GOOD for one in failed)
    assert [one['strength'] for one in found['search']] == list(multitask.STRENGTHS[: len(failed) + 1])
    assert multitask.search(regressor, 'no_reg', going) == {'strength': 0.0, 'search': []}
    assert multitask.search(regressor, 'l2', types.SimpleNamespace(stop_requested=True)) == {}


def test_each_regressor_has_the_strength_that_was_found_and_several_starts(monkeypatch, tmp_path):
    added, fitted = [], []

    def search(regressor, kind, run):
        (folder,) = tmp_path.iterdir()
        with pytest.raises(UserError, match='being trained'), locked(folder):  # while it searches, too
            pass
        return {'strength': 0.3, 'search': []}

    monkeypatch.setattr(multitask, 'search', search)
    monkeypatch.setattr(multitask, 'add', lambda *arguments: added.append(arguments[3:]) or (0.01, 100))
    flags = ['--baseline=multitask_l2', '--metatrain_iterations=2', '--num_test_tasks=2', '--test_num_updates=1']
    run_here(*flags, '--log=False', '--update_lr=0.01', f'--logdir={tmp_path}')
    assert added == [('l2', 0.3, 5)] * 2
    monkeypatch.undo()

    def fit(number, centre, strength, start):
        fitted.append(start)
        return centre, 1.0 if start < 2 else 0.01, 100

    fake = types.SimpleNamespace(fit=fit)
    assert multitask.add(fake, 1, zeros(), 'l2', 0.3, 5) == (0.01, 300) and fitted == [0, 1, 2]


def test_a_multi_task_run_goes_on_and_is_tested(tmp_path):
    flags = [
        '--baseline=multitask_no_reg',
        '--num_test_tasks=20',
        '--test_num_updates=1',
        '--update_batch_size=5',
        '--log=False',
        '--update_lr_grid=0.001,0.01',
    ]
    whole = run_here(*flags, '--metatrain_iterations=3', f'--logdir={tmp_path}/whole')
    for iterations in (2, 3):
        parts = run_here(*flags, f'--metatrain_iterations={iterations}', f'--logdir={tmp_path}/parts')
        if iterations == 2:  # as if the run had been killed between record and checkpoint
            record = json.loads((parts / multitask.RECORD).read_text())
            longer = record | {key: record[key] + [9] for key in ('errors', 'steps')}
            (parts / multitask.RECORD).write_text(json.dumps(longer))
    assert_same_state(whole / 'model3.npz', parts / 'model3.npz')
    records = [json.loads((folder / multitask.RECORD).read_text()) for folder in (whole, parts)]
    assert records[0] == records[1] and len(records[0]['errors']) == 3
    result = json.loads(next(parts.glob('test_ubs5_stepsizetuned-*_tasks20_steps1.json')).read_text())
    assert result['regressors'] == records[0] and result['settings']['update_lr'] in (0.001, 0.01)
    (parts / multitask.RECORD).write_text('[]')
    with pytest.raises(UserError, match='regressors.json'):
        run_here(*flags, '--metatrain_iterations=4', f'--logdir={tmp_path}/parts')


# ---- A tuned step size ---------------------------------------------------------------------------------------------


def test_the_step_size_is_the_best_on_validation_tasks_and_no_test_task_is_seen(capsys):
    config = types.SimpleNamespace(**{**vars(training_config()), 'update_lr_grid': [0.001, 0.02, 5.0]})
    model = training.make_model(config, SOURCE, 2)
    for name, weight in model.weights.items():
        weight.assign(tf.random.stateless_normal(weight.shape, [7, len(name)], stddev=0.4))
    generator = SinusoidGenerator(5, 4)
    (tasks,) = generator.validation_batches(10)
    theta = {name: tf.convert_to_tensor(weight) for name, weight in model.weights.items()}

    def error(step_size):
        """Of 1, 2 and 3 steps of gradient descent, written out."""
        total = 0
        for inputa, labela, inputb, labelb in zip(*tasks):
            weights = dict(theta)
            for _ in range(3):
                with tf.GradientTape() as tape:
                    tape.watch(weights)
                    loss = tf.reduce_mean((model.forward(inputa, weights) - labela) ** 2)
                gradients = tape.gradient(loss, weights)
                weights = {name: weights[name] - step_size * gradients[name] for name in weights}
                total += float(tf.reduce_mean((model.forward(inputb, weights) - labelb) ** 2)) / 30
        return total

    data = types.SimpleNamespace(validation_batches=generator.validation_batches)  # and no test_batches
    report = evaluation.tune(config, model, data)
    np.testing.assert_allclose(report['mean_squared_error'][:2], [error(0.001), error(0.02)], rtol=1e-4)
    assert model.update_lr == config.update_lr == [0.001, 0.02][int(error(0.02) < error(0.001))]
    (test,) = generator.test_batches(10)
    assert not np.isin(tasks[0], test[0]).any() and 'each step size' in capsys.readouterr().out


def training_config():
    import main

    return main.read_flags(['--baseline=pretrain', '--test_num_updates=3', '--num_test_tasks=10'])[0]


def test_pretraining_is_tested_with_a_step_size_of_its_own_for_each_k(tmp_path, capsys):
    flags = ['--baseline=pretrain', '--metatrain_iterations=300', '--num_test_tasks=50', '--test_num_updates=2']
    flags += ['--log=False', f'--logdir={tmp_path}']
    run_here(*flags)
    assert 'on 50 validation tasks' in capsys.readouterr().out
    folder = run_here(*flags, '--train=False', '--update_batch_size=20', '--train_update_batch_size=10')
    for k in (10, 20):
        result = json.loads((folder / f'test_ubs{k}_stepsizetuned_tasks50_steps2.json').read_text())
        tuned = result['tuned']
        best = int(np.argmin([np.inf if error is None else error for error in tuned['mean_squared_error']]))
        assert result['settings']['update_lr'] == tuned['update_lr'][best]
    run_here(*flags, '--train=False', '--update_lr=0.5', '--train_update_lr=0.01')
    assert 'tuned' not in json.loads((folder / 'test_ubs10_stepsize0.5_tasks50_steps2.json').read_text())
