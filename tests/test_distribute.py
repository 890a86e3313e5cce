"""Several replicas train as one does: two processes on 127.0.0.1, and two logical devices in one process."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from program import MAIN, command, run, run_here, wait_for

NAME = 'cls_5.mbs_4.ubs_10.numstep1.updatelr0.01nonorm'
SHORT = ['--meta_batch_size=4', '--log=False', '--num_test_tasks=5', '--test_num_updates=1']


def start_workers(*flags):
    """Two workers of one training, as two terminals would start them."""
    ports = []
    for _ in range(2):
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            ports.append(s.getsockname()[1])
    cluster = {'worker': [f'127.0.0.1:{port}' for port in ports]}
    return [
        subprocess.Popen(
            command(*flags, '--distribute=multiworker'),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                'TF_CONFIG': json.dumps({'cluster': cluster, 'task': {'type': 'worker', 'index': index}}),
            },
        )
        for index in range(2)
    ]


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    """The folder of a run of one process, with its states after 20 and 40 iterations."""
    logdir = tmp_path_factory.mktemp('one')
    return run_here(f'--logdir={logdir}', '--metatrain_iterations=40', '--save_interval=20', *SHORT)


def assert_close(one, other):
    with np.load(one) as a, np.load(other) as b:
        for name in set(a.files) - {'seconds'}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_two_workers_train_as_one_process_and_survive_the_loss_of_one(one, tmp_path):
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


@pytest.mark.parametrize('cluster', ['{"worker": "127.0.0.1:1"}', '["127.0.0.1:1"]'])
def test_a_tf_config_that_is_none_is_named(cluster):
    env = {**os.environ, 'TF_CONFIG': f'{{"cluster": {cluster}, "task": {{"type": "worker", "index": 0}}}}'}
    assert 'TF_CONFIG cannot be used' in run('--distribute=multiworker', code=2, env=env)


def test_multiworker_needs_tf_config():
    assert 'TF_CONFIG' in run('--distribute=multiworker', code=2)
