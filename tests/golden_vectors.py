"""Reads the conformance vectors in golden/supervised (docs/conformance.md says what they are)."""

import functools
import hashlib
import json
import pathlib

import numpy as np

from maml import MAML
from networks import Convolutional, FullyConnected
from utils import accuracy, mse, xent

FOLDER = pathlib.Path(__file__).parent / 'golden' / 'supervised'
CASES = sorted(path.stem for path in FOLDER.glob('*.npz'))
IMAGES = {'omniglot': dict(img_size=28, channels=1), 'miniimagenet': dict(img_size=84, channels=3, flatten=True)}


class Case:
    """One vector file: `flags`, start `weights`, a batch of `tasks`, and what the original computed from them."""

    def __init__(self, name):
        with np.load(FOLDER / f'{name}.npz') as file:
            self.arrays = {key: file[key] for key in file.files}
        self.flags = json.loads(str(self.arrays['flags']))
        self.inert = set(json.loads(str(self.arrays['inert'])))
        self.weights = self.make_weights()
        self.compared = [name for name in self.weights if name not in self.inert]
        self.tasks = self.make_tasks()

    def __getitem__(self, key):
        return self.arrays[key]

    def make_weights(self):
        recipe = json.loads(str(self['w_recipe']))
        rng = np.random.RandomState(recipe['seed'])
        return {
            name: np.float32(recipe['offset'][name] + recipe['scale'][name] * rng.randn(*recipe['shape'][name]))
            for name in recipe['order']
        }

    def make_tasks(self):
        if 'inputa' in self.arrays:
            return tuple(self[key] for key in ('inputa', 'labela', 'inputb', 'labelb'))
        recipe = json.loads(str(self['x_recipe']))
        tasks, classes, support = recipe['tasks'], recipe['classes'], recipe['support_per_class']
        rng = np.random.RandomState(recipe['seed'])
        proto = rng.random_sample((tasks, classes, 7, 7, 3)).repeat(12, axis=2).repeat(12, axis=3)
        noise = rng.random_sample((tasks, classes, support + recipe['query_per_class'], 84, 84, 3))
        images = np.float32(np.floor(256 * (0.5 * proto[:, :, None] + 0.5 * noise))) / np.float32(255)

        def pick(labels, offset):
            rows = np.arange(labels.shape[1])
            return np.stack(
                [
                    images[task, labels[task].argmax(1), offset + rows // classes].reshape(len(rows), -1)
                    for task in range(tasks)
                ]
            )

        inputa, inputb = pick(self['labela'], 0), pick(self['labelb'], support)
        assert hashlib.sha256(inputa.tobytes()).hexdigest() == recipe['sha256_inputa']
        return inputa, self['labela'], inputb, self['labelb']

    def model(self, **changes):
        """A MAML model with this case's settings and start weights; `changes` go to MAML's arguments."""
        flags, image = self.flags, self.flags['datasource'] != 'sinusoid'
        if image and flags['conv']:
            network = Convolutional(
                dim_output=flags['dim_output'],
                num_filters=flags['num_filters'],
                max_pool=flags['max_pool'],
                norm=flags['norm'],
                **IMAGES[flags['datasource']],
            )
        else:
            network = FullyConnected(dim_input=flags['dim_input'])
            if image:
                network = FullyConnected(flags['dim_input'], flags['dim_output'], (256, 128, 64, 64), flags['norm'])
        arguments = dict(
            loss_func=functools.partial(xent, update_batch_size=flags['update_batch_size']) if image else mse,
            measure=accuracy if image else None,
            update_lr=flags['update_lr'],
            num_updates=flags['num_updates'],
            meta_lr=flags['meta_lr'],
            stop_grad=flags['stop_grad'],
            clip=flags['clip'],
            vectorize=not image,
        )
        model = MAML(network, **{**arguments, **changes})
        assert set(self.weights) == set(model.weights)
        self.reset(model)
        return model

    def reset(self, model):
        """Bring the model's weights back to the start."""
        for name, value in self.weights.items():
            model.weights[name].assign(value.astype(model.dtype.as_numpy_dtype))

    def error(self, values, key, start=None):
        """Relative 2-norm of `values` (by weight name) against the stored KEY/…, over all compared weights together.

        With `start` both are taken as displacements from those weights.
        """
        ours, theirs = [], []
        for name in self.compared:
            mine = np.float64(values[name]).ravel() - (np.float64(start[name]).ravel() if start else 0)
            if f'{key}/{name}' in self.arrays:
                stored = np.float64(self[f'{key}/{name}']).ravel()
            else:  # large tensors keep their first 256 entries
                stored = np.float64(self[f'{key}/{name}/head'])
            ours.append(mine[: stored.size])
            theirs.append(stored - (np.float64(start[name]).ravel()[: stored.size] if start else 0))
        ours, theirs = np.concatenate(ours), np.concatenate(theirs)
        return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def train_step(model, tasks, pretrain=False):
    """One outer step on a batch of tasks; returns the metrics before it."""
    return model.train_block([part[None] for part in tasks], 0, 1, pretrain)[0]
