"""Tasks: what is drawn, that it depends on the seed alone, and what happens with bad data."""

import os
import random
import shutil
import types

import image_folders
import numpy as np
import pytest
from PIL import Image

import data_generator
import main
import training
from data_generator import SinusoidGenerator, image_generators, load_split, prefetched
from experiments import SOURCES
from runtime import UserError


@pytest.fixture(scope='module')
def omniglot(tmp_path_factory):
    return image_folders.omniglot(tmp_path_factory.mktemp('omniglot'))


def generator(folder, split='train', ways=3, shots=1, query=2, tasks=5, seed=1, datasource='omniglot'):
    return image_generators(SOURCES[datasource], folder, [split], ways, shots, {split: query}, tasks, seed)[split]


def load(folder):
    """The images of `folder`, as a program that has just been started gets them."""
    data_generator.load_folders.cache_clear()
    return np.array(generator(folder, shots=1, query=1).images)


# ---- Sinusoid --------------------------------------------------------------------------------------------------


def test_sinusoid_tasks_are_sinusoids_in_the_papers_ranges():
    inputs, outputs, amp, phase = SinusoidGenerator(10, 25).generate_sinusoid_batch(np.random.default_rng(0), 2000, 20)
    np.testing.assert_allclose(outputs, amp[:, None, None] * np.sin(inputs - phase[:, None, None]))
    for values, low, high in ((amp, 0.1, 5), (phase, 0, np.pi), (inputs, -5, 5)):
        assert low <= values.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < values.max() <= high


@pytest.mark.parametrize('seed', [1, 2])
def test_sinusoid_test_tasks_are_the_originals(seed):
    """A re-statement of the original's loop: np.random.seed(1), then one task at a time."""
    np.random.seed(seed)
    ((inputa, labela, inputb, labelb),) = SinusoidGenerator(5, 25, seed=seed).test_batches(3)
    for task in range(3):
        amp, phase = np.random.uniform(0.1, 5.0, [1]), np.random.uniform(0, np.pi, [1])
        x = np.random.uniform(-5.0, 5.0, [10, 1])
        np.testing.assert_array_equal(np.concatenate([inputa[task], inputb[task]]), np.float32(x))
        np.testing.assert_array_equal(np.concatenate([labela[task], labelb[task]]), np.float32(amp * np.sin(x - phase)))


def test_oracle_sees_amplitude_and_phase():
    inputa, labela, inputb, labelb = SinusoidGenerator(10, 4, oracle=True, block=2).draw_block(0)
    assert inputa.shape == (2, 4, 10, 3)
    x, amp, phase = np.moveaxis(inputb, -1, 0)
    np.testing.assert_allclose(labelb[..., 0], amp * np.sin(x - phase), atol=1e-5)


def test_blocks_differ_and_depend_on_the_seed():
    first, again = SinusoidGenerator(10, 2, block=2).draw_block(0), SinusoidGenerator(10, 2, block=2).draw_block(0)
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], SinusoidGenerator(10, 2, block=2).draw_block(1)[0])
    assert not np.array_equal(first[0], SinusoidGenerator(10, 2, block=2, seed=2).draw_block(0)[0])


# ---- Images ----------------------------------------------------------------------------------------------------


def test_omniglot_split_is_sorted_then_shuffled_with_seed_1(tmp_path):
    """1,100 / 100 / 423 characters, without overlap, whatever order the file system lists them in."""
    image_folders.omniglot(tmp_path, characters=1623, drawings=1, alphabets=50)
    expected = sorted(path for path in tmp_path.glob('*/*'))
    random.Random(1).shuffle(expected)
    names = {split: load_split(SOURCES['omniglot'], tmp_path, split)[2] for split in ('train', 'val', 'test')}
    assert names == {'train': expected[:1100], 'val': expected[1100:1200], 'test': expected[1200:]}


def test_a_batch_of_omniglot_tasks(omniglot):
    """Shapes, labels, no image twice in a task, one rotation a class, ink is white, pixels those of the files."""
    source = generator(omniglot)
    inputa, labela, inputb, labelb = source.batch(data_generator.TRAIN, 0, 5)
    assert inputa.shape == (5, 3, 784) and inputb.shape == (5, 6, 784) and inputa.dtype == np.uint8
    assert labela.shape == (5, 3, 3) and labelb.shape == (5, 6, 3)
    drawings = {}
    for path in omniglot.glob('*/*/*.png'):
        ink = 255 * (1 - np.array(Image.open(path), np.uint8))
        for quarter in range(4):
            drawings[np.rot90(ink, quarter).tobytes()] = (path.parent, path, quarter)
    for task in range(5):
        inputs, labels = np.concatenate([inputa[task], inputb[task]]), np.concatenate([labela[task], labelb[task]])
        found = [drawings[image.tobytes()] for image in inputs]
        assert len({path for _, path, _ in found}) == len(found)
        classes = [
            {(folder, quarter) for (folder, _, quarter), label in zip(found, labels) if label[n]} for n in range(3)
        ]
        assert all(len(c) == 1 for c in classes), 'a class is one character under one rotation'
        assert len({folder for c in classes for folder, _ in c}) == 3, 'and no two classes are one character'
        for group in labels.reshape(-1, 3, 3):
            np.testing.assert_array_equal(group.sum(axis=0), 1)
    images, _, _, labels = source.batch(data_generator.TRAIN, 1, 50)
    quarters = {drawings[image.tobytes()][2] for image in images.reshape(-1, 784)}
    assert quarters == {0, 1, 2, 3}
    orders = labels.argmax(axis=2).reshape(50, 2, 3)
    assert len(np.unique(orders.reshape(-1, 3), axis=0)) == 6 and (orders[:, 0] != orders[:, 1]).any(axis=1).sum() > 30


def test_draws_depend_on_seed_and_number_alone(omniglot):
    """Another generator, in another state, gives the same batch; other numbers, seeds and streams others."""
    one, other = generator(omniglot), generator(omniglot)
    one.draw_block(7)
    batch = one.draw_block(3)
    for part, same in zip(batch, other.draw_block(3)):
        np.testing.assert_array_equal(part, same)
    for different in (one.draw_block(4), generator(omniglot, seed=2).draw_block(3)):
        assert not np.array_equal(batch[0], different[0])
    streams = generator(omniglot, tasks=data_generator.TEST_BATCH)
    training, (validation,) = streams.draw_block(0)[0][0], (b[0] for b in streams.validation_batches(50))
    (test,) = (tasks[0] for tasks in streams.test_batches(data_generator.TEST_BATCH))
    for tasks, others in ((training, validation), (validation, test), (test, training)):
        assert (tasks != others).any(axis=(1, 2)).all()


def test_prefetched_batches_start_anywhere(omniglot):
    source = generator(omniglot)
    batches = prefetched(source.draw_block, 5)
    for number in (5, 6, 7):
        for drawn, expected in zip(next(batches), source.draw_block(number)):
            np.testing.assert_array_equal(drawn, expected)


def test_an_error_in_the_drawing_thread_reaches_the_user():
    def batch(number):
        if number == 7:
            raise OSError('no such image')
        return (np.full([2], number),)

    batches = prefetched(batch, 5)
    assert [int(next(batches)[0][0]) for _ in range(2)] == [5, 6]
    with pytest.raises(OSError, match='no such image'):
        next(batches)


def test_classes_and_images_are_drawn_evenly(omniglot):
    source = generator(omniglot, ways=2, shots=1, query=1)
    images = source.batch(data_generator.TRAIN, 0, 4000)[0].reshape(-1, 784)
    _, counts = np.unique(images, axis=0, return_counts=True)
    expected = len(images) / (27 * 4 * 4)  # characters x drawings x rotations
    assert len(counts) == 27 * 4 * 4 and abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_classes_of_different_sizes(tmp_path):
    """Images are drawn from those that a class has."""
    folder = image_folders.omniglot(tmp_path, characters=9, drawings=3)
    extra = sorted(folder.glob('*/*'))[0]
    for index in range(5):
        Image.fromarray(np.arange(784).reshape(28, 28) % (index + 2) == 0).save(extra / f'9999_{index}.png')
    inputa, _, inputb, _ = generator(folder, ways=2, shots=1, query=2).batch(data_generator.TRAIN, 0, 50)
    for task in np.concatenate([inputa, inputb], 1):
        assert len(np.unique(task, axis=0)) == len(task)


def test_miniimagenet_is_rgb_and_not_rotated(tmp_path):
    folder = image_folders.miniimagenet(tmp_path, classes=2, images=3)
    source = generator(folder, 'val', ways=2, shots=1, query=2, datasource='miniimagenet')
    files = sorted(folder.glob('val/*/*.jpg'))
    inputa, labela, inputb, labelb = source.batch(data_generator.VALIDATION, 0, 3)
    for image in np.concatenate([inputa, inputb], 1).reshape(-1, 84, 84, 3):
        distances = [np.abs(image.astype(int) - np.array(Image.open(file), int)).mean() for file in files]
        assert min(distances) < 2  # the decoders differ by rounding


def test_training_and_tests_have_queries_of_their_own(tmp_path):
    flags = ['--datasource=miniimagenet', f'--data_dir={image_folders.miniimagenet(tmp_path, 2, 4)}', '--num_classes=2']
    config = main.read_flags([*flags, '--train_query=3', '--test_query=2', '--test_set'])[0]
    data = training.make_data(config, SOURCES['miniimagenet'])
    sizes = {use: (source.update_batch_size, source.query) for use, source in data.items()}
    assert sizes == {'train': (1, 3), 'val': (1, 2), 'test': (1, 2)}


def test_hidden_files_and_folders_are_no_data(tmp_path):
    folder = image_folders.omniglot(tmp_path, characters=20, drawings=2)
    names = load_split(SOURCES['omniglot'], folder, 'train')[2]
    for name in ('.ipynb_checkpoints/character01', 'Alphabet0/.ipynb_checkpoints'):
        (folder / name).mkdir(parents=True)
        (folder / name / 'x.png').write_bytes(b'no image')
    (folder / 'Alphabet0/character01/._x.png').write_bytes(b'what a Mac leaves behind')
    data_generator.load_folders.cache_clear()
    assert load_split(SOURCES['omniglot'], folder, 'train')[2] == names


def test_names_that_are_not_utf8_are_served(tmp_path):
    images = load(image_folders.omniglot(tmp_path, characters=20, drawings=2))
    for path in sorted(tmp_path.glob('*/*/*.png')):
        path.rename(path.with_name(os.fsdecode(b'\xff') + path.name))
    np.testing.assert_array_equal(load(tmp_path), images)


@pytest.mark.parametrize(
    'spoil, words',
    [
        (lambda folder: None, ['5 classes', '6-way', '--num_classes']),
        (lambda folder: next(folder.glob('*/character01/*_01.png')).unlink(), ['1 images', 'needs 2']),
        (lambda folder: next(folder.glob('*/*02/*_01.png')).write_bytes(b'no image'), ['_01.png', 'not a readable']),
        (lambda folder: Image.new('1', (105, 105)).save(next(folder.glob('*/*02/*_01.png'))), ['105x105', '28x28']),
        (lambda folder: [path.unlink() for path in folder.glob('*/*/*')], ['no images', 'data/README.md']),
        (lambda folder: (folder / 'Alphabet0/character01/x.png').mkdir(), ['x.png is not a file', 'rename']),
        (lambda folder: os.mkfifo(folder / 'Alphabet0/character01/x.png'), ['x.png is not a file', 'rename']),
        (lambda folder: (folder / 'Alphabet0/character01/x.png').symlink_to('gone'), ['x.png cannot be read', 'mend']),
        (lambda folder: (folder / 'Alphabet0/character09').symlink_to('gone'), ['character09 is a link to nothing']),
        (lambda folder: (folder / 'Alphabet9').symlink_to('gone'), ['Alphabet9 is a link to nothing']),
        (lambda folder: (folder / 'Alphabet9').symlink_to('Alphabet9'), ['Alphabet9 is a link to nothing']),
    ],
)
def test_bad_data_is_refused_with_one_line(tmp_path, spoil, words):
    folder = image_folders.omniglot(tmp_path, characters=7, drawings=2)
    spoil(folder)
    with pytest.raises(UserError) as error:
        generator(folder, ways=6 if words[0] == '5 classes' else 3, shots=1, query=1)
    assert '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_smaller_data_is_allowed_with_a_warning(tmp_path, capsys):
    generator(image_folders.omniglot(tmp_path / 'omniglot', characters=20, drawings=3))
    assert 'not the full 1623 x 20' in capsys.readouterr().err
    generator(image_folders.miniimagenet(tmp_path / 'mini', images=3), datasource='miniimagenet')
    assert 'not the full 64 x 600' in capsys.readouterr().err


@pytest.mark.parametrize('spoil', ['few classes', 'few images', 'none', 'empty'])
def test_a_split_that_is_optional_may_be_too_small(tmp_path, capsys, spoil):
    folder = image_folders.miniimagenet(tmp_path, classes=3, images=2)
    data_generator.load_folders.cache_clear()
    if spoil == 'few classes':
        shutil.rmtree(folder / 'val/nval00')
    elif spoil == 'few images':
        (folder / 'val/nval00/000.jpg').unlink()
    else:
        shutil.rmtree(folder / 'val')
        if spoil == 'empty':
            (folder / 'val').mkdir()

    def splits(**options):
        source, query = SOURCES['miniimagenet'], {'train': 1, 'val': 1}
        return list(image_generators(source, folder, query, 3, 1, query, 2, 1, **options))

    assert splits(optional=['val']) == ['train']
    warnings = [line for line in capsys.readouterr().err.splitlines() if 'without the val split' in line]
    assert len(warnings) == 1 and str(folder) in warnings[0]
    with pytest.raises(UserError):
        splits()
    if spoil != 'none' and spoil != 'empty':
        next(folder.glob('val/nval01/*')).write_bytes(b'no image')
        data_generator.load_folders.cache_clear()
        with pytest.raises(UserError, match='not a readable'):  # damage is no lack
            splits(optional=['val'])


def test_training_without_enough_classes_for_validation(tmp_path):
    """As with --datasource=miniimagenet --num_classes=20; without --test_set they are what the test uses."""
    folder = image_folders.miniimagenet(tmp_path, classes=20, images=2)
    for label in range(5):
        shutil.rmtree(folder / f'val/nval{label:02d}')
    config = types.SimpleNamespace(
        datasource='miniimagenet', data_dir=folder, num_classes=20, meta_batch_size=4, seed=1
    )
    config.update_batch_size = config.train_query = config.test_query = 1
    config.train, config.test_set = True, True
    assert set(training.make_data(config, SOURCES['miniimagenet'])) == {'train', 'test'}
    config.test_set = False
    for config.train in (True, False):
        with pytest.raises(UserError, match='15 classes in its val split, too few for 20-way'):
            training.make_data(config, SOURCES['miniimagenet'])
    config.num_classes, config.train, config.test_set, config.seed = 15, True, True, 3
    data = training.make_data(config, SOURCES['miniimagenet'])
    assert set(data) == {'train', 'val', 'test'} and {source.seed for source in data.values()} == {3}
