"""MiniImagenet from pickles: by the versions of Python and NumPy that wrote them, and nothing in them is run."""

import os
import pickle
import struct
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image
from prepare_data import MINI, assert_refused, call, tree

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 84, 84, 3), np.uint8)
CLASSES = {'n01': [2, 0], 'n02': [1]}


def array_of_python_2(pixels):
    """What pickle.dumps(pixels, 2) of Python 2 is."""

    def text(data):
        return b'T' + struct.pack('<i', len(data)) + data

    shape = b'(' + b''.join(b'M' + struct.pack('<H', size) for size in pixels.shape) + b't'
    dtype = b'cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
    made = b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R'
    return made + b'(K\x01' + shape + dtype + b'\x89' + text(pixels.tobytes()) + b'tb'


def of_python_2(content):
    classes = b''.join(
        b'U' + bytes([len(label)]) + label.encode() + b'](' + b''.join(b'K' + bytes([row]) for row in rows) + b'e'
        for label, rows in content['class_dict'].items()
    )
    return (
        b'\x80\x02}(U\x0aclass_dict}('
        + classes
        + b'uU\x0aimage_data'
        + array_of_python_2(content['image_data'])
        + b'u.'
    )


WRITERS = {
    'Python 2': of_python_2,
    **{f'protocol {protocol}': lambda content, p=protocol: pickle.dumps(content, p) for protocol in (0, 2, 4, 5)},
}


def write(folder, content, dumps=pickle.dumps, splits=('train', 'val', 'test')):
    folder.mkdir(exist_ok=True)
    for split in splits:
        data = content if isinstance(content, bytes) else dumps(content)
        (folder / f'mini-imagenet-cache-{split}.pkl').write_bytes(data)
    return f'--source={folder}', f'--dest={folder / "dest"}'


@pytest.mark.parametrize('writer', WRITERS)
def test_pickles_become_the_same_pixels(tmp_path, writer):
    result = call(MINI, *write(tmp_path, {'class_dict': CLASSES, 'image_data': PIXELS}, WRITERS[writer]))
    assert result.returncode == 0, result.stderr
    names = ['n01/00000.png', 'n01/00002.png', 'n02/00001.png']
    assert sorted(tree(tmp_path / 'dest')) == [
        f'{split}/{name}' for split in ('test', 'train', 'val') for name in names
    ]
    for row in range(3):
        image = Image.open(next((tmp_path / 'dest' / 'val').glob(f'*/{row:05d}.png')))
        assert image.mode == 'RGB'
        np.testing.assert_array_equal(image, PIXELS[row])


def test_other_containers_will_do_and_what_is_done_is_skipped(tmp_path):
    content = {'class_dict': defaultdict(list, n01=np.array([0, 1])), 'image_data': PIXELS}
    flags = write(tmp_path, content)
    assert 'val.pkl are in no class' in call(MINI, *flags).stderr
    done, lost = (tmp_path / 'dest' / 'train' / 'n01' / name for name in ('00000.png', '00001.png'))
    os.utime(done, (1, 1))
    lost.unlink()
    assert '\n5 images were there already and are left as they are' in '\n' + call(MINI, *flags).stdout
    assert done.stat().st_mtime == 1 and lost.exists()


@pytest.mark.parametrize(
    'code, words',
    [
        (b"cos\nsystem\n(S'touch {}'\ntR.", 'os.system'),
        (b'c__builtin__\neval\n(S\'open("{}", "w")\'\ntR.', '__builtin__.eval'),
        (b"cnumpy\nfromfile\n(S'{}'\ntR.", 'numpy.fromfile'),
        (b'\x80\x04\x8c\x05numpy\x8c\x0df2py.os.mkdir\x93\x8c\x03{}\x85R.', 'numpy.f2py.os.mkdir'),
        (b'c_codecs\nencode\n(Va\nVzlib\ntR.', 'encodes text as zlib'),
        (b'not a pickle', 'refused as a pickle'),
        (b'', 'refused as a pickle'),
    ],
)
def test_nothing_that_a_pickle_asks_for_is_run(tmp_path, code, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = write(tmp_path, code.replace(b'{}', b'bad'))
    before = set(tree(tmp_path))
    assert_refused(call(MINI, *flags), 'mini-imagenet-cache-train.pkl', words)
    assert set(tree(tmp_path)) == before and not (tmp_path / 'bad').exists()


@pytest.mark.parametrize(
    'change, words',
    [
        ({'image_data': PIXELS.astype(np.float32)}, 'float32 [3, 84, 84, 3], not uint8'),
        ({'image_data': PIXELS[:, :80]}, 'uint8 [3, 80, 84, 3]'),
        ({'image_data': PIXELS.tolist()}, 'image_data of'),
        ({'class_dict': {}}, 'class_dict of'),
        ({'class_dict': {'n01': [3]}}, 'no list of rows of its 3 images'),
        ({'class_dict': {'n01': [-1]}}, 'no list of rows'),
        ({'class_dict': {'n01': 'all'}}, 'no list of rows'),
        ({'class_dict': {'n01': [0], 'n02': [0]}}, 'image 0 of'),
        ({'class_dict': {'../n01': [0]}}, 'cannot be the name of a class folder'),
        ({'class_dict': {1: [0]}}, 'cannot be the name of a class folder'),
        (None, 'no dictionary with image_data and class_dict'),
    ],
)
def test_another_form_is_refused_before_anything_is_written(tmp_path, change, words):
    flags = write(tmp_path, {'class_dict': CLASSES, 'image_data': PIXELS})
    write(tmp_path, change and {'class_dict': CLASSES, 'image_data': PIXELS} | change, splits=['test'])
    assert_refused(call(MINI, *flags), 'mini-imagenet-cache-test.pkl', words)
    assert not (tmp_path / 'dest').exists()


def test_a_split_that_is_missing_or_there_twice_is_named(tmp_path):
    flags = write(tmp_path, {'class_dict': CLASSES, 'image_data': PIXELS}, splits=['train', 'test'])
    assert_refused(call(MINI, *flags), 'mini-imagenet-cache-val.pkl', 'is not there')
    write(tmp_path, None)
    write(tmp_path / 'more', None)
    assert_refused(call(MINI, *flags), 'mini-imagenet-cache-train.pkl', 'are both there')
