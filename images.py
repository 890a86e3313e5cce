"""Folders of images as arrays: decoded once, then read from a cache beside them that is used only if it is sound."""

import contextlib
import functools
import hashlib
import io
import math
import os
import pathlib
import stat
import sys
import zlib

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from runtime import UserError

IMAGE_ENDINGS = ('.png', '.jpg', '.jpeg')
SAMPLE = 32 << 20  # bytes of a cache that are read to check it: all of Omniglot, a 25th of MiniImagenet


class TooFew(UserError):
    """The data has too few classes or images for the tasks asked for."""


@functools.lru_cache(maxsize=4)
def load_folders(folder, depth, img_size, channels, invert=False):
    """Decode the images below `folder`, whose classes are the folders `depth` levels down.

    Decoded once: the pixels are kept in a cache file beside the data, named by a hash over the names, sizes and
    times of all images. Returns (uint8 [n, pixels], rows of each class, class folders), all in sorted order, and a
    hash over names and sizes alone, the same for a copy of the data.
    Raises UserError when there are none, or one cannot be read.
    """
    names = class_folders(folder, depth)
    files, classes = [], []
    for name in names:
        found = [entry.path for entry in entries(name) if entry.name.lower().endswith(IMAGE_ENDINGS)]
        classes.append(range(len(files), len(files) + len(found)))
        files.extend(found)
    if not files:
        raise TooFew(f'no images in {folder}: prepare the data first (see data/README.md) or set --data_dir')
    digest, content = hashlib.sha256(f'{img_size} {channels} {invert}'.encode()), hashlib.sha256()
    for file in files:
        try:
            status, name = os.stat(file), file.removeprefix(f'{folder}{os.sep}')
        except OSError as error:
            raise UserError(f'{file} cannot be read ({error.strerror}): mend or remove it') from None
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f'{file} is not a file, though called like an image: rename or remove it')
        digest.update(os.fsencode(f'{name} {status.st_size} {status.st_mtime_ns}\n'))
        content.update(os.fsencode(f'{name} {status.st_size}\n'))
    remove_leftovers(folder)
    cache = folder / f'cache-{digest.hexdigest()[:16]}.npy'
    images = read_cache(cache, (len(files), img_size * img_size * channels))
    if images is None:
        images = decode(files, img_size, channels, invert)
        write_cache(cache, images)
    return images, classes, names, content.hexdigest()[:16]


def class_folders(folder, depth):
    """List the folders `depth` levels below `folder`, sorted."""
    folders = [folder] if os.path.isdir(folder) else []
    for _ in range(depth):
        inside = [pathlib.Path(entry.path) for place in folders for entry in entries(place)]
        for path in inside:
            if not os.path.exists(path):
                raise UserError(f'{path} is a link to nothing: mend or remove it')
        folders = list(filter(os.path.isdir, inside))
    return folders


def entries(folder):
    """List what is in a folder, sorted; hidden files and folders, such as .ipynb_checkpoints, are no data."""
    try:
        found = [entry for entry in os.scandir(folder) if not entry.name.startswith('.')]
    except OSError as error:
        raise UserError(f'{folder} cannot be read ({error.strerror}): mend or remove it') from None
    return sorted(found, key=lambda entry: entry.name)


def read_cache(cache, shape):
    """Return the images [n, pixels] of a cache file, mapped into memory; None unless they are what was written."""
    try:
        data = np.memmap(cache, np.uint8, 'r')
    except (OSError, ValueError):  # none yet, or empty
        return None
    header = npy_header(shape)
    images = data[len(header) : -4]
    if data[: len(header)].tobytes() != header or len(images) != math.prod(shape):
        return None
    images = images.reshape(shape)
    return images if data[-4:].tobytes() == checksum(images) else None


def write_cache(cache, images):
    """Write `images` whole or not at all, and remove caches of earlier states of the data.

    A file that np.load reads; behind the pixels are four bytes more, the checksum.
    """
    temporary = cache.with_suffix(f'.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            for part in (npy_header(images.shape), images, checksum(images)):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, cache)
    except OSError as error:
        print(
            f'warning: {cache} cannot be written ({error.strerror}): the images will be decoded at every start',
            file=sys.stderr,
        )
        return
    finally:
        with contextlib.suppress(OSError):  # as a rule it is gone, renamed
            temporary.unlink()
    for old in set(cache.parent.glob('cache-*.npy')) - {cache}:
        with contextlib.suppress(OSError):
            old.unlink()


def npy_header(shape):
    """Return what a .npy file of uint8 values begins with."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {'descr': '|u1', 'fortran_order': False, 'shape': shape})
    return file.getvalue()


def checksum(images):
    """Return four bytes that tell most damage: of all images, or of evenly spaced ones that make up SAMPLE bytes."""
    sample = images[:: -(-images.nbytes // SAMPLE)]
    return zlib.crc32(np.ascontiguousarray(sample)).to_bytes(4, 'little')


def remove_leftovers(folder):
    """Remove the unfinished caches of processes that were killed; those of living ones are being written."""
    for path in folder.glob('cache-*.*.tmp'):
        try:
            os.kill(int(path.stem.rpartition('.')[2]), 0)  # signal 0 does nothing but ask
        except (ProcessLookupError, OverflowError):
            with contextlib.suppress(OSError):
                path.unlink()
        except (ValueError, OSError):  # not ours, or of another user's process
            pass


def decode(files, img_size, channels, invert):
    """Decode to uint8 [files, pixels] as the original; `invert` makes ink 255 (maml: data_generator.py:114-118)."""
    images = np.empty([len(files), img_size * img_size * channels], np.uint8)
    decoded = tf.data.Dataset.from_tensor_slices([os.fsencode(file) for file in files]).map(
        lambda file: tf.io.decode_image(tf.io.read_file(file), channels, expand_animations=False),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    iterator = iter(decoded)
    title = f'decoding {os.path.dirname(os.path.dirname(files[0]))}'
    for row, file in enumerate(tqdm(files, title, unit=' images', disable=None)):
        try:
            image = next(iterator).numpy()
        except tf.errors.OpError:
            raise UserError(f'{file} is not a readable image: replace or remove it') from None
        if image.shape[:2] != (img_size, img_size):
            raise UserError(
                f'{file} is {image.shape[1]}x{image.shape[0]}, not {img_size}x{img_size}: '
                'run the preparation script first (see data/README.md)'
            )
        images[row] = image.reshape(-1)
    return 255 - images if invert else images
