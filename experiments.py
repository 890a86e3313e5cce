"""The paper's setting for every experiment, in one table, and the data sources that it is about.

main.py fills the flags that the user left unset from `PAPER`; no other place holds such values. "A.1" is the
paper's appendix, "main.py:49" the original repository (github.com/cbfinn/maml at a7f45f1).
"""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Source:
    """What a data source is, whatever the experiment; img_size 0 means that it is not made of images."""
    dim_input: int
    dim_hidden: tuple                 # hidden layers of its fully connected network
    img_size: int = 0
    channels: int = 0
    flatten: bool = False             # head of the conv net: flatten, or mean over positions (maml.py:203,223)
    clip: float | None = None         # element-wise limit of the meta-gradient (maml.py:147-149)
    print_interval: int = 100         # main.py:75-80
    block: int = 1                    # outer steps a call of the compiled training function
    folder: str = ''                  # below data/


SOURCES = {
    'sinusoid': Source(dim_input=1, dim_hidden=(40, 40), print_interval=1000, block=100),
    'omniglot': Source(dim_input=28 * 28, dim_hidden=(256, 128, 64, 64), img_size=28, channels=1,
                       folder='omniglot_resized'),
    'miniimagenet': Source(dim_input=84 * 84 * 3, dim_hidden=(256, 128, 64, 64), img_size=84, channels=3,
                           flatten=True, clip=10.0, folder='miniImagenet'),
}

# (where the row applies, the flags that it sets, where they come from); a later row wins over an earlier one.
PAPER = [
    ({}, dict(num_classes=5, pretrain_iterations=0, meta_lr=0.001, num_filters=64, conv=True, max_pool=False),
     'main.py:41-62'),
    ({'datasource': 'sinusoid'},
     dict(update_batch_size=10, num_updates=1, update_lr=0.01, norm='None', test_num_updates=10,
          paper_steps=[1, 5, 10]),
     'section 5.1, Table 2'),
    ({'datasource': 'sinusoid'}, dict(meta_batch_size=25, metatrain_iterations=70000), 'main.py:4,47'),
    ({'datasource': 'omniglot'},
     dict(update_batch_size=1, num_updates=1, update_lr=0.4, meta_batch_size=32, metatrain_iterations=60000,
          norm='batch_norm', test_num_updates=10, paper_steps=[3]), 'A.1, 5-way'),
    ({'datasource': 'omniglot', 'num_classes': 20},
     dict(num_updates=5, update_lr=0.1, meta_batch_size=16, paper_steps=[5]), 'A.1, 20-way'),
    ({'datasource': 'miniimagenet'},
     dict(update_batch_size=1, num_updates=5, update_lr=0.01, meta_batch_size=4, metatrain_iterations=60000,
          norm='batch_norm', test_num_updates=10, paper_steps=[10], num_filters=32, max_pool=True, train_query=15),
     'A.1'),
    ({'datasource': 'miniimagenet', 'update_batch_size': 5}, dict(meta_batch_size=2), 'A.1, 5-shot'),
    ({'conv': False}, dict(max_pool=False), 'section 5.2'),
]


def resolve(given):
    """Complete the flags that the user gave with the paper's settings.

    `given` maps flag names to values, None where unset. Returns (values, origins): every flag's value, and for
    those that were unset the source of the value.
    """
    values, origins = dict(given), {}
    for where, settings, origin in PAPER:
        if all(values[flag] == value for flag, value in where.items()):
            for flag, value in settings.items():
                if given.get(flag) is None:
                    values[flag], origins[flag] = value, origin
    for flag, default in (('train_update_batch_size', 'update_batch_size'), ('train_update_lr', 'update_lr')):
        if values[flag] == -1:
            values[flag] = values[default]                                        # main.py:271-274
    for flag in ('train_query', 'test_query'):                                    # K a class (main.py:247-251)
        if values.get(flag) is None:
            values[flag], origins[flag] = values['update_batch_size'], 'main.py:247-251: K'
    values['logdir'] = values['logdir'] or f'logs/{values["datasource"]}'
    if values['baseline'] == 'oracle':                                            # main.py:257-259
        values['pretrain_iterations'] += values['metatrain_iterations']
        values['metatrain_iterations'] = 0
    return values, origins


def run_name(config):
    """Name of a run's folder, the original's (main.py:276-296).

    Beyond it: 'noconv', 'learnlr' and 'pretrain', without which different runs would share a folder.
    """
    name = (f'cls_{config.num_classes}.mbs_{config.meta_batch_size}.ubs_{config.train_update_batch_size}'
            f'.numstep{config.num_updates}.updatelr{config.train_update_lr}')
    image = SOURCES[config.datasource].img_size > 0
    return name + ''.join([
        f'hidden{config.num_filters}' if config.num_filters != 64 else '',
        'maxpool' if config.max_pool else '',
        'stopgrad' if config.stop_grad else '',
        config.baseline or '',
        {'batch_norm': 'batchnorm', 'layer_norm': 'layernorm', 'None': 'nonorm'}[config.norm],
        'noconv' if image and not config.conv else '',
        'learnlr' if config.learn_update_lr else '',
        'pretrain' if config.metatrain_iterations == 0 and not config.baseline else ''])
