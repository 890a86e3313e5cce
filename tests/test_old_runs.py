"""Runs that an earlier version of this program began (tests/golden/runs) go on as they would have then."""

import pathlib
import shutil

import numpy as np
import pytest
from program import run_here

RUNS = pathlib.Path(__file__).parent / 'golden' / 'runs'
SHORT = ['--log=False', '--num_test_tasks=2', '--test_num_updates=1']


@pytest.mark.parametrize(
    'name, begun, ended, share, flags',
    [
        (
            'cls_5.mbs_25.ubs_10.numstep1.updatelr0.01nonorm',
            'model100.npz',
            'model200.npz',
            1e-4,
            ['--save_interval=100'],
        ),
        (
            'maml1_fbs2_mbs2_flr0.5_mlr0.01',
            'model2.npz',
            'model4.npz',
            0.1,
            ['--datasource=point', '--meta_batch_size=2', '--update_batch_size=2', '--test_update_batch_size=2'],
        ),
    ],
)
def test_a_run_from_before_goes_on(tmp_path, capsys, name, begun, ended, share, flags):
    """Bit for bit on the machine that made the files; elsewhere up to a share of the way from one to the other.

    Rounding is what processors differ in, and TRPO's finite differences make more of it: weights that are changed by
    1e-7 of themselves end 1 to 4 % of the way off, another processor's 3 %.
    """
    (tmp_path / name).mkdir()
    for file in ('config.json', begun):
        shutil.copy(RUNS / name / file, tmp_path / name)
    iterations = ended.removeprefix('model').removesuffix('.npz')
    run_here(f'--logdir={tmp_path}', f'--metatrain_iterations={iterations}', *flags, *SHORT)
    assert 'Restoring model weights' in capsys.readouterr().out
    before, theirs, ours = (
        dict(np.load(folder / name / file)) for folder, file in ((RUNS, begun), (RUNS, ended), (tmp_path, ended))
    )
    for key in theirs:
        way, error = (np.linalg.norm(theirs[key] - other[key]) for other in (before, ours))
        assert error <= share * way, key
