"""The Omniglot script, run for real on tiny made-up datasets."""

import io
import os
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from prepare_data import (
    OMNIGLOT,
    assert_refused,
    assert_resized,
    call,
    flat_alphabets,
    load_omniglot,
    omniglot,
    own_copy,
    pack,
    run,
    tree,
)


@pytest.mark.parametrize('form', ['subsets', 'alphabets', 'zip', 'zips in a folder', 'tar'])
def test_omniglot_forms(tmp_path, form):
    source, dest = tmp_path / 'source', tmp_path / 'dest'
    pixels = (flat_alphabets if form == 'alphabets' else omniglot)(source)
    drawing = next(source.rglob('0001_01.png'))
    drawing.with_name('._0001_01.png').write_bytes(b'what a Mac puts into archives')
    before = tree(source)
    given = source
    if form in ('zip', 'tar'):
        given = pack(form, source, tmp_path / 'archive')
    elif form == 'zips in a folder':
        given = tmp_path / 'zips'
        given.mkdir()
        for subset in ('images_background', 'images_evaluation'):
            folder = tmp_path / subset
            shutil.copytree(source / subset, folder / subset)
            pack('zip', folder, given / f'{subset}.zip')
    result = run(OMNIGLOT, f'--source={given}', f'--dest={dest}')
    assert result.returncode == 0, result.stderr
    assert_resized(dest, pixels)
    assert tree(source) == before
    assert '4 characters, 5 images' in result.stdout
    assert result.stderr.startswith('warning: all of Omniglot is 1,623 characters of 20 images')
    assert len(result.stderr.splitlines()) == 1  # no progress bar in a log file


@pytest.mark.parametrize('make', [omniglot, flat_alphabets])
def test_omniglot_without_arguments_works_in_place(tmp_path, make):
    script = own_copy(OMNIGLOT, tmp_path)
    pixels = make(script.parent)
    result = run(script)
    assert result.returncode == 0, result.stderr
    assert_resized(script.parent, pixels)
    folders = {path.name for path in script.parent.iterdir() if path.is_dir()}
    assert folders == {'Greek', 'Latin', 'Tengwar'}  # the training code takes each folder for an alphabet


def test_one_bit_result_is_what_the_original_gets_from_lanczos(tmp_path):
    pixels = omniglot(tmp_path / 'source')
    run(OMNIGLOT, f'--source={tmp_path / "source"}', f'--dest={tmp_path / "dest"}')
    for name, drawing in pixels.items():
        lanczos = Image.fromarray(drawing).resize((28, 28), resample=Image.LANCZOS)
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / 'dest' / name)), np.array(lanczos))


def test_omniglot_goes_on_after_a_break(tmp_path):
    source, dest = tmp_path / 'source', tmp_path / 'dest'
    pixels = omniglot(source)
    run(OMNIGLOT, f'--source={source}', f'--dest={dest}')
    kept, *broken = sorted(dest.rglob('*.png'))
    os.utime(kept, (1, 1))
    broken[0].unlink()
    broken[0].with_name(f'.{broken[0].name}.tmp').write_bytes(b'half a file of a killed run')
    broken[1].write_bytes(b'')
    Image.new('1', (105, 105)).save(broken[2])  # a copy that has not been resized
    assert run(OMNIGLOT, f'--source={source}', f'--dest={dest}').returncode == 0
    assert_resized(dest, pixels)
    assert kept.stat().st_mtime == 1
    assert not list(dest.rglob('.*'))


def test_omniglot_complete_set_gives_no_warning(tmp_path, monkeypatch, capsys):
    script = load_omniglot(monkeypatch)
    pixels = omniglot(tmp_path)
    next(iter((tmp_path / 'images_background').glob('Greek/*/0001_02.png'))).unlink()
    monkeypatch.setattr(script, 'CHARACTERS', 4)
    monkeypatch.setattr(script, 'DRAWERS', 1)
    script.main([f'--dest={tmp_path}'])
    assert '4 characters, 4 images' in capsys.readouterr().out
    del pixels['Greek/character01/0001_02.png']
    assert_resized(tmp_path, pixels)
    shutil.rmtree(tmp_path / 'Tengwar')
    script.main([f'--dest={tmp_path}'])
    assert 'warning' in capsys.readouterr().err


# ---------------------------------------------------------------- bad archives and drawings


@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        ('zip', '../Greek/character01/0001_01.png'),
        ('zip', '/tmp/character01/0001_01.png'),
        ('zip', 'C:\\Greek/character01/0001_01.png'),
        ('tar', '../Greek/character01/0001_01.png'),
        ('tar', '..\\Greek/character01/0001_01.png'),
    ],
)
def test_unsafe_archive_members_are_refused(tmp_path, kind, name):
    drawing = io.BytesIO()
    Image.new('1', (105, 105)).save(drawing, 'PNG')
    archive = tmp_path / 'archive'
    with zipfile.ZipFile(archive, 'w') if kind == 'zip' else tarfile.open(archive, 'w') as file:
        for member in ('Latin/character01/0002_01.png', name):
            if kind == 'zip':
                file.writestr(member, drawing.getvalue())
            else:
                info = tarfile.TarInfo(member)
                info.size = len(drawing.getvalue())
                file.addfile(info, io.BytesIO(drawing.getvalue()))
    assert_refused(call(OMNIGLOT, f'--source={archive}', f'--dest={tmp_path / "dest"}'), 'unsafe path')
    assert list(tmp_path.rglob('*')) == [archive]


@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_links_in_archives_are_refused(tmp_path, kind):
    archive, name = tmp_path / 'archive', 'Latin/character01/0002_01.png'
    if kind == 'zip':
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o120777 << 16
        with zipfile.ZipFile(archive, 'w') as file:
            file.writestr(info, '/etc/passwd')
    else:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, '/etc/passwd'
        with tarfile.open(archive, 'w') as file:
            file.addfile(info)
    result = call(OMNIGLOT, f'--source={archive}', f'--dest={tmp_path / "dest"}')
    assert_refused(result, 'holds the link', name)


@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_half_an_archive_is_refused(tmp_path, kind):
    omniglot(tmp_path / 'source')
    archive = pack(kind, tmp_path / 'source', tmp_path / 'archive')
    archive.write_bytes(archive.read_bytes()[: len(archive.read_bytes()) // 2])
    result = call(OMNIGLOT, f'--source={archive}', f'--dest={tmp_path / "dest"}')
    assert_refused(result, str(archive), 'complete?')


def test_bad_drawings_are_named(tmp_path):
    omniglot(tmp_path)
    bad = tmp_path / 'images_evaluation/Tengwar/character01/0965_01.png'
    bad.write_bytes(bad.read_bytes()[:200])
    arguments = [f'--source={tmp_path}', f'--dest={tmp_path / "dest"}']
    assert_refused(call(OMNIGLOT, *arguments), f'cannot read the image {bad}')
    Image.new('L', (105, 105)).save(bad)
    assert_refused(call(OMNIGLOT, *arguments), f'{bad} is not a one-bit')


def test_omniglot_nothing_found(tmp_path):
    assert_refused(call(OMNIGLOT, f'--dest={tmp_path}'), f'no drawings in {tmp_path}', '--download')
    result = call(OMNIGLOT, f'--source={tmp_path / "none"}', f'--dest={tmp_path}')
    assert_refused(result, 'none does not exist')


def test_a_destination_that_cannot_be_written(tmp_path):
    omniglot(tmp_path)
    (tmp_path / 'file').touch()
    result = call(OMNIGLOT, f'--source={tmp_path}', f'--dest={tmp_path / "file"}')
    assert_refused(result, str(tmp_path / 'file'))


def test_omniglot_does_not_mix_two_copies_of_an_alphabet(tmp_path):
    omniglot(tmp_path)
    (tmp_path / 'Greek').mkdir()
    assert_refused(call(OMNIGLOT, f'--dest={tmp_path}'), 'Greek', 'remove one')


# ---------------------------------------------------------------- odd files and folders


def test_omniglot_hidden_folders_are_no_alphabets(tmp_path):
    pixels = omniglot(tmp_path)
    for name in ('images_background', 'images_background/Greek'):
        hidden = tmp_path / name / '.ipynb_checkpoints/character01/0001_01.png'
        hidden.parent.mkdir(parents=True)
        hidden.write_bytes(b'what an editor leaves behind')
    result = call(OMNIGLOT, f'--dest={tmp_path}')
    assert '4 characters, 5 images' in result.stdout, result.stderr
    for name, drawing in pixels.items():
        assert Image.open(tmp_path / name).size == (28, 28) != drawing.shape
    assert not (tmp_path / '.ipynb_checkpoints').exists()


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        (lambda folder: (folder / 'Greek/character01/x.png').mkdir(), ['Greek/character01/x.png is a folder']),
        (lambda folder: (folder / 'Greek/character01/x.png').symlink_to('gone'), ['x.png is a link to nothing']),
        (lambda folder: (folder / 'Maya').symlink_to('gone'), ['Maya is a link to nothing']),
        (lambda folder: shutil.copytree(folder / 'Greek', folder / 'images_background/Greek'), ['are both Greek/']),
        (lambda folder: Image.new('L', (9, 9)).save(folder / 'Greek/character01/x.jpg'), ['x.jpg is not a one-bit']),
    ],
)
def test_omniglot_odd_files_are_named(tmp_path, spoil, words):
    flat_alphabets(tmp_path / 'source')
    spoil(tmp_path / 'source')
    assert_refused(call(OMNIGLOT, f'--source={tmp_path / "source"}', f'--dest={tmp_path / "dest"}'), *words)


@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_omniglot_a_file_that_is_too_large_is_refused(tmp_path, kind):
    large = tmp_path / 'source/Greek/character01/0001_01.png'
    large.parent.mkdir(parents=True)
    large.touch()
    os.truncate(large, 65 << 20)
    with (
        tarfile.open(tmp_path / 'archive', 'w')
        if kind == 'tar'
        else zipfile.ZipFile(tmp_path / 'archive', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as file
    ):
        (file.add if kind == 'tar' else file.write)(large, 'Greek/character01/0001_01.png')
    result = call(OMNIGLOT, f'--source={tmp_path / "archive"}', f'--dest={tmp_path / "dest"}')
    assert_refused(result, '0001_01.png has more than 64 MB')
