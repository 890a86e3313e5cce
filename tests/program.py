"""Running main.py as a user does, in a process of its own."""

import contextlib
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np

import main
import naming

MAIN = pathlib.Path(__file__).parent.parent / 'main.py'
SINE = 'cls_5.mbs_25.ubs_10.numstep1.updatelr0.01nonorm'  # the folder of a run of 10-shot sinusoids


def command(*flags):
    return [sys.executable, str(MAIN), *map(str, flags)]


def run(*flags, code=0, **how):
    """Run main.py to its end; returns what it printed, after checking the exit code."""
    result = subprocess.run(command(*flags), capture_output=True, text=True, timeout=300, **how)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout if code == 0 else result.stderr


def run_here(*flags):
    """Do what main.py does with these flags, in this process; returns the run's folder."""
    config, origins = main.read_flags(list(map(str, flags)))
    main.run(config, origins)
    return pathlib.Path(config.logdir, naming.run_name(config))


def start(*flags):
    return subprocess.Popen(command(*flags), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path, process):
    deadline = time.time() + 120
    while not path.exists():
        assert process.poll() is None and time.time() < deadline, process.stdout.read()
        time.sleep(0.01)


def assert_same_state(one, other):
    with np.load(one) as a, np.load(other) as b:
        assert a.files == b.files
        for name in set(a.files) - {'seconds'}:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@contextlib.contextmanager
def full_disk(size):
    """Let no file grow beyond `size` bytes, as on a disk that is full; what was there before must stay."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
