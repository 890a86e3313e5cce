"""Meta-train and evaluate MAML (Finn, Abbeel, Levine, ICML 2017).

    python main.py                                            10-shot sinusoid, then its evaluation
    python main.py --datasource=omniglot --num_classes=5 --update_batch_size=1        a cell of Table 1
    python main.py --datasource=miniimagenet --update_batch_size=1 --train=False --test_set=True
    python main.py --datasource=cheetah_dir                   reinforcement learning: a curve of Figure 5

A flag that is left unset takes the paper's value for that experiment (experiments.py). README.md has a line for
each result of the paper. This file holds the flags and what is done with them; the algorithm is in maml.py, and
for reinforcement learning in rl/.
"""

import sys
import types

from absl import app, flags

import experiments
import runtime

FLAGS = flags.FLAGS

# Dataset and method
flags.DEFINE_enum('datasource', 'sinusoid', list(experiments.SOURCES), 'where the tasks come from.')
flags.DEFINE_string('data_dir', None, "folder of the prepared images; default: the data source's folder in data/.")
flags.DEFINE_integer('num_classes', None, 'number of classes used in classification (N of N-way).')
flags.DEFINE_enum(
    'baseline',
    None,
    ['oracle', 'pretrain', 'random', 'context', 'None'],
    'oracle: the task id is part '
    'of the input (sinusoid, reinforcement learning). Reinforcement learning only: pretrain: one policy '
    'for all tasks; random: an untrained policy; context: MAML that adapts a context vector alone.',
    case_sensitive=False,
)
flags.DEFINE_integer('seed', 1, 'seed of the weights and of all draws of tasks.')

# Training
flags.DEFINE_integer('pretrain_iterations', None, 'number of pretraining iterations.')
flags.DEFINE_integer('metatrain_iterations', None, 'number of meta-training iterations.')
flags.DEFINE_integer('meta_batch_size', None, 'number of tasks sampled per meta-update.')
flags.DEFINE_float('meta_lr', None, 'step size beta of the outer update (Adam).')
flags.DEFINE_float('meta_step_size', None, "limit of the outer update's mean KL divergence (TRPO).")
flags.DEFINE_integer(
    'kl_constrain_step',
    None,
    'whose KL divergence that is: of the adapted policy (-1), or of the policy before inner update k = 0, 1, …',
)
flags.DEFINE_integer(
    'update_batch_size',
    None,
    'examples of a class in the inner update (K of K-shot); reinforcement '
    'learning: rollouts of a task, before and after it.',
)
flags.DEFINE_integer('train_query', None, 'query examples of a class in training.')
flags.DEFINE_float('update_lr', None, 'step size alpha of the inner update.')
flags.DEFINE_integer('num_updates', None, 'number of inner updates in training.')
flags.DEFINE_bool('learn_update_lr', False, 'meta-learn alpha too: one for each weight tensor and inner update.')
flags.DEFINE_string('init_from', None, "start from the weights of this checkpoint (ours, or the original's of TF1).")

# Model
flags.DEFINE_enum('norm', None, ['batch_norm', 'layer_norm', 'None'], 'normalisation of the hidden layers.')
flags.DEFINE_integer('num_filters', None, 'filters of each convolution.')
flags.DEFINE_bool('conv', None, 'convolutional network, or fully connected (images only).')
flags.DEFINE_bool('max_pool', None, 'max-pool rather than strided convolutions.')
flags.DEFINE_bool('stop_grad', False, 'first-order MAML: no second derivatives.')

# Logging, saving and testing
flags.DEFINE_bool('log', True, 'write TensorBoard summaries.')
flags.DEFINE_string('logdir', None, 'folder of all runs; default: logs/<datasource>.')
flags.DEFINE_bool('resume', True, 'go on from the newest checkpoint of the same run.')
flags.DEFINE_integer('save_interval', None, 'iterations between checkpoints.')
flags.DEFINE_bool('train', True, 'True to train (and then test), False to test.')
flags.DEFINE_integer(
    'test_iter',
    -1,
    'iteration of the checkpoint to test (-1 for the latest; reinforcement learning: '
    'for the one with the best average return).',
)
flags.DEFINE_bool('test_set', False, 'test on the test set, not on the validation set.')
flags.DEFINE_integer('num_test_tasks', None, 'number of tasks in a test.')
flags.DEFINE_integer('test_num_updates', None, 'inner updates in a test.')
flags.DEFINE_integer(
    'test_query',
    None,
    "query examples of a class in a test; default K, as the paper's code did; 15 is the usual protocol today.",
)
flags.DEFINE_integer('train_update_batch_size', -1, 'K of the training run, to test with another one.')
flags.DEFINE_float('train_update_lr', -1, 'alpha of the training run, to test with another one.')
flags.DEFINE_integer('test_update_batch_size', None, 'rollouts of a task before and after each inner update in a test.')
flags.DEFINE_float('test_update_lr', None, 'alpha in a test; updates beyond those of training take half of it.')
flags.DEFINE_string('video', None, 'a .gif to write: a policy before and after adaptation (with --train=False).')
flags.DEFINE_integer('threads', None, 'cores to use; default: all.')
flags.DEFINE_enum(
    'distribute',
    None,
    ['mirrored', 'multiworker'],
    'divide the tasks of a meta-batch over all devices '
    'of this machine, or over the processes that TF_CONFIG names (distribute.py).',
)

# Flags of one kind of learning, refused with the data sources of the other kind.
SUPERVISED_ONLY = [
    'data_dir',
    'num_classes',
    'pretrain_iterations',
    'meta_lr',
    'train_query',
    'norm',
    'num_filters',
    'conv',
    'max_pool',
    'test_set',
    'test_query',
    'train_update_batch_size',
    'train_update_lr',
    'distribute',
]
RL_ONLY = ['meta_step_size', 'kl_constrain_step', 'test_update_batch_size', 'test_update_lr', 'video']


def main():
    config, origins = read_flags()
    threads = runtime.start(config.threads)
    # These import TensorFlow, which runtime.start has prepared.
    if experiments.SOURCES[config.datasource].rl:
        from rl import training
    else:
        import training

    try:
        training.run(config, origins, threads)
    except runtime.UserError as error:
        fail(str(error))


def fail(message):
    """End the program with one line on stderr and exit code 2."""
    print(f'main.py: {message}', file=sys.stderr)
    sys.exit(2)


def read_flags():
    """All settings, those that the user left unset from the paper's table, and where those come from."""
    app.define_help_flags()
    try:
        extra = FLAGS(sys.argv)[1:]
    except flags.Error as error:
        fail(' '.join(str(error).split()) + ' (python main.py --help lists the flags)')
    if extra:
        fail(f'{extra[0]!r} is not a flag: write --flag=value')
    given = {flag.name: flag.value for flag in FLAGS.get_flags_for_module(sys.modules[__name__])}
    given['baseline'] = None if given['baseline'] == 'None' else given['baseline']
    rl = experiments.SOURCES[given['datasource']].rl
    for name in SUPERVISED_ONLY if rl else RL_ONLY:
        if FLAGS[name].present:
            fail(
                f'--{name} is {"not for" if rl else "for"} reinforcement learning: drop it or choose another '
                '--datasource'
            )
        del given[name]
    values, origins = experiments.resolve(given)
    config = types.SimpleNamespace(**values)
    complaint = contradiction(config) or (rl_contradiction(config) if rl else supervised_contradiction(config))
    if complaint:
        fail(complaint)
    return config, origins


def contradiction(config):
    """What is wrong with the settings and what to do about it, in one line, or None."""
    for name in (
        'num_classes',
        'meta_batch_size',
        'update_batch_size',
        'train_query',
        'test_query',
        'test_update_batch_size',
        'num_filters',
        'save_interval',
        'num_test_tasks',
        'threads',
    ):
        value = getattr(config, name, None)
        if value is not None and value < 1:
            return f'--{name}={value} makes no sense: give 1 or more'
    for name in ('pretrain_iterations', 'metatrain_iterations', 'seed', 'num_updates', 'test_num_updates'):
        if getattr(config, name, 0) < 0:
            return f'--{name}={getattr(config, name)} makes no sense: give 0 or more'
    if config.train and config.test_iter > 0:
        return '--test_iter names a checkpoint to test: add --train=False'
    return None


def supervised_contradiction(config):
    """The same, of the settings of supervised learning."""
    for name in ('num_updates', 'test_num_updates'):
        if getattr(config, name) == 0:
            return f'--{name}=0 makes no sense: give 1 or more'
    image = experiments.SOURCES[config.datasource].img_size > 0
    if config.baseline in ('pretrain', 'random', 'context'):
        return f'--baseline={config.baseline} is for reinforcement learning' + (
            ': to pretrain, set --pretrain_iterations' if config.baseline == 'pretrain' else ''
        )
    if config.baseline == 'oracle' and image:
        return '--baseline=oracle needs the amplitude and phase of a sinusoid: use it with --datasource=sinusoid'
    if config.max_pool and not (image and config.conv):
        return '--max_pool is for convolutional networks on images: drop it'
    if config.train and config.pretrain_iterations + config.metatrain_iterations == 0:
        return 'there is nothing to train: set --metatrain_iterations or --pretrain_iterations'
    if config.train and config.learn_update_lr and config.metatrain_iterations == 0:
        return '--learn_update_lr needs meta-training: drop it or set --metatrain_iterations'
    return None


def rl_contradiction(config):
    """The same, of the settings of reinforcement learning."""
    meta_learns = config.baseline in (None, 'context')
    if meta_learns and config.num_updates == 0:
        return '--num_updates=0 is no MAML: use --baseline=pretrain'
    for name in ('num_updates', 'update_lr', 'learn_update_lr', 'stop_grad'):
        if not meta_learns and FLAGS[name].present and getattr(config, name):
            return f'--baseline={config.baseline} is trained without an inner update: drop --{name}' + (
                ' or set --test_update_lr' if name == 'update_lr' else ''
            )
    if config.baseline == 'oracle' and config.test_num_updates:
        return '--baseline=oracle takes no inner update: drop --test_num_updates'
    if config.baseline == 'random' and (config.metatrain_iterations or config.test_iter > 0):
        return '--baseline=random is not trained: drop --metatrain_iterations and --test_iter'
    if config.train and config.baseline != 'random' and config.metatrain_iterations == 0:
        return 'there is nothing to train: set --metatrain_iterations'
    if config.meta_step_size <= 0:
        return f'--meta_step_size={config.meta_step_size} makes no sense: give more than 0'
    if not -1 <= config.kl_constrain_step <= config.num_updates:
        return (
            f'--kl_constrain_step={config.kl_constrain_step} names no policy: give -1 (the adapted one), or a step '
            f'up to --num_updates={config.num_updates}'
        )
    if config.video and not config.video.endswith('.gif'):
        return f'--video={config.video} is no .gif: give a name that ends so'
    if config.video and config.train:
        return '--video is made by a test: add --train=False'
    return None


if __name__ == '__main__':
    main()
