"""The cache of decoded images: used as long as the images are the same, made again where it is not what was written."""

import io
import os
import subprocess
import sys

import image_folders
import numpy as np
import pytest
from PIL import Image
from program import full_disk
from test_data_generator import load

import images as images_module


def test_cache_is_used_and_rebuilt_when_the_data_changes(tmp_path):
    folder = image_folders.omniglot(tmp_path, characters=20, drawings=2)
    images = load(folder)
    (cache,) = folder.glob('cache-*.npy')
    np.testing.assert_array_equal(np.unique(np.load(cache)), [0, 255])
    written = os.stat(cache).st_mtime_ns
    np.testing.assert_array_equal(load(folder), images)
    assert os.stat(cache).st_mtime_ns == written
    for path in folder.glob('*/*/*.png'):
        Image.fromarray(np.zeros([28, 28], bool)).save(path)
    assert load(folder).min() == 255
    assert len(list(folder.glob('cache-*'))) == 1


def test_an_image_that_changes_in_its_time_or_its_size_alone_is_read_again(tmp_path):
    folder = image_folders.omniglot(tmp_path, characters=20, drawings=2)
    for ink, level, time in ((0, 0, 1000), (1, 0, 2000), (0, 9, 2000)):
        for path in folder.glob('*/*/*.png'):
            Image.fromarray(np.full([28, 28], 255 * (1 - ink), np.uint8)).save(path, compress_level=level)
            os.utime(path, (time, time))
        np.testing.assert_array_equal(np.unique(load(folder)), 255 * ink)


def test_a_file_of_the_users_that_is_called_like_a_cache_stays(tmp_path):
    folder = image_folders.omniglot(tmp_path, characters=20, drawings=2)
    (folder / 'cache-embeddings.npy').write_text('precious')
    (folder / 'cache-0123456789abcdef.npy').write_text('of an earlier state')
    load(folder)
    kept = sorted(path.name for path in folder.glob('cache-*'))
    assert len(kept) == 2 and 'cache-embeddings.npy' in kept and 'cache-0123456789abcdef.npy' not in kept


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    'spoil',
    [
        lambda data: b'',
        lambda data: data[:1000],
        lambda data: data + b'more',
        lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
        lambda data: data[:-9] + bytes(9),
        lambda data: bytes(len(data)),
        lambda data: data.replace(b'(40, 784)', b'(20, 1568'),
        lambda data: data.replace(b'|u1', b'|i1'),
        lambda data: saved(np.zeros([40, 784], np.uint8)),
        lambda data: saved(np.zeros([40, 28, 28], np.uint8)),
        lambda data: saved(np.zeros([40, 784], np.float32)),
        lambda data: saved(np.array({}, object)),
        lambda data: b'PK\x03\x04 the beginning of an archive',
    ],
)
def test_a_cache_that_is_not_what_was_written_is_made_again(tmp_path, spoil):
    folder = image_folders.omniglot(tmp_path, characters=20, drawings=2)
    images = load(folder)
    (cache,) = folder.glob('cache-*.npy')
    data = cache.read_bytes()
    cache.write_bytes(spoil(data))
    assert cache.read_bytes() != data
    np.testing.assert_array_equal(load(folder), images)
    assert cache.read_bytes() == data


def test_the_check_of_a_large_cache_reads_a_part_of_it(monkeypatch):
    """Evenly spaced rows: damage of a stretch is told, whatever the size."""
    monkeypatch.setattr(images_module, 'SAMPLE', 10000)
    images = np.random.default_rng(0).integers(0, 256, [1000, 100], np.uint8)
    sound, rows = images_module.checksum(images), set()
    for row in range(1000):
        damaged = images.copy()
        damaged[row] += 1
        rows |= {row} if images_module.checksum(damaged) != sound else set()
    assert rows == set(range(0, 1000, 10))


def test_leftovers_of_killed_processes_are_removed_and_those_of_living_ones_kept(tmp_path):
    folder = image_folders.omniglot(tmp_path, characters=20, drawings=2)
    load(folder)
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    left = [tmp_path / f'cache-0123456789abcdef.{pid}.tmp' for pid in (dead.pid, 10**30, os.getpid(), 'x')]
    for path in left:
        path.write_bytes(b'half a cache')
    load(folder)  # with a cache that is there
    assert [path.exists() for path in left] == [False, False, True, True]


def test_a_cache_that_cannot_be_written_leaves_nothing_behind(tmp_path, capsys):
    folder = image_folders.omniglot(tmp_path, characters=20, drawings=2)
    with full_disk(10000):
        images = load(folder)
    assert 'cannot be written' in capsys.readouterr().err
    assert not list(folder.glob('cache-*'))
    np.testing.assert_array_equal(load(folder), images)


def test_a_cache_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    folder, synced, fsync = image_folders.omniglot(tmp_path, characters=20, drawings=2), [], os.fsync

    def record(number):
        fsync(number)
        synced.append((os.fstat(number).st_size, list(folder.glob('cache-*.npy'))))

    monkeypatch.setattr(os, 'fsync', record)
    load(folder)
    (cache,) = folder.glob('cache-*')
    assert synced == [(cache.stat().st_size, [])]
