"""Tables of the user's own: how they are split, drawn, standardised and tested, and what is said of those of no use."""

import csv
import json
import pathlib
import runpy
import shutil
import types

import numpy as np
import pytest
import tensorflow as tf
from program import run_here

import checkpoint
import main
import regression
import training
from experiments import SOURCES
from maml import MAML
from networks import FullyConnected
from runtime import UserError

SMALL = ['--hidden=8', '--update_batch_size=4', '--test_num_updates=2', '--num_test_tasks=12', '--log=False']


def line(rng):
    """A task: y = a * t + b in thousands, and a column that is in no relation to it."""
    t, a, b = rng.uniform(0, 10, 20), *rng.uniform(1000, 3000, 2)
    return np.stack([t, a * t + b, rng.normal(size=20)], 1)


def write_table(path, rows, header='t,income,noise'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join([header, *(','.join(map(repr, map(float, row))) for row in rows)]) + '\n')


@pytest.fixture
def folder(tmp_path):
    """A folder with ten tables."""
    rng = np.random.default_rng(0)
    for number in range(10):
        write_table(tmp_path / 'tables' / f'{number}.csv', line(rng))
    return tmp_path / 'tables'


def flags(folder, *more):
    columns = ['--x_columns=t', '--y_columns=income']
    return ['--datasource=table', f'--data_dir={folder}', f'--logdir={folder.parent / "logs"}', *columns, *SMALL, *more]


def settings(folder, **given):
    values = dict(data_dir=str(folder), seed=1, train=True, test_set=True, x_columns=None, y_columns=None, hidden=[8])
    values |= dict(update_lr_grid=None, train_update_batch_size=4, update_batch_size=4, train_query=5, test_query=6)
    return types.SimpleNamespace(**values | dict(meta_batch_size=3, init_from=None) | given)


def make_data(folder, **given):
    config = settings(folder, **given)
    return config, *regression.make_data(config, SOURCES['table'], 'nowhere')


# ---- Tables as tasks -----------------------------------------------------------------------------------------------


def test_a_folder_is_split_by_the_seed(folder, capsys):
    (folder / 'predictions.csv').write_text('t,predicted income\n')
    assert len(regression.csv_files(folder)) == 10 and 'what --predict writes' in capsys.readouterr().err
    (folder / 'predictions.csv').unlink()
    parts = [regression.find_tables(folder, seed)[0] for seed in (1, 1, 2)]
    assert parts[0] == parts[1] != parts[2]
    assert [len(parts[0][split]) for split in ('train', 'val', 'test')] == [6, 2, 2]
    assert sorted(sum(parts[0].values(), [])) == sorted(map(str, folder.iterdir()))
    for path in sorted(folder.iterdir())[3:]:
        path.unlink()
    assert [len(paths) for paths in regression.find_tables(folder, 1)[0].values()] == [2, 0, 1]


def test_folders_of_splits_are_taken_as_they_are(folder, capsys):
    for split, numbers in (('train', '0123'), ('test', '45')):
        (folder / split).mkdir()
        for number in numbers:
            (folder / f'{number}.csv').rename(folder / split / f'{number}.csv')
    files = regression.find_tables(folder, 1)[0]
    assert [len(files[split]) for split in ('train', 'val', 'test')] == [4, 0, 2]
    unused = capsys.readouterr().err.splitlines()
    assert len(unused) == 4 and all('is not used: it is not in train, val or test' in line for line in unused)


def test_training_tables_among_the_test_tables_are_named(folder, tmp_path, capsys):
    for name in ('train', 'test'):
        (tmp_path / name).mkdir()
    for path in regression.csv_files(folder)[:6]:
        shutil.copy(path, tmp_path / 'train')
    shutil.copy(regression.csv_files(folder)[6], tmp_path / 'test')
    regression.find_tables(tmp_path, seed=1)
    assert not capsys.readouterr().err
    shutil.copy(regression.csv_files(folder)[2], tmp_path / 'test' / 'another_name.csv')
    regression.find_tables(tmp_path, seed=1)
    assert f'1 of the validation and test tables are training tables too, {tmp_path}/test' in capsys.readouterr().err


def test_columns_are_standardised_by_the_training_tables(folder):
    """The last column is y unless another is named; a constant column is 0."""
    config, data, source = make_data(folder, x_columns=['t'], y_columns=['income'])
    for path in folder.iterdir():  # the same once more, with a constant column and in the order of x and y
        rows = regression.read_columns(str(path), ['t', 'income'])
        write_table(path, np.insert(rows, 0, 9.81, axis=1), 'g,t,income')  # whose mean is not 9.81
    config, data, source = make_data(folder)
    assert (config.x_columns, config.y_columns) == (['g', 't'], ['income'])
    assert (source.dim_input, source.dim_output, source.dim_hidden) == (2, 1, (8,))
    rows = np.concatenate(data['train'].tables)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(rows.std(0), [0, 1, 1], atol=1e-5)
    raw = regression.read_columns(regression.find_tables(folder, 1)[0]['test'][0], ['g', 't', 'income'])
    back = data['test'].tables[0] * np.array(config.standard['deviation']) + config.standard['mean']
    np.testing.assert_allclose(back, raw, rtol=1e-4, atol=1e-3)


def test_support_and_query_are_different_rows_of_one_table(folder):
    _, data, _ = make_data(folder)
    inputa, labela, inputb, labelb = data['train'].draw_block(3)
    assert inputa.shape == (100, 3, 4, 2) and labelb.shape == (100, 3, 5, 1)
    tables = [set(map(tuple, table)) for table in data['train'].tables]
    drawn = np.concatenate([np.concatenate([inputa, labela], 3), np.concatenate([inputb, labelb], 3)], 2)
    used = set()
    for task in drawn.reshape(300, 9, 3):
        rows = set(map(tuple, task))
        (number,) = [n for n, table in enumerate(tables) if rows <= table]
        used.add(number)
        assert len(rows) == 9
    assert used == set(range(6))
    for other, same in ((data['train'].draw_block(4), False), (make_data(folder)[1]['train'].draw_block(3), True)):
        assert np.array_equal(other[0], inputa) == same
    (test,), (look,) = (list(batches(5)) for batches in (data['test'].test_batches, data['test'].validation_batches))
    assert test[0].shape == (5, 4, 2) and test[2].shape == (5, 6, 2) and not np.array_equal(test[0], look[0])


def test_intervals_are_over_tables(folder):
    _, data, _ = make_data(folder)
    results = np.array([[0.0], [10.0], [2.0], [20.0], [4.0]])  # of the two test tables in turn
    np.testing.assert_array_equal(data['test'].of_each_table(results), [[2.0], [15.0]])
    np.testing.assert_array_equal(data['test'].of_each_table(results[:1]), [[0.0]])


# ---- The program on them -------------------------------------------------------------------------------------------


def forward(path, x):
    """The outputs of a checkpoint's network, with one hidden layer, in NumPy."""
    with np.load(path) as saved:
        w = {name.removeprefix('weights/'): saved[name] for name in saved.files}
    return np.maximum(x @ w['w1'] + w['b1'], 0) @ w['w2'] + w['b2']


def test_a_run_is_tested_in_the_units_of_y(folder, monkeypatch, capsys):
    monkeypatch.setattr(training, 'TEST_PRINT_INTERVAL', 100)
    run = run_here(*flags(folder, '--metatrain_iterations=300', '--test_set', '--meta_lr=0.01'))
    output = capsys.readouterr().out
    assert 'in the squared unit of income over 12 draws from 2 tables of the test set, 4-shot' in output
    result = json.loads((run / 'test_ubs4_stepsize0.01_tasks12_steps2.json').read_text())
    config = json.loads((run / 'config.json').read_text())['settings']
    assert config['x_columns'] == ['t'] and len(config['standard']['mean']) == 2
    assert result['unit'] == 'the squared unit of income' and result['split'] == 'test'

    _, data, _ = make_data(folder, x_columns=['t'], y_columns=['income'], test_query=4)
    (task,) = data['test'].test_batches(12)
    mean, deviation = (np.array(config['standard'][key]) for key in ('mean', 'deviation'))
    errors = (forward(run / 'model300.npz', task[2]) - task[3]) * deviation[1]  # in the units of y
    of_tables = [np.mean(errors[n::2] ** 2) for n in range(2)]
    np.testing.assert_allclose(result['mean'][1], np.mean(of_tables), rtol=1e-3)
    np.testing.assert_allclose(result['ci95'][1], 12.71 * np.std(of_tables, ddof=1) / np.sqrt(2), rtol=1e-3)
    assert result['mean'][3] < result['mean'][1]

    looks = {
        int(words[2].strip(':')): float(words[6])
        for words in map(str.split, output.splitlines())
        if 'Validation,' in words
    }
    with np.load(run / 'best.npz') as best:
        assert looks[int(best['iteration'])] == min(looks.values()) and len(looks) == 3
    model = MAML(FullyConnected(1, 1, (8,)), update_lr=0.01, vectorize=True)
    score = checkpoint.restore_weights(str(run / 'best.npz'), model)['score']  # of the query set, after the step
    (look,) = data['val'].validation_batches(training.VALIDATION_TASKS)
    np.testing.assert_allclose(-score, model.evaluate(look, 1).numpy()[:, -1].mean(), rtol=1e-4)
    run_here(*flags(folder, '--metatrain_iterations=300', '--test_set', '--train=False', '--test_iter=best'))
    assert (run / 'test_ubs4_stepsize0.01_itrbest_tasks12_steps2.json').exists()


def test_the_numbers_of_the_training_are_those_of_a_test(folder, tmp_path):
    """Its columns, means, deviations and split, wherever the test's tables are and whatever its seed."""
    run = run_here(*flags(folder, '--metatrain_iterations=100', '--test_set'))
    name, weights = 'test_ubs4_stepsize0.01_tasks12_steps2.json', f'--init_from={run / "model100.npz"}'
    first = json.loads((run / name).read_text())
    write_table(tmp_path / 'other' / 'test' / 'a.csv', 1000 + line(np.random.default_rng(5)))
    test = [flag for flag in flags(folder) if not flag.startswith(('--x_', '--y_', '--data_dir'))]
    test += ['--test_set', '--train=False', '--seed=7']
    other = run_here(*test, f'--data_dir={tmp_path / "other"}', weights)
    name = f'test_ubs4_stepsize0.01_seed7_tasks12_steps2_from_{run.name}_model100_*.json'
    result = json.loads(next(other.glob(name)).read_text())
    assert result['settings']['standard'] == first['settings']['standard']
    assert result['settings']['y_columns'] == ['income'] and result['mean'][0] != first['mean'][0]
    config = settings(folder, train=False, seed=7, init_from=str(run / 'model100.npz'))
    regression.make_data(config, SOURCES['table'], 'nowhere')
    with pytest.raises(UserError, match='on other tables of .*: use its --seed=1'):
        run_here(*flags(folder, '--seed=2'), weights)
    write_table(next(folder.glob('*.csv')), line(np.random.default_rng(6)))
    with pytest.raises(UserError, match='has not the tables of the training'):
        run_here(*test, f'--data_dir={folder}', weights)
    with pytest.raises(UserError, match='trained on other data'):
        run_here(*flags(folder, '--metatrain_iterations=200', '--test_set'))


def test_a_run_on_folders_of_splits_is_tested_beside_what_it_was_trained_on(folder, tmp_path):
    for place in 'ab':
        for split, seed in (('train', 0), ('test', 1)):
            write_table(tmp_path / place / 'tables' / split / '0.csv', line(np.random.default_rng(seed + ord(place))))
    run = run_here(*flags(tmp_path / 'a' / 'tables', f'--logdir={tmp_path}', '--metatrain_iterations=2', '--test_set'))
    test = [*flags(tmp_path / 'b' / 'tables', f'--logdir={tmp_path}', '--test_set', '--train=False')]
    with pytest.raises(UserError, match='has not the tables of the training: bring them back, or use --init_from'):
        run_here(*test)
    run_here(*test, f'--init_from={run}/model2.npz')


def test_pretraining_has_a_step_size_tuned_on_validation_tables(folder, monkeypatch):
    monkeypatch.setattr(training, 'TEST_PRINT_INTERVAL', 100)
    seen, original = [], regression.TableGenerator.validation_batches

    def batches(self, num_tasks):
        seen.append(self.tables)
        return original(self, num_tasks)

    monkeypatch.setattr(regression.TableGenerator, 'validation_batches', batches)
    run = run_here(
        *flags(folder, '--metatrain_iterations=100', '--baseline=pretrain', '--test_set', '--update_lr_grid=0.01,0.2')
    )
    result = json.loads(next(run.glob('test_ubs4_stepsizetuned-*_tasks12_steps2.json')).read_text())
    errors = result['tuned']['mean_squared_error']
    assert result['settings']['update_lr'] == [0.01, 0.2][int(np.argmin(errors))] and min(errors) > 1000
    assert len(seen) == 2  # once in training, for best.npz
    for tables in seen:
        np.testing.assert_array_equal(tables, make_data(folder, x_columns=['t'], y_columns=['income'])[1]['val'].tables)


def test_a_step_size_that_is_chosen_on_the_tables_of_the_test_is_mentioned(folder, capsys):
    more = ['--metatrain_iterations=100', '--baseline=pretrain', '--update_lr_grid=0.01,0.2']
    said = 'warning: the step size is chosen on the tables that are tested'
    run_here(*flags(folder, *more))
    assert said in capsys.readouterr().err
    run_here(*flags(folder, *more, '--test_set'))
    assert said not in capsys.readouterr().err


def test_a_run_that_breaks_off_in_its_look_looks_again(folder, monkeypatch, capsys):
    monkeypatch.setattr(training, 'TEST_PRINT_INTERVAL', 100)
    original, calls = regression.TableGenerator.validation_batches, []

    def batches(self, num_tasks):
        calls.append(num_tasks)
        if len(calls) == 1:
            raise MemoryError
        return original(self, num_tasks)

    monkeypatch.setattr(regression.TableGenerator, 'validation_batches', batches)
    command = flags(folder, '--metatrain_iterations=200', '--save_interval=100', '--test_set')
    with pytest.raises(MemoryError):
        run_here(*command)
    run_here(*command)
    looks = [line.split(':')[0] for line in capsys.readouterr().out.splitlines() if line.startswith('Validation')]
    assert looks == ['Validation, Iteration 100', 'Validation, Iteration 200']


def test_the_best_on_other_validation_tables_gives_way(tmp_path, monkeypatch):
    monkeypatch.setattr(training, 'TEST_PRINT_INTERVAL', 50)
    rng = np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
        write_table(tmp_path / 'tables' / split / '0.csv', line(rng))

    def best(iterations):
        run = run_here(*flags(tmp_path / 'tables', f'--metatrain_iterations={iterations}', '--test_set'))
        with np.load(run / 'best.npz') as saved:
            kept = dict(saved)
        np.savez(run / 'best.npz', **kept | {'score': 1e9})  # which nothing can reach
        return kept['iteration']

    assert best(50) == best(100) == 50
    write_table(tmp_path / 'tables' / 'val' / '0.csv', line(rng))
    assert best(150) == 150


def test_what_training_compiled_is_not_taken_for_the_tuned_step_size(folder, monkeypatch):
    """Where its look at the validation tables computes as many tasks and steps as the test."""
    monkeypatch.setattr(training, 'VALIDATION_TASKS', 12)
    monkeypatch.setattr(training, 'TEST_PRINT_INTERVAL', 50)
    command = flags(folder, '--metatrain_iterations=100', '--baseline=pretrain', '--test_set', '--update_lr_grid=0.2')
    means = []
    for train in (True, False):
        run = run_here(*command, '--test_num_updates=1', '--test_query=5', f'--train={train}')
        means.append(json.loads(next(run.glob('test*.json')).read_text())['mean'])
    assert means[0] == pytest.approx(means[1], rel=1e-5)


def test_several_columns_have_no_unit_in_common(folder):
    _, data, source = make_data(folder, y_columns=['income', 'noise'])
    assert (source.dim_input, source.dim_output, data['test'].scale) == (1, 2, 1)


# ---- Predictions ---------------------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_adapted_network_in_the_units_of_y(folder, tmp_path, capsys):
    run = run_here(*flags(folder, '--metatrain_iterations=100', '--test_set'))
    rows, new = line(np.random.default_rng(8)), tmp_path / 'new.csv'
    write_table(tmp_path / 'support.csv', rows[:5])
    new.write_text('name,t\n' + ''.join(f'"row, {n}",{row[0]!r}\n' for n, row in enumerate(rows[5:].tolist())))
    command = [f'--adapt={tmp_path / "support.csv"}', f'--predict={new}', f'--logdir={tmp_path / "out"}']
    weights = f'--init_from={run / "model100.npz"}'
    for incomplete, words in ((command, 'needs trained weights'), ([command[0], weights], 'leaves nothing behind')):
        with pytest.raises(UserError, match=words):
            run_here(*incomplete)
    adapted = tmp_path / 'adapted.npz'
    capsys.readouterr()
    run_here(*command, weights, '--update_lr=0.05', f'--save_adapted={adapted}')  # all else is known: columns, network
    output = capsys.readouterr().out
    assert 'in 2 steps of size 0.05' in output and 'in place of' not in output
    header, *found = list(csv.reader((tmp_path / 'out' / 'predictions.csv').open()))
    assert header == ['name', 't', 'predicted income'] and found[0][0] == 'row, 0' and len(found) == 15

    standard = json.loads((run / 'config.json').read_text())['settings']['standard']
    (x, y), mean, deviation = rows[:, :2].T, standard['mean'], standard['deviation']
    x, y = (np.float32((v - m) / d)[:, None] for v, m, d in zip((x, y), mean, deviation))
    with np.load(run / 'model100.npz') as saved:
        w = {name.removeprefix('weights/'): tf.constant(saved[name]) for name in saved.files if 'weights/' in name}
    network = FullyConnected(1, 1, (8,))
    for _ in range(2):
        with tf.GradientTape() as tape:
            tape.watch(w)
            loss = tf.reduce_mean((network.forward(x[:5], w) - y[:5]) ** 2)
        gradients = tape.gradient(loss, w)
        w = {name: w[name] - 0.05 * gradients[name] for name in w}
    with np.load(adapted) as saved:
        np.testing.assert_allclose(saved['weights/w2'], w['w2'], rtol=1e-4, atol=1e-6)
    expected = network.forward(x[5:], w).numpy()[:, 0] * deviation[1] + mean[1]
    np.testing.assert_allclose([float(row[2]) for row in found], expected, rtol=1e-4)
    for more, words in (
        (f'--save_adapted={run / "model100.npz"}', 'for the weights of a run'),
        (f'--save_adapted={run / "model101.npz"}', 'for the weights of a run'),
        ('--hidden=9', '--hidden=8: drop'),
        ('--y_columns=t', '--y_columns=income: drop'),
    ):
        with pytest.raises(UserError, match=words):
            run_here(*command, weights, more)
    with pytest.raises(UserError, match='adapted weights are not finite'):
        run_here(command[0], weights, '--update_lr=1e39', f'--save_adapted={tmp_path / "useless.npz"}')
    assert not (tmp_path / 'useless.npz').exists()
    run_here(*command, weights)
    assert 'in place of earlier ones' in capsys.readouterr().out
    with pytest.raises(UserError, match='would be written over'):
        run_here(command[0], f'--predict={tmp_path / "out" / "predictions.csv"}', command[2], weights)


def test_a_prediction_depends_on_its_row_alone_and_keeps_its_digits(folder, tmp_path):
    """With a batch norm, too, and where y is large beside its deviation: seconds since 1970, for example."""
    rows = [line(np.random.default_rng(seed)) + [0, 1.7e9, 0] for seed in range(10)]
    for table, path in zip(rows, sorted(folder.iterdir())):
        write_table(path, table)
    run = run_here(*flags(folder, '--metatrain_iterations=2', '--norm=batch_norm'))
    write_table(tmp_path / 'support.csv', rows[0][:5])
    found = []
    for number in (1, 4):
        write_table(tmp_path / 'new.csv', rows[0][5 : 5 + number])
        adapt = [f'--adapt={tmp_path}/support.csv', f'--predict={tmp_path}/new.csv', f'--logdir={tmp_path}/out']
        run_here(*adapt, f'--init_from={run}/model2.npz')
        _, *predicted = csv.reader((tmp_path / 'out' / 'predictions.csv').open())
        found.append([float(row[-1]) for row in predicted])
    assert found[0][0] == found[1][0] and len(set(found[1])) == 4
    assert any(value % 1 for value in found[1]) and abs(found[1][0] - 1.7e9) < 1e5


def test_pretrained_weights_have_no_step_size_of_their_own(folder, tmp_path, capsys):
    """The test tunes it, and whoever adapts them has to say it."""
    run = run_here(*flags(folder, '--metatrain_iterations=100', '--test_set', '--baseline=pretrain'))
    write_table(tmp_path / 'support.csv', line(np.random.default_rng(8))[:5])
    command = [f'--adapt={tmp_path}/support.csv', f'--save_adapted={tmp_path}/a.npz', f'--init_from={run}/model100.npz']
    with pytest.raises(UserError, match='add --update_lr'):
        run_here(*command)
    run_here(*command, '--update_lr=0.05')
    assert 'steps of size 0.05' in capsys.readouterr().out


# ---- What is of no use ---------------------------------------------------------------------------------------------


def test_empty_lines_and_empty_rows_at_the_end_are_passed_over(tmp_path):
    (tmp_path / 'a.csv').write_text('a,b\n\n1,2\n3,4\n,\n  \n')
    assert regression.read_columns(str(tmp_path / 'a.csv'), ['b']).tolist() == [[2], [4]]


@pytest.mark.parametrize(
    'text, words',
    [
        ('', 'does not begin with a line of names'),
        ('a,a\n1,2\n', 'does not begin with a line of names'),
        ('a,b\n', 'has no rows below the names'),
        ('a,b\n' + '1,2\n' * 8, 'has 8 rows, but a task needs 9'),
        ('a,b\n1,2\n\n1\n', 'line 4: 1 values for 2 columns'),
        ('a,b\n1,2\n,\n3,4\n,\n  \n', "line 3: '' in column a is no number"),
        ('a,b\n1,two\n', "line 2: 'two' in column b is no number"),
        ('a,b\n1_5,2\n', "line 2: '1_5' in column a is no number"),
        ('a,b\n' + '1,2e200\n3,4\n' * 8, 'and others is too large to be standardised'),
        ('a,b\n1,nan\n', "line 2: 'nan' in column b is no number"),
        ('a;b\n1;2\n', 'no commas between its columns'),
        (b'\xff\xfea\x00', 'is no CSV file in UTF-8'),
    ],
)
def test_a_table_of_no_use_is_named_with_its_line(tmp_path, text, words):
    for number in range(4):
        path = tmp_path / f'{number}.csv'
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        make_data(tmp_path)
    assert words in str(error.value) and '.csv' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    'given, words',
    [
        ({'x_columns': ['nothing']}, 'has no column nothing, but t, income, noise'),
        ({'x_columns': ['t'], 'y_columns': ['t']}, 'each column once'),
        ({'data_dir': '/nowhere/at/all'}, '--data_dir=/nowhere/at/all is no folder'),
        ({'data_dir': None}, 'give --data_dir'),
        ({'train': False}, 'no checkpoint in nowhere: train first'),
        ({'train': False, 'init_from': 'nowhere/model1.npz'}, 'nowhere/config.json'),
    ],
)
def test_what_cannot_be_done_is_said(folder, given, words):
    with pytest.raises(UserError, match=words):
        make_data(folder, **given)


def test_splits_without_tables_are_refused_where_they_are_needed(folder):
    for path in sorted(folder.iterdir())[3:]:
        path.unlink()
    assert set(make_data(folder)[1]) == {'train', 'test'}  # training does without a look
    for given in ({'test_set': False}, {'update_lr_grid': [0.1]}):
        with pytest.raises(UserError, match='no tables for its val split'):
            make_data(folder, **given)
    next(folder.iterdir()).unlink()
    with pytest.raises(UserError, match='2 CSV files, too few to split'):
        make_data(folder)


def test_the_readmes_example_learns_and_predicts(tmp_path):
    """The pendulums of data/example_tables.py, in fewer iterations."""
    runpy.run_path(str(pathlib.Path(main.__file__).parent / 'data' / 'example_tables.py'))['main'](tmp_path)
    flags = [f'--data_dir={tmp_path}/tables', f'--logdir={tmp_path}', '--log=False', '--update_batch_size=5']
    flags += ['--train_query=10', '--test_query=10', '--metatrain_iterations=500', '--test_set', '--num_test_tasks=60']
    folder = run_here('--datasource=table', *flags)
    before, *_, after = json.loads(next(folder.glob('test*.json')).read_text())['mean'][1:]
    assert after < 0.9 * before
    new = [f'--adapt={tmp_path}/support.csv', f'--predict={tmp_path}/new.csv', f'--init_from={folder}/model500.npz']
    main.run(*main.read_flags([*new, f'--logdir={tmp_path}/new']))
    with open(tmp_path / 'new' / 'predictions.csv') as file:
        header, *rows = csv.reader(file)
    assert header == ['time', 'predicted angle'] and len(rows) == 10
