"""Resize MiniImagenet to 84x84 JPEGs, into {train,val,test}/<label>/<filename> beside this script.

The images cannot be downloaded freely. Bring one of, as a folder or a zip or tar archive:
  * the 60,000 images n0153282900000005.jpg ..., from ILSVRC-2012 under ImageNet's terms (image-net.org),
    with train.csv, val.csv and test.csv of Ravi & Larochelle in it or beside it
    (github.com/twitter-research/meta-learning-lstm, data/miniImagenet);
  * the images already split: train/, val/ and test/ with a folder of images for each class.

Usage:
    python data/miniImagenet/proc_images.py --source=PATH [--csv=FOLDER]
    python data/miniImagenet/proc_images.py   # as the original: images/ and the CSV files beside this script

Can be run again after a break. Departures from the original's script of the same name (cbfinn/maml): it
overwrites and moves the images, this one copies them; images that are 84x84 already are not encoded again.
"""

import argparse
import io
import re
import sys
from collections import Counter
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import prepare

CLASSES = {'train': 64, 'val': 16, 'test': 20}
IMAGES = 600  # of each class
IMAGE = re.compile(r'(?:.*/)?([^/]+\.jpe?g)', re.IGNORECASE)
SPLIT_IMAGE = re.compile(rf'(?:.*/)?((?:{"|".join(CLASSES)})/[^/]+/[^/]+\.jpe?g)', re.IGNORECASE)
SIZE = (84, 84)


def resize(image):
    """An image of any mode and size as RGB 84x84."""
    return image.convert('RGB').resize(SIZE, resample=Image.Resampling.LANCZOS)


def find_csv(split, files, source, folder):
    """The bytes of a split's CSV file, from --csv, from the source or from beside it; None when not there."""
    name = f'{split}.csv'
    if folder is None:
        for inside in files:
            if inside.split('/')[-1] == name:
                return files[inside]()
    path = (folder or source.resolve().parent) / name
    return path.read_bytes() if path.is_file() else None


def read_csv(split, data):
    """The (filename, label) rows of a CSV file."""
    header, *rows = [line.split(',') for line in data.decode('utf-8-sig', 'replace').splitlines()] or [[]]
    if header != ['filename', 'label']:
        prepare.fail(f"{split}.csv begins with {','.join(header)!r}, not 'filename,label'; see --help")
    for row in rows:
        if len(row) != 2:
            prepare.fail(f'{split}.csv has the line {",".join(row)!r}, not a filename and a label')
        prepare.check_name('/'.join(row), f'{split}.csv')
    return rows


def find_images(source, csv_folder):
    """The images of a folder or an archive, as (path in dest, name in source, reader)."""
    files = prepare.list_files(source)
    split = {name: match[1] for name in files if (match := SPLIT_IMAGE.fullmatch(name))}
    flat = {match[1]: name for name in files if name not in split and (match := IMAGE.fullmatch(name))}
    if not split and not flat:
        prepare.fail(f'no JPEG images in {source}; --help says what to bring')
    tables = {name: find_csv(name, files, source, csv_folder) for name in CLASSES}
    if split and not (flat and all(tables.values())):
        return [(target, name, files[name]) for name, target in split.items()]

    targets, missing = {}, []
    for subset, data in tables.items():
        if data is None:
            prepare.fail(f'{subset}.csv is not in {csv_folder or source} or beside it; give --csv=FOLDER')
        for filename, label in read_csv(subset, data):
            if filename in flat:
                targets.setdefault(flat[filename], f'{subset}/{label}/{filename}')
            else:
                missing.append(f'{filename} of {subset}.csv')
    if missing:
        prepare.fail(f'{len(missing):,} listed images are not in {source}, the first is {missing[0]}')
    # In stored order, because a compressed tar cannot be read in another at any speed.
    return [(targets[name], name, files[name]) for name in files if name in targets]


def resize_all(images, source, dest):
    """Write each image, resized, to its place below dest, unless it is there."""
    for target, name, read in prepare.progress(images, unit=' images'):
        if prepare.is_done(dest / target, 'RGB', SIZE):
            continue
        image, data = prepare.read_image(read, source / name)
        if (image.format, image.mode, image.size) != ('JPEG', 'RGB', SIZE):
            jpeg = io.BytesIO()
            resize(image).save(jpeg, 'JPEG')  # at Pillow's default quality, as the original
            data = jpeg.getvalue()
        prepare.write(dest / target, data)


def count(folder):
    """Classes x images of a split, for example "64 x 600", or "64 x 598-600" when classes differ."""
    images = Counter(path.parent for path in folder.glob('*/*') if IMAGE.fullmatch(path.name))
    sizes = sorted(set(images.values())) or [0]
    return f'{len(images)} x {sizes[0]}' + (f'-{sizes[-1]}' if sizes[1:] else '')


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--source', type=Path, default=HERE, help='folder or archive (default: beside the script)')
    parser.add_argument('--csv', type=Path, help='folder of the CSV files (default: in the source or beside it)')
    parser.add_argument('--dest', type=Path, default=HERE, help='where the splits go (default: beside the script)')
    args = parser.parse_args(argv)

    resize_all(find_images(args.source, args.csv), args.source, args.dest)

    found = ', '.join(f'{split} {count(args.dest / split)}' for split in CLASSES)
    whole = ', '.join(f'{split} {classes} x {IMAGES}' for split, classes in CLASSES.items())
    print(f'classes x images: {found} in {args.dest}')
    if found != whole:
        print(f'warning: all of MiniImagenet is {whole}', file=sys.stderr)


if __name__ == '__main__':
    prepare.run(main)
