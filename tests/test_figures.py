"""figures.py: what is drawn is read back from the figures, of tests that this repository keeps and of short ones."""

import copy
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from program import MAIN, command, full_disk, run_here

import curves
import evaluation
import figures
import training
from data_generator import ImageGenerator, SinusoidGenerator
from main import read_flags
from maml import MAML
from networks import FullyConnected
from runtime import UserError
from utils import accuracy

ROOT = pathlib.Path(__file__).parent.parent
POINT = [
    next((ROOT / 'results' / 'point' / method / 'seed1').glob('test*.json'))
    for method in ('context', 'maml', 'oracle', 'pretrain', 'random')
]
MAML5 = ROOT / 'results' / 'sinusoid' / 'maml' / 'seed1' / 'test_ubs5_stepsize0.01.json'
SHORT = ['--metatrain_iterations=1000', '--num_test_tasks=3', '--test_num_updates=2']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The folder of a short sinusoid run, of which a picture is drawn."""
    return run_here(f'--logdir={tmp_path_factory.mktemp("logs")}', *SHORT)


@pytest.fixture(scope='module')
def sinusoids(trained):
    """Results of tests with K = 5 and 10 by two methods and the oracle; the numbers of K = 5 are MAML's of results/."""
    kept = json.loads(MAML5.read_text()) | {'fits': only(trained, 'test*.json', json.loads)['fits']}
    results = [copy.deepcopy(kept) for _ in range(6)]
    for number, result in enumerate(results):
        result['settings'] |= {'baseline': [None, 'pretrain', 'oracle'][number // 2]}
        if number % 2:
            result['settings'] |= {'update_batch_size': 10}
    return results


def only(folder, pattern, read=lambda text: text):
    (path,) = folder.glob(pattern)
    return read(path.read_text())


def drawn(axis):
    """The curves of a panel by label, those of the paper's values as 'paper MARK'."""
    lines = {}
    for line in axis.get_lines():
        label = line.get_label()
        lines[f'paper {line.get_marker()}' if label.startswith('_') else label] = np.array(line.get_xydata()).T
    return lines


# ---- What is drawn ---------------------------------------------------------------------------------------------


def test_returns_are_those_of_the_tests_and_of_the_paper():
    axis = figures.returns([json.loads(path.read_text()) for path in POINT]).axes[0]
    lines = drawn(axis)
    paper = json.loads((ROOT / 'results' / 'paper_returns.json').read_text())['point']
    for path in POINT:
        result = json.loads(path.read_text())
        label, _, mark = figures.METHODS[result['settings']['baseline']]
        steps, values = lines[label]
        if result['settings']['baseline'] == 'oracle':  # a level: it takes no step
            assert list(steps) == [0, 1, 2, 3, 4] and set(values) == set(result['mean'])
            assert set(lines[f'paper {mark}'][1]) == set(paper['oracle']['mean'])
        else:
            np.testing.assert_array_equal((steps, values), [range(5), result['mean']])
    np.testing.assert_array_equal(lines['paper o'], [range(5), paper['maml']['mean']])
    np.testing.assert_array_equal(lines['paper s'], [range(5), paper['pretrain']['mean']])
    assert (axis.get_xlabel(), axis.get_ylabel()) == ('gradient steps', 'average return')


def test_two_tests_of_one_method_are_told_apart():
    results = [json.loads(path.read_text()) for path in POINT]
    (maml,) = [result for result in results if result['settings']['baseline'] is None]
    other = maml | {'checkpoint': 'logs/point/mi$x_{$ne/best.npz'}
    figure = figures.returns([maml, other])
    figure.draw_without_rendering()
    here, mine, *_ = figure.axes[0].lines[::2]
    assert (here.get_label(), mine.get_label()) == ('MAML 1, maml/seed1', r'MAML 2, point/mi\$x_{\$ne')
    assert here.get_linestyle() != mine.get_linestyle()


def test_the_legend_of_a_single_method_shows_its_mark():
    path = ROOT / 'results/omniglot_5way_1shot/context/seed1/test_ubs1_stepsize0.4.json'
    axis = figures.Figure().subplots()
    figures.draw_steps(axis, 'one test', [json.loads(path.read_text())])
    ours, papers, legend = axis.lines
    assert legend.get_label() == "the paper's"
    adapted = figures.Figure().subplots()  # these are no longer the paper's weights
    figures.draw_steps(adapted, 'one test', [json.loads(path.read_text()) | {'adapted': 3}])
    assert len(adapted.lines) == 1
    assert ours.get_marker() == papers.get_marker() == legend.get_marker() == figures.METHODS['context'][2] != 'o'


def test_paths_of_the_first_task_and_its_goal():
    result = next(json.loads(path.read_text()) for path in POINT if '/maml/' in str(path))
    _, *panels = figures.returns([result]).axes
    assert [axis.get_title() for axis in panels] == result['columns'] and panels[0].get_ylabel() == 'MAML'
    *paths, goal = panels[2].get_lines()
    assert [line.get_xydata().tolist() for line in paths] == result['paths'][2]
    np.testing.assert_array_equal(goal.get_xydata()[0], result['tasks'][0])


def test_errors_leave_out_tasks_that_diverge_and_mark_the_papers_values(sinusoids):
    for results, labels in ((sinusoids, {'MAML', 'pretrained', 'oracle'}), (sinusoids[:1], {'MAML'})):
        axis = figures.errors(results, [5, 10, 20]).axes[0]
        lines = drawn(axis)
        assert {name for name in lines if not name.startswith('paper')} == labels | {"the paper's"}
        steps, errors = lines['MAML']
        assert list(steps) == list(range(11)) and sinusoids[0]['diverging_tasks'] and None in sinusoids[0]['mean']
        np.testing.assert_array_equal(errors, sinusoids[0]['mean_of_the_others'][1:])
        np.testing.assert_array_equal(lines['paper o'], [[1, 5, 10], [0.67, 0.38, 0.35]])
        band = axis.collections[0].get_paths()[0].vertices[:, 1]
        assert np.isclose(band.max(), (errors + sinusoids[0]['ci95_of_the_others'][1:]).max())
        assert (axis.get_title(), axis.get_ylabel()) == ('K = 5', 'mean squared error')
    tuned = copy.deepcopy(sinusoids[2])  # whose step size the test has chosen
    tuned['settings'] |= {'update_lr': 0.02, 'update_lr_grid': read_flags(['--baseline=pretrain'])[0].update_lr_grid}
    np.testing.assert_array_equal(
        drawn(figures.errors([tuned], [5]).axes[0])['paper s'], [[1, 5, 10], [2.41, 2.23, 2.19]]
    )
    k10 = figures.errors(sinusoids, [10]).axes
    assert len(k10) == 1 and 'paper o' not in drawn(k10[0])  # the paper has none


def test_fits_are_drawn_by_method_k_and_where_the_points_lie(sinusoids):
    axes = figures.fits(sinusoids, [1, 2]).axes
    assert len(axes) == 16
    titles = [f'K = {k}, {where}' for k in (5, 10) for where in ('whole range', 'right half')]
    assert [axis.get_title() for axis in axes[:4]] == titles
    assert [axes[row].get_ylabel() for row in (0, 4, 8, 12)] == ['MAML\ny', 'pretrained\ny'] * 2
    lines, fits = drawn(axes[9]), sinusoids[0]['fits']
    task = fits['tasks'][2]
    np.testing.assert_array_equal(lines['ground truth'], [fits['x'], task['truth']])
    np.testing.assert_array_equal(lines['after 2 steps'], [fits['x'], task['right half']['outputs'][2]])
    np.testing.assert_array_equal(lines['the K points'], task['right half']['points'])
    assert len(figures.fits(sinusoids[:2], [0]).axes) == 4  # without the pretrained one
    wild = copy.deepcopy(sinusoids[:2])
    wild[0]['fits']['tasks'][0]['whole range']['outputs'][1] = [1e6, None, *fits['x'][2:]]
    assert (
        np.nanmax(np.abs(drawn(figures.fits(wild, [0]).axes[0])['after 1 step'])) <= 10
    )  # cut off, or all else is flat


@pytest.mark.parametrize(
    'name, sources', [('figure4', ['point']), ('figure5', ['cheetah_vel', 'cheetah_dir', 'ant_vel', 'ant_dir'])]
)
def test_the_figures_show_every_curve_that_the_table_has(name, sources):
    flags = re.compile(r'--(?:datasource|baseline)=(\w+)')
    rows = [line.split(' | ') for line in (ROOT / 'README.md').read_text().splitlines() if line.startswith('| ')]
    table = {tuple(flags.findall(row[1])) for row in rows if len(row) == 6 and row[3] != '–'}
    settings = [result['settings'] for result in figures.find(ROOT / 'results', figures.FIGURES[name], 1)]
    found = [tuple(filter(None, (s['datasource'], s['baseline']))) for s in settings]
    assert found and sorted(found) == sorted(row for row in table if row and row[0] in sources)


@pytest.mark.parametrize('name', figures.FIGURES)
def test_the_pictures_in_results_are_of_the_tests_there(name):
    picture, results = ROOT / 'results' / f'{name}.png', figures.find(ROOT / 'results', figures.FIGURES[name], 1)
    assert Image.open(picture).text['Source'] == figures.digest(results), f'draw it anew: python figures.py {name}'


def test_no_legend_covers_a_curve_or_is_cut_off(sinusoids, trained):
    results = ROOT / 'results'
    returns = {
        name: figures.returns(figures.find(results, figures.FIGURES[name], 1)) for name in ('figure4', 'figure5')
    }
    runs = [results / 'omniglot_5way_1shot' / method / 'seed1' for method in ('maml', 'noconv')]
    for figure in (
        *returns.values(),
        figures.errors(sinusoids, [10]),
        figures.errors(sinusoids, [5, 10, 20]),
        figures.fits(sinusoids, [0]),
        figures.of_test(sinusoids[0]),
        figures.training_curves(runs),
        figures.training_curves([trained]),
    ):
        figure.draw_without_rendering()
        parts = [figure, *figure.subfigs]
        legends = [box.get_window_extent() for part in parts for box in part.legends]
        assert legends and figure.get_default_bbox_extra_artists()
        for box in legends:
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0
            for axis in figure.axes:
                assert not box.overlaps(axis.get_tightbbox())


def test_the_command_writes_all_figures_and_the_same_again(tmp_path, sinusoids):
    for number, result in enumerate(sinusoids[:2]):
        folder = tmp_path / 'sinusoid' / 'maml' / 'seed1'
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f'test_ubs{(5, 10)[number]}_stepsize0.01.json').write_text(json.dumps(result))
        (folder / 'test_ubs5_stepsize0.01_steps3.json').write_text('no test of the paper')
    written = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, ROOT / 'figures.py', f'--results={tmp_path}'], capture_output=True, text=True
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert 'figure4 is left out' in done.stdout
        written.append({path.name: path.read_bytes() for path in tmp_path.glob('figure*')})
    assert set(written[0]) == {f'figure{n}.{kind}' for n in (2, 3, 6, 7) for kind in ('png', 'svg')}
    assert written[0] == written[1]
    (tmp_path / 'sinusoid' / 'maml' / 'seed1').rename(tmp_path / 'sinusoid' / 'maml' / 'seed2')
    figures.main(['figure7', f'--results={tmp_path}', '--seed=2'])
    assert (tmp_path / 'figure7_seed2.png').exists() and (tmp_path / 'figure7.png').read_bytes() == written[0][
        'figure7.png'
    ]


# ---- What is drawn from ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('oracle', [False, True])
def test_fits_are_the_models_on_the_tasks_of_the_test(oracle):
    """Against `evaluate`, which is compiled for all tasks together, on a grid as query set."""
    config, _ = read_flags(['--num_test_tasks=2', '--update_batch_size=5', *(['--baseline=oracle'] if oracle else [])])
    data = SinusoidGenerator(5, meta_batch_size=1, oracle=oracle, seed=3)
    model = MAML(FullyConnected(dim_input=3 if oracle else 1), update_lr=0.1, vectorize=True)
    model.weights['w2'].assign(30 * model.weights['w2'])  # far from the initial weights, whose outputs are all 0
    fits = evaluation.fits(model, data, config)
    assert fits['steps'] == [0, 1, 10] and len(fits['tasks']) == 2 and (fits['x'][0], fits['x'][-1]) == (-5, 5)
    for where, tasks in data.drawn_tasks(2).items():
        errors = model.evaluate(tasks, 10).numpy()[:, [1, 2, 11]]
        kept = [[np.mean((out - t['truth']) ** 2) for out in t[where]['outputs']] for t in fits['tasks']]
        np.testing.assert_allclose(kept, errors, rtol=1e-3)
        assert not np.allclose(errors[:, 0], errors[:, 2], rtol=1e-2)
    inputa, labela, _, _ = next(data.test_batches(600))
    for number, task in enumerate(fits['tasks']):
        np.testing.assert_allclose(
            task['whole range']['points'], [inputa[number, :, 0], labela[number, :, 0]], atol=1e-4
        )
        x, y = task['right half']['points']
        assert x.min() >= 0 and np.ptp(x) > 0
        np.testing.assert_allclose(y, np.interp(x, fits['x'], task['truth']), atol=0.05)


def test_image_samples_show_each_class_and_what_the_test_counts():
    """Images that are all of the colour of their class, so that a column can be checked."""
    config, _ = read_flags(['--datasource=omniglot', '--num_classes=20', '--update_batch_size=1'])
    images = np.repeat(np.arange(30, dtype=np.uint8) * 8, 4)[:, None] * np.ones([1, 784], np.uint8)
    data = ImageGenerator(images, np.arange(120).reshape(30, 4), 20, 1, 1, meta_batch_size=1)
    model = MAML(FullyConnected(784, 20, (8,)), measure=accuracy, update_lr=0.4, loss_func=training.mse)
    model.weights['w1'].assign(np.random.default_rng(0).normal(size=[784, 8]))
    samples = evaluation.image_samples(model, data, config, classes=20)
    np.testing.assert_array_equal(samples['support'], samples['query'])
    assert samples['support'].shape == (20, 28, 28, 1) and samples['steps'] == 5
    hits = np.mean(samples['predicted'] == np.arange(20))
    assert hits == pytest.approx(model.evaluate(next(data.test_batches(1)), 5).numpy()[0, -1])
    result = json.loads((ROOT / 'results/omniglot_5way_1shot/maml/seed1/test_ubs1_stepsize0.4.json').read_text())
    samples = {'support': samples['support'][:3], 'query': samples['query'][:3], 'predicted': [0, 4, 2], 'steps': 3}
    first, *panels = figures.of_test(result, samples).axes
    np.testing.assert_array_equal(drawn(first)['MAML'][1], 100 * np.array(result['mean'][1:]))
    np.testing.assert_array_equal(drawn(first)['paper o'], [[3], [98.7]])
    assert [axis.get_xlabel() for axis in panels[3:]] == ['✓ 1', '✗ 5', '✓ 3'] and first.get_ylabel() == 'accuracy in %'


def test_training_curves_of_each_source(tmp_path, trained, capsys):
    """TensorBoard's summaries of a run, its progress.csv, and log.txt with the lines of today and of older runs."""
    measure, logged = curves.of_run(trained)
    assert measure == 'mean squared error' and set(logged) == {'training, before', 'training, after'}
    (path,) = trained.glob('events*')
    events = [(e.step, v) for e in tf.compat.v1.train.summary_iterator(str(path)) for v in e.summary.value]
    for when, tag in (('before', 'metatrain_Pre-update_loss'), ('after', 'metatrain_Post-update_loss__step_1')):
        kept = {step: tf.make_ndarray(value.tensor).item() for step, value in events if value.tag == tag}
        assert len(kept) == 10 and logged[f'training, {when}'] == kept
    (tmp_path / 'config.json').write_text('{"settings": {"datasource": "omniglot"}}')
    (tmp_path / 'log.txt').write_text(
        'written\nPretrain Iteration 100: accuracy 0.2 before, 0.3 after the inner updates\n'
        'Iteration 100: accuracy 0.21 before, 0.5 after the inner updates\nIteration 200: 0.22, 0.6\n'
        'Validation results: 0.1, 5e-1\nIteration 300: accuracy 0.2 before, 0.7 after the inner updates\n'
        'Validation, Iteration 400: accuracy 0.25 before, 0.75 after the inner updates\n'
    )
    measure, logged = curves.of_run(tmp_path)
    assert measure == 'accuracy in %'
    assert {label: list(curve) for label, curve in logged.items()} == {
        **dict.fromkeys(('training, before', 'training, after'), [100, 200, 300, 400]),
        **dict.fromkeys(('validation, before', 'validation, after'), [300, 400]),
    }
    assert logged['training, after'][200] == 50 and logged['validation, after'] == {300: 50, 400: 75}
    (tmp_path / 'new').mkdir()
    axes = figures.training_curves([ROOT / 'results/point/maml/seed1', tmp_path / 'new', trained]).axes
    assert f'left out: {tmp_path}/new' in capsys.readouterr().out
    np.testing.assert_allclose(drawn(axes[0])['training, after adaptation'][:, 0], [0, -60.639376315933404])
    assert [axis.get_ylabel() for axis in axes] == ['average return', 'mean squared error']
    assert axes[0].get_title() == 'point/maml/seed1' and axes[1].get_xlabel() == 'iterations'


def test_a_training_curve_of_a_killed_run_in_a_folder_of_any_name(tmp_path):
    """The last line of progress.csv is cut, and the name is no formula."""
    folder = tmp_path / 'm$x_$' / 'run$x_$'
    folder.mkdir(parents=True)
    text = (ROOT / 'results/point/maml/seed1/progress.csv').read_text()
    (folder / 'progress.csv').write_text(text + '100,-3')
    assert len(curves.of_run(folder)[1]['training, after']) == 100
    figures.main(['curve', str(folder), f'--out={tmp_path}/a.png'])
    assert (tmp_path / 'a.png').exists()


# ---- The picture of a test -------------------------------------------------------------------------------------


def test_a_test_ends_with_its_picture_unless_log_is_false(trained, tmp_path, capsys):
    (path,) = trained.glob('test*.json')
    assert path.with_suffix('.png').read_bytes().startswith(b'\x89PNG')
    flags = [f'--logdir={trained.parent}', '--train=False', '--num_test_tasks=2', '--test_num_updates=1']
    run_here(*flags)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f'drawn in {trained}/test_ubs10_stepsize0.01_tasks2_steps1.png'
    run_here(*flags, '--log=False', '--seed=2')
    assert '.png' not in capsys.readouterr().out


def test_a_picture_that_cannot_be_drawn_costs_one_line(trained, tmp_path, capsys):
    flags = [f'--logdir={trained.parent}', '--train=False', '--num_test_tasks=5', '--test_num_updates=1']
    (tmp_path / 'matplotlib.py').write_text('raise ImportError("there is no matplotlib")')
    environment = {'PYTHONPATH': '', 'PATH': '', 'MPLBACKEND': 'module://matplotlib_inline.backend_inline'}
    done = subprocess.run(command(*flags), capture_output=True, text=True, env=environment)  # as a notebook starts it
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith('drawn in '), done.stderr
    environment = {'PYTHONPATH': str(tmp_path), 'PATH': ''}
    (trained / 'test_ubs10_stepsize0.01_tasks5_steps1.png').unlink()
    done = subprocess.run(command(*flags), capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.splitlines()[-1] == 'no picture of it: there is no matplotlib'
    with full_disk(30_000):
        run_here(*flags)
    assert 'File too large' in capsys.readouterr().out.splitlines()[-1]
    assert json.loads((trained / 'test_ubs10_stepsize0.01_tasks5_steps1.json').read_text())['fits']
    assert not list(trained.glob('*tasks5*.png*'))


# ---- Bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['figure9'], "'figure9' is no figure"),
        (['--colour=red'], 'unrecognized arguments'),
        (['--seed=one'], 'invalid int'),
        (['figure3', '--out=a.png'], '--out is for curve and returns'),
        (['--results=/nowhere'], 'no folder /nowhere'),
        (['figure5', '--seed=77'], 'has no tests that figure5 is made of'),
        (['curve', '--out=a.png'], 'needs folders of runs'),
        (['curve', '/nowhere', '--out=a.png'], '/nowhere is no folder of a run'),
        (['curve', ROOT / 'results/point/maml/seed1', '--out=a.xyz'], 'a picture ends in .png'),
        (['curve', ROOT / 'results/point/maml/seed1', '--out=/nowhere/a.png'], '/nowhere/a.png cannot be written'),
        (['returns', POINT[0]], '--out=PICTURE'),
        (['returns', MAML5, '--out=a.png'], 'is a test of supervised learning'),
        (['returns', '/nowhere.json', '--out=a.png'], '/nowhere.json is no result of a test'),
        (['returns', MAIN, '--out=a.png'], 'is no result of a test'),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match='2'):
        figures.main(list(map(str, arguments)))
    error = capsys.readouterr().err
    assert words in error and error.count('\n') == 1 and not list(tmp_path.iterdir())


def test_runs_and_tests_without_what_is_drawn_are_named(tmp_path, sinusoids):
    (tmp_path / 'config.json').write_text('{"settings": {"datasource": "sinusoid"}}')
    with pytest.raises(UserError, match='no training curve: '):
        curves.of_run(tmp_path)
    (tmp_path / 'progress.csv').write_text('iteration,return\n1,2\n')
    with pytest.raises(UserError, match='is no folder of a run'):
        curves.of_run(tmp_path)
    with pytest.raises(UserError, match='kept no fits'):
        figures.fits([{k: v for k, v in result.items() if k != 'fits'} for result in sinusoids], [0])
    with pytest.raises(UserError, match='no test of a sinusoid with K = 17'):
        figures.errors(sinusoids, [17])
