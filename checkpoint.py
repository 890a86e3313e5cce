"""Checkpoints: one .npz file with weights, both optimisers' slots, the iteration and the seed.

The iteration and the seed are the whole state of the samplers (data_generator.py, rl/sampler.py), so a run goes on
from a checkpoint exactly as if it had not stopped. A finished run can be packed: its weights alone, in weights.npz.
Also reads the weights of the original's TF1 checkpoints.
"""

import contextlib
import hashlib
import os
import re
import zipfile
import zlib

import numpy as np
import tensorflow as tf

from runtime import UserError, replacing

BEST = 'best.npz'  # the weights with the best average return, or that were best on the validation set
PACKED = 'weights.npz'


def variables(model):
    """Return all variables of a model that a checkpoint holds, by the names that they have in the file.

    A model has `weights`, a dictionary of variables, and maybe the two optimisers of maml.py; TRPO has no slots.
    """
    groups = {'weights': model.weights}
    groups |= {name: getattr(model, name).slots for name in ('pretrain_adam', 'metatrain_adam') if hasattr(model, name)}
    return {f'{group}/{name}': variable for group, members in groups.items() for name, variable in members.items()}


def save(folder, model, max_to_keep=10, **numbers):
    """Write model<iteration>.npz, the state after that many outer steps, and remove all but the newest max_to_keep.

    numbers: the iteration, and what else is to be kept with it (`write`).
    """
    path = os.path.join(folder, f'model{numbers["iteration"]}.npz')
    write(path, model, **numbers)
    paths = find(folder)
    for old in paths[paths.index(path) + max_to_keep :]:  # any newer one is damaged, else the run had gone on from it
        os.remove(old)
    return path


def write(path, model, **numbers):
    """Write the state of `model`, and `numbers`, to a file that is there whole or not at all."""
    with replacing(path, 'wb') as file:
        np.savez(file, **numbers, **{name: variable.numpy() for name, variable in variables(model).items()})


def write_adapted(config, weights):
    """Write adapted `weights`, tensors by name, to config.save_adapted, from where `restore_weights` can take them.

    Whole or not at all; UserError for weights that are not finite, or where a run would take them for its own.
    """
    path = config.save_adapted
    folder = os.path.dirname(path) or '.'
    if not all(np.isfinite(weight).all() for weight in weights.values()):
        raise UserError('the adapted weights are not finite: try a smaller --update_lr')
    called_so = re.fullmatch(rf'model\d+\.npz|{re.escape(BEST)}|{re.escape(PACKED)}', os.path.basename(path))
    of_a_run = called_so and any(map(os.path.exists, (path, os.path.join(folder, 'config.json'))))
    if of_a_run or os.path.realpath(path) == os.path.realpath(config.init_from):
        raise UserError(f'--save_adapted={path} would pass for the weights of a run: choose another name')
    os.makedirs(folder, exist_ok=True)
    arrays = {f'weights/{name}': weight.numpy() for name, weight in weights.items()}
    with replacing(path, 'wb') as file:
        np.savez(file, iteration=0, adapted=config.test_num_updates, **arrays)


def pack(folder, take_best):
    """Leave of a finished run's checkpoints the weights that the paper's test takes, without slots: weights.npz.

    These are the best, with take_best, or the newest. Its numbers are those of the checkpoint, and `trained`: the
    iterations that were done.
    """
    newest, best = find(folder)[0], os.path.join(folder, BEST)
    last = read(newest)
    arrays = read(best) if take_best and os.path.exists(best) else last
    kept = {name: array for name, array in arrays.items() if '/' not in name or name.startswith('weights/')}
    kept |= {'trained': last['iteration'], 'seconds': last.get('seconds', np.nan)}
    with replacing(os.path.join(folder, PACKED), 'wb') as file:
        np.savez(file, **kept)
    for path in [*find(folder), best]:
        if os.path.exists(path):
            os.remove(path)


def find(folder, packed=False):
    """List the paths of the checkpoints in `folder`, newest first; with `packed`, where there are none, its weights."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    numbers = sorted((int(m[1]) for m in map(re.compile(r'model(\d+)\.npz').fullmatch, names) if m), reverse=True)
    found = [f'model{number}.npz' for number in numbers] or ([PACKED] if packed and PACKED in names else [])
    return [os.path.join(folder, name) for name in found]


def read(path):
    """Return the arrays of a checkpoint; UserError when it cannot be read or is none of ours."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f'there is no checkpoint {path}: check the path') from None
    except (ValueError, TypeError, AttributeError):
        raise UserError(f'{path} is no .npz file of plain arrays: name another') from None
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror or error}): mend that, or name another') from None
    except (RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path} cannot be read as a checkpoint ({error}): remove it or name another') from None
    iteration = arrays.get('iteration', np.array(''))
    if iteration.ndim or iteration.dtype.kind != 'i' or any(array.dtype.kind not in 'if' for array in arrays.values()):
        raise UserError(
            f'{path} is not a checkpoint of this program, which is arrays of numbers and one whole number, iteration '
            '(docs/conformance.md): name another'
        )
    return arrays


def assign(targets, arrays, path):
    """Assign `arrays` to the variables `targets` of the same names; all or, with UserError, none."""
    for name, variable in targets.items():
        found = arrays[name].shape if name in arrays else None
        wanted = tuple(variable.shape)
        if name.endswith('w5') and found and found != wanted and found[:-1] == wanted[:-1]:
            raise UserError(
                f'{path} has outputs for {found[-1]} classes, not {wanted[-1]}, and none can be added: use it with '
                f'--num_classes={found[-1]}, or train with --num_classes={wanted[-1]}'
            )
        if found != wanted:
            raise UserError(
                f'{path} does not fit this network: {name} should be {wanted} but is '
                f'{found or "missing"}: use the flags that it was trained with'
            )
    with np.errstate(over='ignore'):
        values = {name: arrays[name].astype(variable.dtype.as_numpy_dtype) for name, variable in targets.items()}
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise UserError(f'{path} holds numbers that are not finite, in {name}: name another')
    for name, variable in targets.items():
        variable.assign(values[name])


def restore(path, model):
    """Bring `model` to the state in `path`; return the numbers that `write` kept with it."""
    arrays = read(path)
    packed = os.path.basename(path) == PACKED
    assign({k: v for k, v in variables(model).items() if not packed or k.startswith('weights/')}, arrays, path)
    return numbers(arrays)


def numbers(arrays):
    """Return what `write` kept beside the state: a dictionary."""
    return {name: array.item() for name, array in arrays.items() if not array.ndim and '/' not in name}


def best_so_far(folder, name, **conditions):
    """Return the number `name` of the run's best weights; -inf where there are none, or with other conditions."""
    path = os.path.join(folder, BEST)
    if not os.path.exists(path):
        return -np.inf
    kept = numbers(read(path))
    comparable = all(kept.get(key, value) == value for key, value in conditions.items())
    return kept.get(name, -np.inf) if comparable else -np.inf


def done(folder):
    """Return the number of iterations that the run in `folder` has done, and the seconds they took (NaN: not known)."""
    for path in find(folder, packed=True):  # the newest sound one, as in restore_latest
        with contextlib.suppress(UserError):
            state = numbers(read(path))
            return state.get('trained', state['iteration']), state.get('seconds', np.nan)
    return 0, 0.0


def exists(folder):
    """Return whether `folder` has the checkpoints of a run, or its packed weights."""
    return bool(find(folder, packed=True))


def restore_latest(folder, model):
    """Restore the newest sound checkpoint in `folder`, else the packed weights; return its path and numbers.

    Damaged ones are named and passed over; UserError when all are, or there is none.
    """
    for path in to_test(folder):
        try:
            return path, restore(path, model)
        except UserError as error:
            print(f'skipped: {error}')
    raise UserError(
        f'no checkpoint in {folder} can be used: choose another --logdir, or train anew with --resume=False'
    )


def to_test(folder):
    """List the checkpoints in `folder`, newest first, or its packed weights; UserError where there is neither."""
    if paths := find(folder, packed=True):
        return paths
    raise UserError(
        f'no checkpoint in {folder}: train first with the same flags, or name one with --init_from (with another K '
        'or alpha in the test: --train_update_batch_size and --train_update_lr have those of the training)'
    )


def digest(path):
    """Return a hash of the weights that --init_from names; None where the file is gone."""
    for name in (path, f'{path}.index'):  # of TF1: it holds checksums of the weights
        if os.path.isfile(name):
            with open(name, 'rb') as file:
                return hashlib.sha256(file.read()).hexdigest()[:16]
    return None


def restore_weights(path, model):
    """Take the weights alone from one of our checkpoints or from a TF1 checkpoint of the original code.

    A TF1 checkpoint is named by its prefix (…/model59000) or one of its files. Returns the numbers as `restore` does.
    """
    if not path.endswith('.npz'):
        assign(model.weights, read_tf1(path, model.weights), path)
        return {}
    arrays = read(path)
    weights = {k.removeprefix('weights/'): v for k, v in arrays.items() if k.startswith('weights/')}
    learned, wanted = (any(re.match('alpha$|update_lr/', name) for name in names) for names in (weights, model.weights))
    if learned != wanted:
        does = 'has learned step sizes: add' if learned else 'has no learned step sizes: drop'
        raise UserError(f'{path} {does} --learn_update_lr')
    if more := weights.keys() - model.weights.keys():
        raise UserError(
            f'{path} does not fit this network, which has no {", ".join(sorted(more))}: use the flags that it was '
            'trained with'
        )
    assign(model.weights, weights, path)
    return numbers(arrays)


def read_tf1(path, weights):
    """Return the original's weights under our names.

    It named conv1 … conv4, w5, b5 and the norms, and left the rest to TensorFlow: model/Variable, Variable_1, … in
    the order in which they were made (maml: maml.py:168-208).
    """
    prefix = re.sub(r'\.(index|data-\d+-of-\d+)$', '', path)
    try:
        reader = tf.train.load_checkpoint(prefix)
        stored = reader.get_variable_to_shape_map()
        named = {name: f'model/{name.removeprefix("bn/")}' for name in weights}
        unnamed = [name for name in weights if named[name] not in stored and not name.startswith(('bn/', 'update_lr/'))]
        named.update({name: 'model/Variable' + (f'_{i}' if i else '') for i, name in enumerate(unnamed)})
        return {name: reader.get_tensor(key) for name, key in named.items() if key in stored}
    except (tf.errors.OpError, ValueError, RuntimeError):
        raise UserError(
            f'{prefix} is neither one of our checkpoints (.npz) nor a TensorFlow checkpoint: check the path'
        ) from None
