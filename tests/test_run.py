"""A run's folder: its checkpoints, how it goes on, and what it refuses; here a single weight counts the iterations."""

import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from program import MAIN

import checkpoint
import run
import training
from experiments import SOURCES
from runtime import UserError
from utils import Adam

clock = SimpleNamespace(now=0.0, time=lambda: clock.now)


@pytest.fixture(autouse=True)
def ten_seconds_an_iteration(monkeypatch):
    monkeypatch.setattr(run, 'time', clock)


def fresh():
    weights = {'w': tf.Variable([0.0])}
    return SimpleNamespace(weights=weights, pretrain_adam=Adam(weights, 0.1), metatrain_adam=Adam(weights, 0.1))


def settings(**given):
    unset = dict(seed=1, save_interval=100, max_to_keep=10, log=False, resume=True, init_from=None, meta_lr=0.1)
    unset |= {'pretrain_iterations': 0, 'datasource': 'sinusoid', 'baseline': None, 'num_updates': 1}
    return SimpleNamespace(**unset | given)


def begin(folder, chief=True, **given):
    config = settings(**given)
    return run.Run(config, {}, str(folder), fresh(), config.pretrain_iterations + config.metatrain_iterations, chief)


def train(folder, step=1, **given):
    """Train to the end, `step` iterations at a time; returns the weight."""
    with begin(folder, **given) as training_run:
        while training_run.goes_on():
            clock.now += 10.0 * step
            training_run.model.weights['w'].assign_add([step])
            training_run.advance(training_run.iteration + step)
    return training_run.model.weights['w'].numpy().item()


def names(folder):
    return [os.path.basename(path) for path in checkpoint.find(folder)]


def test_the_newest_ten_checkpoints_are_kept(tmp_path):
    """By number: model1000 is newer than model200."""
    assert train(tmp_path, step=100, metatrain_iterations=1200) == 1200
    assert names(tmp_path) == [f'model{100 * n}.npz' for n in range(12, 2, -1)]
    assert train(tmp_path, metatrain_iterations=1201, max_to_keep=2) == 1201
    assert names(tmp_path) == ['model1201.npz', 'model1200.npz']


def test_a_checkpoint_outlives_a_damaged_newer_one(tmp_path):
    for iteration in (750, 1000):
        checkpoint.save(tmp_path, fresh(), 2, iteration=iteration)
    (tmp_path / 'model1000.npz').write_bytes(b'')
    checkpoint.save(tmp_path, fresh(), 1, iteration=800)
    assert names(tmp_path) == ['model1000.npz', 'model800.npz']


def test_a_run_goes_on_where_it_stood(tmp_path):
    """Also towards more iterations than at first; seconds add up, and the settings say what was asked for."""
    for total in (2, 2, 5):
        assert train(tmp_path, metatrain_iterations=total) == total
        assert checkpoint.done(tmp_path) == (total, 10.0 * total)
        assert run.read_config(tmp_path)['metatrain_iterations'] == total


def test_settings_of_another_training_are_refused(tmp_path):
    """Others may change; settings that cannot be read are not those of this run."""
    train(tmp_path, metatrain_iterations=2, meta_batch_size=4)
    train(tmp_path, metatrain_iterations=3, meta_batch_size=4, save_interval=1, log=True, threads=1)
    for given in ({'meta_batch_size': 5}, {'meta_lr': 0.2}, {'seed': 2}):
        with pytest.raises(UserError, match=f'not {list(given.values())[0]}'):
            train(tmp_path, **{'metatrain_iterations': 3, 'meta_batch_size': 4} | given)
    assert not run.FREE & {'train_query', 'x_columns', 'y_columns', 'img_size', 'channels', 'split', 'hidden', 'norm'}
    (tmp_path / 'config.json').write_text('{"settings":')
    with pytest.raises(UserError, match='cannot be read'):
        train(tmp_path, metatrain_iterations=3, meta_batch_size=4)


def test_a_signal_ends_the_iteration_and_the_run(tmp_path, capsys):
    """The state is saved, with its seed; the signals are then what they were before."""
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        with pytest.raises(SystemExit) as stop, begin(tmp_path / str(number), metatrain_iterations=9) as training_run:
            signal.raise_signal(number)
            assert not training_run.goes_on()
            training_run.advance(1)
        assert stop.value.code == 130 and signal.getsignal(number) == before
        (path,) = checkpoint.find(tmp_path / str(number))
        state = checkpoint.restore(path, fresh())
        assert (state['iteration'], state['seed']) == (1, 1)
        assert 'stopped: the same command goes on from here' in capsys.readouterr().out
    with pytest.raises(SystemExit), begin(tmp_path / 'anew', metatrain_iterations=9, resume=False):
        signal.raise_signal(signal.SIGINT)
    assert 'the same command, without --resume=False or --force, goes on' in capsys.readouterr().out


def test_the_chief_of_several_processes_alone_touches_the_folder(tmp_path):
    with begin(tmp_path / 'x', chief=False, metatrain_iterations=1, save_interval=1, log=True) as training_run:
        training_run.advance(1)
    assert not list(tmp_path.iterdir())


def test_iterations_that_do_not_fit_what_was_done_are_refused(tmp_path):
    train(tmp_path / 'five', pretrain_iterations=2, metatrain_iterations=3)
    train(tmp_path / 'two', pretrain_iterations=2, metatrain_iterations=0)
    with pytest.raises(UserError, match='5 iterations, more than the 4'):
        train(tmp_path / 'five', pretrain_iterations=2, metatrain_iterations=2)
    for name, pretrain in (('five', 1), ('five', 3), ('two', 1)):
        with pytest.raises(UserError, match=f'--pretrain_iterations=2, not {pretrain}'):
            train(tmp_path / name, pretrain_iterations=pretrain, metatrain_iterations=9)
    assert train(tmp_path / 'two', pretrain_iterations=3, metatrain_iterations=1) == 4


def test_a_folder_is_trained_by_one_at_a_time(tmp_path):
    """Also when it is begun anew; what was there before is kept under the next free name."""
    for total in (1, 2, 3):
        with begin(tmp_path / 'x', metatrain_iterations=total, resume=False):
            with pytest.raises(UserError, match='being trained'):
                train(tmp_path / 'x', metatrain_iterations=total)
            assert not (tmp_path / f'x.{total}').exists()
        train(tmp_path / 'x', metatrain_iterations=total)
    assert [names(tmp_path / name)[0] for name in ('x.1', 'x.2', 'x')] == [f'model{n}.npz' for n in (1, 2, 3)]


def test_the_best_weights_of_a_run_whose_checkpoints_are_gone_are_kept(tmp_path):
    """With all else of the run: a new one begins at 0 and would write over them."""
    train(tmp_path / 'x', metatrain_iterations=2)
    (tmp_path / 'x' / 'model2.npz').rename(tmp_path / 'x' / 'best.npz')
    assert train(tmp_path / 'x', metatrain_iterations=3) == 3
    assert names(tmp_path / 'x') == ['model3.npz']
    assert sorted(path.name for path in (tmp_path / 'x.1').iterdir()) == ['best.npz', 'config.json']


def test_an_error_leaves_the_last_checkpoint(tmp_path):
    """One in the loop, weights that are not finite, and one in writing."""
    for weight, error in ((1.0, ZeroDivisionError), (np.nan, UserError)):
        with pytest.raises(error), begin(tmp_path, metatrain_iterations=9, save_interval=2) as training_run:
            training_run.advance(2)
            training_run.model.weights['w'].assign([weight])
            training_run.advance(3)
            if weight == 1:
                raise ZeroDivisionError
            training_run.advance(4)
        assert names(tmp_path) == ['model2.npz']


def test_damaged_checkpoints_are_passed_over_unless_all_are(tmp_path):
    paths = [checkpoint.save(tmp_path, fresh(), iteration=iteration) for iteration in (1, 2)]
    with open(paths[1], 'r+b') as file:
        file.truncate(100)
    assert checkpoint.restore_latest(tmp_path, fresh()) == (paths[0], {'iteration': 1})
    with open(paths[0], 'r+b') as file:
        file.truncate(100)
    with pytest.raises(UserError, match='no checkpoint'):
        checkpoint.restore_latest(tmp_path, fresh())


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path):
    model, other = fresh(), fresh()
    model.weights['w'].assign([7.0])
    other.pretrain_adam.slots['m/w'] = tf.Variable([0.0, 0.0])
    path = checkpoint.save(tmp_path, model, iteration=1)
    with pytest.raises(UserError, match='does not fit'):
        checkpoint.restore(path, other)
    assert other.weights['w'].numpy() == 0


@pytest.mark.parametrize('there, take_best', [(False, True), (True, True), (True, False)])
def test_a_packed_run_has_the_weights_to_test_and_cannot_go_on(tmp_path, there, take_best):
    """The best ones where there are any and the paper tests those; it still counts as trained to its end."""
    train(tmp_path, metatrain_iterations=5, save_interval=2)
    if there:
        model = fresh()
        model.weights['w'].assign([3.0])
        checkpoint.write(str(tmp_path / checkpoint.BEST), model, iteration=3, average_return=-1.0)
    checkpoint.pack(tmp_path, take_best)
    assert sorted(os.listdir(tmp_path)) == ['config.json', checkpoint.PACKED]
    assert checkpoint.done(tmp_path) == (5, 50.0)
    model, weight = fresh(), 3 if there and take_best else 5
    path, state = checkpoint.restore_latest(tmp_path, model)
    assert model.weights['w'].numpy() == weight and (state['iteration'], state['trained']) == (weight, 5)
    with np.load(path) as saved:
        assert not any('adam' in name for name in saved.files)
    assert train(tmp_path, metatrain_iterations=5) == weight  # nothing is left to do
    with pytest.raises(UserError, match='no state of the optimiser'):
        train(tmp_path, metatrain_iterations=6)
    assert train(tmp_path / 'new', metatrain_iterations=1, init_from=path) == weight + 1
    assert train(tmp_path / 'new', metatrain_iterations=1, init_from=os.path.relpath(path)) == weight + 1


def test_a_run_goes_on_from_the_weights_that_it_was_started_from(tmp_path):
    """Wherever they are; a run of before, which does not tell them apart, by where they were."""
    for name, iterations in (('base', 4), ('longer', 5)):
        train(tmp_path / name, metatrain_iterations=iterations)
    base, copy, other = tmp_path / 'base' / 'model4.npz', tmp_path / 'copy.npz', tmp_path / 'longer' / 'model5.npz'
    shutil.copy(base, copy)
    new, config = tmp_path / 'new', tmp_path / 'new' / 'config.json'
    assert train(new, metatrain_iterations=1, init_from=str(base)) == 5
    assert train(new, metatrain_iterations=1, init_from=str(copy)) == 5
    shutil.copy(other, base)
    with pytest.raises(UserError, match=f'started from other weights than are in {base} now'):
        train(new, metatrain_iterations=1, init_from=str(base))
    base.unlink()
    assert train(new, metatrain_iterations=2, init_from=str(base)) == 6
    assert train(new, metatrain_iterations=2, init_from=str(copy)) == 6  # still known, though base is gone
    old = json.loads(config.read_text())
    del old['settings']['init_digest']
    config.write_text(json.dumps(old))
    assert train(new, metatrain_iterations=2, init_from=str(base)) == 6
    with pytest.raises(UserError, match='made with --init_from='):
        train(new, metatrain_iterations=2, init_from=str(copy))


def test_a_run_begins_anew_from_its_own_weights(tmp_path):
    """They are read before the run that has them is put aside; what cannot be read leaves it where it is."""
    folder = tmp_path / 'run'
    train(folder, metatrain_iterations=4)
    with pytest.raises(UserError, match='there is no checkpoint'):
        train(folder, metatrain_iterations=2, resume=False, init_from=str(folder / 'model3.npz'))
    assert train(folder, metatrain_iterations=2, resume=False, init_from=str(folder / 'model4.npz')) == 6
    assert names(tmp_path / 'run.1') == ['model4.npz'] and not (tmp_path / 'run.2').exists()
    moved = str(tmp_path / 'run.1' / 'model4.npz')
    assert json.loads((folder / 'config.json').read_text())['settings']['init_from'] == moved
    assert train(folder, metatrain_iterations=3, init_from=moved) == 7


def test_a_result_names_the_settings_of_the_training(tmp_path, monkeypatch):
    """Not those of the test's command, where they are of no use to a test."""
    train(tmp_path, metatrain_iterations=4, pretrain_iterations=1, meta_lr=0.5, save_interval=2)
    path, state = str(tmp_path / 'model2.npz'), {'iteration': 2, 'seconds': 20.0}
    said = run.history(settings(metatrain_iterations=9, num_test_tasks=7), path, state)
    assert (said['iteration'], said['iterations'], said['iterations_asked'], said['seconds_trained']) == (2, 5, 5, 50)
    taken = [said['settings'][name] for name in ('meta_lr', 'metatrain_iterations', 'num_test_tasks')]
    assert taken == [0.5, 4, 7]
    assert json.dumps(said)
    monkeypatch.chdir(tmp_path)
    config = settings(metatrain_iterations=4)
    assert run.history(config, 'model2.npz', state) == {**run.history(config, path, state), 'checkpoint': 'model2.npz'}


def test_a_piece_of_training_ends_with_its_block_at_a_checkpoint_and_with_pretraining():
    """From any iteration on, each with its own block of tasks."""
    config, blocks = SimpleNamespace(pretrain_iterations=30, save_interval=130), SimpleNamespace()
    blocks.draw_block = lambda number: (np.float32([number]),)
    ends = [(0, 30, True), (0, 100, False), (100, 130, False), (100, 200, False), (200, 250, False)]
    for iteration, expected in ((0, ends), (10, ends), (30, ends[1:]), (130, ends[3:]), (250, [])):
        pieces = list(training.pieces(config, SOURCES['sinusoid'], blocks, iteration, 250))
        assert [piece[1:] for piece in pieces] == expected
        assert [piece[0][0].numpy() for piece in pieces] == [begin // 100 for begin, _, _ in expected]


def test_reinforcement_learning_needs_nothing_of_supervised_learning():
    """Nor the slower of the two Keras, of which TensorFlow loads one and TensorFlow Probability the other."""
    code = (
        'import sys; sys.path.insert(0, sys.argv[1]); import runtime; runtime.start(); import rl.training; '
        'print({"training", "maml", "networks", "data_generator", "images", "distribute", "keras"} & set(sys.modules))'
    )
    done = subprocess.run([sys.executable, '-c', code, str(MAIN.parent)], capture_output=True, text=True)
    assert done.stdout.strip() == 'set()', done.stderr
