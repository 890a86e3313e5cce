"""Resize the Omniglot drawings to 28x28, into <alphabet>/<characterNN>/<NNNN_MM>.png beside this script.

Usage:
    python data/omniglot_resized/resize_images.py --download      # fetches the two archives, 15 MB
    python data/omniglot_resized/resize_images.py --source=PATH   # what you have: see --help
    python data/omniglot_resized/resize_images.py                 # in place, on what lies beside this script

Can be run again after a break. As the original's script of the same name (cbfinn/maml), which works in place.
"""

import argparse
import glob
import io
import os
import re
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import prepare  # before what must be installed: it says what to do where that is not
from PIL import Image

URL = 'https://raw.githubusercontent.com/brendenlake/omniglot/master/python'
ARCHIVES = {  # name: MD5, as torchvision's datasets/omniglot.py records them
    'images_background.zip': '68d2efa1b9178cc56df9314c21c6e718',
    'images_evaluation.zip': '6b91aef0f799c5bb55b94e3f2daec811',
}
# images_background_small1 and _small2 hold nothing but copies, so they are no subsets here.
SUBSETS = ('images_background', 'images_evaluation')
DRAWING = re.compile(rf'(?:(?:.*/)?(?:{"|".join(SUBSETS)})/)?([^/]+/[^/]+/[^/]+\.(?:png|jpe?g))(/.*)?', re.I | re.S)
SIZE = (28, 28)
CHARACTERS, DRAWERS = 1623, 20


def resize(image):
    """A one-bit drawing as one-bit 28x28."""
    # The original asks for LANCZOS, but for images of mode "1" Pillow takes NEAREST without a word.
    return image.resize(SIZE, resample=Image.Resampling.NEAREST)


def lift_subsets(folder):
    """Move the alphabets of images_background/ and _evaluation/ up, to where the training code looks."""
    for subset in SUBSETS:
        for name in sorted(glob.glob('*/', root_dir=folder / subset)):  # without hidden folders
            alphabet = folder / subset / name
            if (folder / alphabet.name).exists():
                prepare.fail(f'both {alphabet} and {folder / alphabet.name} exist; remove one of them')
            alphabet.rename(folder / alphabet.name)
        if (folder / subset).is_dir() and not any((folder / subset).iterdir()):
            (folder / subset).rmdir()


def find_drawings(source, dest):
    """The drawings of an archive, or a folder and the archives in it, as (path in dest, name, opener)."""
    archives = [source / name for name in ARCHIVES if (source / name).is_file()]
    for place in (source, *archives):
        taken = {}
        for name, opener in prepare.list_files(place, dest).items():
            if match := DRAWING.fullmatch(name):
                if match[2]:
                    folder = name.removesuffix(match[2])
                    prepare.fail(f'{place / folder} is a folder, not a drawing; rename or remove it')
                prepare.claim(taken, match[1], place / name, '{one} and {two} are both {key}; remove one of them')
                yield match[1], place / name, opener


def is_final(image, target):
    """Whether an image is what the training reads."""
    return (image.mode, image.size) == ('1', SIZE)


def resize_all(drawings, dest):
    """Write each drawing, resized, to its place below dest, unless it is there."""
    for target, name, opener in prepare.not_done(drawings, dest, is_final, ' drawings'):
        image, _ = prepare.read_image(opener, name)
        if image.mode != '1':  # resizing gray would give other values than 0 and 1
            prepare.fail(f'{name} is not a one-bit image (mode {image.mode}); bring the PNGs as published')
        png = io.BytesIO()
        resize(image).save(png, 'PNG')
        prepare.write(dest / target, png.getvalue())


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = prepare.fail
    parser.add_argument('--download', action='store_true', help='fetch the two archives into --dest first')
    parser.add_argument('--url', default=URL, help='where the archives are (default: %(default)s)')
    parser.add_argument(
        '--source',
        type=prepare.path,
        help='a folder with images_background and images_evaluation, with the alphabets, or '
        'with the two zip archives; or a zip or tar archive (default: --dest, in place)',
    )
    parser.add_argument(
        '--dest', type=prepare.path, default=HERE, help='where the alphabets go (default: beside the script)'
    )
    args = parser.parse_args(argv)
    if args.download and args.source:
        prepare.fail('give --download or --source, not both')

    if args.download:
        for name, md5 in ARCHIVES.items():
            prepare.download(f'{args.url.rstrip("/")}/{name}', args.dest / name, md5)
    source = args.source or args.dest
    if source.resolve() == args.dest.resolve():
        lift_subsets(args.dest)
    drawings = list(find_drawings(source, args.dest))
    if not drawings:
        prepare.fail(
            f'no drawings in {source}; give --download, or --source=FOLDER with images_background '
            'and images_evaluation in it'
        )
    resize_all(drawings, args.dest)

    characters = Counter(os.path.dirname(name) for name in glob.glob('*/*/*.png', root_dir=args.dest))
    print(f'{len(characters):,} characters, {sum(characters.values()):,} images in {args.dest}')
    if len(characters) != CHARACTERS or set(characters.values()) != {DRAWERS}:
        print(f'warning: all of Omniglot is {CHARACTERS:,} characters of {DRAWERS} images each', file=sys.stderr)


if __name__ == '__main__':
    prepare.run(main)
