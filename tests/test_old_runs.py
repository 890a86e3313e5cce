"""Runs that an earlier version of this program began (tests/golden/runs) go on as they would have then."""

import pathlib
import shutil

import numpy as np
import pytest
from program import run_here

RUNS = pathlib.Path(__file__).parent / 'golden' / 'runs'
SHORT = ['--log=False', '--num_test_tasks=2', '--test_num_updates=1']


@pytest.mark.parametrize(
    'name, begun, ended, flags',
    [
        ('cls_5.mbs_25.ubs_10.numstep1.updatelr0.01nonorm', 'model100.npz', 'model200.npz', ['--save_interval=100']),
        (
            'maml1_fbs2_mbs2_flr0.5_mlr0.01',
            'model2.npz',
            'model4.npz',
            ['--datasource=point', '--meta_batch_size=2', '--update_batch_size=2', '--test_update_batch_size=2'],
        ),
    ],
)
def test_a_run_from_before_goes_on(tmp_path, capsys, name, begun, ended, flags):
    """Bit for bit on the machine that made the files; elsewhere the last digits of a product may differ."""
    (tmp_path / name).mkdir()
    for file in ('config.json', begun):
        shutil.copy(RUNS / name / file, tmp_path / name)
    iterations = ended.removeprefix('model').removesuffix('.npz')
    run_here(f'--logdir={tmp_path}', f'--metatrain_iterations={iterations}', *flags, *SHORT)
    assert 'Restoring model weights' in capsys.readouterr().out
    with np.load(tmp_path / name / ended) as ours, np.load(RUNS / name / ended) as theirs:
        for key in theirs.files:
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-3, atol=1e-5, err_msg=key)
