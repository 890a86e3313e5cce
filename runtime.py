"""What does not need TensorFlow: errors that a user can mend, and what must be settled before TensorFlow starts.

main.py calls `start` before it imports anything that imports TensorFlow.
"""

import argparse
import contextlib
import functools
import os
import shutil
import signal
import sys
from multiprocessing import resource_tracker

renderer = None  # what the user set MUJOCO_GL to, as long as `start` has it out of MuJoCo's sight


class UserError(Exception):
    """Something that the user can mend; the message is one line that says what is wrong and what to do."""


class CommandLine(argparse.ArgumentParser):
    """The options of a script, whose text is its --help; raises UserError for a command line that is wrong."""

    def __init__(self, text):
        super().__init__(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        raise UserError(f'{message} (python {self.prog} --help says more)')


@contextlib.contextmanager
def in_one_line():
    """Let the program end with one line on stderr, not a traceback, where the user can mend what is wrong.

    The exit code is 2, and 130 after Ctrl-C. Around imports, too: packages may be missing. Without a line, as other
    programs under Unix, and with 141 it ends where nobody reads its output any more (`… | head`).
    """
    if hasattr(sys.stdout, 'reconfigure'):
        # Lines go as they are printed into a file or a pipe, too, and names of files may have any bytes.
        sys.stdout.reconfigure(line_buffering=True, errors='backslashreplace')
    try:
        yield
        return
    except BrokenPipeError:
        message, code = None, 141
    except KeyboardInterrupt:
        message, code = 'stopped', 130
    except UserError as error:
        message, code = error, 2
    except MemoryError as error:
        message, code = f'there is not enough memory ({error}): choose fewer tasks, examples or rollouts', 2
    except ImportError as error:
        message, code = f'{error}: use .venv/bin/python (README.md), or python -m pip install -r requirements.txt', 2
    except OSError as error:
        message, code = f'{error.filename or "a file cannot be read or written"}: {error.strerror or error}', 2
    except Exception as error:
        if type(error).__name__ != 'ResourceExhaustedError':  # TensorFlow's, which need not be there
            raise
        message, code = 'there is not enough memory: choose fewer tasks, examples or filters, or smaller ones', 2
    if message:
        print(f'{os.path.basename(sys.argv[0])}: {message}', file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def replacing(path, mode='w', **how):
    """Open a file that is there whole, in the place of `path`, or not at all; UserError where it cannot be written."""
    path = os.fspath(path)
    try:
        with open(path + '.tmp', mode, **how) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + '.tmp', path)
    except OSError as error:
        raise not_written(path, error.strerror or error) from None
    finally:
        with contextlib.suppress(OSError):  # as a rule it is gone, renamed
            os.remove(path + '.tmp')


@contextlib.contextmanager
def logged(path):
    """Write what is printed to the file `path` too, line by line; where nothing is, no file is left."""

    class Both:
        def __init__(self, terminal, file):
            self.terminal, self.file = terminal, file

        def write(self, text):
            self.file.write(text)
            self.file.flush()
            return self.terminal.write(text)

        def __getattr__(self, name):
            return getattr(self.terminal, name)

    with open(path, 'a') as file:
        try:
            with contextlib.redirect_stdout(Both(sys.stdout, file)):
                yield
        finally:
            if not file.tell():
                path.unlink()


@contextlib.contextmanager
def ctrl_c_deferred():
    """Let Ctrl-C wait for the end of the block; a process that is started within never hears of it."""
    mask = getattr(signal, 'pthread_sigmask', None)
    if mask is None:  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it comes with the first such process, and would let Ctrl-C through
    before = mask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        mask(signal.SIG_SETMASK, before)


def not_written(path, reason):
    """Return the UserError for a file that cannot be written."""
    return UserError(f'{path} cannot be written ({reason}): mend that, then give the same command again')


def devices(threads):
    """Return in words what TensorFlow computes on here; a warning goes to stderr where it does not see a GPU."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices('GPU')
    if gpus:
        return ', '.join(tf.config.experimental.get_device_details(gpu).get('device_name', gpu.name) for gpu in gpus)
    if 'CUDA_VISIBLE_DEVICES' not in os.environ and (shutil.which('nvidia-smi') or os.path.exists('/dev/nvidia0')):
        print(
            'warning: TensorFlow does not see the GPU that is here, and computes on the CPU: to use it, install '
            'tensorflow[and-cuda] and a driver that fits',
            file=sys.stderr,
        )
    return f'CPU, {threads} thread{"s" if threads > 1 else ""}'


@functools.cache
def has_bfloat16(processor='/proc/cpuinfo'):
    """Whether a GPU is here, or a processor that multiplies bfloat16 faster than float32 (as far as Linux tells).

    With amx_bf16 each does; with avx512_bf16 alone AMD's do, and Intel's take longer (docs/performance.md).
    """
    import tensorflow as tf

    if tf.config.list_physical_devices('GPU'):
        return True
    try:
        with open(processor) as file:
            words = set(file.read().split())
    except OSError:
        return False
    return 'amx_bf16' in words or {'avx512_bf16', 'AuthenticAMD'} <= words


def available_cores():
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def start(threads=None):
    """Import TensorFlow with one task of the meta-batch on each of `threads` cores; return that number.

    One thread inside an operation and one operation a core: the convolutions of a single task are too small to
    be worth dividing, and TensorFlow's default, all cores for each operation, is slower (docs/performance.md).
    Variables that the user set in the environment win.
    """
    global renderer
    # MuJoCo would load this renderer into the process of TensorFlow, and the two crash; rl/video.py has its own.
    if 'MUJOCO_GL' in os.environ:  # at the first start
        renderer = os.environ.pop('MUJOCO_GL') or None
    threads = threads or available_cores()
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '1')  # 2.9 times faster on MiniImagenet's images
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # its errors come as exceptions anyway
    os.environ.setdefault('TF_USE_LEGACY_KERAS', '1')  # TensorFlow loads one of two Keras, and this one sooner
    os.environ.setdefault('TF_FORCE_GPU_ALLOW_GROWTH', 'true')  # else one process takes all of a GPU's memory
    os.environ.setdefault('TF_NUM_INTRAOP_THREADS', '1')
    os.environ.setdefault('TF_NUM_INTEROP_THREADS', str(threads))
    kept = os.dup(2)
    with open(os.devnull, 'w') as nowhere:
        os.dup2(nowhere.fileno(), 2)  # while it is loaded, TensorFlow's C++ heeds no log level
    try:
        # As they are loaded, some modules of NumPy and h5py pass over any exception, and Ctrl-C would be lost.
        with ctrl_c_deferred():
            import numpy.random  # noqa: F401  NumPy itself does so at its first use
            import tensorflow as tf  # here, so that the settings above are read
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    tf.get_logger().setLevel('ERROR')  # several models in one process are no reason to warn of retracing
    # A GPU would multiply float32 with the 10 digits of TensorFloat-32: the meta-gradient is no longer the original's.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    return threads
