"""Resize MiniImagenet to 84x84 RGB, into {train,val,test}/<label>/<filename> beside this script.

The images cannot be downloaded freely. Bring one of, as a folder or a zip or tar archive:
  * the 60,000 images n0153282900000005.jpg ..., from ILSVRC-2012 under ImageNet's terms (image-net.org),
    with train.csv, val.csv and test.csv of Ravi & Larochelle in it or beside it
    (github.com/twitter-research/meta-learning-lstm, data/miniImagenet);
  * the images already split: train/, val/ and test/ with a folder of images for each class;
  * the pickles mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl, whose images become PNGs.
JPEGs stay JPEGs, PNGs stay PNGs. The CSV files may name images with folders, as label/1.jpg.

Usage:
    python data/miniImagenet/proc_images.py --source=PATH [--csv=FOLDER]
    python data/miniImagenet/proc_images.py   # as the original: images/ and the CSV files beside this script

Can be run again after a break. Departures from the original's script of the same name (cbfinn/maml): it
overwrites and moves the images, this one copies them; images that are 84x84 already are not encoded again;
a rotation that a camera noted (EXIF) is carried out, and what is transparent becomes white.
"""

import argparse
import csv
import glob
import io
import os
import re
import sys
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import prepare  # before what must be installed: it says what to do where that is not

# isort: split
import numpy as np
from PIL import Image

CLASSES = {'train': 64, 'val': 16, 'test': 20}
IMAGES = 600  # of each class
IMAGE = re.compile(r'(?:.*/)?([^/]+\.(?:jpe?g|png))', re.I | re.S)
SPLIT_IMAGE = re.compile(rf'(?:.*/)?({"|".join(CLASSES)})/([^/]+/[^/]+\.(?:jpe?g|png))(/.*)?', re.I | re.S)
OTHER_IMAGE = re.compile(r'.*\.(?:bmp|gif|tiff?|webp)', re.I | re.S)
SIZE = (84, 84)
PICKLE = 'mini-imagenet-cache-{}.pkl'  # {'image_data': uint8 [images, 84, 84, 3], 'class_dict': {class: [row, …]}}


def file_format(name):
    """The format of the image files that are called so."""
    return 'PNG' if name.lower().endswith('.png') else 'JPEG'


def is_final(image, name):
    """Whether an image is as the training code is to see it, in the format that its name says."""
    form = (image.format, image.mode, image.size) == (file_format(name), 'RGB', SIZE)
    return form and not image.has_transparency_data and not prepare.is_rotated(image)


def find_csv(split, files, source, folder):
    """The bytes of a split's CSV file, from --csv, from the source or from beside it; None when not there."""
    name = f'{split}.csv'
    inside = [] if folder else [path for path in files if path.split('/')[-1] == name]
    if len(inside) > 1:
        prepare.fail(f'{source / inside[0]} and {source / inside[1]} are both there; choose with --csv=FOLDER')
    if inside:
        return prepare.read_file(files[inside[0]], source / inside[0])
    path = (folder or source.resolve().parent) / name
    return prepare.read_file(partial(open, path, 'rb'), path) if path.is_file() else None


def read_csv(split, data):
    """The (filename, label) rows of a CSV file, without blank lines."""
    try:
        lines = io.StringIO(data.decode('utf-8-sig'), newline='')
        header, *rows = [row for row in csv.reader(lines, skipinitialspace=True) if any(row)] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        prepare.fail(f'{split}.csv is no CSV file in UTF-8 ({error}); save it as one')
    if header != ['filename', 'label']:
        prepare.fail(f"{split}.csv begins with {','.join(header)!r}, not 'filename,label'; see --help")
    for row in rows:
        if len(row) != 2 or not all(row):
            prepare.fail(f'{split}.csv has the line {",".join(row)!r}, not a filename and a label')
        prepare.check_name('/'.join(row), f'{split}.csv')
        check_label(row[1], f'{split}.csv')
    return rows


def check_label(label, where):
    """Refuse a class that cannot be a folder."""
    if not isinstance(label, str) or not label or re.search(r'^\.|[/\\]', label):
        prepare.fail(f'{where} has the label {label!r}, which cannot be the name of a class folder; rename it')
    prepare.check_name(label, where)


def find_images(files, source, csv_folder):
    """The images of a folder or an archive that holds these files, as (path in dest, name in source, opener)."""
    split = {name: match for name in files if (match := SPLIT_IMAGE.fullmatch(name))}
    flat = defaultdict(list)  # by base name
    for name in files:
        if name not in split and (match := IMAGE.fullmatch(name)):
            flat[match[1]].append(name)
    if not split and not flat:
        prepare.fail(f'no JPEG or PNG images in {source}; --help says what to bring')
    tables = {name: find_csv(name, files, source, csv_folder) for name in CLASSES}
    if split and not (flat and all(tables.values())):
        targets = find_split(source, files, split)
        if left := [name for names in flat.values() for name in names]:
            print(
                f'warning: {len(left):,} images are not in a class folder of train/, val/ or test/ and are left out, '
                f'the first is {source / left[0]}',
                file=sys.stderr,
            )
    else:
        targets = find_listed(source, csv_folder, flat, tables)
    taken = {}
    for name, target in targets.items():
        message = '{one} and {two} would both become {key}; rename or remove one of them'
        prepare.claim(taken, target, source / name, message)
    # In stored order, because a compressed tar cannot be read in another at any speed.
    return [(targets[name], name, files[name]) for name in files if name in targets]


def find_split(source, files, split):
    """{name in source: path in dest} of the images in train/, val/ and test/."""
    for name, match in split.items():
        if match[3]:
            folder = name.removesuffix(match[3])
            prepare.fail(f'{source / folder} is a folder, not an image; rename or remove it')
    folders = {name.rpartition('/')[0] for name in split}
    for name in files:
        if OTHER_IMAGE.fullmatch(name) and name.rpartition('/')[0] in folders:
            prepare.fail(f'{source / name} is neither JPEG nor PNG; convert or remove it')
    return {name: f'{match[1].lower()}/{match[2]}' for name, match in split.items()}


def find_listed(source, csv_folder, flat, tables):
    """{name in source: path in dest} of the images that the CSV files list, by base name or with folders."""
    targets, missing = {}, []
    for subset, data in tables.items():
        if data is None:
            prepare.fail(f'{subset}.csv is not in {csv_folder or source} or beside it; give --csv=FOLDER')
        for filename, label in read_csv(subset, data):
            path = filename.replace('\\', '/').removeprefix('./')
            base = path.split('/')[-1]
            found = [name for name in flat.get(base, ()) if f'/{name}'.endswith(f'/{path}')]
            if len(found) > 1:
                prepare.fail(
                    f'{filename} of {subset}.csv can be {source / found[0]} or {source / found[1]}; '
                    'name it with its folder there, or remove one of them'
                )
            if found:
                message = filename + ' is listed as both {one} and {two}; remove one of the lines'
                prepare.claim(targets, found[0], f'{subset}/{label}/{base}', message)
            else:
                missing.append(f'{filename} of {subset}.csv')
    if missing:
        prepare.fail(f'{len(missing):,} listed images are not in {source}, the first is {missing[0]}')
    return targets


def resize_all(images, source, dest):
    """Write each image, resized, to its place below dest, unless it is there."""
    for target, name, opener in prepare.not_done(images, dest, is_final, ' images'):
        image, data = prepare.read_image(opener, source / name)
        if not is_final(image, target):
            buffer = io.BytesIO()
            prepare.convert(image, SIZE).save(
                buffer, file_format(target)
            )  # at Pillow's default quality, as the original
            data = buffer.getvalue()
        prepare.write(dest / target, data)


def find_pickles(files):
    """{split: [name in source]} of the pickles; empty where there are none."""
    found = {split: [name for name in files if name.split('/')[-1] == PICKLE.format(split)] for split in CLASSES}
    return found if any(found.values()) else {}


def read_pickles(found, files, source):
    """{path in dest: pixels} of the images in the pickles, which are all in memory then."""
    images = {}
    for split, names in found.items():
        if len(names) != 1:
            what = f'{source / names[0]} and {source / names[1]} are both there' if names else 'is not there'
            prepare.fail(f'{PICKLE.format(split)} of {source}: {what}; bring one of each split')
        name = source / names[0]
        pixels, classes = check_pickle(prepare.read_pickle(files[names[0]], name), name)
        used = 0
        for label, rows in classes.items():
            used += len(rows)
            images |= {f'{split}/{label}/{row:05d}.png': pixels[row] for row in rows}
        if used < len(pixels):
            print(f'warning: {len(pixels) - used:,} images of {name} are in no class and are left out', file=sys.stderr)
    return images


def check_pickle(content, name):
    """The pixels and {class: rows} of a pickle; ends the script when it has another form."""
    if not isinstance(content, dict) or not {'image_data', 'class_dict'} <= set(content):
        prepare.fail(f'{name} is no dictionary with image_data and class_dict; is it the pickle of another dataset?')
    pixels, classes = content['image_data'], content['class_dict']
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (*SIZE, 3):
        found = f'{pixels.dtype} {list(pixels.shape)}' if isinstance(pixels, np.ndarray) else type(pixels).__name__
        prepare.fail(f'image_data of {name} is {found}, not uint8 [images, 84, 84, 3]; is it of another dataset?')
    if not isinstance(classes, dict) or not classes:
        prepare.fail(f'class_dict of {name} is no dictionary of classes; is it the pickle of another dataset?')
    taken = {}
    for label, rows in classes.items():
        check_label(label, name)
        if not isinstance(rows, (list, tuple, np.ndarray)) or not all(
            isinstance(row, (int, np.integer)) and 0 <= row < len(pixels) for row in rows
        ):
            prepare.fail(
                f'class {label} of {name} is no list of rows of its {len(pixels):,} images; replace the pickle'
            )
        for row in rows:
            message = f'image {row} of {name} is in class {{one}} and in class {{two}}; replace the pickle'
            prepare.claim(taken, int(row), label, message)
    return pixels, {label: sorted({int(row) for row in rows}) for label, rows in classes.items()}


def write_all(images, dest):
    """Write the pixels of each image as PNG, without loss, to its place below dest, unless it is there."""
    for target, pixels in prepare.not_done(images.items(), dest, is_final, ' images'):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, 'PNG')
        prepare.write(dest / target, buffer.getvalue())


def count(folder):
    """Classes x images of a split, for example "64 x 600", or "64 x 598-600" when classes differ."""
    names = filter(IMAGE.fullmatch, glob.glob('*/*', root_dir=folder))  # without hidden folders
    images = Counter(map(os.path.dirname, names))
    sizes = sorted(set(images.values())) or [0]
    return f'{len(images)} x {sizes[0]}' + (f'-{sizes[-1]}' if sizes[1:] else '')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = prepare.fail
    parser.add_argument(
        '--source', type=prepare.path, default=HERE, help='folder or archive (default: beside the script)'
    )
    parser.add_argument(
        '--csv', type=prepare.path, help='folder of the CSV files (default: in the source or beside it)'
    )
    parser.add_argument(
        '--dest', type=prepare.path, default=HERE, help='where the splits go (default: beside the script)'
    )
    args = parser.parse_args()

    files = prepare.list_files(args.source, args.dest)
    if pickles := find_pickles(files):
        write_all(read_pickles(pickles, files, args.source), args.dest)
    else:
        resize_all(find_images(files, args.source, args.csv), args.source, args.dest)

    found = ', '.join(f'{split} {count(args.dest / split)}' for split in CLASSES)
    whole = ', '.join(f'{split} {classes} x {IMAGES}' for split, classes in CLASSES.items())
    print(f'classes x images: {found} in {args.dest}')
    if found != whole:
        print(f'warning: all of MiniImagenet is {whole}', file=sys.stderr)


if __name__ == '__main__':
    prepare.run(main)
