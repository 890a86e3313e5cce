"""The MiniImagenet script, run for real on tiny made-up datasets."""

import os
from pathlib import Path

import pytest
from prepare_data import MINI, PHOTOS, assert_processed, assert_refused, mini, own_copy, pack, run, tree


@pytest.mark.parametrize(
    ('form', 'kind'),
    [
        ('flat', 'folder'),
        ('images', 'folder'),
        ('split', 'folder'),
        ('images', 'zip'),
        ('split', 'tar'),
        ('flat', 'tar'),
    ],
)
def test_mini_forms(tmp_path, form, kind):
    source, dest = mini(tmp_path / 'source', form), tmp_path / 'dest'
    before = tree(source)
    given = source if kind == 'folder' else pack(kind, source, tmp_path / 'archive')
    result = run(MINI, f'--source={given}', f'--dest={dest}')
    assert result.returncode == 0, result.stderr
    assert_processed(dest)
    assert tree(source) == before
    assert 'classes x images: train 1 x 2, val 1 x 1, test 1 x 1' in result.stdout
    assert result.stderr == 'warning: all of MiniImagenet is train 64 x 600, val 16 x 600, test 20 x 600\n'


@pytest.mark.parametrize('where', ['beside', '--csv'])
def test_mini_csv_files_elsewhere(tmp_path, where):
    source, folder = mini(tmp_path / 'all') / 'images', tmp_path / 'all'
    arguments = [f'--source={source}', f'--dest={tmp_path / "dest"}']
    if where == '--csv':
        folder = tmp_path / 'tables'
        folder.mkdir()
        for table in (tmp_path / 'all').glob('*.csv'):
            table.rename(folder / table.name)
        assert_refused(run(MINI, *arguments), 'train.csv', '--csv')
        arguments.append(f'--csv={folder}')
    assert run(MINI, *arguments).returncode == 0
    assert_processed(tmp_path / 'dest')


def test_mini_without_arguments_works_beside_the_script_and_goes_on_after_a_break(tmp_path):
    script = own_copy(MINI, tmp_path)
    mini(script.parent)
    elsewhere = (script.parent / 'images').rename(tmp_path / 'another disk')
    (script.parent / 'images').symlink_to(elsewhere)
    images = tree(elsewhere)
    assert run(script).returncode == 0
    assert_processed(script.parent)
    assert tree(elsewhere) == images

    kept, lost, broken, _ = (script.parent / name for name in PHOTOS)
    os.utime(kept, (1, 1))
    lost.unlink()
    lost.with_name(f'.{lost.name}.tmp').write_bytes(b'half a file of a killed run')
    broken.write_bytes(b'')
    assert run(script).returncode == 0
    assert_processed(script.parent)  # also sees that the hidden file is gone
    assert kept.stat().st_mtime == 1

    (script.parent / 'images').unlink()  # no longer needed
    assert run(script).returncode == 0
    assert_processed(script.parent)


def test_mini_missing_images_are_counted_and_the_first_is_named(tmp_path):
    mini(tmp_path)
    for name in list(PHOTOS)[1:3]:
        (tmp_path / 'images' / Path(name).name).unlink()
    result = run(MINI, f'--source={tmp_path}', f'--dest={tmp_path / "dest"}')
    assert_refused(result, '2 listed images', 'n0153282900000006.jpg of train.csv')
    assert not (tmp_path / 'dest').exists()


@pytest.mark.parametrize(
    ('table', 'words'),
    [
        (None, ['train.csv is not in', '--csv']),
        ('', ["train.csv begins with ''"]),
        ('image,class\nn0153282900000005.jpg,n01532829\n', ["train.csv begins with 'image,class'"]),
        ('filename,label\nn0153282900000005.jpg\n', ["train.csv has the line 'n0153282900000005.jpg'"]),
        ('filename,label\nn0153282900000005.jpg,../../x\n', ['train.csv', 'unsafe path']),
    ],
)
def test_mini_bad_csv(tmp_path, table, words):
    mini(tmp_path)
    (tmp_path / 'train.csv').unlink()
    if table is not None:
        (tmp_path / 'train.csv').write_text(table)
    assert_refused(run(MINI, f'--source={tmp_path}', f'--dest={tmp_path / "dest"}'), *words)
    assert not (tmp_path / 'dest').exists()


def test_mini_unreadable_image_is_named(tmp_path):
    bad = mini(tmp_path) / 'images' / 'n0185567200000001.jpg'
    bad.write_bytes(bad.read_bytes()[:-200])
    result = run(MINI, f'--source={tmp_path}', f'--dest={tmp_path / "dest"}')
    assert_refused(result, f'cannot read the image {bad}')


def test_mini_nothing_found(tmp_path):
    dest = f'--dest={tmp_path / "dest"}'
    assert_refused(run(MINI, f'--source={tmp_path}', dest), f'no JPEG images in {tmp_path}', '--help')
    (tmp_path / 'file').write_text('neither')
    assert_refused(run(MINI, f'--source={tmp_path / "file"}', dest), 'neither a folder nor')
