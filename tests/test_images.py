"""Images of the user's own: how they are decoded, and split into training, validation and test."""

import pathlib
import random

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image
from test_own_images import folders, names, settled

import data_generator
import experiments
import images as images_module
from networks import Convolutional

WHITE, RED, BLUE = (255, 255, 255), (200, 30, 40), (10, 60, 220)

# ---- Decoding --------------------------------------------------------------------------------------------------


def halves(left, right, mode='RGB'):
    """An 8x8 image, in whose left half is one colour and in whose right half another."""
    pixels = np.empty([8, 8, *np.shape(left)], np.uint8)
    pixels[:, :4], pixels[:, 4:] = left, right
    return Image.fromarray(pixels, mode)


def grey(colour):
    return round(np.dot(colour, (0.299, 0.587, 0.114)))


def marked(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return {'exif': exif}


PICTURES = {  # name: (image, how it is saved, the colours of its left and right half)
    'rgb.png': (halves(RED, BLUE), {}, (RED, BLUE)),
    'grey.png': (halves(40, 250, 'L'), {}, ((40,) * 3, (250,) * 3)),
    'one bit.png': (halves(0, 255, 'L').convert('1'), {}, ((0,) * 3, WHITE)),
    'palette.png': (halves(RED, BLUE).quantize(4), {}, (RED, BLUE)),
    'palette with a hole.png': (halves(0, 1, 'P'), {'transparency': 1}, (RED, WHITE)),
    'rgba.png': (halves((*RED, 255), (*BLUE, 0), 'RGBA'), {}, (RED, WHITE)),
    'half there.png': (halves((*RED, 255), (0, 0, 0, 51), 'RGBA'), {}, (RED, (204,) * 3)),
    'grey with alpha.png': (halves((40, 255), (9, 0), 'LA'), {}, ((40,) * 3, WHITE)),
    '16 bits.png': (Image.fromarray(np.uint16([[40 << 8] * 4 + [250 << 8] * 4] * 8)), {}, ((40,) * 3, (250,) * 3)),
    'two frames.gif': (
        halves(RED, BLUE).quantize(4),
        {'save_all': True, 'append_images': [halves(BLUE, WHITE).quantize(4)]},
        (RED, BLUE),
    ),
    'a.bmp': (halves(RED, BLUE), {}, (RED, BLUE)),
    'a.WebP': (halves(RED, BLUE), {'lossless': True}, (RED, BLUE)),
    'a.jpg': (halves(RED, BLUE), {'quality': 100, 'subsampling': 0}, (RED, BLUE)),
    'cmyk.jpeg': (halves((0, 255, 255, 0), (255, 255, 0, 0), 'CMYK'), {'quality': 100}, ((255, 0, 0), (0, 0, 255))),
    'upside down.jpg': (halves(RED, BLUE), {'quality': 100, 'subsampling': 0, **marked(3)}, (BLUE, RED)),
    'on its side.png': (halves(RED, BLUE).transpose(Image.Transpose.ROTATE_90), marked(6), (RED, BLUE)),
}


@pytest.mark.parametrize('name', PICTURES)
def test_pictures_of_any_kind(tmp_path, name):
    """As they look on white paper, in colour and in grey."""
    image, how, colours = PICTURES[name]
    if name.startswith('palette with'):
        image.putpalette([*RED, *BLUE])
    image.save(tmp_path / name, **how)
    found = images_module.read_own(str(tmp_path / name), 8, 3).astype(int)
    assert found.shape == (8, 8, 3)
    assert images_module.read_own(str(tmp_path / name), 8, 1).shape == (8, 8)
    found_grey = images_module.read_own(str(tmp_path / name), 8, 1).astype(int)
    tolerance = 12 if name.lower().endswith(('jpg', 'jpeg')) else 1
    for colour, columns in zip(colours, (slice(3), slice(5, 8))):
        np.testing.assert_allclose(found[:, columns], np.broadcast_to(colour, [8, 3, 3]), atol=tolerance)
        np.testing.assert_allclose(found_grey[:, columns], grey(colour), atol=tolerance)


def test_pictures_are_resized_by_lanczos(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, [30, 50, 3], np.uint8))
    image.save(tmp_path / 'a.png')
    expected = image.resize((9, 9), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(images_module.read_own(str(tmp_path / 'a.png'), 9, 3), np.array(expected))


def test_the_cache_is_of_one_size(tmp_path):
    """Another --img_size decodes anew; the same one reads the cache, without the images."""
    place = folders(tmp_path / 'data', names(3))
    for size in (12, 6):
        pixels = images_module.load_folders(place, 1, size, 3, own=True)[0]
        assert pixels.shape == (9, size * size * 3) and len(list(place.glob('cache-*.npy'))) == 1
    images_module.load_folders.cache_clear()
    again = images_module.load_folders(place, 1, 6, 3, own=True)[0]
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(again, pixels)
    np.testing.assert_array_equal(pixels[0].reshape(6, 6, 3), images_module.read_own(place / 'class00/0.png', 6, 3))


# ---- Size, channels and split ----------------------------------------------------------------------------------


@pytest.mark.parametrize('mode, channels', [('RGB', 3), ('L', 1), ('1', 1), ('P', 3)])
def test_size_and_channels_are_the_images_own(tmp_path, mode, channels):
    config = settled(f'--data_dir={folders(tmp_path, names(2), mode=mode)}')
    assert (config.img_size, config.channels, config.split) == (12, channels, [0.6, 0.2, 0.2])
    config = settled(f'--data_dir={tmp_path}', '--img_size=20', '--channels=1')
    assert (config.img_size, config.channels) == (20, 1)
    source = experiments.source_of(config)
    assert (source.img_size, source.channels, source.dim_input) == (20, 1, 400)


def split_of(config, split):
    source, folder = experiments.source_of(config), pathlib.Path(config.data_dir)
    images_module.load_folders.cache_clear()
    return data_generator.load_split(source, folder, split)


def test_one_set_is_split_by_class(tmp_path):
    """Sorted, shuffled with seed 1, cut by shares: each class in one split, its images with it, whatever --seed."""
    folders(tmp_path, names(10), images=2, size=4)
    shuffled = names(10)
    random.Random(1).shuffle(shuffled)
    for flags, cuts in (([], (6, 8)), (['--seed=2'], (6, 8)), (['--split=7,0,3'], (7, 7))):
        config = settled(f'--data_dir={tmp_path}', *flags)
        for split, expected in (
            ('train', shuffled[: cuts[0]]),
            ('val', shuffled[cuts[0] : cuts[1]]),
            ('test', shuffled[cuts[1] :]),
        ):
            pixels, classes, paths, _ = split_of(config, split)
            assert [path.name for path in paths] == expected and len(pixels) == 2 * len(expected)
            for path, rows in zip(paths, classes):
                for row, file in zip(rows, sorted(path.iterdir())):
                    np.testing.assert_array_equal(pixels[row], np.array(Image.open(file)).reshape(-1))


def test_folders_of_the_splits(tmp_path, capsys):
    for split in ('train', 'test'):
        folders(tmp_path / split, [f'{split}{name}' for name in names(3)])
    (tmp_path / 'more').mkdir()
    config = settled(f'--data_dir={tmp_path}')
    assert config.split is None and f'{tmp_path}/more is not used' in capsys.readouterr().err
    for split in ('train', 'test'):
        assert [path.name for path in split_of(config, split)[2]] == [f'{split}{name}' for name in names(3)]
    assert list(tmp_path.glob('train/cache-*'))  # ours, of which nobody is warned
    settled(f'--data_dir={tmp_path}')
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not images_module.is_split(
        folders(tmp_path / 'vehicles', ['bus', 'car', 'ship', 'train'])
    )  # a class called so


@pytest.mark.parametrize('size, blocks, sides', [(2, 1, (1, 1)), (7, 2, (1, 2)), (8, 3, (1, 1)), (84, 4, (5, 6))])
def test_as_many_blocks_as_the_size_allows(size, blocks, sides):
    for max_pool, side in zip((True, False), sides):
        network = Convolutional(size, 1, 5, num_filters=3, max_pool=max_pool, flatten=True)
        weights = network.init(1)
        assert [name for name in weights if name.startswith('conv')] == [f'conv{i + 1}' for i in range(blocks)]
        assert weights['w5'].shape == (side * side * 3, 5) and set(network.adapted) < set(weights)
        assert network.forward(tf.random.normal([4, size * size]), weights).shape == (4, 5)
