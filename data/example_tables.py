"""Write a small set of tables, to try --datasource=table and --adapt with: pendulums, each with a swing of its own.

    python data/example_tables.py [FOLDER]      default: example/ beside this script

FOLDER/tables: 60 CSV files of 20 rows, the time in seconds and the angle in degrees of a pendulum, measured with an
error of 0.3 degrees. FOLDER/support.csv: 5 rows of another one, to adapt to; FOLDER/new.csv: 10 times at which to
predict its angle. The same files each time.
"""

import csv
import sys
from pathlib import Path

import numpy as np


def main(folder):
    rng = np.random.default_rng(1)
    (folder / 'tables').mkdir(parents=True, exist_ok=True)
    for number in range(61):
        swing, begin = rng.uniform(2, 15), rng.uniform(0, np.pi)
        time = rng.uniform(0, 4, 20)
        angle = swing * np.sin(2.2 * time - begin) * np.exp(-0.1 * time) + rng.normal(0, 0.3, 20)
        rows = [['time', 'angle'], *([f'{t:.3f}', f'{a:.2f}'] for t, a in zip(time, angle))]
        if number < 60:
            write(folder / 'tables' / f'pendulum{number:02d}.csv', rows)
    write(folder / 'support.csv', rows[:6])
    write(folder / 'new.csv', [row[:1] for row in rows[:1] + rows[6:16]])
    print(f'60 tables in {folder}/tables, support.csv and new.csv of another pendulum in {folder}')


def write(path, rows):
    """Write a CSV file."""
    with path.open('w', newline='') as file:
        csv.writer(file).writerows(rows)


if __name__ == '__main__':
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent / 'example')
