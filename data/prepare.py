"""What the dataset scripts below this folder share: reading folders and archives, fetching, writing, failing.

Archives are never unpacked: their images are read straight out of them. No dataset is known here.
"""

import hashlib
import http.client
import io
import lzma
import os
import stat
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from functools import partial
from pathlib import Path, PureWindowsPath

from PIL import Image
from tqdm import tqdm

progress = partial(tqdm, disable=None)  # None: silent when stderr is not a terminal
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)  # of an archive


def fail(message):
    """End the script with one line on stderr and exit code 2."""
    print(f'{Path(sys.argv[0]).name}: {message}', file=sys.stderr)
    sys.exit(2)


def run(main):
    """Run main(), with one line in place of a traceback for a full disk and the like."""
    try:
        main()
    except (OSError, *DAMAGE) as error:
        fail(error)
    except KeyboardInterrupt:
        fail('interrupted; run again to go on')


def check_name(name, where):
    """Refuse a file name that would lead out of the folder that it is written to."""
    path = PureWindowsPath(name)  # takes both kinds of slashes, and drives, for what they are
    if path.drive or path.root or '..' in path.parts:
        fail(f'{where} holds the unsafe path {name!r}: refused; get the data from a source that you trust')


def list_files(source):
    """All files of a folder, zip or tar archive as {name: function that reads its bytes}, in stored order."""
    if source.is_dir():
        # Links are followed, since large datasets often are links to another disk.
        folders = os.walk(source, followlinks=True)
        paths = (Path(folder, name) for folder, _, names in folders for name in sorted(names))
        files = {path.relative_to(source).as_posix(): path.read_bytes for path in paths}
    elif not source.exists():
        fail(f'{source} does not exist; give a folder or an archive that does')
    else:
        files = _list_archive(source)
    # Macs leave .DS_Store and __MACOSX/._image.png behind, and a killed run leaves .image.png.tmp.
    return {
        name: read
        for name, read in files.items()
        if not any(part.startswith(('.', '__MACOSX')) for part in name.split('/'))
    }


def _list_archive(source):
    try:
        if zipfile.is_zipfile(source):
            return _list_zip(source)
        if tarfile.is_tarfile(source):
            return _list_tar(source)
    except DAMAGE as error:
        fail(f'{source} cannot be read ({error}); is it complete?')
    fail(f'{source} is neither a folder nor a zip or tar archive; is it complete?')


def _list_zip(source):
    archive, files = zipfile.ZipFile(source), {}
    for info in archive.infolist():
        check_name(info.filename, source)
        if stat.S_ISLNK(info.external_attr >> 16):
            fail(f'{source} holds the link {info.filename!r}: refused; pack the files themselves')
        if not info.is_dir():
            files[info.filename] = partial(archive.read, info)
    return files


def _list_tar(source):
    def read(member):
        return archive.extractfile(member).read()

    archive, files = tarfile.open(source), {}  # noqa: SIM115 (stays open for the readers)
    for member in archive:
        check_name(member.name, source)
        if not member.isfile() and not member.isdir():  # a link, or a device
            fail(f'{source} holds the link {member.name!r}: refused; pack the files themselves')
        if member.isfile():
            files[member.name.removeprefix('./')] = partial(read, member)  # `tar -c .` writes ./name
    return files


def read_image(read, name):
    """The image and the bytes that read() gives; ends the script, naming the image, when it is damaged."""
    try:
        data = read()
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # noqa: BLE001 (Pillow raises many kinds, according to where the damage is)
        fail(f'cannot read the image {name} ({error}); replace it and run again')
    return image, data


def is_done(path, mode, size):
    """Whether path already is an image of this mode and (width, height)."""
    try:
        with Image.open(path) as image:
            return image.mode == mode and image.size == size
    except OSError:  # not there, or not an image
        return False


def write(path, data):
    """Write bytes so that path never holds half a file, even when the script is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.tmp')  # always the same name, so that the next run clears up
    part.write_bytes(data)
    os.replace(part, path)


def download(url, path, md5):
    """Fetch url to path unless it is there, going on where an earlier run broke off; check its MD5."""
    part = path.with_name(path.name + '.part')
    if _md5(path) == md5:
        return
    if _md5(part) != md5:
        _fetch(url, part)
    if (found := _md5(part)) != md5:
        part.unlink()
        fail(f'{url} has MD5 {found}, not {md5}: deleted; run again, or bring the archive and give --source')
    os.replace(part, path)


def _md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() if path.exists() else None


def _fetch(url, part):
    part.parent.mkdir(parents=True, exist_ok=True)
    have = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={'Range': f'bytes={have}-'} if have else {})
        with urllib.request.urlopen(request, timeout=30) as reply:
            have = have if reply.status == 206 else 0  # 200: the server sends all of it again
            length = int(reply.headers.get('Content-Length', 0))
            with (
                open(part, 'ab' if have else 'wb') as file,
                progress(desc=part.stem, initial=have, total=have + length, unit='B', unit_scale=True) as bar,
            ):
                while chunk := reply.read(1 << 16):
                    file.write(chunk)
                    bar.update(len(chunk))
        if length and part.stat().st_size < have + length:  # http.client does not tell
            raise OSError(f'broke off after {part.stat().st_size:,} of {have + length:,} bytes')
    except (OSError, ValueError, http.client.HTTPException) as error:
        if getattr(error, 'code', None) == 416:  # what we have is longer than the file: start over
            part.unlink()
            return _fetch(url, part)
        fail(f'cannot fetch {url} ({error}); run again to go on, or bring the archive and give --source')
