"""Makes small data sets in the folder layouts of Omniglot and MiniImagenet."""

import numpy as np
from PIL import Image


def omniglot(folder, characters=40, drawings=4, alphabets=4, size=28):
    """One-bit PNGs <alphabet>/<characterNN>/<NNNN_MM>.png; returns `folder`."""
    rng = np.random.RandomState(0)
    for character in range(characters):
        place = folder / f'Alphabet{character % alphabets}' / f'character{character // alphabets + 1:02d}'
        place.mkdir(parents=True)
        for drawing in range(drawings):
            image = Image.fromarray(rng.rand(size, size) < 0.5)
            image.save(place / f'{character:04d}_{drawing + 1:02d}.png')
    return folder


def miniimagenet(folder, classes=6, images=20, size=84):
    """JPEGs {train,val,test}/<class>/<name>.jpg of a colour of the class's own; returns `folder`."""
    rng = np.random.RandomState(0)
    for split in ('train', 'val', 'test'):
        for label in range(classes):
            place = folder / split / f'n{split}{label:02d}'
            place.mkdir(parents=True)
            for index in range(images):
                pixels = rng.randint(0, 80, (size, size, 3)) + rng.randint(0, 170, 3)
                Image.fromarray(pixels.astype(np.uint8)).save(place / f'{index:03d}.jpg')
    return folder
