"""The paper's table of settings, and what given flags do to it."""

import numpy as np
import pytest
import tensorflow as tf

import experiments
import main
import naming
import training
from networks import Convolutional
from runtime import UserError


def resolve(**given):
    return main.read_flags([f'--{name}={value}' for name, value in given.items()])[0]


@pytest.mark.parametrize(
    'given, expected',
    [  # the paper's appendix A.1, re-stated
        ({}, (10, 1, 0.01, 25, 70000, 'None', [1, 5, 10])),
        ({'datasource': 'omniglot'}, (1, 1, 0.4, 32, 60000, 'batch_norm', [3])),
        ({'datasource': 'omniglot', 'update_batch_size': 5}, (5, 1, 0.4, 32, 60000, 'batch_norm', [3])),
        ({'datasource': 'omniglot', 'num_classes': 20}, (1, 5, 0.1, 16, 60000, 'batch_norm', [5])),
        ({'datasource': 'miniimagenet'}, (1, 5, 0.01, 4, 60000, 'batch_norm', [10])),
        ({'datasource': 'miniimagenet', 'update_batch_size': 5}, (5, 5, 0.01, 2, 60000, 'batch_norm', [10])),
    ],
)
def test_unset_flags_take_the_papers_values(given, expected):
    config = resolve(**given)
    assert (
        config.update_batch_size,
        config.num_updates,
        config.update_lr,
        config.meta_batch_size,
        config.metatrain_iterations,
        config.norm,
        config.paper_steps,
    ) == expected
    others = config.meta_lr, config.test_num_updates, config.num_test_tasks, config.save_interval
    assert others == (0.001, 10, 600, 1000)


def test_given_flags_win():
    """The original's usage line for MiniImagenet 5-shot means what it says: a meta-batch of 4."""
    config = resolve(
        datasource='miniimagenet', update_batch_size=5, meta_batch_size=4, norm='layer_norm', max_pool=False
    )
    assert (config.meta_batch_size, config.norm, config.max_pool) == (4, 'layer_norm', False)


def test_query_sizes():
    """Training: K, but 15 for MiniImagenet; tests: K for all (maml: main.py:247-251)."""
    for given, expected in (
        ({'update_batch_size': 5}, (5, 5)),
        ({'datasource': 'omniglot', 'update_batch_size': 5}, (5, 5)),
        ({'datasource': 'miniimagenet', 'update_batch_size': 5}, (15, 5)),
        ({'datasource': 'miniimagenet', 'test_query': 15}, (15, 15)),
    ):
        config = resolve(**given)
        assert (config.train_query, config.test_query) == expected


def test_the_oracle_only_pretrains():
    config = resolve(baseline='oracle', pretrain_iterations=100)
    assert (config.pretrain_iterations, config.metatrain_iterations) == (70100, 0)


def test_run_names_are_the_originals():
    """The authors' own folder of MiniImagenet results, among others."""
    assert naming.run_name(resolve(datasource='miniimagenet')) == (
        'cls_5.mbs_4.ubs_1.numstep5.updatelr0.01hidden32maxpoolbatchnorm'
    )
    assert naming.run_name(resolve()) == 'cls_5.mbs_25.ubs_10.numstep1.updatelr0.01nonorm'
    names = {
        naming.run_name(resolve(datasource='omniglot', train=False, **given))
        for given in (
            {},
            {'conv': False},
            {'stop_grad': True},
            {'learn_update_lr': True},
            {'norm': 'layer_norm'},
            {'metatrain_iterations': 0},
            {'train_update_batch_size': 5},
            {'train_update_lr': 0.1},
        )
    }
    assert len(names) == 8


def test_tests_that_differ_do_not_share_a_file():
    """They are of one run, whose settings another K in the test does not change."""
    given = [{}, {'test_set': True}, {'test_query': 15}, {'test_iter': 100}, {'test_iter': 200}, {'test_iter': 'best'}]
    given += [{'update_batch_size': 5, 'train_update_batch_size': 1}, {'update_lr': 0.1, 'train_update_lr': 0.01}]
    given += [{'init_from': f'{run}/seed1/best.npz'} for run in ('a', 'b')]
    configs = [resolve(datasource='miniimagenet', train=False, **g) for g in given]
    assert len({naming.test_name(config) for config in configs}) == len(given)
    assert naming.test_name(configs[0], trained_seed=1) == naming.test_name(configs[0])
    assert naming.test_name(configs[0], trained_seed=2) == naming.test_name(configs[0]) + '_seed1'
    other = resolve(datasource='miniimagenet', train=False, seed=2)
    assert naming.test_name(other, trained_seed=2) + '_seed2' == naming.test_name(other)  # of weights that tell no seed
    sinusoids = [resolve(train=False, test_query=query) for query in (10, 50)]
    assert naming.test_name(sinusoids[1]) == naming.test_name(sinusoids[0]) + '_query50'
    grids = [[], ['--update_lr_grid=0.1,0.2'], ['--update_lr_grid=0.1'], ['--update_lr=0.1']]
    tuned = [main.read_flags(['--baseline=pretrain', '--train=False', *grid])[0] for grid in grids]
    assert len({naming.test_name(config) for config in tuned}) == 4
    assert naming.test_name(tuned[0]) == 'test_ubs10_stepsizetuned' and len(naming.test_name(tuned[1])) < 40
    learned, _ = main.read_flags(['--learn_update_lr', '--train=False'])
    assert naming.test_name(learned) == 'test_ubs10_stepsizelearned'
    assert len({naming.run_name(config) for config in configs}) == 1


def test_what_is_tested_where_the_user_does_not_say():
    """The newest weights, in reinforcement learning the best (A.2), but for the point, of which the last was kept."""
    tested = {source: resolve(datasource=source).test_iter for source in ('omniglot', 'ant_vel', 'point')}
    assert tested == {'omniglot': -1, 'ant_vel': 'best', 'point': -1}
    assert resolve(datasource='ant_vel', test_iter=0, train=False).test_iter == -1
    names = [
        naming.test_name(resolve(datasource=source, train=False, test_iter=i))
        for source, i in (('point', -1), ('ant_vel', 'best'))
    ]
    assert not any('itr' in name for name in names)


def test_the_sizes_of_the_fully_connected_networks():
    hidden = {name: source.dim_hidden for name, source in experiments.SOURCES.items() if not source.rl}
    assert hidden['sinusoid'] == (40, 40) and hidden['omniglot'] == hidden['miniimagenet'] == (256, 128, 64, 64)


def test_a_network_without_convolutions_has_no_max_pool():
    assert not resolve(datasource='miniimagenet', conv=False).max_pool


def test_the_flags_reach_the_model_and_the_tasks():
    given = dict(update_lr=0.2, num_updates=2, stop_grad=True, learn_update_lr=True)
    sizes = dict(train_update_batch_size=7, train_query=8, update_batch_size=5, test_query=9, meta_batch_size=4)
    config = resolve(train=False, seed=3, meta_lr=0.5, **given, **sizes)
    data = training.make_data(config, experiments.SOURCES['sinusoid'])
    drawn = [(source.update_batch_size, source.query, source.meta_batch_size, source.seed) for source in data.values()]
    assert drawn == [(7, 8, 4, 3), (5, 9, 4, 3)] and list(data) == ['train', 'test']
    model = training.make_model(config, experiments.SOURCES['sinusoid'], threads=2)
    assert {name: getattr(model, name) for name in given} == given and model.clip is None
    assert model.pretrain_adam.learning_rate == model.metatrain_adam.learning_rate == 0.5
    np.testing.assert_array_equal(model.weights['w2'], model.network.init(3)['w2'])

    given = dict(num_filters=8, norm='layer_norm')
    config = resolve(datasource='miniimagenet', num_classes=3, update_batch_size=2, **given)
    model = training.make_model(config, experiments.SOURCES['miniimagenet'], threads=7)
    assert model.network == Convolutional(84, 3, 3, max_pool=True, flatten=True, **given)
    assert (model.clip, model.parallel_tasks) == (10, 7)
    np.testing.assert_allclose(model.loss_func(np.zeros([6, 3]), np.eye(3)[[0, 1, 2, 0, 1, 2]]), 3 * np.log(3))
    model = training.make_model(resolve(datasource='omniglot', precision='mixed'), experiments.SOURCES['omniglot'], 1)
    assert model.network == Convolutional(28, 1, compute_dtype='bfloat16') and model.clip is None


def test_the_home_directory_is_understood(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    config, _ = main.read_flags(['--datasource=omniglot', '--data_dir=~/data', '--logdir=~/logs'])
    assert (config.data_dir, config.logdir) == ('/home/me/data', '/home/me/logs')


@pytest.mark.parametrize('gpus', [[], ['GPU:0']])
def test_on_a_gpu_the_training_step_is_compiled(monkeypatch, gpus):
    monkeypatch.setattr(tf.config, 'list_physical_devices', lambda kind: gpus)
    model = training.make_model(resolve(datasource='omniglot'), experiments.SOURCES['omniglot'], threads=1)
    assert model.xla == bool(gpus)


def test_step_sizes_are_tuned_for_baselines_alone_and_only_where_none_is_given():
    for baseline in ('pretrain', 'oracle', *experiments.MULTITASK):
        assert resolve(baseline=baseline).update_lr_grid[::9] == [0.001, 1]
        assert resolve(baseline=baseline, update_lr=0.1).update_lr_grid is None
        assert resolve(baseline=baseline, update_lr_grid='0.1,0.3').update_lr_grid == [0.1, 0.3]
    assert resolve().update_lr_grid is None
    config = resolve(baseline='pretrain')
    assert (config.pretrain_iterations, config.metatrain_iterations) == (70000, 0)


@pytest.mark.parametrize(
    'datasource, name, refused, accepted',
    [
        ('omniglot', 'num_classes', [1], [2]),
        *[
            ('omniglot', name, [0, -1], [1])
            for name in ('meta_batch_size', 'update_batch_size', 'train_query', 'test_query', 'num_filters')
            + ('save_interval', 'num_test_tasks', 'threads', 'max_to_keep')
        ],
        ('omniglot', 'pretrain_iterations', [-1], [0]),
        ('point', 'metatrain_iterations', [-1], [1]),
        ('point', 'update_lr', [-0.1], [0]),
        ('point', 'test_update_lr', [-0.1], [0]),
        ('point', 'test_update_batch_size', [0], [1]),
        ('point', 'meta_step_size', [0.0, -1.0], [1e-9]),
        ('point', 'subsample_factor', [0.0, 1.1], [1.0]),
        ('point', 'gae_lambda', [-0.1, 1.1], [0.0, 1.0]),
        ('point', 'sampling_workers', [0], [1]),
        ('point', 'test_sampling_workers', [0], [1]),
        ('point', 'test_seed', [-1, 2**32], [0]),
        ('point', 'num_updates', [-1, 0, 101], [1, 100]),
        ('point', 'test_num_updates', [-1, 101], [0, 100]),
        ('omniglot', 'num_updates', [-1, 0, 101], [1, 100]),
        ('omniglot', 'test_num_updates', [-1, 0, 101], [1, 100]),
        ('omniglot', 'meta_lr', [0.0, -1.0], [1e-9]),
        ('omniglot', 'seed', [-1, 2**32], [0, 2**32 - 1]),
    ],
)
def test_limits_of_a_flag(datasource, name, refused, accepted):
    for value in refused:
        with pytest.raises(UserError, match=f'--{name}={value} '):
            resolve(datasource=datasource, **{name: value})
    for value in accepted:
        assert getattr(resolve(datasource=datasource, **{name: value}), name) == value


@pytest.mark.parametrize(
    'refused, accepted',
    [
        ('test_iter=1', 'test_iter=1 train=False'),
        ('test_iter=best', 'test_iter=best datasource=omniglot'),
        ('test_iter=newest', 'test_iter=-1'),
        ('baseline=pretrain datasource=omniglot', 'baseline=pretrain'),
        ('baseline=random', 'baseline=None'),
        ('baseline=context', 'baseline=context datasource=omniglot'),
        ('baseline=oracle datasource=omniglot', 'baseline=oracle update_lr=0.1 num_updates=2'),
        ('baseline=oracle stop_grad=True', 'baseline=context stop_grad=True datasource=omniglot'),
        ('stop_grad=True metatrain_iterations=0 pretrain_iterations=9', 'stop_grad=True pretrain_iterations=9'),
        ('datasource=omniglot conv=False num_filters=8', 'datasource=omniglot num_filters=8'),
        ('baseline=multitask_l2 meta_batch_size=5', 'baseline=pretrain meta_batch_size=5'),
        ('baseline=multitask_l2 datasource=omniglot', 'baseline=multitask_l2'),
        ('baseline=multitask_l2 datasource=point', 'baseline=pretrain datasource=point'),
        ('baseline=multitask_l2 pretrain_iterations=5', 'baseline=pretrain pretrain_iterations=5'),
        ('baseline=multitask_l2 init_from=a.npz', 'baseline=multitask_l2 init_from=a.npz train=False'),
        ('baseline=multitask_l2 learn_update_lr=True', 'baseline=context learn_update_lr=True datasource=omniglot'),
        ('update_lr_grid=0.1,0', 'update_lr_grid=0.1,0.2'),
        ('update_lr_grid=0.1,x', 'update_lr_grid=1e-3'),
        ('update_lr_grid=0.1 datasource=omniglot', 'update_lr=0.1 datasource=omniglot'),
        ('max_pool=True', 'max_pool=True datasource=omniglot'),
        ('hidden=8', 'hidden=8 datasource=table data_dir=d'),
        ('predict=a.csv', 'init_from=a.npz'),
        ('adapt=a.csv', 'init_from=a.npz'),
        ('datasource=table data_dir=d baseline=oracle', 'datasource=table data_dir=d baseline=pretrain test_iter=best'),
        ('datasource=table data_dir=d hidden=0', 'datasource=table data_dir=d hidden=1,2'),
        ('datasource=table data_dir=d hidden=x', 'datasource=table data_dir=d x_columns=x'),
        ('precision=mixed', 'precision=mixed datasource=omniglot'),
        ('precision=mixed datasource=omniglot conv=False', 'precision=mixed datasource=miniimagenet'),
        ('max_pool=True datasource=omniglot conv=False', 'max_pool=False datasource=omniglot conv=False'),
        ('metatrain_iterations=0', 'metatrain_iterations=0 pretrain_iterations=1'),
        ('metatrain_iterations=0', 'metatrain_iterations=0 train=False'),
        ('learn_update_lr=True metatrain_iterations=0 pretrain_iterations=1', 'learn_update_lr=True'),
        (
            'learn_update_lr=True train=False train_update_lr=0.01 update_lr=5',
            'learn_update_lr=True train=False train_update_lr=0.02 update_lr=0.02',
        ),
        (
            'learn_update_lr=True train=False init_from=a.npz update_lr=5',
            'learn_update_lr=True train=False init_from=a.npz',
        ),
        ('distribute=mirrored train=False', 'distribute=mirrored'),
        ('threads=1000000', 'threads=2'),
        ('init_from=', 'init_from=a.npz'),
        ('logdir=', 'logdir=a'),
        ('train_update_batch_size=5', 'train_update_batch_size=5 train=False'),
        ('train_update_batch_size=5', 'train_update_batch_size=5 update_batch_size=5'),
        ('train_update_lr=0.1', 'train_update_lr=0.1 train=False'),
        ('train_update_lr=0.1', 'train_update_lr=0.1 update_lr=0.1'),
        ('num_filters=8 datasource=point', 'num_filters=8 datasource=omniglot'),
        ('norm=None datasource=point', 'norm=None'),
        ('num_classes=20', 'num_classes=20 datasource=omniglot'),
        ('conv=True datasource=table data_dir=d', 'conv=True datasource=omniglot'),
        ('data_dir=d', 'data_dir=d datasource=omniglot'),
        ('test_set=True', 'test_set=True datasource=omniglot'),
        ('init_from=a.npz train=False test_iter=5', 'init_from=a.npz train=False'),
        ('init_from=a.npz train=False test_iter=best datasource=point', 'train=False test_iter=best datasource=point'),
        ('update_lr=inf', 'update_lr=9'),
        ('meta_lr=inf', 'meta_lr=9'),
        ('meta_step_size=inf datasource=point', 'meta_step_size=9 datasource=point'),
        ('update_lr_grid=0.1,inf', 'update_lr_grid=0.1,9'),
        *[
            (f'{flag} train=False', f'{flag} train=False datasource=point')
            for flag in ('test_update_lr=1', 'gae_lambda=0.9', 'likelihood_ratio=True', 'hvp=exact')
            + ('sampling_workers=8', 'video=a.gif')
        ],
        *[
            (f'datasource=point {refused}', f'datasource=point {accepted}')
            for refused, accepted in (
                ('num_updates=0', 'num_updates=0 baseline=pretrain'),
                ('num_updates=0 baseline=context', 'num_updates=2 baseline=context'),
                ('baseline=pretrain update_lr=1', 'baseline=pretrain test_update_lr=1'),
                ('baseline=pretrain num_updates=1', 'baseline=context num_updates=1'),
                ('baseline=oracle learn_update_lr=True', 'baseline=oracle learn_update_lr=False'),
                ('baseline=random stop_grad=True', 'baseline=random stop_grad=False'),
                ('baseline=oracle test_num_updates=1', 'baseline=oracle test_num_updates=0'),
                ('baseline=oracle test_update_lr=1', 'baseline=random test_update_lr=1'),
                ('baseline=Random metatrain_iterations=1', 'baseline=Random'),
                ('baseline=random test_iter=1 train=False', 'baseline=random train=False'),
                ('baseline=random init_from=x.npz', 'baseline=random'),
                ('metatrain_iterations=0', 'metatrain_iterations=0 train=False'),
                ('kl_constrain_step=-2', 'kl_constrain_step=-1'),
                ('kl_constrain_step=0 learn_update_lr=True', 'kl_constrain_step=1 learn_update_lr=True'),
                ('kl_constrain_step=0 learn_update_lr=True', 'kl_constrain_step=0 learn_update_lr=True train=False'),
                (
                    'update_lr=1 learn_update_lr=True train=False init_from=a.npz',
                    'update_lr=1 learn_update_lr=True train=False',
                ),
                ('hvp=exact baseline=context', 'baseline=context'),
                ('meta_lr=0.1', 'meta_lr=0.1 meta_optimizer=adam'),
                ('meta_optimizer=adam baseline=random', 'meta_optimizer=adam baseline=oracle'),
                ('baseline=pretrain hvp=exact', 'baseline=pretrain hvp=exact meta_optimizer=trpo'),
                *[
                    (f'{flag} meta_optimizer=adam', flag)
                    for flag in ('meta_step_size=0.1', 'kl_constrain_step=0', 'hvp=exact', 'subsample_factor=0.5')
                ],
                ('likelihood_ratio=True stop_grad=True', 'likelihood_ratio=True'),
                ('baseline=pretrain likelihood_ratio=True', 'baseline=context likelihood_ratio=True'),
                ('kl_constrain_step=2', 'kl_constrain_step=2 num_updates=2'),
                ('video=a.mp4 train=False', 'video=a.gif train=False'),
                ('video=a.gif', 'video=a.gif train=False'),
            )
        ],
    ],
)
def test_flags_that_contradict_each_other(refused, accepted):
    """Refused, and what is next to it and makes sense is not."""
    main.read_flags([f'--{flag}' for flag in accepted.split()])
    with pytest.raises(UserError) as error:
        main.read_flags([f'--{flag}' for flag in refused.split()])
    assert any(f'--{flag.split("=")[0]}' in str(error.value) for flag in refused.split())
