"""run.py: what a run is, for a kind of learning that this program does not have."""

import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from program import MAIN

from run import Run


def count(folder, total, stop_at=None, **settings):
    """Learn to count: the whole of a new kind of learning; returns how far it came."""
    config = types.SimpleNamespace(
        **dict(seed=1, save_interval=3, log=False, resume=True, init_from=None, metatrain_iterations=total) | settings
    )
    model = types.SimpleNamespace(weights={'count': tf.Variable(0.0)})
    with Run(config, {}, str(folder), model, total) as run:
        while run.goes_on():
            model.weights['count'].assign_add(1)
            if run.iteration == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            run.advance(run.iteration + 1)
    return model.weights['count'].numpy()


def test_a_new_kind_of_learning_needs_a_loop_alone(tmp_path):
    """It saves, stops at Ctrl-C after the iteration that it is in, goes on, and keeps how long it took."""
    with pytest.raises(SystemExit) as stopped:
        count(tmp_path, 10, stop_at=4)
    assert stopped.value.code == 130
    assert {path.name for path in tmp_path.glob('model*')} == {'model3.npz', 'model5.npz'}
    before = signal.getsignal(signal.SIGINT)
    assert count(tmp_path, 10) == 10 and signal.getsignal(signal.SIGINT) is before
    with np.load(tmp_path / 'model10.npz') as saved, np.load(tmp_path / 'model5.npz') as earlier:
        assert saved['iteration'] == 10 and saved['seconds'] > earlier['seconds'] > 0


def test_reinforcement_learning_needs_nothing_of_supervised_learning():
    code = (
        'import sys; sys.path.insert(0, sys.argv[1]); import rl.training; '
        'print({"training", "maml", "networks", "data_generator", "images", "distribute"} & set(sys.modules))'
    )
    done = subprocess.run([sys.executable, '-c', code, str(MAIN.parent)], capture_output=True, text=True)
    assert done.stdout.strip() == 'set()', done.stderr
