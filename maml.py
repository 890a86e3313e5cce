"""Model-Agnostic Meta-Learning (Finn, Abbeel, Levine 2017, Algorithms 1 and 2) and its networks.

Everything is functional over a dictionary of weights with the original's names: `forward(x, theta)`. The
algorithm is `task_metalearn` (one task) and `meta_gradient` (all tasks); where the tasks come from is
data_generator.py's business, and when to stop main.py's.
"""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from utils import Adam, accuracy, add_bias, conv_block, mse, normalize, xent


@dataclasses.dataclass(frozen=True)
class Network:
    """What the network looks like; the defaults are the sinusoid's (original maml.py:23-47)."""

    dim_output: int = 1
    dim_input: int = 1  # flat; images are img_size * img_size * channels
    dim_hidden: tuple = (40, 40)  # of the fully connected networks
    conv: bool = False
    img_size: int = 0
    channels: int = 0
    num_filters: int = 64
    max_pool: bool = False
    flatten: bool = False  # head of the conv nets: flatten (MiniImagenet) or mean over positions
    norm: str = 'None'


class MAML:
    """MAML for one network: its weights, the meta-training step and the evaluation.

    A batch of tasks is a tuple (inputa, labela, inputb, labelb), the support set a and the query set b, each
    [tasks, examples, …]; inputs are float, or uint8 images that are divided by 255 here. Sinusoid labels are
    [tasks, examples, 1]; class labels are one-hot [tasks, examples, classes].
    """

    def __init__(
        self,
        network,
        classification=False,
        update_batch_size=10,
        update_lr=0.01,
        num_updates=1,
        stop_grad=False,
        learn_update_lr=False,
        meta_lr=0.001,
        clip=None,
        vectorize=False,
        parallel_tasks=2,
        seed=1,
        dtype=tf.float32,
    ):
        self.network, self.dtype = network, dtype
        self.classification = classification
        self.update_lr, self.num_updates = update_lr, num_updates  # alpha, inner steps in training
        self.stop_grad, self.learn_update_lr, self.clip = stop_grad, learn_update_lr, clip
        self.vectorize, self.parallel_tasks = vectorize, parallel_tasks
        self.loss_func = functools.partial(xent, update_batch_size=update_batch_size) if classification else mse
        self.forward = self.forward_conv if network.conv else self.forward_fc
        initial = self.construct_conv_weights(seed) if network.conv else self.construct_fc_weights(seed)
        self.adapted = list(initial)  # the weights that the inner loop adapts; norm parameters are not
        initial.update(self.construct_norm_weights())
        if learn_update_lr:  # one alpha a tensor and step ("may be meta-learned", section 2.2)
            initial.update(
                {f'update_lr/{name}': tf.fill([num_updates], tf.cast(update_lr, dtype)) for name in self.adapted}
            )
        self.weights = {name: tf.Variable(tf.cast(value, dtype), name=name) for name, value in initial.items()}
        # Two optimisers that share no slots, as in the original (maml.py:142,145).
        self.pretrain_adam, self.metatrain_adam = Adam(self.weights, meta_lr), Adam(self.weights, meta_lr)
        self.train_step = tf.function(self.outer_step)
        self.compiled_block = tf.function(self.outer_steps, jit_compile=vectorize or None)
        self.evaluate = tf.function(self._evaluate)

    # ---- The algorithm -------------------------------------------------------------------------------------

    def inner_step(self, theta, inputa, labela, step):
        """theta'_i = theta - alpha * grad L_i(f_theta) on the support set; also returns L_i and the outputs."""
        adapted = {name: theta[name] for name in self.adapted}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(adapted)
            output = self.forward(inputa, {**theta, **adapted})
            loss = self.loss_func(output, labela)
        gradients = tape.gradient(loss, adapted, unconnected_gradients='zero')
        if self.stop_grad:  # first-order MAML
            gradients = {name: tf.stop_gradient(gradient) for name, gradient in gradients.items()}
        updated = {name: adapted[name] - self.alpha(theta, name, step) * gradients[name] for name in adapted}
        return {**theta, **updated}, loss, output

    def alpha(self, theta, name, step):
        """Inner step size of one weight; a learned one stays at its last value in the steps beyond training."""
        if not self.learn_update_lr:
            return tf.cast(self.update_lr, self.dtype)
        return theta[f'update_lr/{name}'][min(step, self.num_updates - 1)]

    def task_metalearn(self, theta, task):
        """Meta-gradient of one task i: d/d theta of L_i(f_theta'_i) on the query set (Algorithm 2, lines 5-10).

        Returns (gradients, metrics); metrics are [loss on a before, loss on b after num_updates steps, and for
        classification the same two accuracies].
        """
        inputa, labela, inputb, labelb = self.prepare(task)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(theta)
            fast_weights, lossa, outputa = self.inner_step(theta, inputa, labela, 0)
            for step in range(1, self.num_updates):
                fast_weights, _, _ = self.inner_step(fast_weights, inputa, labela, step)
            outputb = self.forward(inputb, fast_weights)
            lossb = self.loss_func(outputb, labelb)
        gradients = tape.gradient(lossb, theta, unconnected_gradients='zero')
        return gradients, self.metrics(lossa, lossb, outputa, labela, outputb, labelb)

    def task_pretrain(self, theta, task):
        """Gradient of one task's support loss at theta, the pretraining objective (original maml.py:142)."""
        inputa, labela, inputb, labelb = self.prepare(task)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(theta)
            outputa = self.forward(inputa, theta)
            lossa = self.loss_func(outputa, labela)
        gradients = tape.gradient(lossa, theta, unconnected_gradients='zero')
        fast_weights, _, _ = self.inner_step(theta, inputa, labela, 0)  # for the log alone
        outputb = self.forward(inputb, fast_weights)
        return gradients, self.metrics(lossa, self.loss_func(outputb, labelb), outputa, labela, outputb, labelb)

    def task_evaluate(self, theta, task, num_updates):
        """Losses (accuracies for classification) of one task, [2 + num_updates].

        The support set before adaptation, then the query set after 0, 1, … num_updates inner steps.
        """
        inputa, labela, inputb, labelb = self.prepare(task)
        measure = accuracy if self.classification else self.loss_func
        rows = [measure(self.forward(inputa, theta), labela), measure(self.forward(inputb, theta), labelb)]
        for step in range(num_updates):
            theta, _, _ = self.inner_step(theta, inputa, labela, step)
            rows.append(measure(self.forward(inputb, theta), labelb))
        return tf.stack(rows)

    def meta_gradient(self, tasks, pretrain=False):
        """Mean over the tasks of their meta-gradients (Algorithm 2, line 10) and of their metrics.

        Both tapes live inside the mapped function, so that memory does not grow with the number of tasks and
        each core works on a task of its own.
        """
        theta = {name: tf.convert_to_tensor(weight) for name, weight in self.weights.items()}
        task_gradient = self.task_pretrain if pretrain else self.task_metalearn
        gradients, metrics = self.map_tasks(
            functools.partial(task_gradient, theta), tasks, (dict.fromkeys(theta, self.dtype), self.dtype)
        )
        mean = functools.partial(tf.reduce_mean, axis=0)
        return tf.nest.map_structure(mean, gradients), mean(metrics)

    def map_tasks(self, function, tasks, dtype):
        """function(task) for every task, results stacked: as one batched computation, or a task a core."""
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
        """One outer step, theta <- theta - beta * (…), by Adam; returns the metrics before it."""
        gradients, metrics = self.meta_gradient(tasks, pretrain)
        # Over all replicas of a tf.distribute strategy, each of which has its share of the tasks; else: as they are.
        gradients, metrics = tf.distribute.get_replica_context().all_reduce('mean', [gradients, metrics])
        if self.clip and not pretrain:  # MiniImagenet: element-wise, before Adam (original maml.py:147-149)
            gradients = {name: tf.clip_by_value(g, -self.clip, self.clip) for name, g in gradients.items()}
        (self.pretrain_adam if pretrain else self.metatrain_adam).apply(self.weights, gradients)
        return metrics

    def outer_steps(self, block, first, last, pretrain=False):
        """outer_step for batches first … last - 1 of a block [iterations, tasks, …]; metrics, a row a batch."""
        numbers = 4 if self.classification else 2
        metrics = tf.TensorArray(self.dtype, size=block[0].shape[0], element_shape=[numbers])
        for step in tf.range(first, last):
            metrics = metrics.write(step, self.outer_step([part[step] for part in block], pretrain))
        return metrics.stack()

    def train_block(self, block, first, last, pretrain=False):
        """outer_steps as one compiled call: NumPy metrics [last - first, 2 or 4]."""
        metrics = self.compiled_block(block, tf.constant(first), tf.constant(last), pretrain)
        return metrics.numpy()[first:last]

    def _evaluate(self, tasks, num_updates):
        """task_evaluate for all tasks: [tasks, 2 + num_updates]."""
        theta = {name: tf.convert_to_tensor(weight) for name, weight in self.weights.items()}
        return self.map_tasks(lambda task: self.task_evaluate(theta, task, num_updates), tasks, self.dtype)

    def prepare(self, task):
        """Bring one task's arrays to this model's dtype; uint8 pixels become 0 … 1."""
        return [tf.cast(part, self.dtype) / (255 if part.dtype == tf.uint8 else 1) for part in task]

    def metrics(self, lossa, lossb, outputa, labela, outputb, labelb):
        """The numbers that training logs: losses and, for classification, accuracies."""
        accuracies = [accuracy(outputa, labela), accuracy(outputb, labelb)] if self.classification else []
        return tf.stack([lossa, lossb, *accuracies])

    # ---- The networks --------------------------------------------------------------------------------------

    def construct_fc_weights(self, seed):
        """w1, b1, w2, …: truncated normal of deviation 0.01, biases 0 (original maml.py:168-176)."""
        sizes = [self.network.dim_input, *self.network.dim_hidden, self.network.dim_output]
        weights = {}
        for i, (rows, columns) in enumerate(zip(sizes, sizes[1:]), start=1):
            weights[f'w{i}'] = tf.random.stateless_truncated_normal([rows, columns], [seed, i], stddev=0.01)
            weights[f'b{i}'] = tf.zeros([columns])
        return weights

    def forward_fc(self, x, weights):
        """Fully connected network on [examples, dim_input]; norm and ReLU on every hidden layer."""
        layers, norm = len(self.network.dim_hidden), self.network.norm
        for i in range(1, layers + 1):
            x = add_bias(tf.matmul(x, weights[f'w{i}']), weights[f'b{i}'], norm)
            x = tf.nn.relu(normalize(x, weights, norm, self.norm_scopes()[i - 1]))
        return tf.matmul(x, weights[f'w{layers + 1}']) + weights[f'b{layers + 1}']

    def construct_conv_weights(self, seed):
        """conv1, b1, … conv4, b4, w5, b5 (original maml.py:186-208)."""
        network, weights = self.network, {}
        channels = network.channels
        for i in range(1, 5):
            weights[f'conv{i}'] = xavier_uniform([3, 3, channels, network.num_filters], [seed, i])
            weights[f'b{i}'] = tf.zeros([network.num_filters])
            channels = network.num_filters
        if network.flatten:
            size = network.img_size
            for _ in range(4):
                size = size // 2 if network.max_pool else -(-size // 2)  # VALID pool, SAME stride
            weights['w5'] = xavier_uniform([size * size * channels, network.dim_output], [seed, 5])
        else:
            weights['w5'] = tf.random.stateless_normal([channels, network.dim_output], [seed, 5])
        weights['b5'] = tf.zeros([network.dim_output])
        return weights

    def forward_conv(self, x, weights):
        """Four conv blocks and a linear layer on flat images [examples, dim_input]."""
        network = self.network
        x = tf.reshape(x, [x.shape[0], network.img_size, network.img_size, network.channels])
        for layer in range(1, 5):
            x = conv_block(x, weights, layer, network.norm, network.max_pool)
        x = tf.reshape(x, [x.shape[0], -1]) if network.flatten else tf.reduce_mean(x, [1, 2])
        return tf.matmul(x, weights['w5']) + weights['b5']

    def norm_scopes(self):
        """The original's names of the norm layers: 0 1 2 3, and 0 2 3 4 for fully connected nets."""
        return [0, 1, 2, 3] if self.network.conv else [0, *range(2, len(self.network.dim_hidden) + 1)]

    def construct_norm_weights(self):
        """Norm parameters, shared by all inner steps and both sets; not adapted, but trained by the outer step."""
        network = self.network
        sizes = [network.num_filters] * 4 if network.conv else network.dim_hidden
        weights = {}
        if network.norm in ('batch_norm', 'layer_norm'):
            weights.update({f'bn/{s}/beta': tf.zeros([size]) for s, size in zip(self.norm_scopes(), sizes)})
        if network.norm == 'layer_norm':
            weights.update({f'bn/{s}/gamma': tf.ones([size]) for s, size in zip(self.norm_scopes(), sizes)})
        return weights


def xavier_uniform(shape, seed):
    """Uniform in ±sqrt(6 / (fan in + fan out)) (Glorot and Bengio 2010); kernels count their 3x3 positions."""
    receptive = int(np.prod(shape[:-2]))
    limit = np.sqrt(6 / (receptive * (shape[-2] + shape[-1])))
    return tf.random.stateless_uniform(shape, seed, -limit, limit)
