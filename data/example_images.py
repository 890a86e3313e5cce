"""Draw a small set of images, to try --datasource=images and --adapt with: closed curves, a shape of its own a class.

    python data/example_images.py [FOLDER]      default: example/ beside this script

FOLDER/classes: 40 classes of 20 grey 32x32 PNGs, to be split into training, validation and test classes.
FOLDER/new: 4 classes more, with 2 images each, to adapt to. FOLDER/unknown: 12 other images of these, to classify,
whose names begin with the class. The same files each time.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def draw(shape, rng):
    """Return a curve whose radius has the Fourier coefficients `shape` [2, waves], moved, scaled and turned."""
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    waves = np.arange(2, 2 + shape.shape[1])[:, None]
    radius = 1 + shape[0] @ np.cos(waves * angle) + shape[1] @ np.sin(waves * angle)
    turned = angle + rng.normal(0, 0.15)
    middle, scale = rng.normal(64, 3, 2), 48 * rng.uniform(0.85, 1.1) / radius.max()
    points = (
        middle[:, None] + scale * radius * np.array([np.cos(turned), np.sin(turned)]) + rng.normal(0, 0.5, [2, 120])
    )
    image = Image.new('L', (128, 128), 255)
    ImageDraw.Draw(image).line([*map(tuple, points.T), tuple(points[:, 0])], fill=0, width=7)
    return image.resize((32, 32), Image.Resampling.LANCZOS)


def main(folder):
    rng = np.random.default_rng(1)
    for number in range(44):
        shape = rng.normal(0, 0.22, [2, 4])
        for index in range(20 if number < 40 else 5):
            if number < 40:
                path = folder / 'classes' / f'shape{number:02d}' / f'{index:02d}.png'
            elif index < 2:
                path = folder / 'new' / f'new{number - 40}' / f'{index}.png'
            else:
                path = folder / 'unknown' / f'new{number - 40}_{index}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(shape, rng).save(path)
    print(f'40 classes in {folder}/classes, 4 more in {folder}/new, 12 other images of these in {folder}/unknown')


if __name__ == '__main__':
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / 'example')
