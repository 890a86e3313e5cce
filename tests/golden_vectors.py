"""Reads the conformance vectors in golden/, and compares what a port computed with them (docs/conformance.md).

    python tests/golden_vectors.py sinusoid_1step MINE.npz

MINE.npz holds the port's numbers under the names of the vector's. Each error is printed beside its tolerance; the exit
code is 1 where one is larger, or a shape is another, 2 where they cannot be compared. Needs NumPy alone, but for
`Case.model`.
"""

import functools
import hashlib
import json
import pathlib
import re
import sys
import zipfile

import numpy as np

FOLDER = pathlib.Path(__file__).parent / 'golden' / 'supervised'
RL_FOLDER = FOLDER.parent / 'rl'
CASES = sorted(path.stem for path in FOLDER.glob('*.npz'))
# Relative 2-norms; of gradients and weights over all tensors together, of weights that of the displacement.
TOLERANCES = {
    **{'total_loss1': 1e-5, 'total_losses2': 1e-5, 'total_accuracy1': 1e-6, 'total_accuracies2': 1e-6},
    **{'outputa': 5e-5, 'outputb': 5e-5, 'g': 1e-4, 'gc': 1e-4, 'gp': 1e-4},
    **{'w1': 5e-3, 'wp1': 5e-3, 'w3': 3e-2, 'wp3': 3e-2},
}
RL_TOLERANCES = json.loads((RL_FOLDER / 'tolerances.json').read_text())
RL_QUANTITIES = {  # keys of golden/rl, and which tolerance is theirs, by its name or as it is
    r'task\d/step\d/(returns|baseline_\w+|advantages\w*)': 1e-7,
    r'task\d/step\d/agent_(mean|log_std)': 'post-update mean/log_std (abs)',
    r'task\d/inner_loss': 'inner loss (abs)',
    r'task\d/inner_grad': 'inner gradient',
    r'task\d/adapted_flat': 'adapted - theta',
    r'outer/loss_before(_all_rows)?': 'surrogate loss before (abs)',
    r'outer/kl_before(_all_rows)?': 'mean KL before (abs)',
    r'outer/grad(_all_rows)?': 'gradient of loss',
    r'hvp/Hv(1|2|_grad)': 'FD-HVP',
    r'cg/(p|Hp|x|direction|H_direction)': 'CG direction',
    r'cg/num_iters|ls/(all_)?ratios|ls/(accepted|n_backtracks)': 1e-7,
    r'ls/initial_step_size': 'initial step size beta',
    r'ls/full_step': 'full step beta*d',
    r'ls/(all_)?loss|outer/loss_after': 'line-search loss, same ratios (abs)',
    r'ls/(all_)?kl|outer/kl_after': 'line-search KL, same ratios',
    r'ls/(final_)?params': 'accepted parameters - theta',
    r'cg/x3_f32_10': 1e-5,
    r'(lfb|discount|standardise|normenv|point|cg|gauss)/\w.*': 1e-7,  # of rl_small
}
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
        weights = {
            name: np.float32(recipe['offset'][name] + recipe['scale'][name] * rng.randn(*recipe['shape'][name]))
            for name in recipe['order']
        }
        assert sha256(*weights.values()) == recipe['sha256']
        return weights

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
        assert (sha256(inputa), sha256(inputb)) == (recipe['sha256_inputa'], recipe['sha256_inputb'])
        return inputa, self['labela'], inputb, self['labelb']

    def model(self, **changes):
        """A MAML model with this case's settings and start weights; `changes` go to MAML's arguments."""
        from maml import MAML
        from networks import Convolutional, FullyConnected
        from utils import accuracy, mse, xent

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
        squares = np.zeros(2)  # of what is off, and of what is stored
        for name in self.compared:
            mine, begin = np.float64(values[name]), np.float64(start[name] if start else 0)
            if not same_shape(mine, self.weights[name], f'{key}/{name}'):
                return np.nan
            if f'{key}/{name}' in self.arrays:
                stored = np.float64(self[f'{key}/{name}']) - begin
                off = mine - begin - stored
            else:  # the first 256 entries, and the norm of all (of updated weights, of the displacement)
                stored = self[f'{key}/{name}/head'] - np.broadcast_to(begin, mine.shape).ravel()[:256]
                norm = np.linalg.norm(mine - begin) - self[f'{key}/{name}/norm']
                off = np.append((mine - begin).ravel()[:256] - stored, norm)
            squares += np.square(off).sum(), np.square(stored).sum()
        return np.sqrt(squares[0] / squares[1])


def sha256(*arrays):
    return hashlib.sha256(b''.join(array.tobytes() for array in arrays)).hexdigest()


def train_step(model, tasks, pretrain=False):
    """One outer step on a batch of tasks; returns the metrics before it."""
    return model.train_block([part[None] for part in tasks], 0, 1, pretrain)[0]


def compare(name, mine):
    """Return (quantity, its error, its tolerance) for all of a port's numbers, arrays by key.

    The error is NaN where a shape is another. Raises ValueError for a key that the vector has not, or that is not
    compared, and for a tensor that is missing.
    """
    if name not in CASES:
        return compare_rl(name, mine)
    case, left, rows = Case(name), dict(mine), []
    for key in TOLERANCES.keys() & {key.split('/')[0] for key in left} - {key.split('/')[0] for key in case.arrays}:
        raise ValueError(f'{name} has no {key}: leave it out')
    for key, tolerance in TOLERANCES.items():
        if key in left:
            rows.append((key, distance(left.pop(key), case[key], key), tolerance))
        elif any(k.startswith(f'{key}/') for k in left):
            values = {n: left.pop(f'{key}/{n}', None) for n in case.weights}
            if missing := [n for n in case.compared if values[n] is None]:
                but = f' but {", ".join(sorted(case.inert))}' if case.inert else ''
                raise ValueError(f'{key}/{missing[0]} is missing: all tensors{but} are compared, each whole')
            rows.append((key, case.error(values, key, case.weights if key.startswith('w') else None), tolerance))
    if left:
        raise ValueError(f'{next(iter(left))} is none of the quantities {", ".join(TOLERANCES)}, or tensors of theirs')
    return rows


def compare_rl(name, mine):
    """The same for a file of golden/rl; its keys are compared one by one, in the order of the file."""
    golden, rows = np.load(RL_FOLDER / f'{name}.npz'), []
    order = {key: place for place, key in enumerate(golden.files)}
    for key in sorted(mine, key=lambda key: order.get(key, -1)):
        tolerance = next((t for pattern, t in RL_QUANTITIES.items() if re.fullmatch(pattern, key)), None)
        if key not in golden or tolerance is None:
            raise ValueError(f'{key} is nothing that is compared in {name}: leave it out')
        start = golden['theta'] if str(tolerance).endswith('- theta') else None
        error = distance(mine[key], golden[key], key, start, absolute=str(tolerance).endswith('(abs)'))
        rows.append((key, error, RL_TOLERANCES.get(tolerance, tolerance)))
    return rows


def distance(mine, stored, key, start=None, absolute=False):
    """Relative 2-norm, or the largest absolute difference; with `start` of displacements from there."""
    if not same_shape(mine, stored, key):
        return np.nan
    off = np.float64(mine) - np.float64(stored)
    if absolute:
        return np.abs(off).max()
    return np.linalg.norm(off) / (np.linalg.norm(np.float64(stored) - (0 if start is None else start)) or 1)


def same_shape(mine, stored, key):
    """Whether two shapes agree; where not, says so on stderr."""
    if np.shape(mine) == np.shape(stored):
        return True
    why = ': another number of trials' if re.fullmatch('ls/(ratios|loss|kl|params)', key) else ''
    print(f'golden_vectors.py: {key} has the shape {np.shape(mine)}, not {np.shape(stored)}{why}', file=sys.stderr)
    return False


def command_line(name, path):
    """Print the table; return the exit code."""
    names = [*CASES, *sorted(file.stem for file in RL_FOLDER.glob('*.npz') if file.stem != 'mujoco_trajectories')]
    try:
        if name not in names:
            raise ValueError(f'{name} is no vector: give one of {", ".join(names)}')
        with np.load(path) as file:
            rows = compare(name, dict(file))
        if not rows:
            raise ValueError(f'{path} holds nothing')
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        print(f'golden_vectors.py: {error}', file=sys.stderr)
        return 2
    for key, error, tolerance in rows:
        print(f'{key:28s} {error:8.1e}   tolerance {tolerance:.0e}   {"ok" if error <= tolerance else "FAILS"}')
    return int(not all(error <= tolerance for _, error, tolerance in rows))


if __name__ == '__main__':
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(command_line(*sys.argv[1:]))
