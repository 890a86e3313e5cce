"""The paper's setting for every experiment, in one table, and the data sources that it is about.

main.py fills the flags that the user left unset from `PAPER`; no other place holds such values. "A.1" is the
paper's appendix, "maml: main.py:49" the original repository (github.com/cbfinn/maml at a7f45f1), and "maml_rl:" the
original's other one (github.com/cbfinn/maml_rl at 9c8e2eb): its scripts are in maml_examples/, the rest of what is
named here in sandbox/rocky/tf/.
"""

import dataclasses
import json
import os

from runtime import UserError, devices


@dataclasses.dataclass(frozen=True)
class Source:
    """What a data source is, whatever the experiment; img_size 0 means that it is not made of images."""

    dim_hidden: tuple  # hidden layers of its fully connected network
    rl: bool = False  # reinforcement learning, on the family of this name in rl/envs, or supervised
    dim_input: int = 0  # of the supervised ones
    dim_output: int = 1  # of regression
    img_size: int = 0
    channels: int = 0
    flatten: bool = False  # head of the conv net: flatten, or mean over positions (maml: maml.py:203,223)
    clip: float | None = None  # element-wise limit of the meta-gradient (maml: maml.py:147-149)
    print_interval: int = 100  # maml: main.py:75-80
    block: int = 1  # outer steps a call of the compiled training function
    folder: str = ''  # below data/
    depth: int = 1  # of the class folders
    split: tuple | None = None  # shares of training, validation and test of one set of classes; None: folders of these
    full_size: tuple = ()  # classes and images of each in the training, validation and test folders; (): any
    drawings: bool = False  # ink on paper: it becomes 255, and classes are turned (maml: data_generator.py:114-118,138)
    own: bool = False  # images of the user's, of any format and size


SOURCES = {
    'sinusoid': Source(dim_input=1, dim_hidden=(40, 40), print_interval=1000, block=100),
    # Tables of the user's own, which say the sizes that are left out here (regression.py).
    'table': Source(dim_hidden=(), print_interval=1000, block=100),
    'omniglot': Source(
        dim_input=28 * 28,
        dim_hidden=(256, 128, 64, 64),
        img_size=28,
        channels=1,
        folder='omniglot_resized',
        depth=2,
        split=(1100, 100, 423),  # characters (maml: data_generator.py:41-54)
        full_size=((1623, 20),) * 3,
        drawings=True,
    ),
    'miniimagenet': Source(
        dim_input=84 * 84 * 3,
        dim_hidden=(256, 128, 64, 64),
        img_size=84,
        channels=3,
        flatten=True,
        clip=10.0,
        folder='miniImagenet',
        full_size=((64, 600), (16, 600), (20, 600)),
    ),
    # The user's own; size and channels are what flags or images say (source_of): here only that there is a size.
    'images': Source(dim_hidden=(256, 128, 64, 64), img_size=84, flatten=True, clip=10.0, own=True),
    **dict.fromkeys(
        ['point', 'point_squared', 'cheetah_vel', 'cheetah_dir', 'ant_vel', 'ant_dir'],
        Source(rl=True, dim_hidden=(100, 100)),
    ),  # section 5.3; more of them in rl/envs/__init__.py
}

MULTITASK = ('multitask_no_reg', 'multitask_l2', 'multitask_mean_theta')  # baselines of Table 2 (multitask.py)

STEP_SIZES = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]  # that a test tries

# (where the row applies, the flags that it sets, where they come from); a later row wins over an earlier one.
PAPER = [
    *[
        (
            {'datasource': 'sinusoid', 'baseline': baseline, 'update_lr': None},
            dict(update_lr_grid=STEP_SIZES),
            'section 5.1: tuned automatically (the grid, and that it holds for the oracle: our choice)',
        )
        for baseline in ('pretrain', 'oracle', *MULTITASK)
    ],
    (
        {'datasource': 'table', 'baseline': 'pretrain', 'update_lr': None},
        dict(update_lr_grid=STEP_SIZES),
        'our choice: as for sinusoids',
    ),
    (
        {'datasource': 'table'},
        dict(
            update_batch_size=10,
            num_updates=1,
            update_lr=0.01,
            meta_batch_size=25,
            metatrain_iterations=20000,
            norm='None',
            hidden=[40, 40],
            test_num_updates=10,
            paper_steps=[],
        ),
        'our choice: as for sinusoids, but fewer iterations',
    ),
    ({'rl': False}, dict(num_classes=5, pretrain_iterations=0, meta_lr=0.001), 'maml: main.py:41-62'),
    ({'rl': False}, dict(num_filters=64, conv=True, max_pool=False), 'maml: main.py:41-62'),
    ({'rl': False}, dict(save_interval=1000, num_test_tasks=600), 'maml: main.py:74,163'),
    ({'rl': False}, dict(test_iter=-1), 'maml: main.py:67'),
    ({'datasource': 'sinusoid'}, dict(update_batch_size=10, num_updates=1, update_lr=0.01), 'section 5.1'),
    (
        {'datasource': 'sinusoid'},
        dict(norm='None', test_num_updates=10, paper_steps=[1, 5, 10]),
        'section 5.1, Table 2',
    ),
    ({'datasource': 'sinusoid'}, dict(meta_batch_size=25, metatrain_iterations=70000), 'maml: main.py:4,49'),
    *[({'baseline': baseline}, dict(metatrain_iterations=500), 'appendix C.1: regressors') for baseline in MULTITASK],
    *[({'baseline': baseline}, dict(meta_lr=0.01), 'our choice: Adam of a regressor') for baseline in MULTITASK],
    *[({'baseline': baseline}, dict(save_interval=50), 'our choice: regressors') for baseline in MULTITASK],
    ({'datasource': 'omniglot'}, dict(update_batch_size=1, num_updates=1, update_lr=0.4), 'A.1, 5-way'),
    ({'datasource': 'omniglot'}, dict(meta_batch_size=32, metatrain_iterations=60000), 'A.1, 5-way'),
    ({'datasource': 'omniglot'}, dict(norm='batch_norm'), 'section 5.2'),
    ({'datasource': 'omniglot'}, dict(test_num_updates=10), 'maml: main.py:230'),
    ({'datasource': 'omniglot'}, dict(paper_steps=[3]), 'A.1, 5-way'),
    ({'datasource': 'omniglot', 'num_classes': 20}, dict(num_updates=5, update_lr=0.1), 'A.1, 20-way'),
    ({'datasource': 'omniglot', 'num_classes': 20}, dict(meta_batch_size=16, paper_steps=[5]), 'A.1, 20-way'),
    *[
        row
        for source, origin in (('miniimagenet', 'A.1'), ('images', 'our choice: as MiniImagenet, A.1'))
        for row in (
            ({'datasource': source}, dict(update_batch_size=1, num_updates=5, update_lr=0.01), origin),
            ({'datasource': source}, dict(meta_batch_size=4, metatrain_iterations=60000), origin),
            ({'datasource': source}, dict(norm='batch_norm'), origin.replace('A.1', 'section 5.2')),
            ({'datasource': source}, dict(test_num_updates=10, paper_steps=[10], train_query=15), origin),
            ({'datasource': source}, dict(num_filters=32, max_pool=True), origin),
            ({'datasource': source, 'update_batch_size': 5}, dict(meta_batch_size=2), f'{origin}, 5-shot'),
        )
    ],
    ({'datasource': 'images'}, dict(paper_steps=[]), 'there is no paper'),
    ({'conv': False}, dict(max_pool=False), 'section 5.2'),
    # Reinforcement learning. update_batch_size counts rollouts of a task in each sampling step of training,
    # test_update_batch_size in a test; update_lr is alpha in training, test_update_lr that of the first test step.
    ({'rl': True}, dict(update_batch_size=20, num_updates=1, update_lr=0.1, meta_batch_size=40), 'section 5.3, A.2'),
    ({'rl': True}, dict(metatrain_iterations=500), 'A.2 (released: 800)'),
    ({'rl': True}, dict(meta_optimizer='trpo'), 'section 5.3'),
    ({'rl': True}, dict(test_iter='best'), 'A.2'),
    (
        {'rl': True},
        dict(meta_step_size=0.01, kl_constrain_step=-1, hvp='finite_difference', sampling_workers=8),
        'maml_rl: cluster_maml_trpo_*.py',
    ),
    ({'rl': True}, dict(subsample_factor=1.0), 'maml_rl: conjugate_gradient_optimizer.py:129'),
    ({'rl': True}, dict(gae_lambda=1.0), 'maml_rl: batch_maml_polopt.py'),
    (
        {'rl': True},
        dict(
            nonlinearity='relu',
            test_update_batch_size=20,
            test_sampling_workers=4,
            test_num_updates=3,
            num_test_tasks=40,
            test_seed=1,
        ),
        'maml_rl: test_maml_*.py',
    ),
    ({'rl': True}, dict(save_interval=5), 'our choice'),
    *[
        ({'datasource': point}, settings, origin)
        for point in ('point', 'point_squared')
        for settings, origin in (
            (dict(update_lr=0.5), 'maml_rl: maml_trpo_point.py, which made Figure 4 (the paper: 0.1)'),
            (dict(metatrain_iterations=100), 'maml_rl: maml_trpo_point.py (A.2: at most 500)'),
            (dict(meta_batch_size=20), 'A.2 (released: 40)'),
            (dict(sampling_workers=1), 'maml_rl: maml_trpo_point.py'),
            (dict(test_iter=-1), 'maml_rl: maml_trpo_point.py:62, which made the figures (A.2: the best)'),
            (dict(test_sampling_workers=1), 'our choice: as in training (released: 4)'),
            (dict(test_num_updates=4, test_update_batch_size=40), 'section 5.3'),
        )
    ],
    *[
        ({'datasource': point, 'baseline': 'pretrain'}, dict(meta_optimizer='adam'), 'maml_rl: maml_npo.py:31-36')
        for point in ('point', 'point_squared')
    ],
    ({'meta_optimizer': 'adam'}, dict(meta_lr=0.001), 'maml_rl: first_order_optimizer.py:48,50'),
    ({'datasource': 'cheetah_vel'}, dict(update_batch_size=20), 'section 5.3 (the policy of Figure 5: 10)'),
    *[
        ({'datasource': 'cheetah_dir', 'baseline': baseline}, dict(meta_step_size=0.02), origin)
        for baseline, origin in (
            (None, 'maml_rl: test_maml_cheetah_direc.py, the policy of Figure 5 (elsewhere: 0.01)'),
            ('context', 'our choice: as without a context vector'),
        )
    ],
    ({'datasource': 'ant_dir'}, dict(update_batch_size=40, test_update_batch_size=40), 'section 5.3'),
    ({'datasource': 'ant_dir'}, dict(test_seed=2), 'maml_rl: test_maml_ant_direc.py'),
    # Its baselines: one policy for all tasks, the same for a policy that observes the task, and no training at all.
    ({'rl': True, 'baseline': 'pretrain'}, dict(num_updates=0), 'section 5.3'),
    ({'rl': True, 'baseline': 'oracle'}, dict(num_updates=0, test_num_updates=0), 'section 5.3'),
    ({'rl': True, 'baseline': 'random'}, dict(num_updates=0, metatrain_iterations=0), 'section 5.3'),
    (
        {'rl': True, 'baseline': 'random'},
        dict(random_policies=30),
        'our choice: one policy is no estimate (released: 1)',
    ),
    *[
        (
            {'datasource': source, 'baseline': baseline},
            dict(test_update_lr=step_size),
            f'maml_rl: test_maml_{script}.py',
        )
        for source, script, pretrain, random in (
            ('point', 'point', 0.5, 0.5),
            ('point_squared', 'point', 0.5, 0.5),
            ('cheetah_vel', 'cheetah', 0.02, 0.1),
            ('cheetah_dir', 'cheetah_direc', 0.2, 0.5),
            ('ant_vel', 'ant', 0.2, 1.0),
            ('ant_dir', 'ant_direc', 0.2, 1.0),
        )
        for baseline, step_size in (('pretrain', pretrain), ('random', random))
    ],
    *[
        ({'datasource': point, 'baseline': 'random'}, dict(nonlinearity='tanh'), 'maml_rl: test_maml_point.py')
        for point in ('point', 'point_squared')
    ],
]


def resolve(given):
    """Complete the flags that the user gave with the paper's settings.

    `given` maps flag names to values, None where unset. Returns (values, origins): every flag's value, and for
    those that were unset the source of the value.
    """
    values, origins = dict(given), {}
    rl = SOURCES[given['datasource']].rl
    trained_with = {'rl': rl}
    if given.get('train_update_batch_size', -1) != -1:  # a test with another K: the run has the settings of its own
        trained_with['update_batch_size'] = given['train_update_batch_size']
    for where, settings, origin in PAPER:
        if all({**values, **trained_with}.get(flag) == value for flag, value in where.items()):
            for flag, value in settings.items():
                if given.get(flag) is None:
                    values[flag], origins[flag] = value, origin
    values['logdir'] = values['logdir'] or f'logs/{values["datasource"]}'
    if rl:
        if values.get('test_update_lr') is None and not values['learn_update_lr']:
            values['test_update_lr'], origins['test_update_lr'] = values['update_lr'], 'section 5.3: as in training'
        return values, origins
    for flag, default in (('train_update_batch_size', 'update_batch_size'), ('train_update_lr', 'update_lr')):
        if values[flag] == -1:
            values[flag] = values[default]  # maml: main.py:302-305
    for flag in ('train_query', 'test_query'):  # K a class (maml: main.py:247-251)
        if values.get(flag) is None:
            values[flag], origins[flag] = values['update_batch_size'], 'maml: main.py:247-251: K'
    if values['baseline'] in ('oracle', 'pretrain'):  # maml: main.py:257-259
        values['pretrain_iterations'] += values['metatrain_iterations']
        values['metatrain_iterations'] = 0
    return values, origins


def source_of(config):
    """Return the Source of these settings, which say what the user's own images are."""
    source = SOURCES[config.datasource]
    if not source.own:
        return source
    size, channels = config.img_size, config.channels
    split = config.split and tuple(config.split)
    return dataclasses.replace(source, img_size=size, channels=channels, dim_input=size**2 * channels, split=split)


# What runs were made with whose config.json and tests do not say, because the setting is newer.
BEFORE = {
    **{'sampling_workers': 1, 'hvp': 'finite_difference', 'subsample_factor': 1.0, 'gae_lambda': 1.0},
    **{'likelihood_ratio': False, 'precision': 'float32', 'meta_optimizer': 'trpo'},
}

TRUST_REGION = ('meta_step_size', 'kl_constrain_step', 'hvp', 'subsample_factor')  # settings of TRPO alone

# What weights that are to be adapted need to be used as they were trained.
OF_WEIGHTS = (
    *('datasource', 'num_classes', 'baseline', 'img_size', 'channels', 'norm', 'num_filters', 'conv', 'max_pool'),
    *('update_lr', 'num_updates', 'learn_update_lr', 'test_num_updates', 'hidden', 'precision'),
)


def read_config(folder):
    """Return the settings of the run in `folder`, from its config.json; UserError where they cannot be read."""
    path = os.path.join(folder, 'config.json')
    try:
        with open(path) as file:
            return BEFORE | dict(json.load(file)['settings'])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path}, the settings of the run, cannot be read ({error}): bring it back, take other weights, '
            'choose another --logdir, or start anew with --resume=False'
        ) from None


def config_beside(weights):
    """Return the settings of the run that made a checkpoint; {} where there is no config.json beside it."""
    folder = os.path.dirname(weights)
    return read_config(folder) if os.path.exists(os.path.join(folder, 'config.json')) else {}


def settings_of(weights):
    """Return OF_WEIGHTS of a checkpoint, as far as they are known."""
    settings = config_beside(weights)
    return {name: settings[name] for name in OF_WEIGHTS if name in settings}


def print_settings(config, origins, threads):
    """Print the device and the settings in use, a line each, with the source of those that the user left unset."""
    print(f'on {devices(threads)}')
    for name, value in sorted(vars(config).items()):
        if value is not None and name not in unused(config):
            print(f'  {name}={value}' + (f'   ({origins[name]})' if name in origins else ''))
    if any(origin.startswith('maml') for origin in origins.values()):
        print('  (maml, maml_rl: files of the original, github.com/cbfinn/maml and /maml_rl)')


def unused(config):
    """Return the names of settings that such a run does not read."""
    source = SOURCES[config.datasource]
    names = {'paper_steps'} if config.datasource in ('images', 'table') else set()
    if not source.rl and not source.img_size:
        names |= {'num_classes', 'conv', 'max_pool', 'num_filters', 'precision'}
        names |= {'data_dir', 'test_set'} if config.datasource == 'sinusoid' else set()
    elif not source.rl and not config.conv:
        names |= {'max_pool', 'num_filters', 'precision'}
    if source.rl and not config.num_updates:
        names |= {'num_updates', 'update_lr', 'learn_update_lr', 'stop_grad', 'likelihood_ratio', 'kl_constrain_step'}
    if source.rl and config.meta_optimizer == 'adam':
        names |= set(TRUST_REGION)
    if config.train and config.baseline != 'random':
        names |= {'test_iter'} if config.test_iter == -1 and not source.rl else set()
        return names | {'train_update_batch_size', 'train_update_lr'}
    names |= {'pretrain_iterations', 'metatrain_iterations', 'meta_lr', 'train_query', 'save_interval', 'max_to_keep'}
    names |= {'meta_batch_size', 'likelihood_ratio', 'meta_optimizer', *TRUST_REGION}
    names |= {'sampling_workers', 'update_batch_size'} if source.rl else set()
    names |= {'test_iter'} if config.init_from or config.baseline == 'random' else set()
    return names | {'resume'}
