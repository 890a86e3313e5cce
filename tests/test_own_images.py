"""Images of the user's own: training on them, and a trained model on new classes (adapt.py)."""

import csv
import itertools
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import adapt
import checkpoint
import data_generator
import evaluation
import experiments
import figures
import images as images_module
import main
import naming
import training
from networks import Convolutional
from runtime import UserError

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
    images_module.settle(config, origins, experiments.SOURCES['images'])
    return config


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
    return flags, pathlib.Path(config.logdir, naming.run_name(config))


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


@pytest.mark.parametrize(('split', 'iterations'), [('4,0,1', 500), ('3,1,1', 499)])
def test_the_best_weights_are_not_asked_for_in_vain(trained, split, iterations, tmp_path):
    """Before the training it is said that there will be none."""
    flags = [f'--split={split}', f'--metatrain_iterations={iterations}', f'--logdir={tmp_path}', '--num_classes=2']
    with pytest.raises(UserError, match='--test_iter=best is the best of'):
        do(*trained[0], *flags, '--test_set', '--test_iter=best')
    assert not any(tmp_path.iterdir())


def test_pretraining_has_no_part_in_the_lines_of_meta_training(trained, tmp_path, monkeypatch, capsys):
    """Nor in its warning: the loss after adaptation is logged alone while pretraining, and may be anything."""

    def block_trainer(strategy, model):
        losses = itertools.count()
        return lambda *piece: np.float64([[0.001, 10 ** next(losses), 0.25, 0.25] if piece[-1] else [0.75] * 4])

    monkeypatch.setattr(training.distribute, 'block_trainer', block_trainer)
    flags = [*trained[0], f'--logdir={tmp_path}', '--pretrain_iterations=50', '--metatrain_iterations=60', '--test_set']
    do(*flags)
    output = capsys.readouterr().out
    (line,) = [line for line in output.splitlines() if line.startswith('Iteration ')]
    assert 'jumped' not in output
    assert line == 'Iteration 50: accuracy 0.7500 before, 0.7500 after the inner updates'


def test_a_test_has_the_size_and_the_classes_of_the_training(trained, tmp_path, capsys):
    """Where the flags do not say them; what was trained on is not to be tested on."""
    flags, folder = trained
    test = [flag for flag in flags if not flag.startswith(('--split', '--channels'))] + ['--train=False', '--test_set']
    config = do(*test)
    assert (config.img_size, config.channels, config.split) == (10, 3, [4, 0, 1])
    for flag in ('--split=3,1,1', '--img_size=9'):
        with pytest.raises(UserError, match=f'made with {flag.split("=")[0]}=.*: drop'):
            do(*test, flag)
    shutil.copytree(flags[1].split('=')[1], tmp_path / 'data')
    folders(tmp_path / 'data', ['one more'], size=10)
    with pytest.raises(UserError, match='has not the images of the training'):
        do(*test, f'--data_dir={tmp_path / "data"}')
    capsys.readouterr()
    weights = f'--init_from={folder}/model2.npz'
    do(*test, f'--data_dir={tmp_path / "data"}', weights, '--split=3,1,1')  # to test on other images
    assert 'classes may be tested on that were trained on' in capsys.readouterr().err
    shutil.rmtree(tmp_path / 'data' / 'one more')
    assert do(*test, f'--data_dir={tmp_path / "data"}', weights).split == [4, 0, 1]  # a copy of the training's
    assert not capsys.readouterr().err
    with pytest.raises(UserError, match='trained on other classes of .*: use its --split=4.0,0.0,1.0'):
        do(*flags, '--split=3,1,1', f'--logdir={tmp_path}', weights)
    folders(tmp_path / 'brought' / 'test', names(5), size=10)
    do(*test, f'--data_dir={tmp_path / "brought"}')  # or, as the message says, on what is for tests alone


def test_a_run_on_folders_of_splits_is_tested_beside_what_it_was_trained_on(tmp_path):
    """With the same flags and other images it is another run, unless --init_from says that its weights are meant."""
    for place in 'ab':
        for split in ('train', 'test'):
            folders(tmp_path / place / split, names(3), size=10, seed=ord(place))
    flags = ['--datasource=images', '--num_classes=3', f'--logdir={tmp_path}/logs', '--metatrain_iterations=2', *SHORT]
    run = naming.run_name(do(*flags, f'--data_dir={tmp_path}/a', '--test_set'))
    everything = [*flags, f'--data_dir={tmp_path}/a/train', f'--init_from={tmp_path}/logs/{run}/model2.npz']
    for more in (['--train=False', '--test_set'], [f'--logdir={tmp_path}/other']):
        with pytest.raises(UserError, match='was trained on all classes of .*/a/train: bring others'):
            do(*everything, *more)
    test = [*flags, f'--data_dir={tmp_path}/b', '--test_set', '--train=False']
    with pytest.raises(UserError, match='/b has not the images of the training: bring them back, or use --init_from'):
        do(*test)
    do(*test, f'--init_from={tmp_path}/logs/{run}/model2.npz')


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
    shutil.copy(tmp_path / 'unknown' / 'some' / '0.png', tmp_path / 'unknown' / 'predictions.png')  # as if it were ours
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
    assert saved['adapted'] == (1 if extra else 3)
    assert Image.open(tmp_path / 'out/predictions.png').size[0] > 100
    output = capsys.readouterr()
    assert f'{tmp_path}/out/predictions.csv' in output.out
    whys = f'not called {", ".join(images_module.OWN_ENDINGS)}', 'called as what --predict writes'
    assert output.err.splitlines() == [
        f'warning: {tmp_path}/unknown/{name} is not used: it is {why}'
        for name, why in zip(('notes.txt', 'predictions.png'), whys)
    ]
    do(*flags, f'--logdir={tmp_path}/one', '--log=False', f'--predict={files[0].parent}')  # no image alters another's
    with (tmp_path / 'one/predictions.csv').open() as file:
        assert list(csv.reader(file))[1:] == rows[: len(list(files[0].parent.iterdir()))]


def test_training_classes_among_the_test_classes_are_named(tmp_path, capsys):
    for split, classes, seed in (('train', names(4), 1), ('test', ['class03', 'class09'], 2)):
        folders(tmp_path / split, classes, ending='bmp' if split == 'train' else 'png', seed=seed)
    settled(f'--data_dir={tmp_path}')
    assert not capsys.readouterr().err
    shutil.copytree(tmp_path / 'train' / 'class01', tmp_path / 'test' / 'class01')
    settled(f'--data_dir={tmp_path}')
    error = capsys.readouterr().err
    assert f'1 of the validation and test classes are training classes too, {tmp_path}/test/class01' in error


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
    text = (trained[1] / 'config.json').read_text()
    (tmp_path / 'config.json').write_text(text.replace('"precision": "float32"', '"precision": "mixed"'))
    assert main.read_flags(['--adapt=a', '--predict=b', f'--init_from={tmp_path}/a.npz'])[0].precision == 'mixed'
    config, _ = main.read_flags(['--adapt=a', '--predict=b', '--init_from=/nowhere/a.npz', '--datasource=miniimagenet'])
    assert (config.num_filters, config.test_num_updates, config.update_lr) == (32, 10, 0.01)
    config, _ = main.read_flags(['--adapt=a', '--predict=b', '--init_from=/nowhere/a.npz', '--datasource=omniglot'])
    assert config.test_num_updates == 3


def test_omniglots_weights_see_ink_as_in_training(tmp_path, monkeypatch):
    seen, weights = [], f'{main.__file__.removesuffix("main.py")}results/omniglot_5way_1shot/maml/seed1/weights.npz'
    monkeypatch.setattr(adapt, 'adapted', lambda model, support, *others: seen.append(support) or {})
    new = folders(tmp_path / 'new', names(2), images=1, size=28, mode='L')
    do(f'--adapt={new}', f'--save_adapted={tmp_path}/adapted.npz', f'--init_from={weights}')
    drawn = [np.asarray(Image.open(new / name / '0.png')).reshape(-1) for name in names(2)]
    np.testing.assert_array_equal(seen[0], 255 - np.array(drawn))


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


def test_images_that_are_nearly_black_are_mentioned(tmp_path, capsys):
    """As 12 bits in files of 16 become, of which the upper 8 are taken."""
    for brightest in (4095, 65535):
        pixels = np.linspace(0, brightest, 100).reshape(10, 10).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / f'{brightest}.png')
    (dark,) = images_module.decode_own([str(tmp_path / '4095.png')], 10, 1, False)
    assert dark.max() == 15 and '4095.png and all others are nearly black, at most 15 of 255' in capsys.readouterr().err
    both = images_module.decode_own([str(tmp_path / f'{b}.png') for b in (4095, 65535)], 10, 1, False)
    assert both.max() == 255 and not capsys.readouterr().err


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
        ('--datasource=images --data_dir=/nowhere', ['--data_dir=/nowhere is no folder']),
        ('--datasource=images --img_size=1', ['--img_size=1']),
        ('--datasource=images --channels=2', ['--channels=2']),
        ('--datasource=images --data_dir={many} --img_size=12 --num_classes=2 --train=False', ['no checkpoint']),
        ('--datasource=images --data_dir={five} --train=False --init_from={damaged}/model2.npz', ['config.json']),
        ('--datasource=images --split=1,2', ['--split=']),
        ('--datasource=images --split=0,1,1', ['--split=']),
        ('--datasource=images --split=a,b,c', ['--split ']),
        ('--datasource=images --split=0.6,0.2,nan', ['--split']),
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
        ('--adapt={three} --save_adapted={run}/model2.npz --init_from={run}/model2.npz', ['for the weights of a run']),
        ('--adapt={three} --save_adapted={run}/model2.npz --init_from={copy}/model2.npz', ['for the weights of a run']),
        ('--adapt=/nowhere --predict=b --init_from={run}/model2.npz', ['/nowhere']),
        ('--adapt={five} --predict={five} --init_from={run}/model2.npz', ['5 folders', '--num_classes=5']),
        ('--adapt={five} --predict={five} --init_from={run}/model2.npz --num_classes=6', ['outputs for 4 classes']),
        ('--adapt={one} --predict={five} --init_from={run}/model2.npz', ['at least 2']),
        ('--adapt={three} --predict={empty} --init_from={run}/model2.npz', ['no images in', '--predict']),
        ('--adapt={three} --predict={five} --init_from={run}/none.npz', ['none.npz']),
        ('--adapt={three} --predict={run}/config.json --init_from={run}/model2.npz', ['--predict=', 'is no folder']),
        ('--adapt={three} --predict={five} --init_from={run}/model2.npz --meta_lr=1', ['--meta_lr has no effect']),
        ('--adapt={three} --predict={five} --init_from={run}/model2.npz --num_updates=7', ['--test_num_updates']),
        ('--adapt={three} --predict={five} --init_from={run}/model2.npz --max_pool=False', ['with --max_pool=True']),
        ('--adapt={three} --predict={five} --init_from={run}/model2.npz --update_lr=1e39', ['not finite']),
    ],
)
def test_bad_input_is_said_in_one_line(trained, tmp_path, flags, words):
    places = {'run': trained[1], 'empty': tmp_path / 'empty'}
    places['empty'].mkdir()
    places['copy'] = shutil.copytree(places['run'], tmp_path / 'copy')
    places['damaged'] = shutil.copytree(places['run'], tmp_path / 'damaged')
    (places['damaged'] / 'config.json').write_text('{')
    for name, number, images in (('one', 1, 1), ('three', 3, 1), ('five', 5, 1), ('many', 20, 2)):
        places[name] = folders(tmp_path / name, names(number), images)
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
