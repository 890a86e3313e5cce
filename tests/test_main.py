"""The real program, in processes of its own: training, kills, resuming, testing, and bad input."""

import csv
import json
import re
import signal
import subprocess
import sys

import image_folders
import numpy as np
import pytest
import tensorflow as tf
from golden_vectors import Case
from program import SINE, assert_same_state, command, run, run_here, start, wait_for

import training
from runtime import UserError

SHORT = ['--num_test_tasks=5', '--test_num_updates=1']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A finished short sinusoid run."""
    logdir = tmp_path_factory.mktemp('trained')
    output = run(f'--logdir={logdir}', '--metatrain_iterations=3000', '--save_interval=250')
    return logdir, output


def test_training_and_its_test(trained):
    """`python main.py`, shorter: the loss after adaptation falls, and the files are those promised."""
    logdir, output = trained
    lines = [line for line in output.splitlines() if line.startswith('Iteration')]
    assert [line.split(':')[0] for line in lines] == ['Iteration 1000', 'Iteration 2000', 'Iteration 3000']
    words = re.compile(r'Iteration \d+: loss [\d.]+ before, ([\d.]+) after the inner updates')
    losses = [float(words.fullmatch(line)[1]) for line in lines]
    assert losses[2] < 0.75 * losses[0]
    assert 'update_lr=0.01   (section 5.1)' in output and ' <- the paper\n' in output
    folder = logdir / SINE
    assert len(list(folder.glob('model*.npz'))) == 10
    result = json.loads((folder / 'test_ubs10_stepsize0.01.json').read_text())
    assert result['columns'][:3] == ['support, before adaptation', 'query, before adaptation', 'query, after 1 step']
    assert result['mean'][2] < result['mean'][1] and result['settings']['update_lr'] == 0.01
    rows = list(csv.reader((folder / 'test_ubs10_stepsize0.01.csv').open()))
    assert rows[0] == [f'update{n}' for n in range(11)] and len(rows) == 4
    np.testing.assert_allclose(np.float64(rows[1]), [result['mean'][0], *result['mean'][2:]], rtol=1e-6)
    np.testing.assert_allclose(np.float64(rows[3]), 1.96 * np.float64(rows[2]) / np.sqrt(600), rtol=1e-6)
    config = json.loads((folder / 'config.json').read_text())
    assert config['settings']['metatrain_iterations'] == 3000 and 'update_lr' in config['from_the_paper']


def test_tensorboard_has_the_originals_names(trained):
    tags = set()
    for path in (trained[0] / SINE).glob('events*'):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            tags.update((value.tag, event.step) for value in event.summary.value)
    assert {tag for tag, _ in tags} == {'metatrain_Pre-update_loss', 'metatrain_Post-update_loss__step_1'}
    assert {step for _, step in tags} == set(range(0, 3000, 100))


def test_a_run_that_is_killed_and_resumed_ends_the_same(trained, tmp_path):
    """kill -9 in the middle, then the same command again: the same weights and slots, bit for bit."""
    flags = [f'--logdir={tmp_path}', '--metatrain_iterations=3000', '--save_interval=250', *SHORT]
    process = start(*flags)
    wait_for(tmp_path / SINE / 'model750.npz', process)
    process.kill()
    process.wait()
    assert not (tmp_path / SINE / 'model3000.npz').exists()
    assert 'Restoring model weights' in run(*flags)
    assert_same_state(tmp_path / SINE / 'model3000.npz', trained[0] / SINE / 'model3000.npz')


def test_ctrl_c_saves_and_says_how_to_go_on(trained, tmp_path, capsys):
    """An interrupt between two checkpoints loses nothing; a damaged newer checkpoint is named and passed over."""
    flags = [f'--logdir={tmp_path}', '--save_interval=250', '--max_to_keep=1000', *SHORT]
    process = start(*flags, '--metatrain_iterations=200000')
    wait_for(tmp_path / SINE / 'model250.npz', process)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and 'the same command goes on from here' in output
    paths = {int(path.stem[5:]): path for path in (tmp_path / SINE).glob('model*.npz')}
    assert f'{max(paths)} of 200000 iterations done' in output
    for iteration in [n for n in paths if n >= 3000]:  # on a very fast machine, where the interrupt comes late
        paths.pop(iteration).unlink()
    newest = max(paths)
    damaged = tmp_path / SINE / f'model{newest + 1}.npz'
    damaged.write_bytes((tmp_path / SINE / f'model{newest}.npz').read_bytes()[:-2000])
    run_here(*flags, '--metatrain_iterations=3000')
    output = ''.join(capsys.readouterr())
    assert f'skipped: {damaged} cannot be read' in output and f'{newest} iterations are done' in output
    assert_same_state(tmp_path / SINE / 'model3000.npz', trained[0] / SINE / 'model3000.npz')


def test_a_loss_that_explodes_stops_the_run(tmp_path):
    with pytest.raises(UserError, match='iteration 0: the loss is not finite: training stopped') as error:
        run_here(f'--logdir={tmp_path}', '--update_lr=1e30', '--metatrain_iterations=1000', '--log=False')
    assert '\n' not in str(error.value) and str(error.value).endswith('try a smaller --update_lr or --meta_lr')
    with pytest.raises(UserError, match='training stopped, .*try a smaller --meta_lr$'):  # there is no inner step
        run_here(f'--logdir={tmp_path}', '--baseline=pretrain', '--meta_lr=1e30', '--log=False')


def test_settings_of_another_run_are_refused_and_resume_false_keeps_the_old_one(tmp_path, capsys):
    flags = [f'--logdir={tmp_path}', '--log=False', '--num_test_tasks=5', '--test_num_updates=1']
    run_here(*flags, '--metatrain_iterations=100')
    old = (tmp_path / SINE / 'model100.npz').read_bytes()
    with pytest.raises(UserError, match='--meta_lr=0.001, not 0.5'):
        run_here(*flags, '--metatrain_iterations=200', '--meta_lr=0.5')
    run_here(*flags, '--metatrain_iterations=100', '--resume=False', '--seed=2')
    assert SINE + '.1' in capsys.readouterr().out
    assert (tmp_path / f'{SINE}.1' / 'model100.npz').read_bytes() == old


def test_original_checkpoint_and_images(tmp_path, capsys):
    """A TF1 checkpoint with the original's names is taken up and tested; then trained from, on images."""
    data, logdir = image_folders.miniimagenet(tmp_path / 'data'), tmp_path / 'logs'
    case = Case('miniimagenet_5way_1shot')
    names = json.loads(str(case['tf_names']))
    prefix = str(tmp_path / 'model59000')
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=[names[key] for key in case.weights],
        shape_and_slices=[''] * len(names),
        tensors=list(case.weights.values()),
    )
    flags = [
        '--datasource=miniimagenet',
        f'--data_dir={data}',
        '--num_filters=8',
        f'--logdir={logdir}',
        f'--init_from={prefix}',
        '--num_test_tasks=4',
        '--test_num_updates=2',
    ]
    run_here(*flags, '--train=False', '--test_set')
    output = capsys.readouterr().out
    assert 'accuracy in % over 4 tasks of the test set, 5-way 1-shot\n' in output and 'query, after 2 steps' in output
    run_here(
        *flags,
        '--metatrain_iterations=2',
        '--meta_batch_size=2',
        '--num_updates=1',
        '--train_query=2',
        '--meta_lr=1e-30',
    )  # trains in place: the weights stay
    with np.load(next(logdir.glob('*numstep1*/model2.npz'))) as saved:
        for name, value in case.weights.items():
            np.testing.assert_array_equal(saved[f'weights/{name}'], value)
        assert saved['metatrain_adam/t'] == 2
    with pytest.raises(UserError, match='does not fit this network: conv1'):
        run_here(*flags, '--train=False', '--num_filters=9')


def test_the_weights_that_were_best_on_validation_are_kept(tmp_path, monkeypatch, capsys):
    """The accuracy of each look is said, the weights of the highest are there; a test takes them when asked to."""
    monkeypatch.setattr(training, 'TEST_PRINT_INTERVAL', 2)
    monkeypatch.setattr(training, 'VALIDATION_TASKS', 60)  # more than one batch
    data = image_folders.omniglot(tmp_path / 'data', characters=60, drawings=2)
    flags = ['--datasource=omniglot', f'--data_dir={data}', '--conv=False', '--num_classes=2', '--meta_batch_size=2']
    flags += [f'--logdir={tmp_path}', '--log=False', '--num_test_tasks=4', '--test_num_updates=1', '--save_interval=2']
    folder = run_here(*flags, '--metatrain_iterations=12', '--meta_lr=0.02')
    looks = re.findall(r'Validation, Iteration (\d+):.* ([\d.]+) after', capsys.readouterr().out)
    scores = {int(iteration): float(accuracy) for iteration, accuracy in looks}
    best = max(reversed(scores), key=scores.get)  # of equals the last
    assert len(set(scores.values())) > 1 and best != 12, 'of no use: choose other settings'
    with np.load(folder / 'best.npz') as saved, np.load(folder / f'model{best}.npz') as then:
        assert (saved['iteration'], saved['score']) == (best, pytest.approx(scores[best], abs=1e-4))
        assert saved['test_query'] == 1
        np.testing.assert_array_equal(saved['weights/w1'], then['weights/w1'])

    kept = (folder / 'best.npz').read_bytes()
    run_here(*flags, '--metatrain_iterations=12', '--meta_lr=0.02', '--train=False', '--test_iter=best')
    assert f'best.npz, iteration {best} (the best on' in capsys.readouterr().out
    (path,) = folder.glob('test*_itrbest*.json')
    result = json.loads(path.read_text())
    assert (result['iteration'], result['checkpoint']) == (best, str(folder / 'best.npz'))
    newest = json.loads(next(path for path in folder.glob('test*.json') if 'best' not in path.name).read_text())
    assert (newest['iteration'], newest['chosen']) == (12, 'the newest')

    for later in range(best + 2, 14, 2):
        (folder / f'model{later}.npz').unlink()
    run_here(*flags, '--metatrain_iterations=12', '--meta_lr=0.02')  # goes on from the best
    assert (folder / 'best.npz').read_bytes() == kept
    (folder / 'best.npz').unlink()
    with pytest.raises(UserError, match=r'best\.npz is not there'):
        run_here(*flags, '--metatrain_iterations=12', '--meta_lr=0.02', '--train=False', '--test_iter=best')


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--datasource=mnist'], ['--datasource=mnist', 'omniglot']),
        (['--train', 'False'], ["'False' is not a flag", '--flag=value']),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(flags, words):
    error = run(*flags, code=2)
    assert len(error.splitlines()) == 1, error
    for word in words:
        assert word in error


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--datasource=omniglot', '--data_dir=/nowhere/at/all'], ['no images in /nowhere/at/all', 'data/README.md']),
        (['--no_such_flag=1'], ['no_such_flag']),
        (['--update_batch_size=ten'], ['update_batch_size', 'ten']),
        (['--train=False', '--logdir=/nowhere/at/all'], ['no checkpoint in /nowhere/at/all', 'train first']),
        (['--init_from=/nowhere/model1', '--train=False'], ['/nowhere/model1', 'check the path']),
    ],
)
def test_what_is_wrong_is_said_in_one_line(flags, words):
    with pytest.raises(UserError) as error:
        run_here(*flags)
    assert '\n' not in str(error.value) and all(word in str(error.value) for word in words)


def test_too_much_for_the_memory_is_said_in_one_line(tmp_path):
    """A batch of tasks that no address space holds."""
    error = run('--meta_batch_size=100000000000000', '--metatrain_iterations=1', f'--logdir={tmp_path}', code=2)
    assert 'there is not enough memory' in error and len(error.splitlines()) == 1


def test_oracle_and_pretraining_use_their_own_optimiser(tmp_path):
    """The README's baseline commands, shorter."""
    common = [f'--logdir={tmp_path}', '--norm=None', '--update_batch_size=10', '--log=False', *SHORT]
    run_here(*common, '--pretrain_iterations=300', '--metatrain_iterations=0')
    run_here(*common, '--pretrain_iterations=200', '--metatrain_iterations=100', '--baseline=oracle')
    pretrained, oracle = (next(tmp_path.glob(f'*{kind}*/model300.npz')) for kind in ('pretrain', 'oracle'))
    for path in (pretrained, oracle):
        with np.load(path) as saved:
            assert (saved['pretrain_adam/t'], saved['metatrain_adam/t']) == (300, 0)
    with np.load(oracle) as saved:
        assert saved['weights/w1'].shape == (3, 40)


def test_help_is_quick_and_lists_the_flags():
    """Flags are read before TensorFlow and NumPy are loaded."""
    loaded = subprocess.run(
        [sys.executable, '-X', 'importtime', *command('--help')[1:]], capture_output=True, text=True
    )
    assert 'absl' in loaded.stderr
    assert 'tensorflow' not in loaded.stderr and 'numpy' not in loaded.stderr
    result = subprocess.run(command('--help'), capture_output=True, text=True)
    assert '--update_batch_size' in result.stdout and 'K of K-shot' in result.stdout
