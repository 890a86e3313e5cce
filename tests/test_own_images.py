"""Images of the user's own: how they are decoded, split and trained on; a trained model on new classes (adapt.py)."""

import csv
import json
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image

import checkpoint
import data_generator
import evaluation
import experiments
import figures
import images as images_module
import main
import training
from networks import Convolutional
from runtime import UserError

WHITE, RED, BLUE = (255, 255, 255), (200, 30, 40), (10, 60, 220)
SHORT = ['--num_filters=4', '--meta_batch_size=1', '--train_query=1', '--num_test_tasks=2', '--log=False']


def folders(place, classes, images=3, size=12, mode='RGB', ending='png', seed=0):
    """A folder of images for each of `classes`, of a colour of the class's own; returns `place`."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (place / name).mkdir(parents=True)
        colour = rng.integers(0, 170, 3)
        for index in range(images):
            pixels = (colour + rng.integers(0, 80, [size, size, 3])).astype(np.uint8)
            Image.fromarray(pixels).convert(mode).save(place / name / f'{index}.{ending}')
    return place


def names(number):
    return [f'class{index:02d}' for index in range(number)]


def do(*flags):
    """What main.py does with these flags, in this process; returns the settings."""
    images_module.load_folders.cache_clear()
    config, origins = main.read_flags(list(map(str, flags)))
    main.run(config, origins)
    return config


def settled(*flags):
    """The settings of images of the user's own after what is unset was read from the images."""
    images_module.load_folders.cache_clear()
    config, origins = main.read_flags(['--datasource=images', *map(str, flags)])
    images_module.settle(config, origins)
    return config


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
    return data_generator.load_split('images', source, folder, split)


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


@pytest.mark.parametrize('size, blocks, sides', [(2, 1, (1, 1)), (7, 2, (1, 2)), (8, 3, (1, 1)), (84, 4, (5, 6))])
def test_as_many_blocks_as_the_size_allows(size, blocks, sides):
    for max_pool, side in zip((True, False), sides):
        network = Convolutional(size, 1, 5, num_filters=3, max_pool=max_pool, flatten=True)
        weights = network.init(1)
        assert [name for name in weights if name.startswith('conv')] == [f'conv{i + 1}' for i in range(blocks)]
        assert weights['w5'].shape == (side * side * 3, 5) and set(network.adapted) < set(weights)
        assert network.forward(tf.random.normal([4, size * size]), weights).shape == (4, 5)


# ---- Training --------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The data and the run's folder of a short training with 4 ways on 10x10 colour images of many formats."""
    place = tmp_path_factory.mktemp('own')
    for ending in ('png', 'gif', 'webp'):
        folders(place / 'data', [f'{ending}{name}' for name in names(6)], size=10, ending=ending, seed=len(ending))
    flags = ['--datasource=images', f'--data_dir={place}/data', '--num_classes=4', '--channels=3', '--update_lr=0.3']
    flags += ['--split=4,0,1', f'--logdir={place}/logs', '--metatrain_iterations=2', '--test_num_updates=3', *SHORT]
    config = do(*flags, '--test_set')
    return flags, pathlib.Path(config.logdir, experiments.run_name(config))


def test_training_and_testing(trained, capsys):
    """The run's settings are complete, its test done; the same command goes on, another split is another run."""
    flags, folder = trained
    settings = json.loads((folder / 'config.json').read_text())['settings']
    assert (settings['img_size'], settings['channels'], settings['split']) == (10, 3, [4, 0, 1])
    result = json.loads(next(folder.glob('test*.json')).read_text())
    assert result['split'] == 'test' and len(result['mean']) == 5
    do(*flags)
    output = capsys.readouterr()
    assert 'not tested' in output.out and '--test_set' in output.out
    assert 'goes on without the val split' in output.err
    assert '<- the paper' not in output.out and 'paper_steps' not in output.out
    with pytest.raises(UserError, match='--split='):
        do(*(flag.replace('4,0,1', '3,1,1') for flag in flags))
    with pytest.raises(UserError, match='0 classes in its val split'):
        do(*flags, '--train=False')


def test_more_ways_than_in_training(trained):
    flags, folder = trained
    with pytest.raises(UserError, match='outputs for 4 classes, not 3.*--num_classes=4'):
        do(*flags, '--train=False', '--test_set', '--num_classes=3', f'--init_from={folder}/model2.npz')


def test_a_picture_of_grey_images_is_not_inverted():
    """Omniglot's ink is 255, which is drawn black; in the user's own images 255 is white."""
    config, _ = main.read_flags(['--datasource=images', '--img_size=4', '--channels=1', '--num_classes=2'])
    data = data_generator.ImageGenerator(np.full([8, 16], 250, np.uint8), [range(4), range(4, 8)], 2, 1, 1, 1)
    samples = evaluation.image_samples(training.make_model(config, experiments.source_of(config), 1), data, config)
    assert samples['support'].shape == (2, 4, 4, 3)
    axis = figures.Figure().subplots()
    figures.show(axis, samples['support'][0])
    assert tuple(axis.images[0].make_image(None, unsampled=True)[0][0, 0]) == (250, 250, 250, 255)


# ---- Adapting and predicting -----------------------------------------------------------------------------------


def restated(folder, new, queries, steps, update_lr):
    """Weights after inner steps, and probabilities: the loss written out, each image one batch with the support set."""
    classes = sorted(new.iterdir())
    support = np.float32([np.array(Image.open(f).convert('RGB')) for c in classes for f in sorted(c.iterdir())]) / 255
    labels = np.repeat(range(len(classes)), [len(list(c.iterdir())) for c in classes])
    k = len(labels) / len(classes)
    network = Convolutional(10, 3, 4, num_filters=4, max_pool=True, flatten=True)
    arrays = checkpoint.read(folder / 'model2.npz')
    weights = {n.removeprefix('weights/'): tf.constant(a) for n, a in arrays.items() if n.startswith('weights/')}
    for _ in range(steps):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            chances = tf.exp(network.forward(support.reshape(len(labels), -1), weights)[:, : len(classes)])
            own = tf.gather(chances, labels, axis=1, batch_dims=1)
            loss = -tf.reduce_sum(tf.math.log(own / tf.reduce_sum(chances, 1))) / k
        gradients = tape.gradient(loss, weights, unconnected_gradients='zero')  # biases before a batch norm
        weights = {n: w if n.startswith('bn') else w - update_lr * gradients[n] for n, w in weights.items()}
    answers = []
    for file in queries:
        image = np.float32(Image.open(file).convert('RGB'))[None] / 255
        batch = np.concatenate([support, image])
        chances = np.exp(network.forward(batch.reshape(len(batch), -1), weights)[-1, : len(classes)])
        answers.append(chances / chances.sum())
    return weights, answers


@pytest.mark.parametrize('classes, images, extra', [(4, 2, []), (3, 1, ['--test_num_updates=1', '--update_lr=0.1'])])
def test_adapting_is_the_models_inner_steps(trained, tmp_path, capsys, classes, images, extra):
    """The table's probabilities and the adapted weights, with all outputs in use and with one to spare."""
    new = folders(tmp_path / 'new', names(classes), images, size=10, seed=5)
    folders(tmp_path / 'unknown', ['some', 'more'], 2, size=10, seed=6)
    (tmp_path / 'unknown' / 'notes.txt').write_text('')
    flags = [f'--adapt={new}', f'--predict={tmp_path}/unknown', f'--init_from={trained[1]}/model2.npz', *extra]
    do(*flags, f'--save_adapted={tmp_path}/adapted.npz', f'--logdir={tmp_path}/out')
    files = sorted((tmp_path / 'unknown').glob('*/*.png'))
    weights, expected = restated(trained[1], new, files, *((1, 0.1) if extra else (3, 0.3)))
    with (tmp_path / 'out/predictions.csv').open() as file:
        head, *rows = csv.reader(file)
    assert head == ['file', 'class', *(f'p({name})' for name in names(classes))]
    assert [row[0] for row in rows] == list(map(str, files))
    assert [row[1] for row in rows] == [names(classes)[answer.argmax()] for answer in expected]
    np.testing.assert_allclose(np.float64([row[2:] for row in rows]), expected, atol=2e-5)
    saved = checkpoint.read(tmp_path / 'adapted.npz')
    for name, value in weights.items():
        np.testing.assert_allclose(saved[f'weights/{name}'], value, rtol=1e-3, atol=1e-5)
    assert Image.open(tmp_path / 'out/predictions.png').size[0] > 100
    output = capsys.readouterr()
    assert f'{tmp_path}/out/predictions.csv' in output.out
    assert output.err.strip() == f'warning: {tmp_path}/unknown/notes.txt is not used: it is not called ' + ', '.join(
        images_module.OWN_ENDINGS
    )
    do(*flags, f'--logdir={tmp_path}/one', '--log=False', f'--predict={files[0].parent}')  # no image alters another's
    with (tmp_path / 'one/predictions.csv').open() as file:
        assert list(csv.reader(file))[1:] == rows[: len(list(files[0].parent.iterdir()))]


def test_the_settings_are_those_of_the_weights(trained, tmp_path):
    """Of a run of the paper: as many steps as it reads; flags win; without config.json flags say all."""
    weights = f'{main.__file__.removesuffix("main.py")}results/omniglot_5way_1shot/maml/seed1/weights.npz'
    config, _ = main.read_flags(['--adapt=a', '--predict=b', f'--init_from={weights}'])
    expected = ('omniglot', 5, 0.4, 3, False, '.')
    found = config.datasource, config.num_classes, config.update_lr, config.test_num_updates, config.train
    assert (*found, config.logdir) == expected
    config, _ = main.read_flags(
        ['--adapt=a', '--predict=b', f'--init_from={weights}', '--update_lr=0.2', '--test_num_updates=5']
    )
    assert (config.update_lr, config.test_num_updates) == (0.2, 5)
    config, _ = main.read_flags(['--adapt=a', '--predict=b', f'--init_from={trained[1]}/model2.npz'])
    assert (config.img_size, config.channels, config.num_classes, config.num_filters) == (10, 3, 4, 4)
    config, _ = main.read_flags(['--adapt=a', '--predict=b', '--init_from=/nowhere/a.npz', '--datasource=miniimagenet'])
    assert (config.num_filters, config.test_num_updates, config.update_lr) == (32, 10, 0.01)
    config, _ = main.read_flags(['--adapt=a', '--predict=b', '--init_from=/nowhere/a.npz', '--datasource=omniglot'])
    assert config.test_num_updates == 3


# ---- Bad input -------------------------------------------------------------------------------------------------


def spoiled(place, what):
    """A folder of 10 classes with something wrong; returns it and the path that the message has to name."""
    folders(place, names(10), images=2)
    path = place / 'class03/1.png'
    if what == 'damaged':
        path.write_bytes(path.read_bytes()[:-200])
    elif what == 'no image':
        path.write_text('text')
    elif what == 'larger':
        Image.new('RGB', (13, 13)).save(path)
    elif what == 'grey':
        Image.new('L', (12, 12)).save(path)
    elif what == 'nested':
        path = place / 'class03/deeper'
        path.mkdir()
    elif what == 'empty':
        for file in (place / 'class03').iterdir():
            file.unlink()
        path = place / 'class03'
    elif what == 'oblong':
        for file in place.glob('*/*'):
            Image.new('RGB', (12, 9)).save(file)
        path = '12x9'
    return place, str(path)


@pytest.mark.parametrize(
    'what, words',
    [
        ('damaged', ['not a readable image']),
        ('no image', ['not a readable image']),
        ('larger', ['12x12', '13x13', '--img_size']),
        ('grey', ['is grey', '--channels']),
        ('nested', ['a folder in the folder of a class']),
        ('empty', ['has 0 images']),
        ('oblong', ['--img_size']),
    ],
)
def test_bad_images_are_named(tmp_path, what, words):
    place, path = spoiled(tmp_path / 'data', what)
    flags = ['--datasource=images', '--num_classes=5', f'--data_dir={place}', f'--logdir={tmp_path}', *SHORT]
    with pytest.raises(UserError) as error:
        do(*flags, '--split=1,0,0', '--metatrain_iterations=1')
    assert '\n' not in str(error.value) and all(word in str(error.value) for word in [path, *words])


def test_what_is_not_used_is_named(tmp_path, capsys):
    place = folders(tmp_path, names(2))
    for name in ('class01/labels.csv', 'cat.png', '.hidden'):
        (place / name).write_text('')
    settled(f'--data_dir={place}')
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and f'{place}/cat.png is not used' in lines[0] and 'labels.csv is not used' in lines[1]


@pytest.mark.parametrize(
    'flags, words',
    [
        ('--datasource=images', ['--data_dir']),
        ('--datasource=images --data_dir=/nowhere', ['/nowhere']),
        ('--datasource=images --img_size=1', ['--img_size=1']),
        ('--datasource=images --channels=2', ['--channels=2']),
        ('--datasource=images --split=1,2', ['--split=']),
        ('--datasource=images --split=0,1,1', ['--split=']),
        ('--datasource=images --split=a,b,c', ['--split ']),
        ('--datasource=omniglot --img_size=30', ['--img_size', '--datasource=images']),
        ('--datasource=point --adapt=a', ['--adapt']),
        ('--predict=a', ['--predict', '--adapt']),
        ('--save_adapted=a.npz', ['--save_adapted', '--adapt']),
        ('--adapt=a --predict=b', ['--adapt', '--init_from']),
        ('--adapt=a --predict=b --init_from=/nowhere/a.npz', ['no config.json', '--datasource']),
        ('--adapt=a --predict=b --init_from=/nowhere/a.npz --datasource=images', ['--img_size', '--channels']),
        ('--adapt=a --predict=b --init_from=/nowhere/a.npz --datasource=sinusoid', ['--adapt is for images']),
        ('--adapt=a --init_from={run}/model2.npz', ['--predict', '--save_adapted']),
        ('--adapt=a --save_adapted=a --init_from={run}/model2.npz', ['.npz']),
        ('--adapt=/nowhere --predict=b --init_from={run}/model2.npz', ['/nowhere']),
        ('--adapt={five} --predict={five} --init_from={run}/model2.npz', ['5 folders', '--num_classes=5']),
        ('--adapt={five} --predict={five} --init_from={run}/model2.npz --num_classes=6', ['outputs for 4 classes']),
        ('--adapt={one} --predict={five} --init_from={run}/model2.npz', ['at least 2']),
        ('--adapt={three} --predict={empty} --init_from={run}/model2.npz', ['no images in', '--predict']),
        ('--adapt={three} --predict={five} --init_from={run}/none.npz', ['none.npz']),
        ('--adapt={three} --predict={five} --init_from={run}/model2.npz --update_lr=1e39', ['not finite']),
    ],
)
def test_bad_input_is_said_in_one_line(trained, tmp_path, flags, words):
    places = {'run': trained[1], 'empty': tmp_path / 'empty'}
    places['empty'].mkdir()
    for name, number in (('one', 1), ('three', 3), ('five', 5)):
        places[name] = folders(tmp_path / name, names(number), images=1)
    with pytest.raises(UserError) as error:
        do(*(flag.format(**places) for flag in flags.split()), f'--logdir={tmp_path}')
    assert '\n' not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)


def test_the_example_has_what_the_readme_says(tmp_path):
    script = pathlib.Path(main.__file__).parent / 'data' / 'example_images.py'
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=120)
    assert len(list(tmp_path.glob('classes/*/*.png'))) == 800
    assert (len(list(tmp_path.glob('new/*/*.png'))), len(list(tmp_path.glob('unknown/*.png')))) == (8, 12)
    config = settled(f'--data_dir={tmp_path}/classes')
    assert (config.img_size, config.channels) == (32, 1)
