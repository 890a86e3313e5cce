"""Folders of images as arrays: decoded once, then read from a cache beside them that is used only if it is sound."""

import concurrent.futures
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
from PIL import Image
from tqdm import tqdm

from data import prepare
from runtime import UserError

IMAGE_ENDINGS = ('.png', '.jpg', '.jpeg')  # of the paper's data sets
OWN_ENDINGS = (*IMAGE_ENDINGS, '.gif', '.bmp', '.webp')  # of the user's own images
SPLITS = ('train', 'val', 'test')
OWN_SPLIT = [0.6, 0.2, 0.2]  # shares of the classes, in that order
SAMPLE = 32 << 20  # bytes of a cache that are read to check it: all of Omniglot, a 25th of MiniImagenet


class TooFew(UserError):
    """The data has too few classes or images for the tasks asked for."""


@functools.lru_cache(maxsize=4)
def load_folders(folder, depth, img_size, channels, invert=False, own=False):
    """Decode the images below `folder`, whose classes are the folders `depth` levels down.

    own: the user's own images, of any common format, which are resized; others must have the right size.

    Decoded once: the pixels are kept in a cache file beside the data, named by a hash over the names, sizes and
    times of all images. Returns (uint8 [n, pixels], rows of each class, class folders, digest), see `listed`.
    Raises UserError when there are none, or one cannot be read.
    """
    files, classes, names, content, times = listed(folder, depth, own)
    if not files:
        what = 'a folder of images for each class has to be in it' if own else 'prepare the data first'
        raise TooFew(f'no images in {folder}: {what} (see {"" if own else "data/"}README.md) or set --data_dir')
    how = f'{img_size} {channels} {invert}' + (' own' if own else '') + times
    remove_leftovers(folder)
    cache = folder / f'cache-{hashlib.sha256(os.fsencode(how)).hexdigest()[:16]}.npy'
    images = read_cache(cache, (len(files), img_size * img_size * channels))
    if images is None:
        images = (decode_own if own else decode)(files, img_size, channels, invert)
        write_cache(cache, images)
    return images, classes, names, content


def listed(folder, depth, own=False):
    """List the images below `folder`, whose classes are the folders `depth` levels down, in sorted order.

    Returns files, the range of each class, class folders, a hash over names and sizes (the same for a copy of the
    data), and a text that has their times too.
    """
    names = class_folders(folder, depth)
    files, classes, sizes, times = [], [], [], []
    for name in names:
        found = [entry.path for entry in entries(name) if is_image(entry.name, own)]
        classes.append(range(len(files), len(files) + len(found)))
        files.extend(found)
    for file in files:
        try:
            status, name = os.stat(file), file.removeprefix(f'{folder}{os.sep}')
        except OSError as error:
            raise UserError(f'{file} cannot be read ({error.strerror}): mend or remove it') from None
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f'{file} is not a file, though called like an image: rename or remove it')
        sizes.append(f'{name} {status.st_size}\n')
        times.append(f'{name} {status.st_size} {status.st_mtime_ns}\n')
    return files, classes, names, hashlib.sha256(os.fsencode(''.join(sizes))).hexdigest()[:16], ''.join(times)


def folder_of(config, source):
    """Return the folder of the images; UserError where --data_dir has to say it."""
    if source.own and not config.data_dir:
        raise UserError('--datasource=images needs the folder of the images: give --data_dir')
    if source.own and not os.path.isdir(config.data_dir):
        raise UserError(f'--data_dir={config.data_dir} is no folder: give the one that the images are in')
    return pathlib.Path(config.data_dir or pathlib.Path(__file__).parent / 'data' / source.folder)


def training_digest(config, source):
    """Return whether the images are one set, to be split, and the digest of those to train on (None: none there)."""
    folder = folder_of(config, source)
    one_set = not is_split(folder) if source.own else bool(source.split)
    files, *_, digest, _ = listed(folder if one_set else folder / 'train', source.depth, source.own)
    return one_set, digest if files else None


def is_image(name, own):
    """Whether a file is called like an image."""
    return name.lower().endswith(OWN_ENDINGS if own else IMAGE_ENDINGS)


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
    for old in set(cache.parent.glob(f'cache-{"[0-9a-f]" * 16}.npy')) - {cache}:
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
    if os.name == 'nt':  # where signal 0 would be Ctrl-C
        return
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
    decoded = tf.data.Dataset.from_tensor_slices([os.fsencode(file) for file in files]).map(
        lambda file: tf.io.decode_image(tf.io.read_file(file), channels, expand_animations=False),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    images, iterator = np.empty([len(files), img_size * img_size * channels], np.uint8), iter(decoded)
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


def pictures(images, source):
    """Return `images` [n, pixels] as figures.py draws them, [n, side, side, channels]: one channel is ink on paper."""
    images = images.reshape(-1, source.img_size, source.img_size, source.channels)
    return images if source.drawings or source.channels == 3 else images.repeat(3, axis=3)  # 0 is black, not paper


# ---- The user's own images -------------------------------------------------------------------------------------


def decode_own(files, img_size, channels, invert):
    """Decode to uint8 [files, pixels], whatever the images are; `invert` makes ink 255.

    Says on stderr where all of them are nearly black.
    """
    images = np.empty([len(files), img_size * img_size * channels], np.uint8)
    read = functools.partial(read_own, img_size=img_size, channels=channels)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        parts = tqdm(pool.map(read, files), 'decoding', len(files), unit=' images', disable=None)
        for row, image in enumerate(parts):
            images[row] = image.reshape(-1)
    if (brightest := images.max()) < 16:
        print(
            f'warning: {files[0]} and all others are nearly black, at most {brightest} of 255: scale what they hold, '
            'such as 12 bits in files of 16',
            file=sys.stderr,
        )
    return 255 - images if invert else images


def read_own(file, img_size, channels):
    """Decode a file of any common format as uint8 [img_size, img_size, (3)]; UserError, naming it, where it is none."""
    with opened(file) as image:
        return np.asarray(prepare.convert(image, (img_size, img_size), 'L' if channels == 1 else 'RGB'))


@contextlib.contextmanager
def opened(file):
    """Open an image; UserError where it is none, or is damaged as far as it is read."""
    try:
        with Image.open(file, formats=prepare.FORMATS) as image:
            yield image
    except Exception:  # noqa: BLE001 (Pillow raises many kinds, according to where the damage is)
        raise UserError(f'{file} is not a readable image: replace or remove it') from None


def settle(config, origins, source):
    """Complete the settings of the user's own images from what --data_dir holds: img_size, channels and split.

    It has class folders in train/, val/ and test/, or class folders that are to be split. Raises UserError where the
    images do not agree in what is unset; names on stderr what is not used.
    """
    folder = folder_of(config, source)
    if is_split(folder):
        if config.split:
            raise UserError(f'--split divides one set of class folders, but {folder} has train, val or test: drop it')
        places = [folder / name for name in SPLITS if (folder / name).is_dir()]
        unused = [(entry.path, 'not in train, val or test') for entry in entries(folder) if entry.name not in SPLITS]
    else:
        places, unused = [folder], []
        if not config.split:
            config.split, origins['split'] = OWN_SPLIT, 'our choice'
    files, classes = [], {}  # these: by folder, its name and what it holds
    for place in places:
        found, others = own_files(place)
        files += [file for name in found for file in found[name]]
        for name, held in found.items():
            classes[place / name] = name, [(os.path.basename(file), os.path.getsize(file)) for file in held]
        unused += others
    warn_of_unused(unused)
    trained = [held for path, held in classes.items() if path.parent == folder / 'train']
    warn_of_leak([path for path in classes if path.parent != folder / 'train' and classes[path] in trained], 'classes')
    if not files:
        raise UserError(f'no images in {folder}: a folder of images for each class has to be in it (see README.md)')
    if config.img_size is None or config.channels is None:
        shapes = {own_shape(file): file for file in tqdm(files, 'reading sizes', unit=' images', disable=None)}
        for name, shape in agreed(shapes, config).items():
            setattr(config, name, shape)
            origins[name] = "the images' own"


def is_split(folder):
    """Whether the user's own images are in train/, val/ and test/, or some of these, not one set of class folders."""
    names = {entry.name for entry in entries(folder) if entry.is_dir()}
    if 'train' in names and any(entry.is_dir() for entry in entries(os.path.join(folder, 'train'))):
        return True  # else it is a class called so
    return bool(names and names <= set(SPLITS))


def own_files(folder):
    """Return the images of each class folder in `folder`, {name: files}, and what is not used: [(path, why)]."""
    found, unused = {}, []
    for entry in entries(folder):
        if not entry.is_dir():
            if not entry.name.startswith('cache-'):  # of ours (write_cache)
                unused.append((entry.path, 'not in the folder of a class'))
            continue
        found[entry.name] = []
        for file in entries(entry.path):
            if file.is_dir():
                raise UserError(
                    f'{file.path} is a folder in the folder of a class: classes lie directly in {folder}: move it'
                )
            if is_image(file.name, own=True):
                found[entry.name].append(file.path)
            else:
                unused.append((file.path, f'not called {", ".join(OWN_ENDINGS)}'))
    return found, unused


def warn_of_unused(unused):
    """Name on stderr the paths that are not used, at most 20 of them."""
    most = 20
    for path, why in unused[:most]:
        print(f'warning: {path} is not used: it is {why}', file=sys.stderr)
    if len(unused) > most:
        print(f'warning: and so are {len(unused) - most} more', file=sys.stderr)


def warn_of_leak(again, what):
    """Say on stderr which paths of the validation and test splits hold what the training has too."""
    if again:
        print(
            f'warning: {len(again)} of the validation and test {what} are training {what} too, {again[0]} for one: '
            'a test on them says little of new ones',
            file=sys.stderr,
        )


def own_shape(file):
    """Return width, height and channels of an image, without decoding it."""
    with opened(file) as image:
        grey = image.mode in ('1', 'L', 'LA') or image.mode.startswith('I')
        return *image.size, 1 if grey else 3


def agreed(shapes, config):
    """Return by name those of img_size and channels that are unset, as all images have them; UserError if they differ.

    shapes: {(width, height, channels): a file that is such}.
    """
    sizes = {f'{width}x{height}': (width, height, file) for (width, height, _), file in shapes.items()}
    kinds = {channels: file for (_, _, channels), file in shapes.items()}
    values = {}
    if config.img_size is None:
        if len(sizes) > 1:
            (one, (*_, a)), (two, (*_, b)) = list(sizes.items())[:2]
            raise UserError(f'the images differ in size ({a} is {one}, {b} is {two}): give --img_size, e.g. 84')
        ((size, (width, height, _)),) = sizes.items()
        if width != height or not 2 <= width <= 1024:
            raise UserError(f'the images are {size}: give --img_size, e.g. 84, to make them square and of that size')
        values['img_size'] = width
    if config.channels is None:
        if len(kinds) > 1:
            raise UserError(
                f'{kinds[1]} is grey and {kinds[3]} is in colour: give --channels, 1 or 3, which all are to have'
            )
        (values['channels'],) = kinds
    return values
