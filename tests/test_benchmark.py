"""benchmark.py: the command runs and its numbers hang together; how fast anything is, is never tested."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest
from program import MAIN

import benchmark
import runtime
from networks import Convolutional
from runtime import UserError


@pytest.mark.parametrize(
    'name, gflop', [('omniglot_5way_1shot', 10.3), ('omniglot_20way_1shot', 82), ('miniimagenet_5way_1shot', 98)]
)
def test_counted_operations(name, gflop):
    """Against counts by hand: tasks x (9 x inner steps x support + 3 x query) x the network's operations an image."""
    mini = name.startswith('mini')
    network = Convolutional(
        dim_output=20 if '20way' in name else 5,
        img_size=84 if mini else 28,
        channels=3 if mini else 1,
        num_filters=32 if mini else 64,
        max_pool=mini,
        flatten=mini,
    )
    config = benchmark.settings(benchmark.EXPERIMENTS[name])
    assert benchmark.step_flops(config, network) / 1e9 == pytest.approx(gflop, rel=0.02)


def run(*flags):
    command = [sys.executable, str(MAIN.with_name('benchmark.py')), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_rows_are_printed_kept_and_compared(tmp_path):
    flags = ['--only=sinusoid', '--seconds=0.1', '--meta_batch_size=3']
    earlier = MAIN.parent / 'results' / 'benchmark.json'
    printed = run(*flags, f'--out={tmp_path}/a.json', f'--compare={earlier}')
    rows = json.loads((tmp_path / 'a.json').read_text())['rows']
    assert [row['first_order'] for row in rows] == [False, True] and rows[0]['meta_batch_size'] == 3
    for row in rows:
        assert row['ms'] >= row['ms_min'] > 0 and row['memory_gb'] > 0 and 0 <= row['waiting'] < 1
        assert row['gflops'] == pytest.approx(1e3 * row['gflop'] / row['ms'])
        assert row['hours_60000'] == pytest.approx(row['ms'] / 60)
        assert row['step_over_gemm'] == pytest.approx(row['ms'] / 1e3 * row['gemm_gflops'] / row['gflop'])
    kept = json.loads(earlier.read_text())['rows'][0]
    assert kept['experiment'] == 'sinusoid' and not kept['first_order']
    assert f'{rows[0]["ms"]:9.2f}' in printed and f'{kept["ms"]:10.2f}' in printed and 'earlier' in printed


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--peers', '--only=cheetah_vel'], ['--peers', 'supervised', '--only=cheetah_vel']),
        (['--precision=mixed', '--only=sinusoid'], ['--precision=mixed', 'omniglot_5way_1shot', 'drop --only']),
        (['--precision=mixed', '--peers'], ['--precision=mixed', 'drop --peers']),
        (['--only=ant_vel', '--meta_batch_size=3'], ['--meta_batch_size', 'supervised', '--only=ant_vel']),
        (['--threads=0'], ['--threads=0', '1 to 1024']),
        (['--out=.'], ['--out=. is a folder']),
        pytest.param(
            ['--peers'],
            ['--peers', 'pip install torch'],
            marks=pytest.mark.skipif(find_spec('torch'), reason='torch is here'),
        ),
    ],
)
def test_what_cannot_be_timed_is_refused_in_one_line(flags, words):
    command = [sys.executable, str(MAIN.with_name('benchmark.py')), *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and not result.stdout and len(result.stderr.splitlines()) == 1
    assert all(word in result.stderr for word in words)


def blocked_signals_with_tensorflow():
    runtime.start()
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_ctrl_c_leaves_the_process_of_a_row_to_the_program():
    """In which it would print a traceback, since a terminal sends it to both."""
    assert signal.SIGINT in benchmark.in_a_process(blocked_signals_with_tensorflow)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_process_that_is_killed_ends_the_benchmark():
    with pytest.raises(UserError, match='was killed'):
        benchmark.in_a_process(os.abort)


def test_rates_of_the_sampler():
    rates = benchmark.measure_rates('cheetah_vel', tasks=2, rollouts=3, steps=5)
    assert set(rates) == {'sampler', 'raw', 'sync_vector'} and min(rates.values()) > 0


def test_parts_of_a_meta_iteration():
    given = {'datasource': 'cheetah_vel', 'meta_batch_size': 2, 'update_batch_size': 1, 'sampling_workers': 1}
    config = benchmark.settings(given)
    parts = benchmark.measure_iteration(config, threads=2, repeats=1)
    assert parts['env_steps'] == 2 * 2 * 200
    names = 'sampling', 'gradient', 'conjugate_gradients', 'line_search'
    assert sum(parts[name] for name in names) < parts['seconds']
    # 23 gradients through the inner step, one loss before the step and at least one after it
    forward = 2 * (20 * 100 + 100 * 100 + 100 * 6)
    assert parts['gflop'] * 1e9 >= 2 * 200 * forward * (12 * 23 + 4 * 2 + 3 + 4) * 0.999
    config.hvp = 'exact'  # ten products, and a gradient
    exact = benchmark.measure_iteration(config, threads=2, repeats=1)
    assert exact['gflop'] * 1e9 >= 2 * 200 * forward * (12 + 16 * 10 + 4 * 2 + 3 + 4) * 0.999
    assert exact['gflop'] < parts['gflop']
