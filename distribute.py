"""Training on several devices or hosts with tf.distribute: the tasks of a meta-batch are divided over the replicas.

The mathematics stays in maml.py: its outer step averages gradients over the replicas, whatever their number.
"""

import contextlib
import json
import os
import signal
import sys
import zlib

import numpy as np
import tensorflow as tf

from runtime import UserError


def make_strategy(kind, meta_batch_size):
    """Return the tf.distribute strategy for --distribute; None: TensorFlow's default, a single replica.

    Must come before anything else that TensorFlow does. UserError when the tasks cannot be divided evenly.
    """
    if kind is None:
        return tf.distribute.get_strategy()
    if kind == 'mirrored':
        devices = tf.config.list_logical_devices('GPU') or tf.config.list_logical_devices('CPU')
        strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
        if len(devices) == 1:
            print('warning: --distribute=mirrored has one device to use here: nothing is divided', file=sys.stderr)
    else:
        if 'TF_CONFIG' not in os.environ:
            raise UserError('--distribute=multiworker needs the environment variable TF_CONFIG: see the README')
        try:
            config = json.loads(os.environ['TF_CONFIG'])
            if config['task']['type'] not in ('chief', 'worker'):
                raise ValueError('the task is neither a worker nor the chief')
            workers = [address for kind in ('chief', 'worker') for address in config['cluster'].get(kind, [])]
            print(f'waiting for all of {len(workers)} workers: {", ".join(workers)}')
            with killable():
                strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except (ValueError, KeyError, TypeError, AttributeError, tf.errors.OpError) as error:
            why = f'{error} is missing' if isinstance(error, KeyError) else ' '.join(str(error).split())
            raise UserError(f'TF_CONFIG cannot be used ({why}): see the README') from None
    if meta_batch_size % strategy.num_replicas_in_sync:
        raise UserError(
            f'--meta_batch_size={meta_batch_size} cannot be divided over {strategy.num_replicas_in_sync} '
            'replicas: choose a multiple of that'
        )
    return strategy


@contextlib.contextmanager
def killable():
    """Let Ctrl-C end the process at once: while TensorFlow waits, no handler of Python's would run."""
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def all_workers(strategy):
    """Say by UserError that a worker is gone, where TensorFlow cannot do without it."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError):
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
        raise UserError(
            'another worker is gone: start all of them again, and they go on from the newest checkpoint'
        ) from None


def is_chief(strategy):
    """Return whether this process is the one that reads and writes files, prints and tests."""
    return strategy.extended.should_checkpoint


def block_trainer(strategy, model):
    """Return a function like model.train_block that trains on all replicas; the same metrics on each."""
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return model.train_block

    @tf.function
    def outer_step(tasks, pretrain):
        return strategy.run(model.outer_step, args=(tasks, pretrain))

    def train_block(block, first, last, pretrain=False):
        rows = []
        for step in range(first, last):

            def share(context, step=step):
                """Return this replica's tasks: an equal part of the batch, by its place among all replicas."""
                tasks = block[0].shape[1] // replicas
                begin = context.replica_id_in_sync_group * tasks
                return tuple(part[step, begin : begin + tasks] for part in block)

            with all_workers(strategy):
                metrics = outer_step(strategy.experimental_distribute_values_from_function(share), pretrain)
            rows.append(strategy.experimental_local_results(metrics)[0].numpy())
        return np.stack(rows)

    return train_block


def stops(strategy):
    """Return a function of whether this process was asked to stop: whether any was, so that all stop together."""
    if strategy.num_replicas_in_sync == 1:
        return bool

    @tf.function
    def count(asked):
        return strategy.run(lambda: tf.distribute.get_replica_context().all_reduce('sum', tf.identity(asked)))

    def any_stops(asked):
        with all_workers(strategy):
            return bool(strategy.experimental_local_results(count(tf.constant(float(asked))))[0] > 0)

    return any_stops


def share_state(strategy, variables, iteration, settings):
    """Bring all replicas to the chief's state; return the chief's iteration.

    settings: a dictionary of what has to be the same in all processes; UserError in each where it is not.
    """
    if strategy.num_replicas_in_sync == 1:
        return iteration
    digest = zlib.crc32(json.dumps(settings, sort_keys=True, default=str).encode())

    def from_chief():
        replica = tf.distribute.get_replica_context()
        chief = tf.equal(replica.replica_id_in_sync_group, 0)

        def chiefs(value):
            return replica.all_reduce('sum', tf.where(chief, value, tf.zeros_like(value)))

        for variable in variables:
            value = tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)
            tf.raw_ops.AssignVariableOp(resource=variable.handle, value=chiefs(value))
        mine = tf.constant(digest, tf.int64)
        differ = replica.all_reduce('sum', tf.cast(mine != chiefs(mine), tf.int64))
        return chiefs(tf.constant(iteration, tf.int64)), differ

    with all_workers(strategy):
        iteration, differ = tf.function(lambda: strategy.run(from_chief))()
    if strategy.experimental_local_results(differ)[0]:
        raise UserError('the workers were started with different flags, or data: start all of them with the same')
    return int(strategy.experimental_local_results(iteration)[0])
