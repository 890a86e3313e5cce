"""What a run is, for every kind of learning: its folder, settings, checkpoints and summaries, how it stops and goes on.

A kind of learning brings its own loop and nothing else:

    with Run(config, origins, folder, model, total) as run:
        while run.goes_on():
            …                          # what an iteration is
            run.advance(run.iteration + 1)
"""

import contextlib
import itertools
import json
import os
import signal
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import checkpoint
from experiments import MULTITASK, SOURCES, config_beside, read_config
from runtime import UserError, not_written, replacing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Settings that may differ between the parts of one run, since they do not change what is trained. How many iterations
# were asked for is compared with how many are done.
FREE = {
    *('data_dir', 'log', 'logdir', 'resume', 'save_interval', 'train', 'test_iter', 'test_set', 'num_test_tasks'),
    *('test_num_updates', 'test_query', 'test_update_batch_size', 'test_update_lr', 'test_seed', 'video', 'threads'),
    *('adapt', 'predict', 'save_adapted', 'standard'),  # the last follows from the training data and the columns
    *('distribute', 'pretrain_iterations', 'metatrain_iterations', 'test_sampling_workers', 'update_lr_grid'),
    *('random_policies', 'max_to_keep', 'init_digest'),  # what init_from is compared by
}
# Settings that a test does not use: those of the run whose checkpoint is tested are kept with its result.
TRAINING = {
    *('seed', 'pretrain_iterations', 'metatrain_iterations', 'meta_batch_size', 'meta_lr', 'meta_step_size'),
    *('kl_constrain_step', 'train_query', 'stop_grad', 'save_interval', 'init_from', 'sampling_workers', 'data_digest'),
    *('hvp', 'subsample_factor', 'likelihood_ratio', 'meta_optimizer'),
}
TRAINING_RL = {'update_batch_size', 'update_lr'}  # a test has test_update_batch_size and test_update_lr
# Settings in which the weights that --init_from names can differ from the test's, which it then says.
TRAINED_WITH = (
    *('datasource', 'baseline', 'norm', 'max_pool', 'nonlinearity', 'stop_grad', 'num_updates'),
    *('train_update_batch_size', 'train_update_lr', 'precision'),
)


class Run:
    """A training in progress: a context manager around its loop.

    On entry the model is brought to where the run in `folder` stands, or to its start; on exit the state is saved.
    `iteration` counts the outer steps that are done, of `total`. `model` is what checkpoint.py can save. Only the chief
    of several processes (tf.distribute) reads and writes the folder.

    Raises UserError where the folder holds another run, or one that is being trained.
    Raises SystemExit (130) on exit when the user asked it to stop, by Ctrl-C or SIGTERM.
    """

    def __init__(self, config, origins, folder, model, total, chief=True):
        self.config, self.origins, self.folder, self.model = config, origins, folder, model
        self.total, self.chief, self.iteration, self.stop_requested = total, chief, 0, False
        self.exits = contextlib.ExitStack()

    def __enter__(self):
        self.seconds = 0.0  # of training, in all parts of the run before this one
        with self.exits:  # left here only where something fails
            if self.chief:
                self.exits.enter_context(locked(self.folder))
                self.iteration = self.prepare()
            self.start, self.saved = time.time(), self.iteration
            log = self.chief and self.config.log
            if log:
                self.exits.enter_context(summaries_in(self.folder))
            self.writer = tf.summary.create_file_writer(self.folder) if log else tf.summary.create_noop_writer()
            self.exits.enter_context(self.writer.as_default())
            look = dict(desc='training', unit=' iterations', dynamic_ncols=True, disable=None if self.chief else True)
            self.progress = self.exits.enter_context(tqdm(total=self.total, initial=self.iteration, **look))
            for number in (signal.SIGINT, signal.SIGTERM):
                self.exits.callback(signal.signal, number, signal.signal(number, self.request_stop))
            self.exits = self.exits.pop_all()
        return self

    def request_stop(self, number, _):
        """Let the loop end and save at the first Ctrl-C or SIGTERM; a second one ends the process at once."""
        self.stop_requested = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        tqdm.write('stopping after this iteration')

    def goes_on(self):
        """Whether there is an iteration left to do."""
        return self.iteration < self.total and not self.stop_requested

    def advance(self, iteration):
        """Note that so many iterations are done; save where a checkpoint is due."""
        self.progress.update(iteration - self.iteration)
        self.iteration = iteration
        if iteration % self.config.save_interval == 0:
            self.save()

    def save(self):
        """Write a checkpoint, unless the weights have become useless."""
        if not self.chief:
            return
        for name, weight in self.model.weights.items():
            if not np.all(np.isfinite(weight)):
                raise self.broken_off(f'{name} is not finite', self.iteration)
        seconds = self.seconds + time.time() - self.start
        numbers = {'iteration': self.iteration, 'seed': self.config.seed, 'seconds': seconds}
        checkpoint.save(self.folder, self.model, self.config.max_to_keep, **numbers)
        self.writer.flush()
        self.saved = self.iteration

    def broken_off(self, why, iteration):
        """Return the UserError for numbers that have become useless."""
        config = self.config
        adapts = config.num_updates > 0 and config.metatrain_iterations > 0 and config.baseline not in MULTITASK
        sizes = ['--update_lr'] * adapts
        trust_region = getattr(config, 'meta_optimizer', None) == 'trpo'
        sizes.append('--meta_step_size' if trust_region else '--meta_lr')
        saved = f'the last good checkpoint in {self.folder} is kept; ' if checkpoint.exists(self.folder) else ''
        stopped = f'iteration {iteration}: {why}: training stopped, {saved}'
        return UserError(f'{stopped}try a smaller {" or ".join(sizes)}')

    def __exit__(self, *raised):
        if raised[0] is not None:
            return self.exits.__exit__(*raised)
        with self.exits:
            if self.chief and (self.saved != self.iteration or not checkpoint.exists(self.folder)):
                self.save()
        print(
            f'{self.iteration} of {self.total} iterations done, {time.time() - self.start:.1f} s in this part; '
            f'checkpoints: {self.folder}'
        )
        if self.stop_requested:
            anew = '' if self.config.resume else ', without --resume=False or --force,'
            print(f'stopped: the same command{anew} goes on from here')
            raise SystemExit(130)

    def prepare(self):
        """Make or take up the folder and bring the model to its starting point; return the iteration."""
        if self.config.init_from:
            self.config.init_digest = checkpoint.digest(self.config.init_from)
        begun = checkpoint.exists(self.folder)
        best_alone = not begun and os.path.exists(os.path.join(self.folder, checkpoint.BEST))
        anew = not begun or not self.config.resume
        if anew and self.config.init_from:  # first, since it may be in this folder
            checkpoint.restore_weights(self.config.init_from, self.model)
            print(f'Starting from the weights of {self.config.init_from}')
        if best_alone or begun and anew:
            aside = put_aside(self.folder)
            self.exits.enter_context(locked(self.folder))  # a new one
            why = f'only {checkpoint.BEST} is left, no checkpoint to go on from' if best_alone else '--resume=False'
            print(f'{why}: the run that was in {self.folder} is now in {aside}')
            if self.config.init_from and not checkpoint.digest(self.config.init_from):  # they were in there
                self.config.init_from = os.path.join(aside, os.path.relpath(self.config.init_from, self.folder))
                print(f'to go on from here: --init_from={self.config.init_from}')
        if not anew:
            before = read_config(self.folder)
            check_same_run(self.config, before, self.folder)
            if self.config.init_from:
                self.config.init_digest = before.get('init_digest')
            path, state = checkpoint.restore_latest(self.folder, self.model)
            done = state.get('trained', state['iteration'])
            check_iterations(self.config, before, done, self.folder)
            if 'trained' in state and done < self.total:
                raise UserError(
                    f'{path} holds the weights after all of {done} iterations but no state of the optimiser, so that '
                    'training cannot go on: choose another --logdir, with --init_from to start from these weights'
                )
            self.seconds = state.get('seconds', 0.0)
            print(f'Restoring model weights from {path}: {done} iterations are done')
            if done < self.total:  # more may be asked for than at first
                write_config(self.config, self.origins, self.folder)
            return done
        write_config(self.config, self.origins, self.folder)
        return 0


@contextlib.contextmanager
def summaries_in(folder):
    """Make a UserError of TensorFlow's, where it cannot write a file in `folder`."""
    try:
        folder.encode()
    except UnicodeEncodeError:
        raise UserError(f'{folder!a} is no UTF-8, as summaries need: rename it, or add --log=False') from None
    try:
        yield
    except tf.errors.OpError as error:
        if folder not in error.message:
            raise
        raise not_written(f'a summary in {folder}', error.message.rpartition('; ')[2].split('\n')[0]) from None


@contextlib.contextmanager
def locked(folder):
    """Make `folder` and hold it, so that no second process trains in it; a killed process holds nothing.

    Raises UserError when another process holds it.
    """
    os.makedirs(folder, exist_ok=True)
    with contextlib.ExitStack() as exits:
        if fcntl:
            handle = os.open(folder, os.O_RDONLY)
            exits.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f'{folder} is being trained by another process: wait for it, or choose another --logdir'
                raise UserError(message) from None
        yield


def put_aside(folder):
    """Rename `folder`, of a run that begins anew, to the first free name `folder`.1, .2, …; return that name."""
    aside = next(f'{folder}.{n}' for n in itertools.count(1) if not os.path.exists(f'{folder}.{n}'))
    os.rename(folder, aside)
    return aside


def keep_to(config, trained, names):
    """Give `config` those settings of the run that is tested, `trained`; UserError where a flag says another."""
    for name in names:
        value = trained.get(name)
        if getattr(config, name) not in (None, value):
            shown = ','.join(map(str, value)) if isinstance(value, list) else value
            raise UserError(f'the run was made with --{name}={shown}: drop --{name} or use that')
        setattr(config, name, value)


def write_config(config, origins, folder):
    """Write config.json, the settings that a run was begun with, whole or not at all."""
    with replacing(os.path.join(folder, 'config.json')) as file:
        json.dump({'settings': vars(config), 'from_the_paper': origins}, file, indent=1)


def check_same_run(config, before, folder):
    """Refuse, by UserError, to go on with a run whose settings, `before`, were others."""
    for name, value in before.items():
        now, was = (
            getattr(config, name, value),
            f'made with --{name}={value}, not {getattr(config, name, None)}: use that,',
        )
        if name == 'init_from' and value and now:
            value, now = map(os.path.realpath, (value, now))
            if before.get('init_digest') and config.init_digest:  # wherever they are now
                was = f'started from other weights than are in {config.init_from} now: bring them back, or use'
                value, now = before['init_digest'], config.init_digest
        if name == 'data_digest':
            was = 'trained on other data than --data_dir has now: bring it back, or use'
        if name not in FREE and value != now:
            raise UserError(f'the run in {folder} was {was} another --logdir, or --resume=False to start anew')


def what_is_trained(config):
    """Return the settings that say what is trained, and for how long."""
    free = FREE - {'pretrain_iterations', 'metatrain_iterations'}
    return {name: value for name, value in vars(config).items() if name not in free}


def check_iterations(config, before, done, folder):
    """Refuse, by UserError, iterations after which the run in `folder`, `done` of them, would not be what is asked."""
    pretrain = [settings.get('pretrain_iterations', 0) for settings in (before, vars(config))]
    if pretrain[0] != pretrain[1] and done > min(pretrain):
        raise UserError(
            f'the run in {folder} was pretrained for --pretrain_iterations={pretrain[0]}, not {pretrain[1]}, and has '
            f'{done} iterations: use that, another --logdir, or --resume=False to start anew'
        )
    total = pretrain[1] + config.metatrain_iterations
    if done > total:
        raise UserError(
            f'the run in {folder} has {done} iterations, more than the {total} asked for: ask for as many, choose '
            'another --logdir, or test an earlier checkpoint with --train=False --test_iter'
        )


def history(config, path, state):
    """Return what a test's result says of the training behind the checkpoint `path`, whose numbers are `state`.

    A dictionary: the checkpoint and its iteration, how many iterations were done and asked for, the seconds that they
    took, the settings, those of the training from the run's own config.json (None where there is none), the λ of the
    training (the settings have the test's), and trained_with: what the weights were trained with that the test's
    settings say otherwise (None where there is no config.json). Of weights that --adapt made also `adapted`, its steps.
    """
    trained = config_beside(path)
    done, seconds = checkpoint.done(os.path.dirname(path) or '.')
    rl = SOURCES[config.datasource].rl
    of_training = TRAINING | (TRAINING_RL if rl else set())
    asked = [trained.get(name) for name in ('pretrain_iterations', 'metatrain_iterations')]
    of_weights = [n for n in (*TRAINED_WITH, *['update_lr'] * rl) if n in trained and hasattr(config, n)]
    others = {n: trained[n] for n in of_weights if trained[n] != getattr(config, n)}
    meta_trained = [bool(now) for now in (trained.get('metatrain_iterations', True), config.metatrain_iterations)]
    if trained and meta_trained[0] != meta_trained[1]:
        others['metatrain_iterations'] = trained['metatrain_iterations']
    return {
        'checkpoint': path,
        'iteration': state.get('iteration'),
        'iterations': done or state.get('iteration'),
        'iterations_asked': sum(filter(None, asked)) if trained else None,
        'seconds_trained': seconds if done else state.get('seconds'),
        'settings': {k: trained.get(k) if k in of_training else v for k, v in vars(config).items()},
        **({'gae_lambda_of_training': trained.get('gae_lambda')} if rl else {}),
        **({'adapted': state['adapted']} if 'adapted' in state else {}),
        'trained_with': others if trained else None,
    }
