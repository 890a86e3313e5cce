"""What the folder of a run and the files of a test are called: after the original, and more where two would share it.

maml: main.py:206,307-324, and maml_rl: cluster_maml_trpo_*.py.
"""

import os
import zlib

from experiments import SOURCES, STEP_SIZES, resolve


def run_name(config):
    """Return the name of a run's folder, the original's (maml: main.py:307-324).

    Beyond it: 'noconv', 'learnlr', 'mixed' and 'pretrain', and the folder and hidden layers of tables, without which
    different runs would share a folder.
    """
    if SOURCES[config.datasource].rl:
        return rl_run_name(config)
    table = config.datasource == 'table'
    name = (
        (os.path.basename(os.path.abspath(config.data_dir or '')) if table else f'cls_{config.num_classes}')
        + f'.mbs_{config.meta_batch_size}.ubs_{config.train_update_batch_size}'
        f'.numstep{config.num_updates}.updatelr{config.train_update_lr}'
    )
    image = SOURCES[config.datasource].img_size > 0
    return name + ''.join(
        [
            f'hidden{config.num_filters}' if config.num_filters != 64 else '',
            'maxpool' if config.max_pool else '',
            'stopgrad' if config.stop_grad else '',
            'hidden' + '-'.join(map(str, config.hidden)) if table and config.hidden != [40, 40] else '',
            config.baseline or '',
            {'batch_norm': 'batchnorm', 'layer_norm': 'layernorm', 'None': 'nonorm'}[config.norm],
            'noconv' if image and not config.conv else '',
            'learnlr' if config.learn_update_lr else '',
            'mixed' if config.precision == 'mixed' else '',
            'pretrain' if config.metatrain_iterations == 0 and not config.baseline else '',
        ]
    )


def rl_run_name(config):
    """Return the same for reinforcement learning, after exp_name in maml_rl: cluster_maml_trpo_cheetah.py."""
    if config.baseline == 'random':  # its seed is all there is to it
        return f'random_seed{config.seed}'
    use_maml = config.num_updates > 0
    outer = f'_adam{config.meta_lr}' if config.meta_optimizer == 'adam' else f'_mlr{config.meta_step_size}'
    return f'maml{use_maml:d}_fbs{config.update_batch_size}_mbs{config.meta_batch_size}' + ''.join(
        [
            f'_flr{config.update_lr}' if use_maml else '',
            outer,
            f'_step{config.num_updates}' if config.num_updates > 1 else '',
            f'_kl{config.kl_constrain_step}' if config.kl_constrain_step != -1 else '',
            '_exacthvp' if config.hvp == 'exact' else '',
            f'_sub{config.subsample_factor}' if config.subsample_factor != 1 else '',
            f'_lambda{config.gae_lambda}' if config.gae_lambda != 1 else '',
            '_stopgrad' if config.stop_grad else '',
            '_ratio' if config.likelihood_ratio else '',
            f'_{config.baseline}' if config.baseline else '',
            '_learnlr' if config.learn_update_lr else '',
        ]
    )


def test_name(config, trained_seed=None):
    """Return the name of a test's files, the original's (maml: main.py:206); more where two tests would share it.

    trained_seed: that of the run which is tested; where it is not known, it passes for 1, the default.
    """
    if SOURCES[config.datasource].rl:
        alpha = 'learned' if config.test_update_lr is None else config.test_update_lr
        return f'test_fbs{config.test_update_batch_size}_stepsize{alpha}{beyond_the_paper(config)}'
    alpha = 'tuned' if config.update_lr_grid else 'learned' if config.learn_update_lr else config.update_lr
    name = f'test_ubs{config.update_batch_size}_stepsize{alpha}'
    if config.update_lr_grid not in (None, STEP_SIZES):
        name += f'-{zlib.crc32(repr(config.update_lr_grid).encode()):08x}'
    name += '_val' if config.datasource != 'sinusoid' and not config.test_set else ''
    name += f'_query{config.test_query}' if config.test_query != config.update_batch_size else ''
    name += f'_seed{config.seed}' if config.seed != (1 if trained_seed is None else trained_seed) else ''
    return name + beyond_the_paper(config)


def beyond_the_paper(config):
    """Return what the name of a test's files says where what is tested, or its tasks, steps, … are not the paper's."""
    words = {
        'test_iter': 'itr',
        **{'num_test_tasks': 'tasks', 'test_num_updates': 'steps', 'random_policies': 'policies'},
        **{'test_seed': 'seed', 'test_sampling_workers': 'workers', 'gae_lambda': 'lambda'},
    }
    values, (papers, _) = vars(config), resolve({**vars(config), **dict.fromkeys(words)})
    name = ''.join(f'_{word}{values[flag]}' for flag, word in words.items() if values.get(flag) != papers[flag])
    if not config.init_from or config.train:
        return name
    path = os.path.realpath(config.init_from)
    folder, file = os.path.split(path)
    digest = zlib.crc32(os.fsencode(path))  # many runs end in seed1/weights.npz
    return f'{name}_from_{os.path.basename(folder)}_{os.path.splitext(file)[0]}_{digest:08x}'
