"""No result of one run passes for that of another: what a folder holds is compared with what is asked for."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import types

import image_folders
import pytest
from program import MAIN, SINE, command, run, run_here, start, wait_for

import data_generator
import experiments
import main
import naming
from data_generator import image_generators
from experiments import SOURCES
from images import training_digest
from runtime import UserError

SHORT = ['--log=False', '--num_test_tasks=2', '--test_num_updates=1']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The logdir of a run of 100 + 100 iterations."""
    logdir = tmp_path_factory.mktemp('trained')
    run_here(f'--logdir={logdir}', *SHORT, '--pretrain_iterations=100', '--metatrain_iterations=100', '--meta_lr=0.002')
    return logdir


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--init_from={folder}/model200.npz'], '--init_from=None, not {folder}/model200.npz'),
        (['--metatrain_iterations=50'], '200 iterations, more than the 150 asked for'),
        (['--pretrain_iterations=50', '--metatrain_iterations=150'], '--pretrain_iterations=100, not 50'),
        (['--meta_lr=0.003'], '--meta_lr=0.002, not 0.003'),
        (['--train_update_batch_size=5'], '--train_update_batch_size=5 is the K of a run that is there'),
    ],
)
def test_another_run_is_refused(trained, flags, words):
    folder = trained / SINE
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    flags = ['--pretrain_iterations=100', '--metatrain_iterations=100', '--meta_lr=0.002'] + [
        flag.format(folder=folder) for flag in flags
    ]
    with pytest.raises(UserError) as error:
        run_here(f'--logdir={trained}', *SHORT, *flags)
    assert words.format(folder=folder) in str(error.value)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_result_has_the_settings_of_its_training(trained, capsys):
    """Those in config.json, whatever the command of the test says; and the folder keeps the run's own."""
    run_here(f'--logdir={trained}', *SHORT, '--train=False', '--seed=7', '--meta_lr=0.5')
    assert 'model200.npz, iteration 200' in capsys.readouterr().out
    result = json.loads((trained / SINE / 'test_ubs10_stepsize0.01_seed7_tasks2_steps1.json').read_text())
    assert result['settings']['meta_lr'] == 0.002 and result['settings']['seed'] == 1 and result['test_seed'] == 7
    assert (result['iteration'], result['iterations'], result['iterations_asked']) == (200, 200, 200)
    assert json.loads((trained / SINE / 'config.json').read_text())['settings']['meta_lr'] == 0.002


def test_weights_that_were_trained_otherwise_are_named_as_such(trained, tmp_path, capsys):
    """A test of first-order weights without --stop_grad, and with other examples than in training."""
    test = [*SHORT, '--train=False', f'--init_from={trained}/{SINE}/model200.npz']
    run_here(f'--logdir={tmp_path}', *test)
    assert 'were trained with other flags' not in capsys.readouterr().out
    run_here(f'--logdir={tmp_path}', *test, '--update_batch_size=5', '--stop_grad')
    assert 'of this test: --stop_grad=False --train_update_batch_size=10\n' in capsys.readouterr().out
    run_here(f'--logdir={tmp_path}', *test, '--metatrain_iterations=0', '--pretrain_iterations=1')
    assert 'of this test: --metatrain_iterations=100\n' in capsys.readouterr().out
    config = trained / SINE / 'config.json'
    kept = config.read_text()
    config.write_text(kept.replace('"precision": "float32"', '"precision": "mixed"'))
    run_here(f'--logdir={tmp_path}', *test)
    assert 'of this test: --precision=mixed\n' in capsys.readouterr().out
    config.write_text('{')
    with pytest.raises(UserError, match=r'config\.json, the settings of the run, cannot be read'):
        run_here(f'--logdir={tmp_path}', *test)
    config.write_text(kept)


def test_adapted_weights_do_not_pass_for_those_of_the_run(tmp_path, capsys):
    """Beside its config.json, from which they have their flags."""
    for name in ('weights.npz', 'config.json'):
        shutil.copy(MAIN.parent / 'results/omniglot_5way_1shot/maml/seed1' / name, tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    config['settings']['data_digest'] = 'of other images'
    (tmp_path / 'config.json').write_text(json.dumps(config))
    weights, adapted = tmp_path / 'weights.npz', tmp_path / 'adapted.npz'
    new = image_folders.omniglot(tmp_path / 'new', characters=2, alphabets=1) / 'Alphabet0'
    run_here(f'--adapt={new}', f'--init_from={weights}', f'--save_adapted={adapted}')
    data = image_folders.omniglot(tmp_path / 'data')
    flags = ['--datasource=omniglot', f'--data_dir={data}', '--train=False', '--test_set', '--num_test_tasks=2']
    for tested, steps in ((weights, None), (adapted, 3)):
        capsys.readouterr()
        run_here(*flags, '--log=False', f'--logdir={tmp_path}/{tested.stem}', f'--init_from={tested}')
        output, warned = capsys.readouterr()
        assert 'drew from them the classes to test on: classes may be tested on that were trained on' in warned
        assert ('--adapt took 3 steps' in output) == bool(steps) and ('<- paper 98.7' in output) == (not steps)
        (result,) = (tmp_path / tested.stem).glob('*/test*.json')
        assert json.loads(result.read_text()).get('adapted') == steps


def test_tests_that_differ_have_files_of_their_own(trained, capsys):
    """The paper's numbers of tasks and steps go without saying; a result that is replaced is mentioned."""
    names = {test.stem for test in (trained / SINE).glob('test*.json')}
    flags = [f'--logdir={trained}', '--train=False', '--test_num_updates=1', '--num_test_tasks=3']
    run_here(*flags)
    run_here(*flags, '--test_iter=200')
    assert 'in place of' not in capsys.readouterr().out
    run_here(*flags)
    assert 'in place of earlier ones' in capsys.readouterr().out
    ours = {'test_ubs10_stepsize0.01_tasks3_steps1', 'test_ubs10_stepsize0.01_itr200_tasks3_steps1'}
    assert {test.stem for test in (trained / SINE).glob('test*.json')} == names | ours
    for flags, name in (([], ''), (['--datasource=point', '--test_num_updates=3'], '_steps3')):
        assert naming.beyond_the_paper(main.read_flags(flags)[0]) == name
    for source in experiments.SOURCES:
        assert naming.beyond_the_paper(main.read_flags([f'--datasource={source}'])[0]) == ''
    oracle = main.read_flags(['--datasource=point', '--baseline=oracle'])[0]
    assert naming.beyond_the_paper(oracle) == ''


def test_a_folder_is_trained_by_one_process_at_a_time(tmp_path):
    """The second one says so and the first goes on; a process that was killed holds nothing."""
    flags = [f'--logdir={tmp_path}', *SHORT, '--save_interval=100']
    first = start(*flags, '--metatrain_iterations=1000000')
    wait_for(tmp_path / SINE / 'model100.npz', first)
    error = run(*flags, '--metatrain_iterations=1000000', code=2)
    assert 'is being trained by another process' in error and len(error.splitlines()) == 1
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    handle = os.open(tmp_path / SINE, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where it is held
    os.close(handle)


def test_the_authors_command_finds_the_run():
    """Their test with 5 images of a class, of the run that was trained with 1."""
    trained = main.read_flags(['--datasource=miniimagenet'])[0]
    tested = main.read_flags(
        ['--datasource=miniimagenet', '--train=False', '--update_batch_size=5', '--train_update_batch_size=1']
    )[0]
    assert tested.meta_batch_size == 4 and naming.run_name(tested) == naming.run_name(trained)


def test_a_run_goes_on_with_its_own_images_alone(tmp_path, capsys):
    """A copy in another place will do; a file more will not; a run from before, which does not tell, goes on."""
    data = image_folders.miniimagenet(tmp_path / 'data', images=4)
    flags = ['--datasource=miniimagenet', '--meta_batch_size=1', '--num_updates=1', *SHORT]
    flags += [f'--logdir={tmp_path}/logs', '--train_query=1', '--conv=False', '--num_test_tasks=1']
    config = run_here(*flags, f'--data_dir={data}', '--metatrain_iterations=1') / 'config.json'
    output = capsys.readouterr().out
    digest = json.loads(config.read_text())['settings']['data_digest']
    assert f'data_digest={digest}' in output
    result = json.loads(next(config.parent.glob('test*.json')).read_text())
    assert result['std'][0] == 0  # of one task: the population's deviation, as the original's
    assert result['settings']['data_digest'] == digest and 'accuracy in % over 1 tasks of the validation set' in output

    copy = shutil.copytree(data, tmp_path / 'copy', copy_function=shutil.copyfile)
    run_here(*flags, f'--data_dir={copy}', '--metatrain_iterations=1')
    more = next(copy.glob('train/*/000.jpg'))
    shutil.copy(more, more.with_name('more.jpg'))
    data_generator.load_folders.cache_clear()
    with pytest.raises(UserError, match='trained on other data'):
        run_here(*flags, f'--data_dir={copy}', '--metatrain_iterations=1')
    with pytest.raises(UserError, match='has not the images of the training: bring them back, or use --init_from'):
        run_here(*flags, f'--data_dir={copy}', '--train=False')
    old = json.loads(config.read_text())
    del old['settings']['data_digest']
    config.write_text(json.dumps(old))
    run_here(*flags, f'--data_dir={copy}', '--metatrain_iterations=1')
    assert '1 iterations are done' in capsys.readouterr().out


@pytest.mark.parametrize('name, one_set', [('omniglot', True), ('miniimagenet', False)])
def test_what_would_be_trained_on_is_known_without_reading_it(tmp_path, name, one_set):
    """Omniglot's test characters are drawn from all of them, MiniImagenet's classes are in folders."""
    source, query = SOURCES[name], {'train': 1}
    folder = getattr(image_folders, name)(tmp_path)
    digest = image_generators(source, folder, query, 3, 1, query, 5, 1)['train'].digest
    assert training_digest(types.SimpleNamespace(data_dir=str(folder)), source) == (one_set, digest)


def test_a_test_computes_the_tasks_that_are_asked_for(tmp_path):
    """In both kinds of batches; the first tasks are the same, however many there are."""
    folder, query = image_folders.omniglot(tmp_path), {'test': 2}
    source = image_generators(SOURCES['omniglot'], folder, query, 3, 1, query, 5, 1)['test']
    few, many = list(source.test_batches(8)), list(source.test_batches(60))
    assert [len(batch[0]) for batch in few] == [8] and [len(batch[0]) for batch in many] == [50, 10]
    for some, all_of_them in zip(few[0], many[0]):
        assert (some == all_of_them[:8]).all()
    assert (many[1][0] != many[0][0][:10]).any()  # and no batch is the one before it


def test_output_into_a_file_comes_as_it_is_printed(tmp_path):
    """`python main.py >log` can be watched."""
    with (tmp_path / 'log').open('w') as log:
        process = subprocess.Popen(
            command(f'--logdir={tmp_path}', '--metatrain_iterations=1000000', *SHORT), stdout=log
        )
        wait_for(tmp_path / SINE / 'model1000.npz', process)
        text = (tmp_path / 'log').read_text()
        process.kill()
        process.wait()
    assert '  update_lr=0.01' in text
