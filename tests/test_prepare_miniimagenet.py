"""The MiniImagenet script, run for real on tiny made-up datasets."""

import gzip
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from prepare_data import (
    MINI,
    PHOTOS,
    assert_processed,
    assert_refused,
    call,
    mini,
    own_copy,
    pack,
    photo,
    run,
    save,
    tree,
)


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
        assert_refused(call(MINI, *arguments), 'train.csv', '--csv')
        arguments.append(f'--csv={folder}')
    assert call(MINI, *arguments).returncode == 0
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
    result = call(MINI, f'--source={tmp_path}', f'--dest={tmp_path / "dest"}')
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
    assert_refused(call(MINI, f'--source={tmp_path}', f'--dest={tmp_path / "dest"}'), *words)
    assert not (tmp_path / 'dest').exists()


def test_mini_unreadable_image_is_named(tmp_path):
    bad = mini(tmp_path) / 'images' / 'n0185567200000001.jpg'
    bad.write_bytes(bad.read_bytes()[:-200])
    result = call(MINI, f'--source={tmp_path}', f'--dest={tmp_path / "dest"}')
    assert_refused(result, f'cannot read the image {bad}')


def test_mini_nothing_found(tmp_path):
    dest = f'--dest={tmp_path / "dest"}'
    assert_refused(call(MINI, f'--source={tmp_path}', dest), f'no JPEG or PNG images in {tmp_path}', '--help')
    (tmp_path / 'file').write_text('neither')
    assert_refused(call(MINI, f'--source={tmp_path / "file"}', dest), 'neither a folder nor')


# ---------------------------------------------------------------- which file is which


RED, GREEN, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (255, 255, 255), (0, 0, 0)


def plain(color, size=(90, 100), mode='RGB'):
    return Image.new(mode, size, color)


def tables(folder, **rows):
    """train.csv, val.csv and test.csv with these lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ('train', 'val', 'test'):
        (folder / f'{split}.csv').write_text('filename,label\n' + rows.get(split, ''), 'utf-8')


def assert_color(path, color, corner=(0, 0)):
    with Image.open(path) as image:
        assert image.size == (84, 84)
        np.testing.assert_allclose(image.convert('RGB').getpixel(corner), color, atol=6)


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar'])
def test_mini_names_with_folders(tmp_path, kind):
    """The same base name in two folders is two images; blank lines, quotes and a \\ are no obstacle."""
    source, dest = tmp_path / 'source', tmp_path / 'dest'
    save(source / 'cat/001.jpg', plain(RED))
    save(source / 'dog/001.jpg', plain(GREEN))
    save(source / 'images/fox/a,b.jpg', plain(WHITE))
    tables(source, train='cat/001.jpg,cat\n./dog/001.jpg,dog\n\n', val='"fox\\a,b.jpg", fox\n,\n')
    given = source if kind == 'folder' else pack(kind, source, tmp_path / 'archive')
    result = call(MINI, f'--source={given}', f'--dest={dest}')
    assert result.returncode == 0, result.stderr
    assert set(tree(dest)) == {'train/cat/001.jpg', 'train/dog/001.jpg', 'val/fox/a,b.jpg'}
    for name, color in (('train/cat/001.jpg', RED), ('train/dog/001.jpg', GREEN), ('val/fox/a,b.jpg', WHITE)):
        assert_color(dest / name, color)


@pytest.mark.parametrize(
    ('files', 'rows', 'words'),
    [
        (['cat/1.jpg', 'dog/1.jpg'], {'train': '1.jpg,cat\n'}, ['1.jpg of train.csv', 'cat/1.jpg', 'dog/1.jpg']),
        (['1.jpg'], {'train': '1.jpg,cat\n1.jpg,dog\n'}, ['1.jpg', 'train/cat/1.jpg', 'train/dog/1.jpg']),
        (['1.jpg'], {'train': '1.jpg,cat\n', 'val': '1.jpg,cat\n'}, ['1.jpg', 'train/cat/1.jpg', 'val/cat/1.jpg']),
        (['a/1.jpg', 'b/1.jpg'], {'train': 'a/1.jpg,x\nb/1.jpg,x\n'}, ['a/1.jpg', 'b/1.jpg', 'train/x/1.jpg']),
        (['1.jpg'], {'train': '1.jpg,.cat\n'}, ['train.csv', "'.cat'"]),
        (['1.jpg'], {'train': '1.jpg,a/b\n'}, ['train.csv', "'a/b'"]),
        (['1.jpg'], {'train': '1.jpg,\n'}, ['train.csv', "'1.jpg,'"]),
        (['1.jpg'], {'train': '1.jpg,a\0b\n'}, ['train.csv']),
        (['train/x/1.jpg', 'old/train/x/1.jpg'], {}, ['old/train/x/1.jpg', 'train/x/1.jpg']),
        (['1.jpg', 'old/train.csv'], {'train': '1.jpg,cat\n'}, ['old/train.csv', '--csv']),
    ],
)
def test_mini_what_is_ambiguous_is_refused(tmp_path, files, rows, words):
    source, dest = tmp_path / 'source', tmp_path / 'dest'
    for name in files:
        save(source / name, plain(RED), format='JPEG')
    tables(source, **rows)
    assert_refused(call(MINI, f'--source={source}', f'--dest={dest}'), *words)
    assert not dest.exists()


def test_mini_results_within_the_source_are_no_second_source(tmp_path):
    save(tmp_path / 'train/x/1.jpg', plain(RED))
    for _ in range(2):
        result = call(MINI, f'--source={tmp_path}', f'--dest={tmp_path / "dest"}')
        assert 'train 1 x 1' in result.stdout, result.stderr


def test_mini_a_line_that_is_repeated_does_no_harm(tmp_path):
    save(tmp_path / '1.jpg', plain(RED))
    tables(tmp_path, train='1.jpg,cat\n1.jpg,cat\n')
    assert 'train 1 x 1' in call(MINI, f'--source={tmp_path}', f'--dest={tmp_path / "dest"}').stdout


def test_mini_a_csv_file_that_is_no_utf8_is_refused(tmp_path):
    save(tmp_path / '1.jpg', plain(RED))
    tables(tmp_path)
    (tmp_path / 'val.csv').write_bytes('filename,label\n1.jpg,café\n'.encode('latin-1'))
    assert_refused(call(MINI, f'--source={tmp_path}', f'--dest={tmp_path / "dest"}'), 'val.csv', 'UTF-8')


def test_mini_the_same_name_twice_in_an_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'archive', 'w') as file, pytest.warns(UserWarning, match='Duplicate'):
        for seed in range(2):
            file.writestr('train/x/1.jpg', photo((84, 84), seed=seed))
    result = call(MINI, f'--source={tmp_path / "archive"}', f'--dest={tmp_path / "dest"}')
    assert_refused(result, 'train/x/1.jpg', 'twice')


# ---------------------------------------------------------------- kinds of images


@pytest.mark.parametrize('form', ['split', 'tables'])
def test_mini_pngs_beside_jpegs(tmp_path, form):
    """They are served, as PNGs; in place too, and once more."""
    folder = tmp_path / ('train/x' if form == 'split' else 'images')
    save(folder / '1.jpg', plain(RED))
    save(folder / '2.png', plain(GREEN))
    save(folder / '3.PNG', plain(WHITE, (84, 84)))
    if form == 'tables':
        tables(tmp_path, train='1.jpg,x\n2.png,x\n3.PNG,x\n')
    for _ in range(2):
        result = call(MINI, f'--source={tmp_path}', f'--dest={tmp_path}')
        assert 'train 1 x 3' in result.stdout, result.stderr
        assert sorted(path.name for path in (tmp_path / 'train/x').iterdir()) == ['1.jpg', '2.png', '3.PNG']
        for name, color, kind in (('1.jpg', RED, 'JPEG'), ('2.png', GREEN, 'PNG'), ('3.PNG', WHITE, 'PNG')):
            assert_color(tmp_path / 'train/x' / name, color)
            assert Image.open(tmp_path / 'train/x' / name).format == kind


def test_mini_images_that_are_left_out_are_named(tmp_path):
    save(tmp_path / 'train/x/1.jpg', plain(RED))
    save(tmp_path / 'train/x/deeper/2.jpg', plain(RED))
    arguments = [f'--source={tmp_path}', f'--dest={tmp_path / "dest"}']
    assert f'1 images are not in a class folder of train/, val/ or test/ and are left out, the first is {tmp_path}' in (
        call(MINI, *arguments).stderr
    )
    save(tmp_path / 'train/x/3.gif', plain(RED))
    assert_refused(call(MINI, *arguments), 'train/x/3.gif is neither JPEG nor PNG')


def half(image, color, box=(0, 0, 45, 100)):
    image.paste(color, box)
    return image


def exif(orientation):
    block = Image.Exif()
    block[ExifTags.Base.Orientation] = orientation
    return {'exif': block}


@pytest.mark.parametrize(
    ('name', 'image', 'options', 'left', 'right'),
    [
        ('rgba.png', half(plain((0, 0, 0, 0), mode='RGBA'), (*RED, 255)), {}, RED, WHITE),
        ('small.png', half(plain((0, 0, 0, 0), (84, 84), 'RGBA'), (*RED, 255)), {}, RED, WHITE),
        ('gray alpha.png', half(plain((0, 0), mode='LA'), (0, 255)), {}, BLACK, WHITE),
        ('palette.png', half(plain(GREEN), RED).quantize(2), {}, RED, GREEN),
        ('colour that means transparent.png', half(plain(GREEN, (84, 84)), RED), {'transparency': GREEN}, RED, WHITE),
        ('gray.jpg', half(plain(100, mode='L'), 200), {}, (200,) * 3, (100,) * 3),
        ('cmyk.jpg', half(plain((0, 0, 0, 255), mode='CMYK'), (0, 255, 255, 0)), {}, RED, BLACK),
        ('one bit.png', half(plain(0, mode='1'), 1), {}, WHITE, BLACK),
        (
            '16 bit.png',
            Image.fromarray(np.uint16([[200 * 256] * 45 + [100 * 256] * 45] * 100)),
            {},
            (200,) * 3,
            (100,) * 3,
        ),
        ('turned.jpg', half(plain(GREEN, (100, 90)), RED, (0, 45, 100, 90)), exif(6), RED, GREEN),
        ('turned small.jpg', half(plain(GREEN, (84, 84)), RED, (0, 42, 84, 84)), exif(6), RED, GREEN),
        ('mirrored.png', half(plain(RED), GREEN), exif(2), RED, GREEN),
        ('bad notes.png', half(plain(GREEN), RED), {'exif': b'no such notes'}, RED, GREEN),
        ('a PNG.jpg', half(plain(GREEN), RED), {'format': 'PNG'}, RED, GREEN),
    ],
)
def test_mini_images_look_as_a_person_sees_them(tmp_path, name, image, options, left, right):
    save(tmp_path / 'source/train/x' / name, image, **options)
    for dest in (tmp_path / 'dest', tmp_path / 'source'):  # the second: in place
        result = call(MINI, f'--source={tmp_path / "source"}', f'--dest={dest}')
        assert result.returncode == 0, result.stderr
        with Image.open(dest / 'train/x' / name) as made:
            assert (made.format, made.mode, made.size) == (name[-3:].upper().replace('JPG', 'JPEG'), 'RGB', (84, 84))
        for corner, color in (((10, 40), left), ((74, 40), right)):
            assert_color(dest / 'train/x' / name, color, corner)


# ---------------------------------------------------------------- odd files and folders


def test_mini_hidden_folders_are_no_classes(tmp_path):
    for name in ('train/x/1.jpg', 'train/.ipynb_checkpoints/1.jpg', 'train/x/.ipynb_checkpoints/1.jpg'):
        save(tmp_path / name, plain(RED))
    result = call(MINI, f'--source={tmp_path}', f'--dest={tmp_path}')
    assert 'train 1 x 1' in result.stdout and 'left out' not in result.stderr


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar'])
@pytest.mark.parametrize('full', [True, False])
def test_mini_a_folder_called_like_an_image_is_named(tmp_path, kind, full):
    source = tmp_path / 'source'
    save(source / 'train/x/1.jpg', plain(RED))
    (source / 'train/x/2.jpg').mkdir()
    if full:
        save(source / 'train/x/2.jpg/3.jpg', plain(RED))
    given = source if kind == 'folder' else pack(kind, source, tmp_path / 'archive')
    if kind == 'zip' and not full:
        with zipfile.ZipFile(given, 'a') as file:
            file.mkdir('train/x/2.jpg')
    result = call(MINI, f'--source={given}', f'--dest={tmp_path / "dest"}')
    assert_refused(result, f'{given}/train/x/2.jpg is a folder')


@pytest.mark.parametrize('link', ['train/x/2.jpg', 'train/y', 'train/x/pipe.jpg'])
def test_mini_broken_links_and_pipes_are_named(tmp_path, link):
    save(tmp_path / 'train/x/1.jpg', plain(RED))
    if 'pipe' in link:
        os.mkfifo(tmp_path / link)
    else:
        (tmp_path / link).symlink_to(tmp_path / 'gone')
    result = call(MINI, f'--source={tmp_path}', f'--dest={tmp_path / "dest"}')
    assert_refused(result, f'{tmp_path / link} is a link to nothing, or no file')


def test_mini_names_that_are_not_utf8(tmp_path):
    """In a folder they are served, a zip that breaks its own promise is refused, and messages stay one line."""
    source, dest = tmp_path / os.fsdecode(b'\xff'), tmp_path / os.fsdecode(b'\xfe')
    name = os.fsdecode(b'train/caf\xe9/\xe9\n.jpg')
    save(source / name, plain(RED))
    assert run(MINI, f'--source={source}', f'--dest={dest}').returncode == 0
    assert set(tree(dest)) == {name}
    (source / name).write_bytes(b'no image')
    assert_refused(run(MINI, f'--source={source}', f'--dest={tmp_path / "dest"}'), 'cannot read the image', '.jpg')
    with zipfile.ZipFile(tmp_path / 'archive', 'w') as file:
        file.writestr('train/é/1.jpg', photo((84, 84)))
    data = (tmp_path / 'archive').read_bytes()
    (tmp_path / 'archive').write_bytes(data.replace('é'.encode(), b'\xff\xff'))
    assert_refused(call(MINI, f'--source={tmp_path / "archive"}', f'--dest={dest}'), 'archive', 'cannot be read')


# ---------------------------------------------------------------- files that are too large


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar'])
@pytest.mark.parametrize('name', ['train/x/2.jpg', 'train.csv'])
def test_mini_a_file_that_is_too_large_is_refused_unread(tmp_path, kind, name):
    """Of the tar there is no more than the header, whose size is thus what is refused."""
    source, archive = tmp_path / 'source', tmp_path / 'archive'
    tables(source)
    save(source / 'train/x/1.jpg', plain(RED))
    large = source / name
    large.touch()
    os.truncate(large, 65 << 20)
    if kind == 'zip':
        with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as file:
            for path in ('train/x/1.jpg', name):
                file.write(source / path, path)
        assert archive.stat().st_size < 1 << 20
    elif kind == 'tar':
        info = tarfile.TarInfo(name)
        info.size = 6 << 30
        with gzip.open(archive, 'wb') as file:
            file.write(info.tobuf())
    given = source if kind == 'folder' else archive
    result = call(MINI, f'--source={given}', f'--dest={tmp_path / "dest"}')
    assert_refused(result, f'{given}/{name} has more than 64 MB')


def test_mini_an_image_with_too_many_pixels_is_refused(tmp_path):
    path = save(tmp_path / 'train/x/1.png', plain(0, (10000, 10000), '1'))
    assert_refused(call(MINI, f'--source={tmp_path}', f'--dest={tmp_path / "dest"}'), f'cannot read the image {path}')


def test_mini_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    save(tmp_path / 'train/x/1.jpg', plain(RED))
    assert call(MINI, '--source=~', '--dest=~/dest').returncode == 0
    assert_color(tmp_path / 'dest/train/x/1.jpg', RED)
