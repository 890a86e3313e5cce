"""What the machine or the user may do to a run: each mishap ends it with one line, and what was there before stays."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from program import MAIN, SINE, command, full_disk, run, run_here, start

import checkpoint
import evaluation
import experiments
import figures
import main
import report
import runtime
import training
import utils
from maml import MAML
from networks import FullyConnected
from rl import training as rl_training
from runtime import UserError

SHORT = ['--num_test_tasks=2', '--test_num_updates=1']


@pytest.fixture
def trained(tmp_path, finished):
    """The logdir of a sinusoid run of 100 iterations, a copy for this test alone."""
    return shutil.copytree(finished, tmp_path / 'trained')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    logdir = tmp_path_factory.mktemp('finished')
    run_here(f'--logdir={logdir}', *SHORT, '--log=False', '--metatrain_iterations=100')
    return logdir


# ---- Numbers that are none -------------------------------------------------------------------------------------


def test_outputs_that_are_not_finite_have_no_accuracy():
    """Not that of class 0, which argmax would say."""
    label = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    pred = np.float32([[2, 1], [2, 1], [2, 1]])
    assert utils.accuracy(pred, label) == np.float32(2 / 3)
    for odd in (np.nan, np.inf, -np.inf):
        assert np.isnan(utils.accuracy(np.where(pred == 2, np.float32(odd), pred), label))


@pytest.mark.parametrize('measure', ['accuracy', 'mean squared error'])
def test_diverging_tasks_are_told_apart(measure, capsys):
    results = np.float32([[0.2, 0.2, 0.5], [0.2, 0.2, np.nan], [0.2, 0.2, 1.0]])
    summary = evaluation.summarise(results)
    assert summary['diverging_tasks'] == 1 and summary['mean_of_the_others'][2] == 0.75 and np.isnan(summary['mean'][2])
    assert 0.5 < summary['median'][2] <= 1  # NaN counts as infinite
    assert json.loads(json.dumps(report.plain(summary), allow_nan=False))['mean'][2] is None
    evaluation.print_summary(summary, measure, {1: None})
    mean = '75' if measure == 'accuracy' else '0.75'
    assert (
        f'1 of the tasks diverge ({"outputs" if measure == "accuracy" else measure}' in capsys.readouterr().out[-120:]
    )
    evaluation.print_summary(summary, measure, {5: None})  # not among these steps: the last
    assert f'after 1 steps: {mean}\n' in capsys.readouterr().out
    none = evaluation.summarise(np.full([2, 3], np.nan, np.float32))
    assert none['diverging_tasks'] == 2 and np.isnan(none['mean_of_the_others']).all()


def test_a_loss_that_jumps_is_mentioned_once(capsys):
    usual = None
    for step, loss in enumerate(np.float32([3, 2.5, 200, 1000, 1e9, 2, 1e13])):
        usual = training.warn_of_jump(loss, usual, step)
    (line,) = capsys.readouterr().out.splitlines()
    assert 'jumped from 5 to 1e+03 at iteration 3' in line and line.endswith('try a smaller --update_lr')
    training.warn_of_jump(1000, 5, 3, pretrain=True)  # where no step of alpha is taken
    assert capsys.readouterr().out.endswith('try a smaller --meta_lr\n')


def test_what_tensorflow_has_no_memory_for_is_said_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop, runtime.in_one_line():
        tf.zeros([2**22, 2**22])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and 'there is not enough memory: choose' in line
    with pytest.raises(ZeroDivisionError), runtime.in_one_line():  # our own faults are no fault of the user's
        raise ZeroDivisionError


# ---- Speed -----------------------------------------------------------------------------------------------------


def test_pieces_of_a_block_compile_once():
    """However long they are: a checkpoint an iteration costs what it writes."""
    model = MAML(FullyConnected(1, 1, (4,)), vectorize=True)
    block = tuple(tf.random.stateless_normal([100, 2, 3, 1], [0, i]) for i in range(4))
    model.train_block(block, 0, 1)
    begin = time.time()
    for first in range(1, 40):
        model.train_block(block, first, 2 * first + 1)
    assert time.time() - begin < 10  # each compilation takes a second or more


# ---- The disk --------------------------------------------------------------------------------------------------


def test_a_disk_that_is_full_stops_a_training_before_it_begins(tmp_path):
    with full_disk(100), pytest.raises(UserError, match=r'config\.json cannot be written \(File too large\)'):
        run_here(f'--logdir={tmp_path}', *SHORT)
    assert not list(tmp_path.glob('*/*.tmp'))


@pytest.mark.parametrize('size, flags, words', [(None, ['--log=False'], 'model200.npz'), (3000, [], 'a summary in')])
def test_a_disk_that_is_full_costs_a_training_what_came_after_the_newest_checkpoint(trained, size, flags, words):
    model = trained / SINE / 'model100.npz'
    before = model.read_bytes()
    flags = [f'--logdir={trained}', *SHORT, *flags, f'--metatrain_iterations={20000 if size else 200}']
    with full_disk(size or len(before) - 100), pytest.raises(UserError, match='cannot be written') as error:
        run_here(*flags, '--save_interval=100000')
    assert words in str(error.value) and '\n' not in str(error.value)
    assert model.read_bytes() == before and not list(trained.glob('*/*.tmp'))


def test_a_disk_that_is_full_costs_a_test_alone(trained):
    path = trained / SINE / 'test_ubs10_stepsize0.01_tasks2_steps1.json'
    earlier = path.read_bytes()
    for size, ending in ((5, '.csv'), (len(earlier) // 2, '.json')):
        with full_disk(size), pytest.raises(UserError) as error:
            report.write(str(path.with_suffix('')), [['update0', 'update1']], json.loads(earlier))
        assert f'{path.with_suffix(ending)} cannot be written' in str(error.value)
    assert path.read_bytes() == earlier


def test_a_disk_that_is_full_of_progress(tmp_path):
    rl_training.begin_progress(tmp_path, 0)
    size = (tmp_path / 'progress.csv').stat().st_size + 5
    with full_disk(size), pytest.raises(UserError, match=r'progress\.csv cannot be written \(File too large\)'):
        rl_training.append_progress(tmp_path, range(len(rl_training.METRICS)))


def test_what_is_interrupted_leaves_no_half_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), runtime.replacing(str(tmp_path / 'a')) as file:
        file.write('half')
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be(tmp_path):
    """--logdir below a file, in training and for a test of another's weights."""
    (tmp_path / 'file').write_text('')
    error = run(f'--logdir={tmp_path}/file/logs', code=2)
    assert f'{tmp_path}/file' in error and 'Not a directory' in error and len(error.splitlines()) == 1


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('seconds', [0.5, 3])
def test_ctrl_c_at_the_start(tmp_path, seconds):
    """While libraries are loaded, or the training is compiled."""
    process = start(f'--logdir={tmp_path}', '--metatrain_iterations=10000000')
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and 'Traceback' not in output and 'stopped' in output.splitlines()[-1]


def test_ctrl_c_in_a_test(trained):
    process = start(f'--logdir={trained}', '--train=False', '--num_test_tasks=1000000')
    for line in process.stdout:
        if '  (maml, maml_rl: files' in line:  # the last of the settings
            break
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and output == 'main.py: stopped\n'


def test_ctrl_c_while_a_module_is_loaded_that_ignores_it():
    """numpy.random is compiled by Cython: what its memory views register under `try: … except: pass`."""
    program = """
import abc, os, runpy, signal, sys
def interrupted(cls, subclass):
    if 'numpy.random' in sys.modules:
        abc.ABCMeta.register = register  # once is enough
        os.kill(os.getpid(), signal.SIGINT)
    return register(cls, subclass)
register, abc.ABCMeta.register = abc.ABCMeta.register, interrupted
sys.argv = ['main.py', '--train=False', '--init_from=no_such_weights']
runpy.run_path('main.py', run_name='__main__')
"""
    ended = subprocess.run([sys.executable, '-c', program], cwd=MAIN.parent, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (130, 'main.py: stopped\n')


# ---- What reads the output -------------------------------------------------------------------------------------


def test_output_that_nobody_reads_ends_a_program_quietly():
    """As of `… | head`, once that has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(command('--help'), stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert ended.returncode == 141 and not ended.stderr


def test_names_that_are_no_text_are_printed():
    program = 'import runtime\nwith runtime.in_one_line():\n    print("caf\\udce9")'
    env = {**os.environ, 'PYTHONIOENCODING': 'utf-8:strict'}
    ended = subprocess.run([sys.executable, '-c', program], cwd=MAIN.parent, capture_output=True, text=True, env=env)
    assert (ended.returncode, ended.stdout) == (0, 'caf\\udce9\n')


def test_a_folder_that_is_no_text_can_have_no_summaries(tmp_path):
    folder = os.fsencode(tmp_path) + b'/caf\xe9'
    small = [
        '--metatrain_iterations=10',
        '--num_test_tasks=2',
        '--test_num_updates=1',
        f'--logdir={os.fsdecode(folder)}',
    ]
    with pytest.raises(UserError, match='no UTF-8.*--log=False'):
        run_here(*small)
    assert (run_here(*small, '--log=False') / 'model10.npz').exists()


# ---- What is missing or foreign --------------------------------------------------------------------------------


SCRIPTS = ['data/omniglot_resized/resize_images.py', 'data/miniImagenet/proc_images.py']


@pytest.mark.parametrize('program', ['main.py', 'reproduce.py', 'benchmark.py', 'figures.py', *SCRIPTS])
def test_without_the_packages(program):
    """Outside of the environment of README.md, of which -S knows nothing."""
    ended = subprocess.run([sys.executable, '-S', program], cwd=MAIN.parent, capture_output=True, text=True)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1
    assert 'No module named' in ended.stderr and 'requirements.txt' in ended.stderr


def test_without_mujoco(tmp_path):
    """Reinforcement learning says what to install; the rest does without."""
    (tmp_path / 'mujoco.py').write_text('raise ModuleNotFoundError("No module named \'mujoco\'", name="mujoco")')
    env = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    error = run('--datasource=point', f'--logdir={tmp_path}', code=2, env=env)
    assert "No module named 'mujoco'" in error and 'requirements.txt' in error and len(error.splitlines()) == 1
    assert report.version('no-such-package') is None


def test_the_device_is_named(tmp_path, monkeypatch, capsys):
    """And a GPU that TensorFlow does not see, unless the user hid it."""
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind: [])
    (tmp_path / 'nvidia-smi').write_text('')
    (tmp_path / 'nvidia-smi').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert runtime.devices(2) == 'CPU, 2 threads'
    assert len(capsys.readouterr().err.splitlines()) == 1
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '-1')
    runtime.devices(1)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    'arrays',
    [
        {'iteration': np.array('ten')},
        {'iteration': np.arange(3)},
        {'iteration': np.array(1), 'weights/w1': np.array(['a', 'b'])},
        {'weights/w1': np.zeros(3)},
    ],
)
def test_foreign_checkpoints_are_named(tmp_path, arrays):
    np.savez(tmp_path / 'model1.npz', **arrays)
    with pytest.raises(UserError, match='is not a checkpoint of this program'):
        checkpoint.read(str(tmp_path / 'model1.npz'))


def test_a_damaged_checkpoint_does_not_stand_in_the_way_of_a_test(trained):
    folder = trained / SINE
    run_here(f'--logdir={trained}', *SHORT, '--log=False', '--metatrain_iterations=150', '--save_interval=50')
    (folder / 'model150.npz').write_bytes((folder / 'model150.npz').read_bytes()[:999])
    run_here(f'--logdir={trained}', *SHORT, '--train=False', '--log=False')
    tested = json.loads((folder / 'test_ubs10_stepsize0.01_tasks2_steps1.json').read_text())
    assert tested['iteration'] == tested['iterations'] == 100


def test_an_array_is_no_checkpoint(tmp_path):
    with (tmp_path / 'model1.npz').open('wb') as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match=r'model1\.npz is no \.npz file of plain arrays'):
        checkpoint.read(str(tmp_path / 'model1.npz'))
    (tmp_path / 'model1.npz').write_text('not weights')
    with pytest.raises(UserError, match=r'model1\.npz is no \.npz file of plain arrays'):
        checkpoint.read(str(tmp_path / 'model1.npz'))


@pytest.mark.parametrize('value', [np.nan, np.inf, 1e300])
def test_weights_that_are_not_finite_are_refused(trained, tmp_path, value):
    """Also those that are not in float32; the model keeps what it has."""
    with np.load(trained / SINE / 'model100.npz') as file:
        arrays = {name: np.float64(array) if '/' in name else array for name, array in file.items()}
    arrays['weights/w2'][3, 4] = value
    np.savez(tmp_path / 'port.npz', **arrays)
    model = training.make_model(main.read_flags([])[0], experiments.SOURCES['sinusoid'], 1)
    before = {name: weight.numpy() for name, weight in model.weights.items()}
    with pytest.raises(UserError, match=r'port\.npz holds numbers that are not finite, in w2: name another'):
        checkpoint.restore_weights(str(tmp_path / 'port.npz'), model)
    for name, weight in model.weights.items():
        np.testing.assert_array_equal(weight, before[name])


def test_garbage_in_the_progress_is_dropped(tmp_path):
    full = ','.join('7' for _ in rl_training.METRICS[1:])
    text = f'0,{full}\n'.encode() + b'\x00\xff\xfe"garbage\n' + '²'.encode() + f',{full}\n1,{full}\n'.encode()
    (tmp_path / 'progress.csv').write_bytes(text)
    rl_training.begin_progress(tmp_path, 2)
    assert [line[0] for line in (tmp_path / 'progress.csv').read_text().splitlines()] == ['i', '0', '1']


def test_the_best_of_other_validation_tasks_gives_way(tmp_path):
    for kept in ({}, {'test_query': 1}):  # before, it was not kept
        np.savez(tmp_path / 'best.npz', iteration=1, score=0.9, **kept)
        assert checkpoint.best_so_far(tmp_path, 'score', test_query=1) == 0.9
    assert checkpoint.best_so_far(tmp_path, 'score', test_query=15) == -np.inf


def test_a_best_policy_without_its_return_gives_way(tmp_path):
    np.savez(tmp_path / 'best.npz', iteration=1)
    assert checkpoint.best_so_far(tmp_path, 'average_return') == -np.inf


def test_a_step_size_that_explodes_in_a_test(tmp_path):
    flags = ['--datasource=point', '--baseline=random', f'--logdir={tmp_path}', '--test_update_lr=1e5']
    config, origins = main.read_flags([*flags, '--num_test_tasks=2', '--test_update_batch_size=2'])
    with pytest.raises(UserError, match='not finite.*--test_update_lr'):
        main.run(config, origins)


def test_an_empty_renderer_is_none(monkeypatch):
    monkeypatch.setenv('MUJOCO_GL', '')
    monkeypatch.setattr(runtime, 'renderer', 'egl')
    runtime.start()
    assert runtime.renderer is None
    monkeypatch.setenv('MUJOCO_GL', 'osmesa')
    for _ in range(2):  # the second finds nothing to take
        runtime.start()
        assert runtime.renderer == 'osmesa'


@pytest.mark.parametrize('text', ['[]', '{"rows": 3}', '{"rows": [{}]}', 'no json'])
def test_benchmark_compares_with_its_own_results(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    program = [sys.executable, str(MAIN.with_name('benchmark.py')), '--only=sinusoid']
    wrong = [f'--compare={tmp_path}/a.json'], [f'--out={tmp_path}/none/a.json'], [f'--data_dir={tmp_path}/none']
    for flags in wrong if text == '[]' else wrong[:1]:
        ended = subprocess.run([*program, *flags], capture_output=True, text=True)
        assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1 and str(tmp_path) in ended.stderr


@pytest.mark.parametrize(
    'odd', [{'mean': 3}, {'mean': ['a', 'b']}, {'ci95': None}, {'settings': {'datasource': 'point', 'baseline': 'no'}}]
)
def test_figures_name_a_result_that_is_none(tmp_path, odd, capsys):
    result = {'measure': 'average return', 'settings': {'datasource': 'point', 'baseline': None}, 'columns': ['a', 'b']}
    (tmp_path / 'a.json').write_text(json.dumps({**result, 'mean': [1, 2], 'ci95': [1, None], **odd}))
    with pytest.raises(SystemExit, match='2'):
        figures.main(['returns', f'--out={tmp_path}/a.png', f'{tmp_path}/a.json'])
    error = capsys.readouterr().err
    assert 'a.json is no result' in error and len(error.splitlines()) == 1


def test_an_adaptation_that_diverges_ends_no_pretraining(tmp_path):
    """Which does not use it; meta-training does."""
    flags = ['--num_updates=5', '--update_lr=30', '--log=False', '--num_test_tasks=2', '--test_num_updates=1']
    run_here(*flags, '--pretrain_iterations=100', '--metatrain_iterations=0', f'--logdir={tmp_path}/pretrained')
    with pytest.raises(UserError, match='the loss is not finite'):
        run_here(*flags, '--metatrain_iterations=100', f'--logdir={tmp_path}/trained')


# ---- What a user reads -----------------------------------------------------------------------------------------


def test_settings_come_after_errors_and_only_those_in_use(tmp_path, capsys):
    """A bad --init_from leaves nothing but its line; a sinusoid has no classes, filters or sets."""
    with pytest.raises(UserError):
        run_here(f'--logdir={tmp_path}', '--init_from=/nowhere/model1.npz')
    assert not capsys.readouterr().out
    with pytest.raises(UserError, match='is a folder: name a checkpoint in it'):
        main.read_flags([f'--init_from={tmp_path}'])
    experiments.print_settings(*main.read_flags([]), 2)
    output = capsys.readouterr().out
    assert output.rstrip().endswith('(maml, maml_rl: files of the original, github.com/cbfinn/maml and /maml_rl)')
    names = {line.split('=')[0].strip() for line in output.splitlines() if line.startswith('  ')}
    assert {'update_lr', 'num_updates', 'seed'} <= names
    assert not names & {'num_classes', 'num_filters', 'conv', 'test_set', 'data_dir', 'train_update_lr', 'test_iter'}
    assert 'on CPU, ' in output or 'on NVIDIA' in output


def test_the_table_fits_a_terminal(capsys):
    results = np.random.default_rng(0).random([600, 12])
    evaluation.print_summary(evaluation.summarise(results), 'accuracy', {1: None, 10: 63.11})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and [n for n, line in enumerate(lines) if '<- ' in line] == [3, 12]
    assert lines[3].endswith('<- the paper') and lines[12].endswith('<- paper 63.11')
    assert lines[3].split()[4] == f'{100 * results[:, 2].mean():.4g}'


def test_the_numbers_of_a_table_stay_apart(capsys):
    """However small or large they are, there is a space before each, and all lines end at the same column."""
    sizes = 10.0 ** np.arange(-6, 6)
    evaluation.print_summary(evaluation.summarise(np.random.default_rng(0).random([600, 12]) * sizes), 'loss', {})
    header, *rows = capsys.readouterr().out.splitlines()[:13]
    assert header.split() == ['mean', 'std', '95', '%', 'median'] and len({len(row) for row in (header, *rows)}) == 1
    assert all(re.search(r'( +±?\d[\d.e+-]*){4}$', row) for row in rows)
