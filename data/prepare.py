"""What the dataset scripts below this folder share: reading folders and archives, fetching, writing, failing.

Archives are never unpacked: their images are read straight out of them. No dataset is known here.
"""

import hashlib
import http.client
import io
import lzma
import os
import pickle
import stat
import sys
import tarfile
import urllib.error
import urllib.request
import warnings
import zipfile
import zlib
from collections import OrderedDict, defaultdict
from functools import partial
from pathlib import Path, PureWindowsPath

try:
    import numpy as np
    from PIL import ExifTags, Image, ImageOps
    from tqdm import tqdm
except ImportError as error:
    print(
        f'{Path(sys.argv[0]).name}: {error}: use .venv/bin/python (README.md), or python -m pip install -r '
        'requirements.txt',
        file=sys.stderr,
    )
    sys.exit(2)

DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)  # of an archive
USED = ('.jpg', '.jpeg', '.png', '.csv')  # files that are read
LIMIT = 64 << 20  # bytes of one file: far more than these need, and less than the memory of any machine
FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'WEBP')  # what an image may be, whatever its name


def fail(message):
    """End the script with one line on stderr and exit code 2."""
    line = ' '.join(str(message).split('\n'))  # a file's name can hold a line break
    print(f'{Path(sys.argv[0]).name}: {line}', file=sys.stderr)
    sys.exit(2)


def run(main):
    """Run main(), with one line in place of a traceback for a full disk and the like."""
    warnings.simplefilter('error', Image.DecompressionBombWarning)  # an image of gigabytes is refused by name
    sys.stdout.reconfigure(errors='backslashreplace')  # names of files need not be text
    try:
        main()
    except (OSError, *DAMAGE) as error:
        fail(error)
    except KeyboardInterrupt:
        fail('interrupted; run again to go on')


def path(text):
    """A path from the command line, where ~ is the home directory."""
    return Path(os.path.expanduser(text))


def check_name(name, where):
    """Refuse a file name that would lead out of the folder that it is written to, or that no file can have."""
    path = PureWindowsPath(name)  # takes both kinds of slashes, and drives, for what they are
    if path.drive or path.root or '..' in path.parts or '\0' in name:
        fail(f'{where} holds the unsafe path {name!r}: refused; get the data from a source that you trust')


def claim(taken, key, value, message):
    """Note value for key in the dictionary `taken`; refuse a second, other value."""
    if taken.setdefault(key, value) != value:
        fail(message.format(key=key, one=taken[key], two=value))


def list_files(source, dest):
    """All files of a folder, zip or tar archive as {name: function that opens it}, in stored order.

    Folders are there as 'name/', with None to open. Hidden files are not, nor what is in a folder dest within source.
    """
    if not source.exists():
        fail(f'{source} does not exist; give a folder or an archive that does')
    files = {}
    for name, opener in _walk(source, dest.resolve()) if source.is_dir() else _list_archive(source):
        name = name.removeprefix('./')  # as `tar -c .` writes them
        if all(map(_is_visible, name.split('/'))):
            if opener and name in files:
                fail(f'{source} holds {name!r} twice; remove one of them')
            files[name] = opener
    return files


def _is_visible(name):
    """Not what Macs (.DS_Store, __MACOSX/), Jupyter (.ipynb_checkpoints) or killed runs (.x.png.tmp) leave behind."""
    return not name.startswith(('.', '__MACOSX'))


def _walk(source, dest):
    # Links are followed, since large datasets often are links to another disk.
    for folder, folders, names in os.walk(source, followlinks=True, onerror=_raise):
        folders[:] = sorted(name for name in folders if _is_visible(name) and Path(folder, name).resolve() != dest)
        for name in folders:
            yield Path(folder, name).relative_to(source).as_posix() + '/', None
        for name in sorted(filter(_is_visible, names)):
            path = Path(folder, name)
            if not path.is_file():
                fail(f'{path} is a link to nothing, or no file; mend or remove it')
            yield path.relative_to(source).as_posix(), partial(open, path, 'rb')


def _raise(error):
    raise error


def _list_archive(source):
    try:
        if zipfile.is_zipfile(source):
            return list(_list_zip(source))
        if tarfile.is_tarfile(source):
            return list(_list_tar(source))
    except Exception as error:  # noqa: BLE001 (the archive modules raise many kinds, ValueError among them)
        fail(f'{source} cannot be read ({error}); is it complete?')
    fail(f'{source} is neither a folder nor a zip or tar archive; is it complete?')


def _list_zip(source):
    archive = zipfile.ZipFile(source)
    for info in archive.infolist():
        _check_member(source, info.filename, info.file_size, stat.S_ISLNK(info.external_attr >> 16))
        yield info.filename, None if info.is_dir() else partial(archive.open, info)


def _list_tar(source):
    archive = tarfile.open(source)  # noqa: SIM115 (stays open for the readers)
    for member in archive:
        folder = member.isdir()
        _check_member(source, member.name, member.size, not member.isfile() and not folder)  # a link, or a device
        yield (member.name + '/', None) if folder else (member.name, partial(archive.extractfile, member))


def _check_member(source, name, size, link):
    check_name(name, source)
    if link:
        fail(f'{source} holds the link {name!r}: refused; pack the files themselves')
    if size > LIMIT and name.lower().endswith(USED):
        _fail_large(source / name)


def _fail_large(name):
    fail(f'{name} has more than {LIMIT >> 20} MB: refused; no image or table of this dataset is that large')


def read_file(opener, name):
    """The bytes of a file; ends the script, naming it, when it is damaged or larger than LIMIT."""
    try:
        with opener() as file:
            data = file.read(LIMIT + 1)
    except Exception as error:  # noqa: BLE001 (encryption, checksums and compression each have their own)
        fail(f'cannot read {name} ({error}); replace it and run again')
    if len(data) > LIMIT:
        _fail_large(name)
    return data


def read_image(opener, name):
    """The image and the bytes of a file; ends the script, naming it, when it is damaged."""
    data = read_file(opener, name)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
    except Exception as error:  # noqa: BLE001 (Pillow raises many kinds, according to where the damage is)
        fail(f'cannot read the image {name} ({error}); replace it and run again')
    return image, data


def _encode(text, encoding):
    """What stands in Python 3's pickles for a bytes object, where the pickle's protocol has none."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'it encodes text as {encoding}')
    return text.encode('latin1')


def _frombuffer(data, dtype, shape, order, axis_order=None):
    """What makes an array in pickles of protocol 5; another order of the axes than these two is not known here."""
    if axis_order is not None or order not in ('C', 'F'):
        raise pickle.UnpicklingError(f'it has an array with its axes in the order {axis_order or order}')
    return np.frombuffer(data, dtype).reshape(shape, order=order)


# All that a pickle may name: what NumPy arrays and plain containers are made of, by the names of all their versions.
_ALLOWED = {
    **{(f'numpy.{core}.multiarray', '_reconstruct'): np.empty(0).__reduce__()[0] for core in ('core', '_core')},
    **{(f'numpy.{core}.multiarray', 'scalar'): np.int64().__reduce__()[0] for core in ('core', '_core')},
    **{(f'numpy.{core}.numeric', '_frombuffer'): _frombuffer for core in ('core', '_core')},
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
    ('_codecs', 'encode'): _encode,
    ('collections', 'OrderedDict'): OrderedDict,
    ('collections', 'defaultdict'): defaultdict,
    **{
        (module, kind.__name__): kind
        for module in ('builtins', '__builtin__')
        for kind in (list, dict, tuple, set, int)
    },
}


class _Unpickler(pickle.Unpickler):
    """Reads pickles of arrays and plain containers, and runs nothing that another pickle asks to be run."""

    def find_class(self, module, name):
        """The object of that name, if it is one of those that are allowed."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}, which is no array and no container')
        return _ALLOWED[module, name]


def read_pickle(opener, name):
    """What a pickle of Python 2 or 3 holds; ends the script, naming it, unless it holds arrays and containers alone."""
    try:
        with opener() as file:
            return _Unpickler(file, encoding='latin1').load()
    except Exception as error:  # noqa: BLE001 (a pickle can make the functions above raise anything)
        fail(
            f'{name} is refused as a pickle ({str(error) or type(error).__name__}); get it from a source that you trust'
        )


def is_rotated(image):
    """Whether the camera noted (EXIF) that the image is to be turned or mirrored."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    except Exception:  # noqa: BLE001 (of damaged notes: SyntaxError, struct.error and others)
        return False


def convert(image, size, mode='RGB'):
    """An image of any mode and size as RGB, or grey ('L'), of this size: turned as its EXIF notes say, on white."""
    if is_rotated(image):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I'):  # 16 bits, where Pillow would make all above 255 white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert('RGB').convert(mode).resize(size, resample=Image.Resampling.LANCZOS)


def is_done(path, check):
    """Whether path already is an image, and check(image) holds."""
    try:
        with Image.open(path) as image:
            return check(image)
    except Exception:  # noqa: BLE001 (not there, or not an image)
        return False


def not_done(images, dest, check, unit):
    """Yield those of `images`, (target, …) each, for which dest has none yet that passes check(image, target)."""
    there = 0
    for image in tqdm(images, unit=unit, disable=None):  # None: silent when stderr is not a terminal
        if is_done(dest / image[0], lambda found: check(found, image[0])):  # noqa: B023 (called at once)
            there += 1
        else:
            yield image
    if there:
        print(f'{there:,}{unit} were there already and are left as they are')


def write(path, data):
    """Write bytes so that path never holds half a file, even when the script is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.tmp')  # always the same name, so that the next run clears up
    part.write_bytes(data)
    os.replace(part, path)


def download(url, path, md5):
    """Fetch url to path, unless it is there; check its MD5."""
    if path.exists() and _md5(path.read_bytes()) == md5:
        return
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            data = reply.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        fail(f'cannot fetch {url} ({error}); run again, or bring the archive and give --source')
    if (found := _md5(data)) != md5:
        fail(f'{url} has MD5 {found}, not {md5}; run again, or bring the archive and give --source')
    write(path, data)


def _md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
