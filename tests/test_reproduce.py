"""reproduce.py: targets are worked off and go on, tables say what is in results/, numbers belong to their weights."""

import argparse
import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import main
import report
import reproduce
import results_tables as tables
import run
import targets
from networks import FullyConnected
from runtime import UserError
from targets import Target
from work import Work

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / 'results'
TINY = Target(
    'tiny',
    'sinusoid/tiny',
    {'metatrain_iterations': 300, 'save_interval': 100, 'num_test_tasks': 20, 'test_num_updates': 2, 'log': False},
    (('5 examples', {'update_batch_size': 5, 'train_update_batch_size': 10}), ('10 examples', {})),
    (1,),
    (3.0,),
    (100.0,),
)


def command(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / 'reproduce.py'), *map(str, arguments)], capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """The root of results in which TINY was worked off."""
    root = tmp_path_factory.mktemp('results')
    Work(TINY, 1, root).do()
    return root


def test_a_target_is_trained_tested_and_packed(done):
    work = Work(TINY, 1, done)
    files = {path.name for path in work.folder.iterdir()}
    assert {'weights.npz', 'config.json', 'log.txt'} < files and not any(name.startswith('model') for name in files)
    assert work.finished() and tables.state(work) == 'finished' and work.hours_left() == 0
    for test, k in enumerate((5, 10)):
        result = work.result(test)
        assert result['settings']['update_batch_size'] == k and result['iterations'] == 300
        assert result['seconds_trained'] > 0 and result['versions']['tensorflow'] == tf.__version__
    (mean, ci95), *_ = work.values()
    assert (mean, ci95) == (work.result()['mean'][2], work.result()['ci95'][2])
    assert tables.agreement(TINY, work.values()) == 'within'  # 3 ± 100
    assert (
        'Iteration' in (work.folder / 'log.txt').read_text()
        or 'iterations done' in (work.folder / 'log.txt').read_text()
    )


def test_what_is_finished_is_left_alone_without_force(done, capsys):
    work = Work(TINY, 1, done)
    before = (work.folder / 'weights.npz').stat().st_mtime_ns
    work.do()
    assert 'finished' in capsys.readouterr().out and (work.folder / 'weights.npz').stat().st_mtime_ns == before


def test_force_begins_anew_and_puts_aside_what_was_there(done, tmp_path, capsys):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    work = Work(dataclasses.replace(TINY, flags=TINY.flags | {'metatrain_iterations': 10}), 1, tmp_path)
    with run.locked(work.folder), pytest.raises(UserError, match='being trained by another process'):
        work.do(force=True)
    assert (work.folder / 'weights.npz').exists()
    work.do(force=True)
    aside = work.folder.with_name('seed1.1')
    assert work.done()[0] == 10 and str(aside) in capsys.readouterr().out
    assert run.read_config(work.folder)['resume'] is False  # by which a run that is stopped says how to go on
    with np.load(aside / 'weights.npz') as kept:
        assert kept['trained'] == 300
    assert tables.seeds(TINY, tmp_path) == [1]


def test_an_unfinished_target_goes_on_to_the_same_weights(done, tmp_path):
    begun = Target('tiny', 'sinusoid/tiny', TINY.flags | {'metatrain_iterations': 200}, TINY.tests, (1,))
    work = Work(begun, 1, tmp_path)
    main.run(*work.settings(), str(work.folder))
    assert [path.name for path in work.folder.glob('model*.npz')] == ['model200.npz']  # the newest alone
    shutil.copy(work.folder / 'model200.npz', work.folder / 'best.npz')  # what is tested and kept are the newest
    more = Work(TINY, 1, tmp_path)
    assert tables.state(more) == '200 of 300'
    more.do()
    with np.load(more.folder / 'weights.npz') as ours, np.load(done / 'sinusoid/tiny/seed1/weights.npz') as theirs:
        assert ours['trained'] == 300
        np.testing.assert_array_equal(ours['weights/w2'], theirs['weights/w2'])


def test_minutes_end_cleanly_and_unknown_targets_are_answered_with_near_ones(tmp_path):
    stopped = command('table2/maml', f'--results={tmp_path}', '--minutes=0.15', '--force')
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert '0.15 minutes are over: the same command, without --force, goes on from here' in stopped.stdout
    unknown = command('table1/omniglot_5way_1short')
    assert unknown.returncode == 2 and 'did you mean table1/omniglot_5way_1shot' in unknown.stderr
    assert unknown.stderr.count('\n') == 1


@pytest.mark.parametrize(
    'wrong, words',
    [
        ('--seed=abc', "argument --seed: invalid int value: 'abc' (python"),
        ('--list --tasks=0', '--tasks=0 makes no sense'),
        ('--list --minutes=0', '--minutes=0.0 makes no sense'),
        ('table2/maml --test --results={}/nowhere', 'has nothing to test: drop --test'),
    ],
)
def test_a_wrong_command_line_is_answered_in_one_line(tmp_path, monkeypatch, capsys, wrong, words):
    monkeypatch.setattr(sys, 'argv', ['reproduce.py', *wrong.format(tmp_path).split()])
    with pytest.raises(SystemExit) as error:
        reproduce.command_line()
    line = capsys.readouterr().err
    assert error.value.code == 2 and line.count('\n') == 1 and words in line and not list(tmp_path.iterdir())


def test_a_run_starts_from_the_weights_of_another(done, tmp_path):
    """And what is tested are its own."""
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    flags = TINY.flags | {'metatrain_iterations': 10, 'meta_lr': 1e-6, 'num_test_tasks': 5}
    work = Work(dataclasses.replace(TINY, run='sinusoid/more', flags=flags, start='sinusoid/tiny'), 1, tmp_path)
    work.do()
    with np.load(work.folder / 'weights.npz') as ours, np.load(tmp_path / 'sinusoid/tiny/seed1/weights.npz') as start:
        moved = np.abs(ours['weights/w2'] - start['weights/w2']).max()
        assert 0 < moved < 1e-4 and ours['trained'] == 10
    assert 'sinusoid/more/seed1/model10.npz' in work.result()['checkpoint'] and work.finished()
    with pytest.raises(UserError, match='nowhere'):
        Work(dataclasses.replace(TINY, run='sinusoid/lost', start='nowhere'), 1, tmp_path).do()


def test_what_has_no_data_is_passed_over_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    missing = Target(
        'missing', 'sinusoid/missing', {'datasource': 'omniglot', 'data_dir': tmp_path}, (('paper', {}),), (1,)
    )
    monkeypatch.setattr(reproduce, 'FIGURES', {})
    options = argparse.Namespace(targets=[], results=tmp_path, data_dir=None, force=False, test=False)
    with pytest.raises(UserError, match='1 of 2 targets passed over, as said above: missing'):
        reproduce.work_off([missing, TINY], 1, options)
    assert 'missing: passed over, ' in capsys.readouterr().out and Work(TINY, 1, tmp_path).finished()
    assert not list(tmp_path.glob('sinusoid/missing/*/*'))
    with pytest.raises(UserError, match='no images in'):  # alone it is a fault like any other
        reproduce.work_off([missing], 1, options)


def test_a_figure_is_drawn_where_it_is_not_up_to_date_or_was_asked_for(tmp_path, capsys):
    shutil.copytree(RESULTS / 'point', tmp_path / 'point')
    chosen = targets.select(['figure4'])
    for asked, drawn in (('table4', True), ('table4', False), ('figure4', True), ('damaged', True)):
        if asked == 'damaged':
            (tmp_path / 'figure4.png').write_bytes(b'no picture')
        options = argparse.Namespace(targets=[asked], results=tmp_path, data_dir=None, force=False, test=False)
        reproduce.work_off(chosen, 1, options)
        assert ('figure4.png' in capsys.readouterr().out) == drawn
    (path,) = tmp_path.glob('point/random/seed1/test*.json')
    path.write_text('{')
    with pytest.raises(UserError, match='cannot be read'):  # of the list, after all others are done
        reproduce.work_off(chosen, 1, options)
    assert 'figure5/point/random: passed over' in capsys.readouterr().out.replace('figure4/', 'figure5/')


def test_the_list_has_every_target_and_every_cell_of_the_paper_is_one():
    listed = command('--list').stdout
    for target in targets.TARGETS:
        assert re.search(rf'^{re.escape(target.name)} .*$', listed, re.MULTILINE), target.name
    for name in [f'table{n}' for n in (1, 2, 3, 4, 5)] + [f'figure{n}' for n in (2, 3, 4, 5, 6, 7)]:
        assert targets.select([name])


def test_the_papers_values_are_known_for_its_own_tests_alone():
    def papers(*flags):
        return targets.papers(main.read_flags(flags)[0])

    omniglot = ['--datasource=omniglot', '--num_classes=5', '--update_batch_size=1', '--train=False']
    assert papers(*omniglot, '--test_set') == {3: 98.7} and papers(*omniglot, '--test_set', '--conv=False') == {3: 89.7}
    pretrained = ['--test_set', '--pretrain_iterations=9', '--metatrain_iterations=0']
    for other in ([], ['--test_set', '--test_query=15'], ['--test_set', '--update_lr=0.1'], pretrained):
        assert papers(*omniglot, *other) == {}
    assert papers('--train=False', '--update_batch_size=5', '--train_update_batch_size=10')[10] == 0.35
    assert papers('--datasource=ant_dir', '--test_num_updates=1') == {0: 8.66, 1: 499.15} and papers() == {}
    for other in ('--test_seed=9', '--test_sampling_workers=2', '--test_update_batch_size=20', '--gae_lambda=0.9'):
        assert papers('--datasource=ant_dir', other) == {}
    for trained_with in ('20', '40'):  # whatever the recipe of figure5 takes
        assert papers('--datasource=cheetah_dir', f'--update_batch_size={trained_with}')[1] == 293.19
    assert papers('--datasource=ant_dir', '--likelihood_ratio')[1] == 499.15


@pytest.mark.parametrize('table', ['table4', 'table5'])
def test_a_context_vector_is_trained_as_the_policy_that_it_is_compared_with(table):
    maml, context = [dict(target.flags) for target in targets.select([f'{table}/maml', f'{table}/context'])]
    assert context.pop('baseline') == 'context' and context.pop('hvp', None) != 'exact'
    assert context == {name: value for name, value in maml.items() if name != 'hvp'}


def test_groups_and_the_queue_name_targets():
    names = {target.name for target in targets.EVERY}
    assert len(names) == len(targets.EVERY)
    for group in targets.GROUPS.values():
        assert set(group) <= names
    assert {name for name in targets.GROUPS if name.startswith('figure')} | {'figure5'} == set(targets.FIGURES)
    assert 'table2/maml' in targets.GROUPS['figure3']
    chosen = [target.name for target in targets.select(['figure5/cheetah_vel', 'table4', 'table4/maml'])]
    assert chosen == [f'figure5/cheetah_vel/{m}' for m in ('maml', 'pretrain', 'random', 'oracle')] + [
        'table4/maml',
        'table4/context',
    ]


@pytest.mark.parametrize(
    'paper, interval, mean, ci95, agrees',
    [
        (98.7, 0.4, 98.9, 0.1, True),
        (98.7, 0.1, 98.9, 0.3, True),
        (98.7, 0.1, 98.9, 0.1, False),
        (0.67, None, 0.6, None, False),
    ],
)
def test_within_is_either_interval(paper, interval, mean, ci95, agrees):
    target = Target('t', '', {}, (), (1,), (paper,), (interval,))
    assert tables.agreement(target, [(mean, ci95)]) == ('within' if agrees else 'outside')


def test_several_seeds_are_averaged(done, monkeypatch):
    runs = [Work(TINY, 1, done) for _ in range(3)]
    for work, value in zip(runs, (1.0, 2.0, 6.0)):
        monkeypatch.setattr(work, 'values', lambda value=value: [(value, 0.1)])
    ((mean, width),) = tables.average(runs)
    student = tfp.distributions.StudentT(np.arange(1.0, 41), np.float64(0), np.float64(1))
    np.testing.assert_allclose([report.student(n) for n in range(1, 41)], student.quantile(0.975), rtol=2e-3)
    assert mean == 3 and width == pytest.approx(4.303 * np.std([1, 2, 6], ddof=1) / np.sqrt(3), rel=2e-3)


def test_a_row_is_of_the_state_that_was_tested(done, tmp_path, monkeypatch):
    """Also while training goes on."""
    work = Work(TINY, 1, done)
    monkeypatch.setattr(work, 'done', lambda: (400, 1e6))
    assert 0 < tables.hours_of(work) < 1 and not work.tested(0)
    work = Work(TINY, 1, tmp_path)
    work.folder.mkdir(parents=True)
    (work.folder / 'progress.csv').write_text('return_after\n' + '\n'.join(map(str, range(15))))
    assert tables.last_returns(work, 12) == list(range(2, 12)) and tables.last_returns(work, 3) == [0, 1, 2]


def test_the_tables_are_up_to_date():
    for path, text in tables.tables(RESULTS):
        assert path.read_text() == text, f'{path}: run python reproduce.py --table'
    written = command('--table')  # the same again
    assert written.returncode == 0 and written.stdout.count('written: ') == len(tables.tables(RESULTS)), written.stderr


def test_a_row_of_the_study_is_what_its_tests_say():
    folder, few, directions = RESULTS / 'cheetah_dir' / 'maml' / 'seed1', [], []
    for name in ('test_fbs20_stepsize0.1', *(f'test_fbs20_stepsize0.1_steps1_seed{n}' for n in (2, 3))):
        test = json.loads((folder / f'{name}.json').read_text())
        returns, tasks = np.array(test['per_task'][1]), np.array(test['tasks'])
        few.append(returns.mean())
        directions.append([returns[tasks == direction].mean() for direction in (-1, 1)])
    many = np.array(json.loads((folder / 'test_fbs100_stepsize0.1_steps1.json').read_text())['per_task'][1])
    backward, forward = np.mean(directions, axis=0)
    (row,) = [line for line in tables.study_table(RESULTS) if '--sampling_workers=1`' in line]
    assert f'| {np.mean(few):.0f} ({", ".join(f"{value:.0f}" for value in few)}) |' in row
    assert f'| {backward:.0f}, {forward:.0f} |' in row
    assert f'| {many.mean():.0f} ± {1.96 * many.std(ddof=1) / 40**0.5:.0f} |' in row


def test_the_weights_that_were_best_are_those_of_reinforcement_learning_alone(tmp_path):
    """A supervised run that is not packed yet was tested with its newest ones."""
    for target, expected in ((TINY, None), (targets.select(['figure5/ant_vel/maml'])[0], 'best.npz')):
        work = Work(target, 1, tmp_path)
        work.folder.mkdir(parents=True)
        (work.folder / 'best.npz').touch()
        assert work.weights() == (expected and work.folder / expected)


def test_a_number_of_other_weights_is_found(done, tmp_path, capsys):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    work = Work(TINY, 1, tmp_path)
    assert reproduce.check(work, 20) is None
    path = work.result_path(0)
    result = json.loads(path.read_text())
    result['mean_of_the_others'][2] *= 3
    result['std'] = [1e9] * len(result['std'])  # that of tasks that diverge, too
    path.write_text(json.dumps(result))
    assert not reproduce.check_all([TINY], tmp_path, None, 20)
    assert 'query, after 1 step' in capsys.readouterr().out


def test_what_cannot_be_read_is_no_result_that_holds(done, tmp_path):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    work = Work(TINY, 1, tmp_path)
    weights = work.folder / 'weights.npz'
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match='1 of 1 results not checked'):
        reproduce.check_all([TINY], tmp_path, None, 5)
    for text, complaint in (('<<<<<<<', 'cannot be read'), ('[1]', 'does not hold'), ('{}', 'does not hold')):
        work.result_path(0).write_text(text)
        with pytest.raises(UserError, match=complaint):
            tables.state(work)
        with pytest.raises(UserError, match='1 of 1 results not checked'):
            reproduce.check_all([TINY], tmp_path, None, 5)


@pytest.mark.parametrize('value', ['NaN', 'null', '"0.3"', 'Infinity'])
def test_no_number_is_no_result_that_holds(done, tmp_path, value):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    path = Work(TINY, 1, tmp_path).result_path(0)
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {'mean_of_the_others': ['?'] * 12}).replace('"?"', value))
    assert not reproduce.check_all([TINY], tmp_path, None, 5)
    assert reproduce.check_all([TINY], tmp_path, None, 5, one_seed=1) is False
    with pytest.raises(UserError, match='nothing to check'):
        reproduce.check_all([TINY], tmp_path, None, 5, one_seed=2)


def test_a_test_all_of_whose_tasks_diverge_has_no_value(done, tmp_path):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    work = Work(TINY, 1, tmp_path)
    nothing = dict.fromkeys(('mean_of_the_others', 'ci95_of_the_others'), [None] * len(work.result()['columns']))
    nothing['diverging_tasks'] = 20
    work.result_path(0).write_text(json.dumps(work.result() | nothing))
    assert np.isnan(work.values()).all() and tables.agreement(TINY, work.values()) == 'outside'


def test_where_there_is_nothing_to_check(tmp_path):
    with pytest.raises(UserError, match='nothing to check'):
        reproduce.check_all([TINY], tmp_path, None, 5)


def test_the_tables_of_the_repository_are_of_its_own_results(tmp_path):
    refused = command('--table', f'--results={tmp_path}')
    assert refused.returncode == 2 and 'drop --results' in refused.stderr and refused.stderr.count('\n') == 1


@pytest.mark.parametrize('source', ['sinusoid', 'point', 'cheetah_vel', 'cheetah_dir', 'ant_vel', 'ant_dir'])
def test_the_numbers_in_results_can_have_come_from_the_weights_there(source, capsys):
    chosen = [target for target in targets.TARGETS if target.run.startswith(f'{source}/')]
    sound, output = reproduce.check_all(chosen, RESULTS, None, tasks=8), capsys.readouterr().out
    assert sound and 'not checked' not in output and 'can have come from its weights' in output, output


@pytest.mark.skipif(not (ROOT.parent / 'shared' / 'data').exists(), reason='the images are not here')
def test_the_numbers_of_image_models_can_have_come_from_their_weights(tmp_path, capsys):
    """Needs the data sets as their publishers distribute them; only those of which there are results are prepared."""
    data = ROOT.parent / 'shared' / 'data'
    chosen = [target for target in targets.TARGETS if list((RESULTS / (target.run or 'none')).glob('seed*/*.npz'))]
    for name, folder, script in (
        ('omniglot', 'omniglot_resized', 'resize_images'),
        ('miniimagenet', 'miniImagenet', 'proc_images'),
    ):
        if any(target.run.startswith(name) for target in chosen):
            for program, *flags in (
                [data / 'unpack.py', name, tmp_path / name],
                [ROOT / 'data' / folder / f'{script}.py', f'--source={tmp_path / name}', f'--dest={tmp_path / folder}'],
            ):
                subprocess.run([sys.executable, str(program), *map(str, flags)], check=True, capture_output=True)
    images = [target for target in chosen if target.run.startswith(('omniglot', 'miniimagenet'))]
    sound, output = reproduce.check_all(images, RESULTS, tmp_path, tasks=50), capsys.readouterr().out
    assert sound and 'not checked' not in output and 'can have come from its weights' in output, output


def test_weights_that_went_on_since_their_test_are_not_vouched_for(done, tmp_path, capsys):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    path = Work(TINY, 1, tmp_path).folder / 'weights.npz'
    with np.load(path) as file:
        arrays = dict(file)
    assert reproduce.check_all([TINY], tmp_path, None, tasks=8)
    assert 'can have come' in capsys.readouterr().out
    np.savez(path, **arrays | {'iteration': arrays['iteration'] + 1})
    assert reproduce.check_all([TINY], tmp_path, None, tasks=8)
    output = capsys.readouterr().out
    assert 'can have come' not in output and 'has gone on since its test' in output


def test_weights_are_plain_arrays():
    """The lines of docs/conformance.md, and the network in NumPy."""
    code = re.search(
        r'```python\n(import numpy.*?weights = .*?)```', (ROOT / 'docs/conformance.md').read_text(), re.DOTALL
    )
    names = {}
    exec(code[1].replace("'results/", f"'{RESULTS}/"), names)
    weights, x = names['weights'], np.linspace(-5, 5, 7, dtype=np.float32)[:, None]
    hidden = np.maximum(np.maximum(x @ weights['w1'] + weights['b1'], 0) @ weights['w2'] + weights['b2'], 0)
    ours = FullyConnected().forward(tf.constant(x), {name: tf.constant(array) for name, array in weights.items()})
    np.testing.assert_allclose(hidden @ weights['w3'] + weights['b3'], ours, rtol=1e-4, atol=1e-5)
