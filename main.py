"""Meta-train and evaluate MAML (Finn, Abbeel, Levine, ICML 2017).

    python main.py                                            10-shot sinusoid, then its evaluation
    python main.py --datasource=omniglot --num_classes=5 --update_batch_size=1        a cell of Table 1
    python main.py --datasource=miniimagenet --update_batch_size=1 --train=False --test_set=True
    python main.py --datasource=cheetah_dir                   reinforcement learning: a curve of Figure 5
    python main.py --datasource=images --data_dir=FOLDER      images of your own
    python main.py --datasource=table --data_dir=FOLDER       tables of your own, to regress
    python main.py --adapt=FOLDER --predict=FOLDER --init_from=WEIGHTS      a trained model on new classes
    python main.py --adapt=TABLE --predict=TABLE --init_from=WEIGHTS        or on a new table

A flag that is left unset takes the paper's value for that experiment (experiments.py). README.md has a line for
each result of the paper. This file holds the flags and what is done with them; the algorithm is in maml.py, and
for reinforcement learning in rl/.
"""

import copy
import functools
import os
import sys
import textwrap
import types

import contradictions
import experiments
import naming
import runtime
from runtime import UserError

with runtime.in_one_line():  # the first of what must be installed
    from absl import flags

FLAGS = flags.FlagValues()
boolean, enum, integer, number, text, several = (
    functools.partial(getattr(flags, f'DEFINE_{kind}'), flag_values=FLAGS)
    for kind in ('bool', 'enum', 'integer', 'float', 'string', 'list')
)

# Flags of all data sources
enum('datasource', 'sinusoid', list(experiments.SOURCES), 'where the tasks come from.')
enum(
    'baseline',
    None,
    ['oracle', 'pretrain', 'random', 'context', *experiments.MULTITASK, 'None'],
    'oracle: the task id is part of the input; pretrain: one model for all tasks (both: sinusoid, reinforcement '
    'learning; pretrain: tables too); context: MAML that adapts a context vector alone (images, reinforcement '
    'learning); random: an untrained policy; multitask_…: the mean of many networks, each trained on a sinusoid of '
    'its own.',
    case_sensitive=False,
)
integer('seed', 1, 'seed of the weights and of all draws of tasks.')
integer('metatrain_iterations', None, 'number of meta-training iterations.')
integer('meta_batch_size', None, 'number of tasks sampled per meta-update.')
integer(
    'update_batch_size',
    None,
    'examples of a class in the inner update (K of K-shot); reinforcement learning: rollouts of a task, before and '
    'after it.',
)
number('update_lr', None, 'step size alpha of the inner update.')
integer('num_updates', None, 'number of inner updates in training.')
boolean('learn_update_lr', False, 'meta-learn alpha too: one for each weight tensor and inner update.')
text('init_from', None, "start from the weights of this checkpoint (ours, or the original's of TF1).")
boolean('stop_grad', False, 'first-order MAML: no second derivatives.')
number('meta_lr', None, 'step size beta of the outer update, where that is by Adam.')
boolean('log', True, 'write TensorBoard summaries, and draw what a test did.')
text('logdir', None, 'folder of all runs; default: logs/<datasource>.')
boolean('resume', True, 'go on from the newest checkpoint of the same run.')
integer('save_interval', None, 'iterations between checkpoints.')
integer('max_to_keep', 10, 'how many checkpoints are kept, the newest.')
boolean('train', True, 'True to train (and then test), False to test.')
text(
    'test_iter',
    None,
    'iteration of the checkpoint to test; -1 or 0: the latest; best: the best on the validation set, which sinusoids '
    'have not, in reinforcement learning the one with the best average return.',
)
integer('num_test_tasks', None, 'number of tasks in a test.')
integer('test_num_updates', None, 'inner updates in a test.')
integer('threads', None, 'cores to use; default: all.')
boolean('help', False, 'show this help.', short_name='h')
BOTH = set(FLAGS)

# Supervised learning alone
text('data_dir', None, "folder of the prepared images, or of tables; default: the data source's folder in data/.")
several('x_columns', None, 'names of columns of the tables, with commas between; default: all others.')
several('y_columns', None, 'names of columns of the tables, with commas between; default: the last one.')
integer('num_classes', None, 'number of classes used in classification (N of N-way).')
integer('img_size', None, "side of your own images, to which they are resized; default: the images' own.")
integer('channels', None, "1 (grey) or 3 (colour) for your own images; default: the images' own.")
several(
    'split',
    None,
    'shares of training, validation and test classes, where your own images are one set; default: 0.6,0.2,0.2.',
)
integer('pretrain_iterations', None, 'number of pretraining iterations.')
integer('train_query', None, 'query examples of a class in training.')
enum('norm', None, ['batch_norm', 'layer_norm', 'None'], 'normalisation of the hidden layers.')
integer('num_filters', None, 'filters of each convolution.')
several('hidden', None, 'sizes of the hidden layers, for tables.')
boolean('conv', None, 'convolutional network, or fully connected (images only).')
boolean('max_pool', None, 'max-pool rather than strided convolutions.')
enum(
    'precision',
    'float32',
    ['float32', 'mixed'],
    'mixed: convolutions and the maps between them in bfloat16, all else in float32; faster on processors with '
    'amx_bf16, or with avx512_bf16 by AMD (images only).',
)
boolean('test_set', False, 'test on the test set, not on the validation set.')
integer(
    'test_query',
    None,
    "query examples of a class in a test; default K, as the paper's code did; 15 is the usual protocol today.",
)
integer('train_update_batch_size', -1, 'K of the training run, to test with another one.')
several('update_lr_grid', None, 'step sizes, of which a test takes the best on validation tasks.')
number('train_update_lr', -1, 'alpha of the training run, to test with another one.')
enum(
    'distribute',
    None,
    ['mirrored', 'multiworker'],
    'divide the tasks of a meta-batch over all devices of this machine, or over the processes that TF_CONFIG names '
    '(distribute.py).',
)
# ... and the use of what is trained (adapt.py)
text(
    'adapt',
    None,
    'folder of new classes, a folder of images each, or a table with a few rows of a new task, to which to adapt the '
    'weights of --init_from.',
)
text(
    'predict',
    None,
    'folder of the images that are to be classified then, into predictions.csv and .png in --logdir, or table with the '
    'rows whose y is to be predicted.',
)
text('save_adapted', None, 'a .npz to keep the adapted weights in.')
SUPERVISED_ONLY = set(FLAGS) - BOTH

# Reinforcement learning alone
enum(
    'meta_optimizer',
    None,
    ['trpo', 'adam'],
    'what does the outer update; adam: a step along the same gradient, without a trust region, as the original '
    'pretrains the point.',
)
number('meta_step_size', None, "limit of the outer update's mean KL divergence (TRPO).")
integer(
    'kl_constrain_step',
    None,
    'whose KL divergence that is: of the adapted policy (-1), or of the policy before inner update k = 0, 1, …',
)
enum(
    'hvp',
    None,
    ['finite_difference', 'exact'],
    'how TRPO multiplies vectors by the Hessian of that KL divergence: exact is beyond the original, and faster.',
)
number('subsample_factor', None, 'share of the tasks over which TRPO takes these products; less than 1 is faster.')
number(
    'gae_lambda',
    None,
    'lambda of the generalised advantage estimates, in training and tests; below 1 they have less noise, but a bias.',
)
integer(
    'sampling_workers',
    None,
    'how many workers sample a task: each finishes the path that it is in when the rollouts suffice, and all are kept.',
)
boolean(
    'likelihood_ratio',
    False,
    'differentiate the inner update as that of a likelihood ratio, which knows how samples depend on the weights; the '
    "original's log-likelihood does not.",
)
integer('test_update_batch_size', None, 'rollouts of a task before and after each inner update in a test.')
integer('test_sampling_workers', None, 'how many workers sample a task in a test, see --sampling_workers.')
number('test_update_lr', None, 'alpha in a test; updates beyond those of training take half of it.')
integer('test_seed', None, 'seed of the tasks of a test and of the noise in it.')
integer('random_policies', None, 'with --baseline=random: how many untrained policies the test is the mean of.')
text('video', None, 'a .gif to write: a policy before and after adaptation (with --train=False).')
RL_ONLY = set(FLAGS) - BOTH - SUPERVISED_ONLY

# The flags that --adapt reads; the weights bring the rest.
ADAPTING = {
    *experiments.OF_WEIGHTS,
    *('adapt', 'predict', 'save_adapted', 'init_from', 'logdir', 'log', 'train', 'threads', 'x_columns', 'y_columns'),
}
# Those of them that say what network it is: another value of some would fit the weights' shapes, and go unnoticed.
NETWORK = ('baseline', 'img_size', 'channels', 'norm', 'num_filters', 'conv', 'max_pool')


def main():
    with runtime.in_one_line():
        run(*read_flags(sys.argv[1:]))


def run(config, origins, folder=None):
    """Do what the settings say in the run's folder; by default, that of its name in --logdir."""
    from targets import papers  # whose table is written in these flags

    threads = runtime.start(config.threads)
    folder = folder or os.path.join(config.logdir, naming.run_name(config))
    # These import TensorFlow, which runtime.start has prepared.
    if getattr(config, 'adapt', None):
        import adapt

        return adapt.run(config)
    if experiments.SOURCES[config.datasource].rl:
        from rl import training
    else:
        import training
    training.run(config, origins, threads, folder, papers(config))


def read_flags(arguments):
    """Return all settings as a namespace, and where those come from that the user left unset (`experiments.resolve`).

    arguments: the command line, without the program's name. Raises UserError for what makes no sense, and SystemExit
    after it has shown the --help.
    """
    values = copy.deepcopy(FLAGS)
    try:
        extra = values(['main.py', *arguments])[1:]
    except flags.Error as error:
        raise UserError(' '.join(str(error).split()) + ' (python main.py --help lists the flags)') from None
    if values.help:
        print(help_text())
        sys.exit()
    if extra:
        raise UserError(f'{extra[0]!r} is not a flag: write --flag=value')
    set_by_user = {name for name in values if values[name].present}
    given = {name: values[name].value for name in values if name not in ('help', 'h')}
    given['baseline'] = None if given['baseline'] == 'None' else given['baseline']
    for name in ('data_dir', 'init_from', 'logdir', 'video', 'adapt', 'predict', 'save_adapted'):
        if given[name] == '':
            raise UserError(f'--{name} is empty: give a path, or drop it')
        given[name] = given[name] and os.path.expanduser(given[name])
    if given['init_from'] and os.path.isdir(given['init_from']):
        raise UserError(f'--init_from={given["init_from"]} is a folder: name a checkpoint in it, a .npz')
    if given['adapt']:
        given |= as_trained(given, set_by_user)
    source = experiments.SOURCES[given['datasource']]
    given['test_iter'] = which_checkpoint(given['test_iter'])
    for name, kind in (('update_lr_grid', float), ('split', float), ('hidden', int)):
        try:
            given[name] = [kind(value) for value in given[name] or ()] or None
        except ValueError as error:
            raise UserError(f'--{name} is a list of numbers with commas between: {error}') from None
    for name in SUPERVISED_ONLY if source.rl else RL_ONLY:
        if name in set_by_user:
            raise UserError(
                f'--{name} is {"not for" if source.rl else "for"} reinforcement learning: drop it or choose another '
                '--datasource'
            )
        del given[name]
    resolved, origins = experiments.resolve(given)
    if given.get('adapt') and 'test_num_updates' not in set_by_user:
        resolved['test_num_updates'] = [resolved['test_num_updates'], *resolved['paper_steps']][-1]
    contradictions.check(resolved, set_by_user, source)
    return types.SimpleNamespace(**resolved), origins


def as_trained(given, set_by_user):
    """Return the settings with which --adapt uses the weights of --init_from where the user set none."""
    if not given['init_from']:
        raise UserError('--adapt needs trained weights: add --init_from')
    settings = experiments.settings_of(given['init_from'])
    for name in sorted(set_by_user - ADAPTING):
        raise UserError(f'--{name} has no effect on --adapt: drop it')
    if settings and 'num_updates' in set_by_user:
        raise UserError('--num_updates is of the training: say by --test_num_updates how many steps --adapt takes')
    if not settings and 'datasource' not in set_by_user:
        raise UserError(
            f'there is no config.json beside {given["init_from"]}: give the flags that it was trained '
            'with, --datasource first'
        )
    for name in NETWORK:
        if name in set_by_user and settings.get(name, given[name]) != given[name]:
            raise UserError(f'{given["init_from"]} was trained with --{name}={settings[name]}: drop --{name}')
    if settings.get('baseline') == 'pretrain' and 'update_lr' not in set_by_user:
        raise UserError(
            f'{given["init_from"]} was pretrained, for which its test tunes the step size: add --update_lr, the best '
            'that a test found'
        )
    settings = {name: value for name, value in settings.items() if name not in set_by_user}
    return {**settings, 'train': False, 'logdir': given['logdir'] or '.'}


def which_checkpoint(value):
    """Return --test_iter as a number, -1 for the latest, or 'best'; None where it is unset."""
    if value in (None, 'best'):
        return value
    try:
        return max(int(value), -1) or -1  # 0, too: the original asks for > 0
    except ValueError:
        raise UserError(f'--test_iter={value} names no checkpoint: give an iteration, -1 or best') from None


def help_text():
    """Return what --help shows: the flags by kind of learning, with their defaults or the paper's values."""
    unset, kinds = {}, {True: 'reinforcement learning', False: 'supervised learning'}
    for where, settings, origin in experiments.PAPER:
        condition = ', '.join(kinds[value] if flag == 'rl' else f'{flag}={value}' for flag, value in where.items())
        for flag, value in settings.items():
            who = condition + ', our choice' * ('our choice' in origin)
            unset.setdefault(flag, {}).setdefault(str(value), []).append(who)
    groups = {
        'All data sources': BOTH - {'h'},
        'Supervised learning alone': SUPERVISED_ONLY,
        'Reinforcement learning alone': RL_ONLY,
    }
    lines = [__doc__.strip()]
    for title, names in groups.items():
        lines += ['', f'{title}:']
        for name in (name for name in FLAGS if name in names):
            default = f' Default: {FLAGS[name].default}.' if FLAGS[name].default not in (None, -1) else ''
            values = '; '.join(f'{value} ({"; ".join(who)})' for value, who in unset.get(name, {}).items())
            values = f' Unset: {values}.' if values else ''
            line = f'  --{name}: {FLAGS[name].help}{default}{values}'
            lines.append(textwrap.fill(line, 100, subsequent_indent=' ' * 6))
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
