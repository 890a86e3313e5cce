"""Several replicas train as one does: two processes on 127.0.0.1, and two logical devices in one process."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from program import MAIN, command, run, run_here, wait_for

import distribute

NAME = 'cls_5.mbs_4.ubs_10.numstep1.updatelr0.01nonorm'
SHORT = ['--meta_batch_size=4', '--log=False', '--num_test_tasks=5', '--test_num_updates=1']


@pytest.fixture
def start_workers():
    """A function that starts two workers of a training, as two terminals would; of_second: more flags of the second."""
    started = []

    def start(*flags, of_second=()):
        ports = []
        for _ in range(2):
            with socket.socket() as s:
                s.bind(('127.0.0.1', 0))
                ports.append(s.getsockname()[1])
        cluster = {'worker': [f'127.0.0.1:{port}' for port in ports]}
        for index in range(2):
            started.append(
                subprocess.Popen(
                    command(*flags, *(of_second if index else ()), '--distribute=multiworker'),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env={
                        **os.environ,
                        'TF_CONFIG': json.dumps({'cluster': cluster, 'task': {'type': 'worker', 'index': index}}),
                    },
                )
            )
        return started[-2:]

    yield start
    for process in started:
        process.kill()


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    """The folder of a run of one process, with its states after 20 and 40 iterations."""
    logdir = tmp_path_factory.mktemp('one')
    return run_here(f'--logdir={logdir}', '--metatrain_iterations=40', '--save_interval=20', *SHORT)


def assert_close(one, other):
    with np.load(one) as a, np.load(other) as b:
        for name in set(a.files) - {'seconds'}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_two_workers_train_as_one_process_and_survive_the_loss_of_one(one, tmp_path, start_workers):
    """The same tasks and the same weights, to rounding. A killed worker ends the other with one clear line, and both
    go on from the checkpoint that only the chief wrote."""
    flags = [f'--logdir={tmp_path}/two', '--save_interval=20', *SHORT]
    chief, worker = start_workers('--metatrain_iterations=1000000', *flags)
    wait_for(tmp_path / 'two' / NAME / 'model20.npz', chief)
    worker.kill()
    output = chief.communicate(timeout=120)[0]
    worker.wait()
    assert chief.returncode == 2 and 'another worker is gone: start all of them again' in output.splitlines()[-1]
    for path in (tmp_path / 'two' / NAME).glob('model*.npz'):
        if path.name != 'model20.npz':  # the loss may have come later than the first checkpoint
            path.unlink()

    workers = start_workers('--metatrain_iterations=40', *flags)
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert '20 iterations are done' in outputs[0] and 'over 5 tasks' in outputs[0] and 'over 5 tasks' not in outputs[1]
    assert_close(one / 'model40.npz', tmp_path / 'two' / NAME / 'model40.npz')


@pytest.mark.parametrize('flag', ['--meta_lr=0.1', '--save_interval=7'])
def test_workers_with_different_flags_are_refused(tmp_path, start_workers, flag):
    workers = start_workers(f'--logdir={tmp_path}', '--metatrain_iterations=20', *SHORT, of_second=[flag])
    for worker in workers:
        output = worker.communicate(timeout=120)[0]
        assert worker.returncode == 2 and 'the workers were started with different flags' in output.splitlines()[-1]
    assert not list(tmp_path.glob('*/model*.npz'))


@pytest.mark.parametrize(
    'flag, of_second, words',
    [
        ('--logdir=/proc/none', [], ['/proc/none', 'another worker is gone']),
        ('--logdir={}', ['--datasource=omniglot', '--data_dir=/nowhere'], ['another worker is gone', '/nowhere']),
    ],
)
def test_a_worker_that_cannot_begin_ends_the_others(tmp_path, start_workers, flag, of_second, words):
    workers = start_workers(flag.format(tmp_path), '--metatrain_iterations=20', *SHORT, of_second=of_second)
    last = [process.communicate(timeout=120)[0].splitlines()[-1] for process in workers]
    assert [process.returncode for process in workers] == [2, 2], last
    assert all(word in line for word, line in zip(words, last)), last


def test_workers_begin_anew_from_weights_in_their_own_folder(tmp_path, start_workers):
    """The chief alone notes where these are then."""
    flags = [f'--logdir={tmp_path}', '--metatrain_iterations=20', '--save_interval=20', *SHORT]
    run_here(*flags)
    anew = ['--resume=False', f'--init_from={tmp_path}/{NAME}/model20.npz']
    workers = start_workers(*flags, *anew)
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert (tmp_path / f'{NAME}.1' / 'model20.npz').exists()


def test_all_workers_stop_with_the_one_that_is_asked_to(tmp_path, start_workers):
    chief, worker = start_workers(f'--logdir={tmp_path}', '--metatrain_iterations=1000000', *SHORT)
    wait_for_line(chief, 'Iteration 2000:')  # 1000, which the test compares with, is behind
    worker.send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120)[0] for process in (chief, worker)]
    assert [process.returncode for process in (chief, worker)] == [130, 130], outputs
    assert all('stopped: the same command goes on from here' in output for output in outputs)
    done = int(re.search(r'(\d+) of 1000000 iterations done', outputs[1])[1])
    assert done > 1000 and (tmp_path / NAME / f'model{done}.npz').exists()


def test_a_worker_that_waits_for_the_others_can_be_stopped(tmp_path, start_workers):
    chief, worker = start_workers(f'--logdir={tmp_path}', *SHORT)
    worker.kill()
    worker.wait()
    assert 'waiting for all of 2 workers: 127.0.0.1:' in wait_for_line(chief, 'waiting')
    time.sleep(1)
    chief.send_signal(signal.SIGINT)
    chief.communicate(timeout=20)
    assert chief.returncode == -signal.SIGINT


def wait_for_line(process, words):
    return next(line for line in process.stdout if words in line)


def test_two_devices_train_as_one(one, tmp_path):
    """tf.distribute.MirroredStrategy over two logical CPUs, through main.py."""
    two_cpus = (
        'import sys; sys.path.insert(0, sys.argv.pop(1)); import runtime; runtime.start(); '
        'import tensorflow as tf; import main; cpu, = tf.config.list_physical_devices("CPU"); '
        'tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2); '
        'main.main()'
    )
    result = subprocess.run(
        [
            sys.executable,
            '-c',
            two_cpus,
            str(MAIN.parent),
            '--distribute=mirrored',
            f'--logdir={tmp_path}/two',
            '--metatrain_iterations=20',
            *SHORT,
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert_close(one / 'model20.npz', tmp_path / 'two' / NAME / 'model20.npz')


def test_an_error_in_one_process_is_no_lost_worker():
    with pytest.raises(tf.errors.InternalError), distribute.all_workers(tf.distribute.get_strategy()):
        raise tf.errors.InternalError(None, None, 'out of memory')


def test_tasks_that_cannot_be_divided_are_refused():
    error = subprocess.run(
        [
            sys.executable,
            '-c',
            'import sys; sys.path.insert(0, sys.argv[1]); import runtime; runtime.start(); '
            'import tensorflow as tf; cpu, = tf.config.list_physical_devices("CPU"); '
            'tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2); '
            'import distribute; distribute.make_strategy("mirrored", 25)',
            str(MAIN.parent),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    ).stderr
    assert '--meta_batch_size=25 cannot be divided over 2 replicas' in error.splitlines()[-1]


@pytest.mark.parametrize(
    'cluster, task', [('{"worker": "127.0.0.1:1"}', 'worker'), ('["127.0.0.1:1"]', 'worker'), ('{}', 'evaluator')]
)
def test_a_tf_config_that_is_none_is_named(cluster, task):
    env = {**os.environ, 'TF_CONFIG': f'{{"cluster": {cluster}, "task": {{"type": "{task}", "index": 0}}}}'}
    assert 'TF_CONFIG cannot be used' in run('--distribute=multiworker', code=2, env=env)


@pytest.mark.parametrize('value', ['{}', '[]', 'worker 0'])
def test_a_tf_config_without_a_cluster_is_named(value):
    refused = run('--distribute=multiworker', code=2, env={**os.environ, 'TF_CONFIG': value})
    assert 'TF_CONFIG cannot be used' in refused


def test_multiworker_needs_tf_config():
    assert 'TF_CONFIG' in run('--distribute=multiworker', code=2)
