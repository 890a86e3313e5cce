"""Training on several devices or hosts with tf.distribute: the tasks of a meta-batch are divided over the replicas.

The mathematics stays in maml.py: its outer step averages gradients over the replicas, whatever their number.
"""

import os

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
    else:
        if 'TF_CONFIG' not in os.environ:
            raise UserError('--distribute=multiworker needs the environment variable TF_CONFIG: see the README')
        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except (ValueError, KeyError, TypeError, tf.errors.OpError) as error:
            raise UserError(f'TF_CONFIG cannot be used ({" ".join(str(error).split())}): see the README') from None
    if meta_batch_size % strategy.num_replicas_in_sync:
        raise UserError(
            f'--meta_batch_size={meta_batch_size} cannot be divided over {strategy.num_replicas_in_sync} '
            'replicas: choose a multiple of that'
        )
    return strategy


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

            try:
                metrics = outer_step(strategy.experimental_distribute_values_from_function(share), pretrain)
            except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.InternalError):
                raise UserError(
                    'another worker is gone: start all of them again, and they go on from the newest checkpoint'
                ) from None
            rows.append(strategy.experimental_local_results(metrics)[0].numpy())
        return np.stack(rows)

    return train_block


def share_state(strategy, variables, iteration):
    """Bring all replicas to the chief's state; return the chief's iteration."""
    if strategy.num_replicas_in_sync == 1:
        return iteration

    def from_chief():
        replica = tf.distribute.get_replica_context()
        chief = tf.equal(replica.replica_id_in_sync_group, 0)

        def chiefs(value):
            return replica.all_reduce('sum', tf.where(chief, value, tf.zeros_like(value)))

        for variable in variables:
            value = tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)
            tf.raw_ops.AssignVariableOp(resource=variable.handle, value=chiefs(value))
        return chiefs(tf.constant(iteration, tf.int64))

    return int(strategy.experimental_local_results(tf.function(lambda: strategy.run(from_chief))())[0])
