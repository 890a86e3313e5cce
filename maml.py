"""Model-Agnostic Meta-Learning (Finn, Abbeel, Levine 2017, Algorithms 1 and 2), for any network and loss.

Everything is functional over a dictionary of weights: `network.forward(x, theta)`. The algorithm is `inner_step`,
`task_metalearn` (one task) and `meta_gradient` (all tasks); the paper's networks are in networks.py, its tasks in
data_generator.py, and when to stop is training.py's business.
"""

import functools

import tensorflow as tf

from utils import Adam, mse


class MAML:
    """MAML for one network: its weights, the meta-training step and the evaluation.

    A batch of tasks is a tuple (inputa, labela, inputb, labelb), the support set a and the query set b, each
    [tasks, examples, …]: floats, integers (which the network gets as they are), or uint8 images as inputs, which are
    divided by 255 here.

    network: see networks.py.
    loss_func: (outputs, labels) of one task's examples -> scalar; measure: the same for what tests report and
        training logs beside the loss, such as the accuracy (None: the loss alone).
    update_lr, num_updates: alpha, and the number of inner steps in training; stop_grad: first-order MAML;
        learn_update_lr: one alpha a tensor and step is trained too ("may be meta-learned", section 2.2). A step or test
        that has once been compiled keeps them; evaluate takes another alpha, a tensor.
    meta_lr, clip: beta, and the element-wise limit of the meta-gradient.
    vectorize: all tasks as one batched computation, compiled by XLA, best for small fully connected networks; otherwise
        a task at a time on each of parallel_tasks cores.
    xla: compile the training step of the latter way too, and the evaluation, best on a GPU (docs/performance.md).
    seed, dtype: of the initial weights.

    Raises ValueError for num_updates below 1, and for a weight that is called update_lr.
    """

    def __init__(
        self,
        network,
        loss_func=mse,
        measure=None,
        update_lr=0.01,
        num_updates=1,
        stop_grad=False,
        learn_update_lr=False,
        meta_lr=0.001,
        clip=None,
        vectorize=False,
        parallel_tasks=2,
        xla=False,
        seed=1,
        dtype=tf.float32,
    ):
        if num_updates < 1:
            raise ValueError(f'num_updates={num_updates}: there must be an inner step')
        self.network, self.forward, self.adapted = network, network.forward, list(network.adapted)
        self.loss_func, self.measure = loss_func, measure
        self.update_lr, self.num_updates = update_lr, num_updates
        self.stop_grad, self.learn_update_lr, self.clip = stop_grad, learn_update_lr, clip
        self.vectorize, self.parallel_tasks, self.dtype = vectorize, parallel_tasks, dtype
        self.xla = vectorize or xla
        initial = dict(network.init(seed))
        if 'update_lr' in initial:
            raise ValueError('no weight can be called update_lr: that is the step size')
        if learn_update_lr:
            alpha = tf.fill([num_updates], tf.constant(update_lr, dtype))
            initial |= {f'update_lr/{name}': alpha for name in self.adapted}
        self.weights = {name: tf.Variable(tf.cast(value, dtype), name=name) for name, value in initial.items()}
        # Two optimisers that share no slots, as in the original (maml: maml.py:142,145).
        self.pretrain_adam, self.metatrain_adam = Adam(self.weights, meta_lr), Adam(self.weights, meta_lr)
        self.compiled_block = tf.function(self.outer_steps, jit_compile=self.xla or None)
        self.evaluate = tf.function(self._evaluate, jit_compile=xla or None)

    def theta(self):
        """Return the weights as tensors, by name."""
        return {name: tf.convert_to_tensor(weight) for name, weight in self.weights.items()}

    # ---- The algorithm -------------------------------------------------------------------------------------

    def inner_step(self, theta, inputa, labela, step):
        """Return theta'_i = theta - alpha * grad L_i(f_theta) on the support set, L_i and the outputs."""
        adapted = {name: theta[name] for name in self.adapted}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(adapted)
            output = self.forward(inputa, theta)
            loss = self.loss_func(output, labela)
        gradients = dense(tape.gradient(loss, adapted, unconnected_gradients='zero'))
        if self.stop_grad:  # first-order MAML
            gradients = {name: tf.stop_gradient(gradient) for name, gradient in gradients.items()}
        updated = {name: adapted[name] - self.alpha(theta, name, step) * gradients[name] for name in adapted}
        return {**theta, **updated}, loss, output

    def alpha(self, theta, name, step):
        """Return the inner step size of one weight; beyond training's steps a learned one stays at its last."""
        if 'update_lr' in theta:  # one to be tried
            return theta['update_lr']
        if not self.learn_update_lr:
            return tf.constant(self.update_lr, self.dtype)
        return theta[f'update_lr/{name}'][min(step, self.num_updates - 1)]

    def task_metalearn(self, theta, task):
        """Return the meta-gradient of one task i: d/d theta of L_i(f_theta'_i) on the query set (Algorithm 2, 5-10).

        With it come the metrics [loss on a before, loss on b after num_updates steps, and where there is a measure the
        same two of it].
        """
        inputa, labela, inputb, labelb = self.prepare(task)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(theta)
            fast_weights, lossa, outputa = self.inner_step(theta, inputa, labela, 0)
            for step in range(1, self.num_updates):
                fast_weights, _, _ = self.inner_step(fast_weights, inputa, labela, step)
            outputb = self.forward(inputb, fast_weights)
            lossb = self.loss_func(outputb, labelb)
        gradients = dense(tape.gradient(lossb, theta, unconnected_gradients='zero'))
        return gradients, self.metrics(lossa, lossb, outputa, labela, outputb, labelb)

    def task_pretrain(self, theta, task):
        """Return the gradient of one task's support loss at theta, the pretraining objective (maml: maml.py:142)."""
        inputa, labela, inputb, labelb = self.prepare(task)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(theta)
            outputa = self.forward(inputa, theta)
            lossa = self.loss_func(outputa, labela)
        gradients = dense(tape.gradient(lossa, theta, unconnected_gradients='zero'))
        fast_weights = theta
        for step in range(self.num_updates):  # for the log alone
            fast_weights, _, _ = self.inner_step(fast_weights, inputa, labela, step)
        outputb = self.forward(inputb, fast_weights)
        return gradients, self.metrics(lossa, self.loss_func(outputb, labelb), outputa, labela, outputb, labelb)

    def task_evaluate(self, theta, task, num_updates):
        """Return the measures (where there is none, losses) of one task, [2 + num_updates].

        The support set before adaptation, then the query set after 0, 1, … num_updates inner steps.
        """
        inputa, labela, inputb, labelb = self.prepare(task)
        measure = self.measure or self.loss_func
        rows = [measure(self.forward(inputa, theta), labela), measure(self.forward(inputb, theta), labelb)]
        for step in range(num_updates):
            theta, _, _ = self.inner_step(theta, inputa, labela, step)
            rows.append(measure(self.forward(inputb, theta), labelb))
        return tf.stack(rows)

    def adapt(self, inputa, labela, num_updates):
        """Return the weights after so many inner steps on the support set of one task: a dictionary of tensors."""
        inputa, labela = self.prepare([inputa, labela])
        theta = self.theta()
        for step in range(num_updates):
            theta, _, _ = self.inner_step(theta, inputa, labela, step)
        return theta

    def outputs(self, task, num_updates):
        """Return the outputs on one task's query set after so many inner steps: an array."""
        inputa, labela, inputb, _ = self.prepare(task)
        return self.forward(inputb, self.adapt(inputa, labela, num_updates)).numpy()

    def meta_gradient(self, tasks, pretrain=False):
        """Return the mean over the tasks of their meta-gradients (Algorithm 2, line 10) and of their metrics.

        Both tapes live inside the mapped function, so that memory does not grow with the number of tasks and
        each core works on a task of its own.
        """
        theta = self.theta()
        task_gradient = self.task_pretrain if pretrain else self.task_metalearn
        gradients, metrics = self.map_tasks(
            functools.partial(task_gradient, theta), tasks, (dict.fromkeys(theta, self.dtype), self.dtype)
        )
        mean = functools.partial(tf.reduce_mean, axis=0)
        return tf.nest.map_structure(mean, gradients), mean(metrics)

    def map_tasks(self, function, tasks, dtype):
        """Return function(task) for every task, stacked: as one batched computation, or a task a core."""
        if self.vectorize:  # small fully connected nets: batched matmuls, no per-op overhead
            return tf.vectorized_map(function, tasks)
        numbers = tf.range(len(tasks[0]))  # mapping these and not the tasks themselves saves a copy of the images
        return tf.map_fn(
            lambda i: function([part[i] for part in tasks]),
            numbers,
            fn_output_signature=dtype,
            parallel_iterations=self.parallel_tasks,
        )

    def outer_step(self, tasks, pretrain=False):
        """Do one outer step, theta <- theta - beta * (…), by Adam; return the metrics before it."""
        gradients, metrics = self.meta_gradient(tasks, pretrain)
        # Over all replicas of a tf.distribute strategy, each of which has its share of the tasks; else: as they are.
        gradients, metrics = tf.distribute.get_replica_context().all_reduce('mean', [gradients, metrics])
        if self.clip and not pretrain:  # MiniImagenet: element-wise, before Adam (maml: maml.py:147-149)
            gradients = {name: tf.clip_by_value(g, -self.clip, self.clip) for name, g in gradients.items()}
        (self.pretrain_adam if pretrain else self.metatrain_adam).apply(self.weights, gradients)
        return metrics

    def outer_steps(self, block, first, last, pretrain=False):
        """Do outer_step for batches first … last - 1 of a block [iterations, tasks, …]; return metrics by batch."""
        metrics = tf.TensorArray(self.dtype, block[0].shape[0], element_shape=[4 if self.measure else 2])
        step = first
        while step < last:  # not tf.range, whose length XLA wants to know: it would compile anew for each other one
            metrics = metrics.write(step, self.outer_step([part[step] for part in block], pretrain))
            step += 1
        return metrics.stack()

    def train_block(self, block, first, last, pretrain=False):
        """Do outer_steps as one compiled call; return NumPy metrics [last - first, 2 or 4].

        Raises ValueError where the block has fewer than `last` batches.
        """
        if last > len(block[0]):
            raise ValueError(f'last={last}, but the block has {len(block[0])} batches')
        metrics = self.compiled_block(block, tf.constant(first), tf.constant(last), pretrain)
        return metrics.numpy()[first:last]

    def _evaluate(self, tasks, num_updates, update_lr=None):
        """Return task_evaluate of all tasks, [tasks, 2 + num_updates]; with this scalar in place of alpha, if given."""
        theta = self.theta()
        if update_lr is not None:
            theta['update_lr'] = update_lr
        return self.map_tasks(lambda task: self.task_evaluate(theta, task, num_updates), tasks, self.dtype)

    def prepare(self, task):
        """Bring one task's arrays to this model's dtype: inputs in uint8 are pixels, 0 … 1; other integers stay."""

        def prepared(part, pixels):
            part = tf.convert_to_tensor(part)
            if pixels and part.dtype == tf.uint8:
                return tf.cast(part, self.dtype) / 255
            return part if part.dtype.is_integer else tf.cast(part, self.dtype)

        return [prepared(part, pixels=number % 2 == 0) for number, part in enumerate(task)]  # inputs, labels, inputs …

    def metrics(self, lossa, lossb, outputa, labela, outputb, labelb):
        """Return the numbers that training logs: losses and, where there is a measure, that."""
        measures = [self.measure(outputa, labela), self.measure(outputb, labelb)] if self.measure else []
        return tf.stack([lossa, lossb, *measures])


def dense(gradients):
    """Return gradients by name as plain tensors: that of an embedding comes as the slices that were looked up."""
    return {name: tf.convert_to_tensor(gradient) for name, gradient in gradients.items()}
