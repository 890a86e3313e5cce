"""The port against numbers that the original code computed (docs/conformance.md)."""

import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from golden_vectors import CASES, FOLDER, RL_FOLDER, Case, command_line, train_step

import utils


@pytest.fixture(scope='module', params=CASES)
def case(request):
    return Case(request.param)


@pytest.fixture(scope='module')
def model(case):
    return case.model()


@pytest.fixture(scope='module')
def outer(case, model):
    """The meta-gradient and the metrics that come with it, at the start."""
    case.reset(model)
    return tf.function(model.meta_gradient)(case.tasks)


def test_losses_and_accuracies(case, model, outer):
    """Every step of the evaluation, and the support set before it."""
    case.reset(model)
    steps = max(case.flags['num_updates'], case.flags['test_num_updates'])
    results = model.evaluate(case.tasks, steps).numpy().mean(axis=0)
    metrics = outer[1].numpy()
    if model.measure:
        np.testing.assert_allclose(results[2:], case['total_accuracies2'], atol=1e-6)
        np.testing.assert_allclose(results[0], case['total_accuracy1'], atol=1e-6)
        np.testing.assert_allclose(
            metrics[2:], [case['total_accuracy1'], case['total_accuracies2'][model.num_updates - 1]], atol=1e-6
        )
    else:
        np.testing.assert_allclose(results[2:], case['total_losses2'], rtol=1e-5)
        np.testing.assert_allclose(results[0], case['total_loss1'], rtol=1e-5)
    np.testing.assert_allclose(
        metrics[:2], [case['total_loss1'], case['total_losses2'][model.num_updates - 1]], rtol=1e-5
    )


def test_outputs(case, model):
    """Logits of the support set before, and of the query set after num_updates steps; all the losses on the way."""
    case.reset(model)
    theta = {name: tf.convert_to_tensor(weight) for name, weight in model.weights.items()}
    steps = max(case.flags['num_updates'], case.flags['test_num_updates'])
    losses = []
    for index, task in enumerate(zip(*case.tasks)):
        inputa, labela, inputb, labelb = (tf.constant(part) for part in task)
        assert relative(model.forward(inputa, theta), case['outputa'][index]) < 5e-5
        weights, task_losses = theta, []
        for step in range(steps):
            weights, _, _ = model.inner_step(weights, inputa, labela, step)
            output = model.forward(inputb, weights)
            task_losses.append(model.loss_func(output, labelb))
            if step + 1 == case.flags['num_updates']:
                assert relative(output, case['outputb'][index]) < 5e-5
        losses.append(task_losses)
    assert relative(np.mean(losses, axis=0), case['total_losses2']) < 1e-5


def test_gradients(case, model, outer):
    """The meta-gradient, and the gradient that pretraining follows."""
    assert case.error(outer[0], 'g') < 1e-4
    case.reset(model)
    assert case.error(tf.function(model.meta_gradient)(case.tasks, pretrain=True)[0], 'gp') < 1e-4


@pytest.mark.parametrize('pretrain, key', [(False, 'w'), (True, 'wp')])
def test_weights_after_adam(case, model, pretrain, key):
    """One and three steps on the same batch; for MiniImagenet the clip acts in between."""
    case.reset(model)
    for more, steps, tolerance in ((1, 1, 5e-3), (2, 3, 3e-2)):
        for _ in range(more):
            train_step(model, case.tasks, pretrain)
        assert (model.pretrain_adam if pretrain else model.metatrain_adam).slots['t'] == steps
        weights = {name: weight.numpy() for name, weight in model.weights.items()}
        assert case.error(weights, f'{key}{steps}', start=case.weights) < tolerance


def test_clip_acts():
    """The clipped gradient is the original's, and it differs from the unclipped one."""
    case = Case('miniimagenet_clip')
    gradients, _ = tf.function(case.model().meta_gradient)(case.tasks)
    clipped = {name: np.clip(gradient, -10, 10) for name, gradient in gradients.items()}
    assert case.error(clipped, 'gc') < 1e-4
    assert case.error(gradients, 'gc') > 1e-2


@pytest.mark.parametrize('name', ['omniglot_5way_1shot', 'miniimagenet_5way_1shot'])
def test_double_precision(name):
    """In float64 the meta-gradient agrees more closely: what is left in float32 is rounding."""
    case = Case(name)
    assert case.error(tf.function(case.model(dtype=tf.float64).meta_gradient)(case.tasks)[0], 'g') < 2e-5


def moments_batch_norm(x, beta):
    mean, variance = tf.nn.moments(x, list(range(x.shape.rank - 1)))
    return tf.nn.batch_normalization(x, mean, variance, beta, None, utils.BATCH_NORM_EPSILON)


def keras_batch_norm(x, beta):
    import keras  # version 3, where tf.keras is the older one here (runtime.py)

    layer = keras.layers.BatchNormalization(scale=False, center=False, epsilon=utils.BATCH_NORM_EPSILON)
    return layer(x, training=True) + beta


@pytest.mark.parametrize('wrong', [moments_batch_norm, keras_batch_norm])
def test_library_batch_norms_have_a_wrong_second_derivative(monkeypatch, wrong):
    """Same outputs, another meta-gradient: so ours is written out, and these vectors hold it."""
    case = Case('omniglot_5way_1shot')
    x = tf.random.stateless_normal([5, 7, 7, 8], [1, 2])
    beta = tf.fill([8], 0.5)
    np.testing.assert_allclose(wrong(x, beta), utils.batch_norm(x, beta), atol=1e-5)
    monkeypatch.setattr(utils, 'batch_norm', wrong)
    gradients, metrics = case.model().meta_gradient(case.tasks)
    np.testing.assert_allclose(metrics[0], case['total_loss1'], rtol=1e-5)
    assert case.error(gradients, 'g') > 0.1


def test_both_ways_of_mapping_over_tasks_agree():
    """Batched over tasks, or a task at a time on each core: the same meta-gradient."""
    case = Case('sinusoid_5step')
    batched, one_by_one = (tf.function(case.model(vectorize=v).meta_gradient)(case.tasks)[0] for v in (True, False))
    for name, gradient in batched.items():
        np.testing.assert_allclose(gradient, one_by_one[name], rtol=1e-4, atol=1e-6)


def relative(ours, theirs):
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def test_a_task_at_a_time_compiled_by_xla():
    """As on a GPU."""
    case = Case('omniglot_5way_1shot')
    model = case.model(xla=True)
    train_step(model, case.tasks)
    assert case.error({name: weight.numpy() for name, weight in model.weights.items()}, 'w1', case.weights) < 5e-3
    block = [part[None] for part in case.tasks]
    assert model.compiled_block.experimental_get_compiler_ir(block, tf.constant(0), tf.constant(1), False)()
    compiled, plain = (case.model(xla=xla).evaluate for xla in (True, False))
    np.testing.assert_allclose(compiled(case.tasks, 1), plain(case.tasks, 1), atol=0.01)
    assert compiled.experimental_get_compiler_ir(case.tasks, 1, None)()


@pytest.mark.parametrize('size', [2, 4, 21])
def test_fused_and_written_out_batch_norm_agree_to_the_second_derivative(size):
    """The images' fused operation against the formula, in a direction in which the wrong ones fail."""
    x = tf.random.stateless_normal([5, size, size, 3], [1, 2]) + 1
    direction = tf.random.stateless_normal(x.shape, [3, 4]) + 0.3

    def second(function):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.reduce_sum(function(x, tf.zeros([3])) ** 3 * direction)
            g = inner.gradient(y, x)
            z = tf.reduce_sum(g * direction)
        return outer.gradient(z, x)

    fused, written = (
        second(utils.batch_norm),
        second(lambda x, b: tf.cast(utils.batch_norm(tf.cast(x, tf.float64), tf.cast(b, tf.float64)), tf.float32)),
    )
    assert relative(fused, written) < 1e-4
    assert relative(second(moments_batch_norm), written) > 1e-2


def test_the_pages_example_gives_our_numbers(tmp_path, monkeypatch):
    """As it stands there; its policy, adapted and kept, acts as it did."""
    page = (FOLDER.parents[2] / 'docs' / 'conformance.md').read_text()
    code = re.search(r'## Our numbers on your own batch.*?```python\n(.*?)```', page, re.DOTALL)[1]
    (tmp_path / 'results').symlink_to(FOLDER.parents[2] / 'results')
    monkeypatch.chdir(tmp_path)
    exec(code, names := {})
    assert names['gradients'].keys() == names['model'].weights.keys() and names['metrics'].shape == (4,)
    loss_before, loss_after, _, accuracy_after = names['metrics']
    assert loss_after < 0.1 * loss_before and accuracy_after == 1  # on the support set itself
    before, after = names['returns']
    assert before.shape == (2,) and (after > before / 2).all()
    names['checkpoint'].restore_weights('adapted.npz', names['policy'])
    for name, weight in names['policy'].weights.items():
        np.testing.assert_array_equal(weight, names['phis'][1][name][0])


# ---- The command for authors of other ports ----------------------------------------------------------------------


def stored(folder, name, *prefixes):
    with np.load(folder / f'{name}.npz') as file:
        return {key: file[key] for key in file.files if key.startswith(prefixes)}


def test_a_port_is_compared_without_tensorflow(tmp_path):
    """This one's meta-gradient, and its weights after a step, as another's."""
    case = Case('sinusoid_1step')
    model = case.model()
    mine = {f'g/{name}': g for name, g in tf.function(model.meta_gradient)(case.tasks)[0].items()}
    train_step(model, case.tasks)
    np.savez(tmp_path / 'mine.npz', **mine, **{f'w1/{name}': weight for name, weight in model.weights.items()})
    program = f'import sys; sys.modules["tensorflow"] = None; sys.path.insert(0, {str(FOLDER.parents[1])!r}); '
    program += f'from golden_vectors import *; sys.exit(command_line("sinusoid_1step", {str(tmp_path / "mine.npz")!r}))'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert [line.split()[0] + line.split()[-1] for line in done.stdout.splitlines()] == ['gok', 'w1ok']


@pytest.mark.parametrize(
    'key, change',
    [
        ('total_loss1', lambda x: x * np.float32(1.0001)),
        ('outputb', lambda x: x + 0.001),
        ('g/w1', lambda x: x * 1.001),
        ('g/b3', lambda x: x * np.nan),
        ('w3/w2', lambda x: x + 0.001),
    ],
)
def test_what_is_off_fails(tmp_path, capsys, key, change):
    mine = stored(FOLDER, 'sinusoid_1step', 'total', 'output', 'g/', 'w3/')
    np.savez(tmp_path / 'mine.npz', **mine)
    assert command_line('sinusoid_1step', tmp_path / 'mine.npz') == 0 and 'FAILS' not in capsys.readouterr().out
    np.savez(tmp_path / 'mine.npz', **mine | {key: change(mine[key])})
    assert command_line('sinusoid_1step', tmp_path / 'mine.npz') == 1
    (failed,) = [line for line in capsys.readouterr().out.splitlines() if line.endswith('FAILS')]
    assert failed.split()[0] == key.split('/')[0]


@pytest.mark.parametrize('key', ['task1/step0/advantages', 'outer/grad', 'hvp/Hv1', 'cg/direction', 'ls/final_params'])
def test_what_is_off_in_reinforcement_learning_fails(tmp_path, capsys, key):
    mine = stored(RL_FOLDER, 'trpo_point', 'task0/inner', 'outer/loss_before', key)
    for factor, code in ((1, 0), (1.05, 1), (np.nan, 1)):
        np.savez(tmp_path / 'mine.npz', **mine | {key: factor * mine[key]})
        assert command_line('trpo_point', tmp_path / 'mine.npz') == code
        assert capsys.readouterr().out.count('FAILS') == code


@pytest.mark.parametrize(
    'name, changes, words',
    [
        ('sinusoid', {}, 'sinusoid is no vector: give one of'),
        ('sinusoid_1step', {}, 'holds nothing'),
        ('sinusoid_1step', {'g/w1': np.zeros([1, 40])}, 'g/b1 is missing'),
        ('sinusoid_1step', {'gradient/w1': np.zeros([1, 40])}, 'gradient/w1 is none of the quantities'),
        ('trpo_point', {'outer/gradient': np.zeros(3)}, 'outer/gradient is nothing that is compared'),
        ('trpo_point', {'theta': np.zeros(3)}, 'theta is nothing that is compared'),
        ('sinusoid_1step', {'total_accuracy1': 1.0}, 'sinusoid_1step has no total_accuracy1'),
        ('sinusoid_1step', {'gc/w1': np.zeros([1, 40])}, 'sinusoid_1step has no gc'),
        ('sinusoid_1step', {'inputa': 1.0}, 'inputa is none of the quantities'),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(tmp_path, capsys, name, changes, words):
    np.savez(tmp_path / 'mine.npz', **changes)
    assert command_line(name, tmp_path / 'mine.npz') == 2
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1


def test_what_rounding_does_to_conjugate_gradients_passes(tmp_path, capsys):
    """Another port's finite differences differ in float32, and ten iterations spread that."""
    mine = stored(RL_FOLDER, 'trpo_point', 'cg/', 'ls/', 'outer/loss_', 'outer/kl_before', 'outer/kl_after', 'hvp/H')
    mine = {key: np.float64(array) for key, array in mine.items() if 'base_eps' not in key}
    noise = np.random.RandomState(0)
    for key, exact in mine.items():
        if key.startswith('cg/') and exact.ndim:
            mine[key] = exact + 1e-4 * np.linalg.norm(exact) / exact.size**0.5 * noise.randn(*exact.shape)
    np.savez(tmp_path / 'mine.npz', **mine)
    assert command_line('trpo_point', tmp_path / 'mine.npz') == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == mine.keys()


@pytest.mark.parametrize(
    'name, key, value, words',
    [
        ('sinusoid_1step', 'outputa', np.zeros([2, 10]), 'outputa has the shape (2, 10), not (4, 10, 1)'),
        ('sinusoid_1step', 'g/w1', np.zeros([40, 1]), 'g/w1 has the shape (40, 1), not (1, 40)'),
        ('trpo_point', 'ls/loss', np.zeros(3), 'ls/loss has the shape (3,), not (2,): another number of trials'),
    ],
)
def test_another_shape_fails_beside_what_is_right(tmp_path, capsys, name, key, value, words):
    folder = RL_FOLDER if name.startswith('trpo') else FOLDER
    mine = stored(folder, name, 'total_loss1', 'outputb', 'g/', 'outer/grad', key)
    np.savez(tmp_path / 'mine.npz', **mine | {key: value})
    assert command_line(name, tmp_path / 'mine.npz') == 1
    output = capsys.readouterr()
    assert words in output.err and output.err.count('\n') == 1
    lines = output.out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith('FAILS')] == [key.removesuffix('/w1')] and len(lines) > 1


def test_a_damaged_file_is_said_in_one_line(tmp_path, capsys):
    (tmp_path / 'mine.npz').write_bytes(b'PK' + bytes(100))
    assert command_line('sinusoid_1step', tmp_path / 'mine.npz') == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_a_tensor_of_another_shape_is_not_compared():
    """Also where the vector keeps but its first entries; the norm tells of the others."""
    case = Case('omniglot_mlp')
    values = {name: gradient.numpy() for name, gradient in case.model().meta_gradient(case.tasks)[0].items()}
    assert case.error(values, 'g') < 1e-4
    assert np.isnan(case.error(values | {'w1': values['w1'].T}, 'g'))
    spoilt = values['w1'].copy()
    spoilt[300:] = 0
    assert case.error(values | {'w1': spoilt}, 'g') > 1e-2
