"""What does not need TensorFlow: the error that a user can mend, and what must be settled before TensorFlow starts.

Not imported by the algorithm; main.py calls `start` before it imports anything that imports TensorFlow.
"""

import contextlib
import os

renderer = None  # what the user set MUJOCO_GL to, as long as `start` has it out of MuJoCo's sight


class UserError(Exception):
    """Something that the user can mend; the message is one line that says what is wrong and what to do."""


def available_cores():
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def start(threads=None):
    """Import TensorFlow with one task of the meta-batch on each of `threads` cores; return that number.

    One thread inside an operation and one operation a core: the convolutions of a single task are too small to
    be worth dividing, and TensorFlow's default (all cores for each operation) is 1.7-4 times slower.
    Variables that the user set in the environment win.
    """
    global renderer
    # MuJoCo would load this renderer into the process of TensorFlow, and the two crash; rl/video.py has its own.
    renderer = os.environ.pop('MUJOCO_GL', None)
    threads = threads or available_cores()
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')  # 2.5 times faster on MiniImagenet's images
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # its errors come as exceptions anyway
    os.environ.setdefault('TF_NUM_INTRAOP_THREADS', '1')
    os.environ.setdefault('TF_NUM_INTEROP_THREADS', str(threads))
    with stderr_to(os.devnull):
        import tensorflow  # noqa: F401  (here, so that the settings above are read)
    return threads


@contextlib.contextmanager
def stderr_to(path):
    """Send what C++ writes to stderr elsewhere: while it is loaded, TensorFlow heeds no log level."""
    kept = os.dup(2)
    with open(path, 'w') as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
