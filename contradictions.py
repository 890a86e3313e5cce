"""What main.py refuses: values of a flag that make no sense, and settings that make none together."""

import math
import types

import experiments
from runtime import UserError

# Flags, whether a value will do, and what to give instead.
LIMITS = [
    (['num_classes'], lambda value: value >= 2, '2 or more'),
    (
        ['meta_batch_size', 'update_batch_size', 'train_query', 'test_query', 'test_update_batch_size', 'num_filters']
        + ['save_interval', 'num_test_tasks', 'sampling_workers', 'test_sampling_workers']
        + ['random_policies', 'max_to_keep'],
        lambda value: value >= 1,
        '1 or more',
    ),
    (
        ['pretrain_iterations', 'metatrain_iterations', 'update_lr', 'test_update_lr'],
        lambda value: 0 <= value < math.inf,
        '0 or more',
    ),
    (['threads'], lambda value: 1 <= value <= 1024, '1 to 1024'),
    (['num_updates', 'test_num_updates'], lambda value: 0 <= value <= 100, '0 to 100 (each is compiled on its own)'),
    (['meta_lr', 'meta_step_size'], lambda value: 0 < value < math.inf, 'more than 0'),
    (['subsample_factor'], lambda value: 0 < value <= 1, 'more than 0, at most 1 (all tasks)'),
    (['gae_lambda'], lambda value: 0 <= value <= 1, '0 to 1'),
    (['update_lr_grid'], lambda values: all(0 < value < math.inf for value in values), 'numbers above 0'),
    (['hidden'], lambda values: min(values) >= 1, 'sizes of layers, as 40,40'),
    (['img_size'], lambda value: 2 <= value <= 1024, '2 to 1024'),
    (['channels'], lambda value: value in (1, 3), '1 or 3'),
    (
        ['split'],
        lambda values: len(values) == 3 and 0 < values[0] < math.inf and all(0 <= value < math.inf for value in values),
        'shares of training, validation and test, as 0.6,0.2,0.2',
    ),
    (['seed', 'test_seed'], lambda value: 0 <= value < 2**32, '0 or more, below 2 ** 32'),
]


def without(names, why, applies):
    """Return the rows of CONTRADICTIONS for flags that must be left alone, for a reason, where it `applies`."""
    return [
        (lambda c, name=name: applies(c) and name in c.given and getattr(c, name), f'{why}: drop --{name}')
        for name in names
    ]


# By kind of learning what must not be, and what to do about it. c: all settings; c.given: names of the flags that the
# user set; c.image: whether the tasks are made of images.
CONTRADICTIONS = {
    'both': [
        (
            lambda c: c.train and c.test_iter not in (-1, 'best'),
            '--test_iter={test_iter} names a checkpoint to test: add --train=False',
        ),
        (
            lambda c: c.init_from and not c.train and 'test_iter' in c.given,
            '--init_from and --test_iter both name a checkpoint to test: drop one of them',
        ),
    ],
    'supervised': [
        (
            lambda c: c.test_iter == 'best' and c.datasource == 'sinusoid',
            '--test_iter=best needs a validation set, which sinusoids have not: drop it',
        ),
        (lambda c: c.num_updates == 0, '--num_updates=0 makes no sense: give 1 or more'),
        (lambda c: c.test_num_updates == 0, '--test_num_updates=0 makes no sense: give 1 or more'),
        (
            lambda c: c.baseline == 'random' or (c.baseline == 'context' and not c.image),
            '--baseline={baseline} is not for --datasource={datasource}: drop it or choose another --datasource',
        ),
        (
            lambda c: c.baseline not in (None, 'context') and c.image,
            '--baseline={baseline} needs sinusoids: drop it (to pretrain on images, set --pretrain_iterations) or use '
            '--datasource=sinusoid',
        ),
        (
            lambda c: c.baseline not in (None, 'pretrain') and c.datasource == 'table',
            '--baseline={baseline} is not for tables: drop it, or use --baseline=pretrain',
        ),
        *without(
            ['num_classes', 'num_filters', 'conv'], '--datasource={datasource} has no images', lambda c: not c.image
        ),
        *without(['data_dir', 'test_set'], 'sinusoids are drawn, not read', lambda c: c.datasource == 'sinusoid'),
        *without(['x_columns', 'y_columns', 'hidden'], '--datasource={datasource}', lambda c: c.datasource != 'table'),
        *without(
            ['pretrain_iterations', 'init_from', 'learn_update_lr', 'stop_grad', 'distribute']
            + ['num_updates', 'meta_batch_size', 'train_query'],
            '--baseline={baseline} trains each network on one task',
            lambda c: c.train and c.baseline in experiments.MULTITASK,
        ),
        *without(
            ['stop_grad'],
            '--baseline={baseline} is trained without a meta-gradient',
            lambda c: c.baseline in ('pretrain', 'oracle'),
        ),
        *without(
            ['stop_grad'],
            '--metatrain_iterations=0 leaves pretraining alone, which has no meta-gradient',
            lambda c: c.train and c.metatrain_iterations == 0,
        ),
        *without(['num_filters'], '--conv=False has no filters', lambda c: c.image and not c.conv),
        (
            lambda c: (
                c.learn_update_lr
                and not c.train
                and ('update_lr' in c.given if c.init_from else c.update_lr != c.train_update_lr)
            ),
            '--update_lr={update_lr} is not used, for the weights bring their learned step sizes: drop it',
        ),
        (
            lambda c: c.distribute and not c.train,
            '--distribute divides a training, and a test is done by one process: drop it',
        ),
        *without(
            ['learn_update_lr'],
            '--baseline={baseline} is trained without an inner update',
            lambda c: c.baseline in ('pretrain', 'oracle', *experiments.MULTITASK),
        ),
        (
            lambda c: c.train and c.learn_update_lr and c.metatrain_iterations == 0,
            '--learn_update_lr needs meta-training: drop it or set --metatrain_iterations',
        ),
        (
            lambda c: c.update_lr_grid and (c.image or c.learn_update_lr),
            '--update_lr_grid is for tests of a fixed step size on sinusoids and tables: drop it',
        ),
        *without(
            ['img_size', 'channels', 'split'],
            'images are resized and split with --datasource=images alone',
            lambda c: c.datasource != 'images',
        ),
        *without(['predict', 'save_adapted'], 'without --adapt there is nothing to adapt to', lambda c: not c.adapt),
        (
            lambda c: c.adapt and c.datasource == 'sinusoid',
            '--adapt is for images and tables, but the weights of --init_from={init_from} are for '
            '--datasource={datasource}',
        ),
        (
            lambda c: c.adapt and not (c.predict or c.save_adapted),
            '--adapt alone leaves nothing behind: add --predict or --save_adapted',
        ),
        (
            lambda c: c.adapt and c.datasource == 'images' and not (c.img_size and c.channels),
            '--adapt needs to know what images --init_from={init_from} is for: give --img_size and --channels',
        ),
        (
            lambda c: c.save_adapted and not c.save_adapted.endswith('.npz'),
            '--save_adapted={save_adapted} is no .npz: give a name that ends so',
        ),
        (
            lambda c: c.max_pool and not (c.image and c.conv),
            '--max_pool is for convolutional networks on images: drop it',
        ),
        (
            lambda c: c.precision == 'mixed' and not (c.image and c.conv),
            '--precision=mixed is for convolutional networks on images: drop it',
        ),
        (
            lambda c: c.train and c.pretrain_iterations + c.metatrain_iterations == 0,
            'there is nothing to train: set --metatrain_iterations or --pretrain_iterations',
        ),
        (
            lambda c: c.train and c.train_update_batch_size != c.update_batch_size,
            '--train_update_batch_size={train_update_batch_size} is the K of a run that is there: add --train=False to '
            'test it with another, or train with --update_batch_size alone',
        ),
        (
            lambda c: c.train and c.train_update_lr != c.update_lr,
            '--train_update_lr={train_update_lr} is the alpha of a run that is there: add --train=False to test it '
            'with another, or train with --update_lr alone',
        ),
    ],
    'rl': [
        (
            lambda c: c.baseline in experiments.MULTITASK,
            '--baseline={baseline} needs sinusoids: drop it or use --datasource=sinusoid',
        ),
        (
            lambda c: c.baseline in (None, 'context') and c.num_updates == 0,
            '--num_updates=0 is no MAML: use --baseline=pretrain',
        ),
        (
            lambda c: c.baseline not in (None, 'context') and 'update_lr' in c.given,
            '--baseline={baseline} is trained without an inner update: drop --update_lr or set --test_update_lr',
        ),
        *without(
            ['num_updates', 'learn_update_lr', 'stop_grad', 'likelihood_ratio'],
            '--baseline={baseline} is trained without an inner update',
            lambda c: c.baseline not in (None, 'context'),
        ),
        *without(
            ['test_num_updates', 'test_update_lr'],
            '--baseline=oracle takes no inner update',
            lambda c: c.baseline == 'oracle',
        ),
        (
            lambda c: c.baseline == 'random' and (c.metatrain_iterations or 'test_iter' in c.given),
            '--baseline=random is not trained: drop --metatrain_iterations and --test_iter',
        ),
        (
            lambda c: c.train and c.baseline != 'random' and c.metatrain_iterations == 0,
            'there is nothing to train: set --metatrain_iterations',
        ),
        (
            lambda c: not -1 <= c.kl_constrain_step <= c.num_updates,
            '--kl_constrain_step={kl_constrain_step} names no policy: give -1 (the adapted one), or a step up to '
            '--num_updates={num_updates}',
        ),
        (
            lambda c: c.train and c.learn_update_lr and 0 <= c.kl_constrain_step < c.num_updates,
            '--kl_constrain_step={kl_constrain_step} leaves the step sizes learned for that step and later ones '
            'without a limit: drop it or --learn_update_lr',
        ),
        (
            lambda c: c.learn_update_lr and not c.train and c.init_from and 'update_lr' in c.given,
            '--update_lr={update_lr} is not used, for the weights bring their learned step sizes: drop it',
        ),
        *without(['meta_optimizer', 'meta_lr'], '--baseline=random is not trained', lambda c: c.baseline == 'random'),
        *[
            (
                lambda c, name=name: c.meta_optimizer == 'adam' and name in c.given,
                f'--{name} is of the trust region, which --meta_optimizer=adam has not: drop it, or use '
                '--meta_optimizer=trpo',
            )
            for name in experiments.TRUST_REGION
        ],
        (
            lambda c: c.meta_optimizer == 'trpo' and 'meta_lr' in c.given,
            "--meta_lr is Adam's step size: drop it, or use --meta_optimizer=adam",
        ),
        (lambda c: c.hvp == 'exact' and c.baseline == 'context', '--hvp=exact is not for --baseline=context: drop it'),
        (
            lambda c: c.likelihood_ratio and c.stop_grad,
            '--likelihood_ratio is about the second derivatives that --stop_grad leaves out: drop one of them',
        ),
        (lambda c: c.baseline == 'random' and c.init_from, '--baseline=random is untrained: drop it or --init_from'),
        (lambda c: c.baseline != 'random' and c.random_policies, '--random_policies is for --baseline=random: drop it'),
        (lambda c: c.video and not c.video.endswith('.gif'), '--video={video} is no .gif: give a name that ends so'),
        (lambda c: c.video and c.train, '--video is made by a test: add --train=False'),
    ],
}


def check(values, given, source):
    """Refuse, by UserError, settings that make no sense, alone or together."""
    for names, will_do, wanted in LIMITS:
        for name in names:
            if values.get(name) is not None and not will_do(values[name]):
                raise UserError(f'--{name}={values[name]} makes no sense: give {wanted}')
    settings = types.SimpleNamespace(**values, given=given, image=source.img_size > 0)
    for is_wrong, message in CONTRADICTIONS['both'] + CONTRADICTIONS['rl' if source.rl else 'supervised']:
        if is_wrong(settings):
            raise UserError(message.format(**values))
