"""Training and testing with reinforcement learning: the real program, and what it keeps."""

import csv
import json
import re
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from program import assert_same_state, run, start, wait_for

import checkpoint
import main
import naming
from rl import evaluation, training, video
from rl.envs import FAMILIES
from rl.sampler import Sampler
from run import check_same_run, read_config
from runtime import UserError

TINY = dict(meta_batch_size=2, update_batch_size=2, num_test_tasks=3, test_update_batch_size=2)
COMMAND = [f'--{name}={value}' for name, value in TINY.items()]
POINT = [*COMMAND, '--datasource=point', '--metatrain_iterations=12', '--save_interval=3']
NAME = 'maml1_fbs2_mbs2_flr0.5_mlr0.01'


def settings(datasource='point', **given):
    """The configuration that main.py makes of these flags."""
    given = {'datasource': datasource} | given
    return main.read_flags([f'--{name}={value}' for name, value in given.items() if value is not None])[0]


def run_here(tmp_path, **given):
    """What main.py does with these flags, in this process; returns the configuration and the run's folder."""
    config = settings(**TINY | {'logdir': str(tmp_path), 'metatrain_iterations': 2, 'save_interval': 1} | given)
    main.run(config, {})
    return config, tmp_path / naming.run_name(config)


def saved_weights(path):
    with np.load(path) as saved:
        return {k.removeprefix('weights/'): saved[k] for k in saved.files if k.startswith('weights/')}


def progress(folder):
    with (folder / 'progress.csv').open() as file:
        return list(csv.DictReader(file))


def result(folder):
    return json.loads(next(folder.glob('test_*.json')).read_text())


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The folder of a short run of 2D navigation without a break, with the settings of POINT."""
    return run_here(tmp_path_factory.mktemp('trained'), metatrain_iterations=12, save_interval=3)[1]


# ---- The real program -------------------------------------------------------------------------------------------


def test_training_and_its_test(trained):
    folder = trained
    assert len(list(folder.glob('model*.npz'))) == 4 and (folder / 'config.json').exists()
    rows = progress(folder)
    assert [int(row['iteration']) for row in rows] == list(range(12)) and list(rows[0]) == list(training.METRICS)
    for row in rows:
        assert float(row['kl_after']) <= 0.01 and float(row['loss_after']) <= float(row['loss_before'])
        assert float(row['env_steps']) >= 2 * 2 * 2 * 100 and float(row['return_after']) < 0
    tags = set()
    for path in folder.glob('events*'):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            tags.update(value.tag for value in event.summary.value)
    assert tags == set(training.METRICS[1:])

    test = result(folder)
    assert test['columns'] == ['before any step', 'after 1 step'] + [f'after {n} steps' for n in (2, 3, 4)]
    assert test['step_sizes'] == [0.5, 0.25, 0.25, 0.25] and np.shape(test['per_task']) == (5, 3)
    np.testing.assert_allclose(test['mean'], np.mean(test['per_task'], axis=1))
    np.testing.assert_allclose(test['ci95'], 4.30 * np.std(test['per_task'], axis=1, ddof=1) / np.sqrt(3))
    assert test['settings']['test_seed'] == 1 and test['checkpoint'].endswith('model12.npz')
    with next(folder.glob('test_*.csv')).open() as file:
        table = list(csv.reader(file))
    assert table[0] == ['', *[f'return {column}' for column in test['columns']]]
    np.testing.assert_allclose(np.float64(table[1][1:]), test['mean'])


def test_an_iteration_tells_whether_its_outer_step_was_taken(tmp_path, capsys):
    run_here(tmp_path, metatrain_iterations=1)
    assert re.search(r'Iteration 0: .* inner updates; KL 0\.00[0-9]+; \d+ steps/s', capsys.readouterr().out)
    _, folder = run_here(tmp_path, metatrain_iterations=1, meta_step_size=1e-30)  # no step is short enough
    assert progress(folder)[0]['accepted'] == '0'
    assert re.search(r'Iteration 0: .* inner updates; outer step rejected; \d+ steps/s', capsys.readouterr().out)


def test_a_run_that_is_killed_and_resumed_ends_the_same(trained, tmp_path):
    """kill -9 in the middle, then the same command again: weights, best policy and progress are the same."""
    process = start(*POINT, f'--logdir={tmp_path}')
    wait_for(tmp_path / NAME / 'model3.npz', process)
    process.kill()
    process.wait()
    assert not (tmp_path / NAME / 'model12.npz').exists()
    output = run(*POINT, f'--logdir={tmp_path}')
    assert 'Restoring model weights' in output and 'Iteration 11: average return' in output
    assert 'update_lr=0.5   (maml_rl: maml_trpo_point.py' in output
    for name in ('model12.npz', 'best.npz'):
        assert_same_state(tmp_path / NAME / name, trained / name)
    timed = {'env_steps_per_second', 'seconds'}
    for one, other in zip(progress(tmp_path / NAME), progress(trained), strict=True):
        assert all(one[name] == other[name] for name in set(one) - timed)
    assert result(tmp_path / NAME)['per_task'] == result(trained)['per_task']


def test_cheetah_is_interrupted_and_then_tested(tmp_path):
    """Ctrl-C saves and says how to go on; what there is can be tested."""
    flags = [*COMMAND, '--datasource=cheetah_vel', f'--logdir={tmp_path}']
    folder = tmp_path / 'maml1_fbs2_mbs2_flr0.1_mlr0.01'
    process = start(*flags, '--save_interval=1')
    wait_for(folder / 'model1.npz', process)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and 'the same command goes on from here' in output
    newest = max(int(path.stem[5:]) for path in folder.glob('model*.npz'))
    assert f'{newest} of 500 iterations done' in output and len(progress(folder)) == newest
    run_here(tmp_path, datasource='cheetah_vel', train=False, test_num_updates=1, num_test_tasks=2)
    assert np.shape(result(folder)['per_task']) == (2, 2) and result(folder)['mean'][0] < 0


# ---- Baselines and variants, in this process --------------------------------------------------------------------


def test_the_best_iterate_is_kept_and_tested(trained):
    """best.npz is the theta that earned the highest return of progress.csv, not the one after its outer step."""
    earned = [float(row['return_after']) for row in progress(trained)]
    best = int(np.argmax(earned))
    with np.load(trained / 'best.npz') as saved:
        assert saved['iteration'] == best and saved['average_return'] == earned[best]
    config = settings(**TINY, test_iter='best')
    model = training.make_model(config, threads=2)
    assert training.load_for_test(config, model, trained)['checkpoint'].endswith('best.npz')
    np.testing.assert_array_equal(model.weights['W0'], saved_weights(trained / 'best.npz')['W0'])
    sampler = Sampler('point', training.train_tasks(config, best), 2, seed=(1, best))
    paths, _ = evaluation.adapt_and_measure(model, sampler, [0.5])
    assert paths[1].average_returns().mean() == earned[best]

    config.train, config.test_iter = False, 9
    assert training.load_for_test(config, model, trained)['checkpoint'].endswith('model9.npz')
    np.testing.assert_array_equal(model.weights['W0'], saved_weights(trained / 'model9.npz')['W0'])
    config.test_iter = -1
    assert training.load_for_test(config, model, trained)['checkpoint'].endswith('model12.npz')


@pytest.mark.parametrize('test_iter', [-1, 'best'])
def test_of_a_packed_run_only_what_was_packed_is_tested(trained, test_iter, tmp_path):
    folder = shutil.copytree(trained, tmp_path / 'run')
    checkpoint.pack(folder, take_best=test_iter == 'best')
    config, other = (
        settings(**TINY, train=False, test_iter=i) for i in (test_iter, -1 if test_iter == 'best' else 'best')
    )
    model = training.make_model(config, threads=2)
    assert training.load_for_test(config, model, folder)['checkpoint'].endswith('weights.npz')
    with pytest.raises(UserError, match='weights alone'):
        training.load_for_test(other, model, folder)


def test_oracle_sees_the_goal_and_takes_no_step(tmp_path):
    _, folder = run_here(tmp_path, baseline='oracle')
    assert saved_weights(folder / 'model2.npz')['W0'].shape == (4, 100)
    assert result(folder)['columns'] == ['before any step'] and result(folder)['step_sizes'] == []
    for row in progress(folder):  # plain TRPO: the same paths before and after
        assert row['return_before'] == row['return_after'] and abs(float(row['kl_before'])) < 1e-6


def test_pretraining_takes_its_own_steps_in_the_test(tmp_path):
    """Its state is Adam's, too: a run in two parts ends as one that did not stop."""
    flags = dict(baseline='pretrain', test_num_updates=2, test_update_lr=0.3)
    _, whole = run_here(tmp_path / 'a', **flags)
    assert result(whole)['step_sizes'] == [0.3, 0.15]
    run_here(tmp_path / 'b', **flags, metatrain_iterations=1)
    _, parts = run_here(tmp_path / 'b', **flags)
    with np.load(whole / 'model2.npz') as saved:
        assert saved['metatrain_adam/t'] == 2
    assert_same_state(parts / 'model2.npz', whole / 'model2.npz')


def test_a_random_policy_needs_no_training(tmp_path, monkeypatch):
    gif = tmp_path / 'point.gif'
    flags = dict(baseline='random', metatrain_iterations=None, train=False, test_num_updates=1)
    written, shown = video.write, []

    def noted(*arguments):
        shown.append(arguments[-1])
        written(*arguments)

    monkeypatch.setattr(video, 'write', noted)
    config, folder = run_here(tmp_path, **flags, random_policies=2, video=str(gif))
    before, after = shown[0].values()
    assert training.make_model(config, 2).policy.nonlinearity == 'tanh' and not np.array_equal(
        before['W0'], after['W0']
    )
    assert result(folder)['checkpoint'] == 'fresh policies, seeds 1 to 2' and not list(folder.glob('*.npz'))
    with Image.open(gif) as film:  # two pictures of 200 pixels side by side, and a line
        assert film.n_frames > 50 and film.size == (402, 230)


def test_random_is_the_mean_over_untrained_policies(tmp_path, monkeypatch):
    measured, thetas = evaluation.adapt_and_measure, []

    def noted(model, sampler, *others):
        thetas.append(model.theta)
        assert (sampler.rollouts, sampler.workers) == (3, 2)
        return measured(model, sampler, *others)

    monkeypatch.setattr(evaluation, 'adapt_and_measure', noted)
    assert settings(baseline='random').random_policies == 30 and settings().random_policies is None
    flags = dict(baseline='random', metatrain_iterations=None, train=False, test_num_updates=1)
    flags |= dict(test_update_batch_size=3, test_sampling_workers=2)
    one, three = (result(run_here(tmp_path / str(n), **flags, random_policies=n)[1]) for n in (1, 3))
    per_policy = np.array(three['per_policy'])  # [columns][policies], each the mean over its tasks
    np.testing.assert_allclose(per_policy[:, 0], one['mean'], rtol=1e-6)
    policy = training.make_model(settings(**flags), threads=2).policy
    for theta, seed in zip(thetas, (1, 1, 2, 3), strict=True):
        np.testing.assert_array_equal(theta, np.concatenate([np.ravel(w) for w in policy.init(seed).values()]))
    np.testing.assert_allclose(three['mean'], per_policy.mean(1), rtol=1e-6)
    np.testing.assert_allclose(three['ci95'], 4.30 * per_policy.std(1, ddof=1) / np.sqrt(3), rtol=1e-6)


def test_directions_are_those_of_the_tasks_for_random_policies_too(tmp_path):
    flags = dict(datasource='cheetah_dir', baseline='random', metatrain_iterations=None, train=False)
    tested = result(run_here(tmp_path, **flags, random_policies=2, test_num_updates=1, test_update_batch_size=1)[1])
    backward, forward = tested['by_direction'].values()  # of two tasks and one: seed 1 of the original's
    assert sum(task < 0 for task in tested['tasks']) == 2
    np.testing.assert_allclose((2 * np.array(backward) + forward) / 3, tested['mean'], rtol=1e-6)


def test_a_result_has_the_rollouts_and_alpha_of_the_training(tmp_path):
    _, folder = run_here(tmp_path, update_lr=0.2)
    assert [list(map(len, paths)) for paths in result(folder)['paths']] == [[100, 100]] * 5  # and none of padding
    weights = dict(train=False, init_from=str(folder / 'best.npz'), metatrain_iterations=None, save_interval=None)
    kept = result(run_here(tmp_path / 'other', **weights, update_batch_size=7, test_update_batch_size=3)[1])['settings']
    assert (kept['update_batch_size'], kept['update_lr'], kept['test_update_batch_size']) == (2, 0.2, 3)
    more = dict(init_from=str(folder / 'best.npz'), metatrain_iterations=1, test_num_updates=1)
    _, folder = run_here(tmp_path / 'more', **more)  # trained on, whose own weights are tested
    assert result(folder)['checkpoint'] == str(folder / 'model1.npz')


def test_weights_that_were_trained_otherwise_are_not_taken_for_the_papers(trained, tmp_path, capsys):
    """The line that says so, the paper's values beside the numbers, and the λ of the training."""
    test = dict(
        train=False, metatrain_iterations=None, save_interval=None, meta_batch_size=None, update_batch_size=None
    )
    test |= dict(test_update_batch_size=40, init_from=str(trained / 'best.npz'), test_num_updates=1)
    _, folder = run_here(tmp_path / 'same', **test)
    output = capsys.readouterr().out
    assert 'trained with' not in output and '<- paper' in output and result(folder)['trained_with'] == {}
    assert 'test_iter=' not in output  # --init_from says what is tested
    with np.load(trained / 'best.npz') as saved:
        (tmp_path / 'kept').mkdir()
        np.savez(tmp_path / 'kept' / 'adapted.npz', adapted=1, **saved)
    shutil.copy(trained / 'config.json', tmp_path / 'kept')
    run_here(tmp_path / 'adapted', **test | {'init_from': str(tmp_path / 'kept' / 'adapted.npz')})
    assert '<- paper' not in capsys.readouterr().out
    with pytest.raises(UserError, match='trained with --seed=1: drop --seed, or use --test_seed'):
        run_here(tmp_path / 'same', **test, seed=5)
    _, other = run_here(tmp_path, baseline='pretrain', gae_lambda=0.9, test_num_updates=1)
    capsys.readouterr()
    _, folder = run_here(tmp_path / 'other', **test | {'init_from': str(other / 'best.npz')})
    output = capsys.readouterr().out
    assert '--baseline=pretrain --num_updates=0' in output and '<- paper' not in output
    kept = result(folder)
    assert kept['trained_with'] == {'baseline': 'pretrain', 'num_updates': 0}
    assert (kept['gae_lambda_of_training'], kept['settings']['gae_lambda']) == (0.9, 1.0)
    assert not {'meta_batch_size', 'hvp', 'update_batch_size'} & set(re.findall(r'^  (\w+)=', output, re.MULTILINE))
    shutil.copy(other / 'best.npz', tmp_path / 'alone.npz')
    run_here(tmp_path / 'third', **test | {'init_from': str(tmp_path / 'alone.npz')})
    assert 'is not known: there is no config.json' in capsys.readouterr().out


def test_learned_step_sizes_are_not_left_out(tmp_path):
    _, folder = run_here(tmp_path, learn_update_lr=True)
    test = dict(train=False, init_from=str(folder / 'best.npz'), metatrain_iterations=None, save_interval=None)
    with pytest.raises(UserError, match='add --learn_update_lr'):
        run_here(tmp_path / 'other', **test)
    for given in ({}, {'test_update_lr': 0.1}):
        run_here(tmp_path / 'other', **test, learn_update_lr=True, **given)
    _, folder = run_here(tmp_path / 'fixed')
    with pytest.raises(UserError, match='no learned step sizes: drop --learn_update_lr'):
        run_here(tmp_path / 'other', **test | {'init_from': str(folder / 'best.npz')}, learn_update_lr=True)


def test_only_the_context_is_adapted(tmp_path):
    """And its step size is learned, in the first-order variant."""
    variant = dict(baseline='context', learn_update_lr=True, stop_grad=True, test_num_updates=2)
    config, folder = run_here(tmp_path, **variant)
    model = training.make_model(config, threads=2)
    start = {name: weight.numpy() for name, weight in model.weights.items()}
    assert start['context'].shape == (2,) and not start['context'].any() and start['W0'].shape == (4, 100)
    after = saved_weights(folder / 'model2.npz')
    assert after['context'].any() and not np.array_equal(after['W0'], start['W0'])  # the outer step: everything
    sampler = Sampler('point', evaluation.test_tasks(config), 2)
    paths, phis = evaluation.adapt_and_measure(model, sampler, [0.5])
    assert [collected.average_returns().shape for collected in paths] == [(3,), (3,)]
    for name in phis[0]:
        changed = (phis[1][name] != phis[0][name]).reshape(3, -1).any(axis=1)
        assert changed.all() if name == 'context' else not changed.any()

    learned = after['alpha']
    np.testing.assert_allclose(result(folder)['step_sizes'], [learned[0], learned[0] / 2])
    assert after['alpha'].shape == (1, 1) and after['alpha'] != 0.5
    config.train, config.init_from = False, str(folder / 'model2.npz')
    training.load_for_test(config, model, folder)
    np.testing.assert_array_equal(model.step_sizes(), after['alpha'])


def test_numbers_that_explode_stop_the_run(tmp_path):
    with pytest.raises(UserError, match='iteration 0: .* not finite.*--update_lr'):
        run_here(tmp_path, update_lr=1e30)
    with pytest.raises(UserError, match='training stopped, try'):  # there is no checkpoint yet to be kept
        run_here(tmp_path, update_lr=1e30)


def test_settings_of_another_run_are_refused(trained):
    with pytest.raises(UserError, match='--seed=1, not 2'):
        run_here(trained.parent, seed=2)


def test_a_run_goes_on_with_the_flags_it_was_begun_with(tmp_path):
    """A config.json from before these flags means one worker, a lambda of 1 and no likelihood ratio."""
    kept = dict(datasource='cheetah_dir', num_test_tasks=1, test_num_updates=1, logdir=str(tmp_path))
    _, folder = run_here(tmp_path, **kept, metatrain_iterations=1, sampling_workers=1)
    path = folder / 'config.json'
    saved = json.loads(path.read_text())
    assert saved['settings'].pop('sampling_workers') == saved['settings'].pop('gae_lambda') == 1
    assert saved['settings'].pop('likelihood_ratio') is False
    path.write_text(json.dumps(saved))
    with pytest.raises(UserError, match='--sampling_workers=1, not 8') as error:
        check_same_run(settings(**TINY | kept), read_config(folder), folder)
    assert '\n' not in str(error.value)
    for flag, value, before in (('gae_lambda', 0.9, 1.0), ('likelihood_ratio', True, False)):
        with pytest.raises(UserError, match=f'--{flag}={before}, not {value}'):
            other = settings(**TINY | kept, sampling_workers=1, **{flag: value})
            check_same_run(other, read_config(folder), folder)
    run_here(tmp_path, **kept, sampling_workers=1, test_sampling_workers=2)
    assert [row['env_steps'] for row in progress(folder)] == [str(2 * 2 * 2 * 200)] * 2
    tested = result(folder)['settings']
    assert (tested['sampling_workers'], tested['test_sampling_workers']) == (1, 2)


def test_several_workers_and_a_break_give_the_same(tmp_path):
    """Each of two samplings has the 4 paths of 200 steps that 3 workers finish of 2 rollouts of 2 tasks."""
    kept = dict(datasource='cheetah_dir', num_test_tasks=1, test_num_updates=1, sampling_workers=3)
    _, whole = run_here(tmp_path / 'a', **kept)
    run_here(tmp_path / 'b', **kept, metatrain_iterations=1)
    _, parts = run_here(tmp_path / 'b', **kept)
    assert_same_state(parts / 'model2.npz', whole / 'model2.npz')
    assert [row['env_steps'] for row in progress(parts)] == [str(2 * 2 * 4 * 200)] * 2


def test_what_is_not_there_to_test_is_named(tmp_path):
    for datasource in ('point', 'cheetah_vel'):
        with pytest.raises(UserError, match='train first'):
            run_here(tmp_path, datasource=datasource, train=False)
    _, folder = run_here(tmp_path)
    (folder / 'best.npz').unlink()
    with pytest.raises(
        UserError, match='no best.npz in .*: there are model2.npz, model1.npz, to be tested by --test_iter'
    ):
        run_here(tmp_path, train=False, test_iter='best')


class Line(FAMILIES['point'].env):
    """A class of one's own, made of 2D navigation's, that shows where the point is along one axis."""

    observation_size = 1

    @classmethod
    def world(cls, n, threads=2):
        world = super().world(n)
        world.observe = lambda: world.position[:, :1].copy()
        return world


def test_a_reward_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    """Where there is no inner update, none of its step sizes is blamed."""

    class Far(FAMILIES['point'].env):
        @classmethod
        def world(cls, n, threads=2):
            world = super().world(n)
            step = world.step
            world.step = lambda *given: (np.where(abs(world.position[:, 0]) > 0.3, np.nan, 0), step(*given)[1])
            return world

    monkeypatch.setitem(FAMILIES, 'point', FAMILIES['point']._replace(env=Far))
    words = 'iteration 0: a reward is not finite: training stopped, try a smaller --meta_step_size$'
    with pytest.raises(UserError, match=words):
        run_here(tmp_path, baseline='oracle')


def test_points_on_a_line_have_no_paths_in_a_plane(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, 'point', FAMILIES['point']._replace(env=Line))
    _, folder = run_here(tmp_path)
    assert 'paths' not in result(folder)


def test_progress_loses_the_rows_that_will_be_done_again(tmp_path):
    full = ','.join('7' for _ in training.METRICS[1:])
    text = ','.join(training.METRICS) + f'\n0,{full}\n1,{full}\n2,{full}\n1,7'  # the last one broke off
    (tmp_path / 'progress.csv').write_text(text)
    training.begin_progress(tmp_path, 2)
    training.append_progress(tmp_path, [2] + [8] * (len(training.METRICS) - 1))
    assert [(row['iteration'], row['seconds']) for row in progress(tmp_path)] == [('0', '7'), ('1', '7'), ('2', '8')]
