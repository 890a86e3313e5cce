"""Tiny made-up datasets for the tests of the dataset scripts, and what those tests share."""

import contextlib
import importlib.util
import io
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

DATA = Path(__file__).resolve().parent.parent / 'data'
OMNIGLOT = DATA / 'omniglot_resized' / 'resize_images.py'
MINI = DATA / 'miniImagenet' / 'proc_images.py'


def run(script, *arguments):
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def call(script, *arguments):
    """The same within this process, which is quicker."""
    printed = [io.TextIOWrapper(io.BytesIO(), 'utf-8') for _ in range(2)]
    kept, code = (sys.argv, sys.path), 0
    sys.argv, sys.path = [str(script), *map(str, arguments)], list(sys.path)
    try:
        with contextlib.redirect_stdout(printed[0]), contextlib.redirect_stderr(printed[1]):
            runpy.run_path(str(script), run_name='__main__')
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv, sys.path = kept
    texts = []
    for stream in printed:
        stream.seek(0)
        texts.append(stream.read())
    return subprocess.CompletedProcess(sys.argv, code, *texts)


def assert_refused(result, *words):
    """Exit code 2 and one line on stderr, with these words in it."""
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


def tree(folder):
    """Every file below a folder, hidden ones too, as {relative path: bytes}."""
    files = filter(Path.is_file, folder.rglob('*'))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def pack(kind, source, archive):
    """All files of a folder as a zip or tar.gz archive."""
    if kind == 'zip':
        with zipfile.ZipFile(archive, 'w') as file:
            for name, data in tree(source).items():
                file.writestr(name, data)
    else:
        with tarfile.open(archive, 'w:gz') as file:
            file.add(source, '.')
    return archive


def own_copy(script, folder):
    """The script in a data folder of its own, to see what it does without arguments."""
    copy = folder / 'data' / script.parent.name / script.name
    copy.parent.mkdir(parents=True)
    shutil.copy(script, copy)
    shutil.copy(DATA / 'prepare.py', folder / 'data')
    return copy


def omniglot(folder):
    """Five drawings of random bits in folder/images_background and _evaluation; returns {path: pixels}."""
    random, pixels = np.random.default_rng(0), {}
    for name in (
        'Greek/character01/0001_01.png',
        'Greek/character01/0001_02.png',
        'Latin/character01/0002_01.png',
        'Latin/character02/0003_01.png',
        'Tengwar/character01/0965_01.png',
    ):
        path = folder / ('images_evaluation' if 'Tengwar' in name else 'images_background') / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels[name] = random.random((105, 105)) < 0.5
        Image.fromarray(pixels[name]).save(path)
    return pixels


def flat_alphabets(folder):
    """The same without the subset folders, as the original wants them."""
    pixels = omniglot(folder)
    for subset in list(folder.glob('images_*')):
        for alphabet in subset.iterdir():
            alphabet.rename(folder / alphabet.name)
        subset.rmdir()
    return pixels


def assert_resized(dest, pixels):
    """dest holds these drawings and no other PNGs: one bit, each pixel that of the nearest source pixel."""
    assert {path.relative_to(dest).as_posix() for path in dest.rglob('*.png')} == set(pixels)
    nearest = ((np.arange(28) + 0.5) * 105 / 28).astype(int)
    for name, drawing in pixels.items():
        image = Image.open(dest / name)
        assert (image.format, image.mode, image.size) == ('PNG', '1', (28, 28))
        np.testing.assert_array_equal(np.array(image), drawing[nearest][:, nearest])


def photo(size, mode='RGB', seed=0, **options):
    channels = {'RGB': (3,), 'L': (), 'CMYK': (4,)}[mode]
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, *channels), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small, mode).resize(size).save(file, 'JPEG', **options)
    return file.getvalue()


PHOTOS = {  # the second is 84x84, at a quality that encoding it again would change
    'train/n01532829/n0153282900000005.jpg': photo((120, 100), seed=1, icc_profile=b'a profile'),
    'train/n01532829/n0153282900000006.jpg': photo((84, 84), seed=2, quality=95),
    'val/n01855672/n0185567200000001.jpg': photo((90, 130), 'L', seed=3),
    'test/n01930112/n0193011200000002.jpg': photo((84, 84), 'CMYK', seed=4),
}


def mini(folder, form='images'):
    """The photos as "split" folders, or with the CSV files "flat" or in a folder "images"."""
    for name, data in PHOTOS.items():
        path = folder / {'split': name, 'flat': Path(name).name, 'images': f'images/{Path(name).name}'}[form]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if form != 'split':
        for split in ('train', 'val', 'test'):
            rows = [f'{Path(name).name},{name.split("/")[1]}' for name in PHOTOS if name.startswith(split)]
            (folder / f'{split}.csv').write_text('\n'.join(['filename,label', *rows]) + '\n')
    return folder


def save(path, image, **options):
    """An image as a file, in folders made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def original_resize(data):
    """What the original's proc_images.py saves, of an image that is made RGB first."""
    file = io.BytesIO()
    image = Image.open(io.BytesIO(data))
    image = image if image.mode == 'RGB' else image.convert('RGB')
    image.resize((84, 84), resample=Image.LANCZOS).save(file, 'JPEG')
    return file.getvalue()


def assert_processed(dest):
    """dest/{train,val,test} hold the photos: as the original resizes them, or the same bytes."""
    found = {
        name: data
        for split in ('train', 'val', 'test')
        for name, data in tree(dest).items()
        if name.startswith(f'{split}/')
    }
    assert set(found) == set(PHOTOS)
    for number, (name, data) in enumerate(PHOTOS.items()):
        assert found[name] == (data if number == 1 else original_resize(data)), name


def load_omniglot(monkeypatch):
    """The script as a module, so that its table of archives can be replaced."""
    monkeypatch.setattr(sys, 'path', list(sys.path))
    spec = importlib.util.spec_from_file_location('resize_images', OMNIGLOT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
