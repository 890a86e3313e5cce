"""MAML's meta-iteration as users of PyTorch write it, for `benchmark.py --peers`; needs torch.

`loop`: a task at a time through autograd, create_graph for the second derivatives; `vmap`: torch.func over all tasks at
once. Each computes what a MAML model of maml.py computes, from its weights, on the same tasks: where torch is installed
tests/test_peers.py holds them to the conformance vectors.
"""

import functools
import sys
import warnings

sys.modules['triton'] = None  # torch would load it without using it on a CPU; beside TensorFlow it crashes

import torch  # noqa: E402
from torch.nn import functional  # noqa: E402

from networks import Convolutional  # noqa: E402
from utils import BATCH_NORM_EPSILON  # noqa: E402

warnings.filterwarnings('ignore', 'CUDA initialization')  # a machine without a GPU


class Peer:
    """The meta-training step of a MAML model (maml.MAML with the paper's networks, fixed alpha) in PyTorch.

    way: 'loop' or 'vmap'. A batch of tasks is as MAML's: arrays inputa, labela, inputb, labelb, [tasks, examples, …].
    """

    def __init__(self, model, way, threads):
        torch.set_num_threads(threads)
        self.network, self.num_updates, self.stop_grad = model.network, model.num_updates, model.stop_grad
        self.update_lr, self.clip, self.shots = model.update_lr, model.clip, getattr(model.loss_func, 'keywords', {})
        self.weights = {name: torch.tensor(as_torch(w.numpy())).requires_grad_() for name, w in model.weights.items()}
        self.adam = torch.optim.Adam(self.weights.values(), model.metatrain_adam.learning_rate)
        self.backward = {'loop': self.backward_by_loop, 'vmap': self.backward_by_vmap}[way]

    def step(self, tasks):
        """Do an outer step; returns the meta-gradient before clipping, arrays by name in TensorFlow's layout."""
        self.adam.zero_grad()
        self.backward(*[prepared(part) for part in tasks])
        gradients = {name: as_tensorflow(weight.grad.numpy().copy()) for name, weight in self.weights.items()}
        if self.clip:
            torch.nn.utils.clip_grad_value_(self.weights.values(), self.clip)
        self.adam.step()
        return gradients

    def backward_by_loop(self, *tasks):
        """Leave the mean meta-gradient in weight.grad, task by task."""
        for inputa, labela, inputb, labelb in zip(*tasks):
            fast = self.weights
            for _ in range(self.num_updates):
                loss, adapted = self.loss(fast, inputa, labela), [fast[name] for name in self.network.adapted]
                gradients = torch.autograd.grad(loss, adapted, create_graph=not self.stop_grad)
                fast = self.updated(fast, dict(zip(self.network.adapted, gradients)))
            (self.loss(fast, inputb, labelb) / len(tasks[0])).backward()

    def backward_by_vmap(self, *tasks):
        """Leave the mean meta-gradient in weight.grad, all tasks as one batched computation."""

        def query_loss(inputa, labela, inputb, labelb):
            fast = self.weights
            for _ in range(self.num_updates):
                adapted = {name: fast[name] for name in self.network.adapted}
                gradients = torch.func.grad(lambda a, fast=fast: self.loss({**fast, **a}, inputa, labela))(adapted)
                if self.stop_grad:
                    gradients = {name: gradient.detach() for name, gradient in gradients.items()}
                fast = self.updated(fast, gradients)
            return self.loss(fast, inputb, labelb)

        torch.func.vmap(query_loss)(*tasks).mean().backward()

    def updated(self, fast, gradients):
        """Return the weights after an inner step."""
        return {**fast, **{name: fast[name] - self.update_lr * gradient for name, gradient in gradients.items()}}

    def loss(self, weights, inputs, labels):
        """Return the loss of maml.MAML's loss_func: utils.xent for images, utils.mse."""
        outputs = self.forward(inputs, weights)
        if self.shots:
            return functional.cross_entropy(outputs, labels, reduction='sum') / self.shots['update_batch_size']
        return functional.mse_loss(outputs, labels)

    def forward(self, x, weights):
        """Return the outputs of networks.Convolutional or networks.FullyConnected."""
        network = self.network
        norm = functools.partial(normalized, network.norm, weights)
        if not isinstance(network, Convolutional):
            for i, scope in enumerate(network.norm_scopes, start=1):
                x = functional.relu(norm(x @ weights[f'w{i}'] + weights[f'b{i}'], scope))
            last = len(network.dim_hidden) + 1
            return x @ weights[f'w{last}'] + weights[f'b{last}']
        x = x.reshape(-1, network.img_size, network.img_size, network.channels).movedim(-1, 1)
        for i in range(1, network.blocks + 1):
            stride = 1 if network.max_pool else 2
            # TensorFlow's 'SAME': with stride 2 and an even size the padding is on one side alone.
            first = 1 if network.max_pool or x.shape[-1] % 2 else 0
            x = functional.pad(x, (first, 1, first, 1))
            x = functional.conv2d(x, weights[f'conv{i}'], weights[f'b{i}'], stride)
            x = functional.relu(norm(x, i - 1))
            x = functional.max_pool2d(x, 2) if network.max_pool else x
        x = x.movedim(1, -1).flatten(1) if network.flatten else x.mean((2, 3))
        return x @ weights['w5'] + weights['b5']


def normalized(norm, weights, x, scope):
    """Return x after the batch's own batch norm, or as it is."""
    if norm == 'None':
        return x
    return functional.batch_norm(x, None, None, bias=weights[f'bn/{scope}/beta'], training=True, eps=BATCH_NORM_EPSILON)


def prepared(part):
    """Return a part of a batch of tasks as float tensor, uint8 pixels as 0 … 1."""
    part = torch.as_tensor(part)
    return part.float() / 255 if part.dtype == torch.uint8 else part.float()


def as_torch(weight):
    """Return a kernel [height, width, in, out] as [out, in, height, width], other weights as they are."""
    return weight.transpose(3, 2, 0, 1).copy() if weight.ndim == 4 else weight


def as_tensorflow(weight):
    """Return the reverse of as_torch."""
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight
