"""rl/figures.py, run as its user does, on the results that this repository keeps."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from rl import figures

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = sorted((ROOT / 'results' / 'point').glob('*/seed1/test*.json'))


def run(*arguments):
    command = [sys.executable, '-m', 'rl.figures', *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_command_draws_all_results_into_one_picture(tmp_path):
    done = run('--out', tmp_path / 'figure.png', *RESULTS)
    assert done.returncode == 0, done.stderr
    picture = np.asarray(Image.open(tmp_path / 'figure.png').convert('RGB'))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 5


@pytest.mark.parametrize(
    ('content', 'out', 'words'),
    [
        (None, 'f.png', 'no result'),
        ('[]', 'f.png', 'no result'),
        ('{"settings": {}}', 'f.png', 'no result'),
        ('good', 'f.xyz', 'cannot write'),
        ('good', 'none/f.png', 'cannot be written'),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(tmp_path, content, out, words):
    path = tmp_path / 'result.json'
    if content is not None:
        path.write_text(RESULTS[0].read_text() if content == 'good' else content)
    done = run('--out', tmp_path / out, path)
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count('\n') == 1 and not (tmp_path / out).exists()


def test_curves_show_the_means_of_the_results_and_of_the_paper():
    results = [json.loads(path.read_text()) for path in RESULTS]
    paper = json.loads(figures.PAPER.read_text())
    axis = figures.draw(results, paper).axes[0]
    drawn = [line.get_ydata() for line in axis.get_lines()]
    maml = next(result for result in results if figures.method(result) == 'maml')
    for curve in (maml['mean'], paper['point']['maml']['mean']):
        assert any(np.array_equal(y, curve) for y in drawn)
