"""The targets of reproduce.py: what of the paper is made, with which flags, and what the paper has.

A cell of a table or a curve of a figure is added here and nowhere else. How far each is says work.py.
"""

import difflib
import json
import pathlib
from dataclasses import dataclass

import experiments
import main
from runtime import UserError

ROOT = pathlib.Path(__file__).resolve().parent


@dataclass(frozen=True)
class Target:
    """A cell of a table or a curve of a figure: how it is made, and what the paper has.

    tests: for each test of the trained model a label and main.py's flags; the paper reads the first.
    steps: the numbers of gradient steps after which it reads; paper, interval: its values there and their 95 %
    half-widths, in the units of the test (accuracies in percent). hours: of training, measured on two cores. start: the
    run from whose weights training starts, that of the same seed; '' for fresh ones.
    """

    name: str
    run: str
    flags: dict
    tests: tuple
    steps: tuple
    paper: tuple = ()
    interval: tuple = ()
    hours: float = 0
    start: str = ''


def image_target(experiment, method, paper, interval, hours, **flags):
    """Return the Target of a cell of Table 1, or of Table 3, which adapts a context vector."""
    flags = {**flags, 'test_set': True}
    steps = main.read_flags(arguments(flags))[0].paper_steps
    tests = (('paper', {}), ('15 query images', {'test_query': 15}))
    table = 'table3' if method == 'context' else 'table1'
    name = f'{table}/{experiment}' + ('' if method == 'maml' else f'_{method}')
    return Target(name, f'{experiment}/{method}', flags, tests, tuple(steps), (paper,), (interval,), hours)


# These policies in results/ were trained before the original's workers were ported (docs/fidelity.md, row 12 of
# reinforcement learning, and departure n); all others are made as was released.
ONE_WORKER = {'sampling_workers': 1}
MADE_BY_ONE = {
    'cheetah_vel/maml',
    'cheetah_vel/pretrain',
    'cheetah_vel/oracle',
    'cheetah_dir/pretrain',
    'cheetah_dir/oracle',
}

# Policies that are made with other flags than the original's, and their runs: what half-cheetah direction takes to
# reach the paper's return (results/cheetah_dir/README.md), the context vector that Table 5 compares with it,
# for which there are no exact products, and the ants, which take hours; direction (its KL limit: fidelity.md, row 14)
# hardly learns without --gae_lambda and --likelihood_ratio (results/ant_dir/README.md).
FAST = {'hvp': 'exact', 'subsample_factor': 0.25}  # less than half the time of an iteration
LARGER = {'update_batch_size': 40, 'meta_batch_size': 80, 'metatrain_iterations': 300, **FAST}
RECIPES = {
    'cheetah_dir/maml': ('cheetah_dir/rollouts40_tasks80', LARGER),
    'cheetah_dir/context': ('cheetah_dir/context', {**LARGER, 'hvp': 'finite_difference'}),
    'ant_vel/maml': ('ant_vel/maml', {'metatrain_iterations': 375, **FAST}),
    'ant_dir/maml': (
        'ant_dir/lambda0.95_ratio',
        {'meta_step_size': 0.02, 'metatrain_iterations': 575, 'gae_lambda': 0.95, 'likelihood_ratio': True, **FAST},
    ),
}
TEST = (('paper', {'gae_lambda': 1.0}),)  # with the paper's λ, whatever a recipe trains with


def rl_targets(figures):
    """Return the Targets of Figures 4 and 5 and Tables 4 and 5, whose numbers stand in results/paper_returns.json."""
    hours = {'point': 0.1, 'cheetah_vel': 1.6, 'cheetah_dir': 1.9, 'ant_vel': 3.5, 'ant_dir': 7.2}
    for source, hour in hours.items():
        for method in ('maml', 'pretrain', 'random', 'oracle'):
            curve = figures[source][method]
            yield Target(
                f'figure5/{source}/{method}',
                *rl_run(source, method),
                TEST,
                tuple(range(len(curve['mean']))),
                tuple(curve['mean']),
                tuple(curve['ci95']),
                0 if method == 'random' else hour,
            )
    for table, source in (('table4', 'point'), ('table5', 'cheetah_dir')):
        for method, curve in figures[table].items():
            run, flags = rl_run(source, method)  # for MAML the policy of Figure 5
            steps = tuple(range(len(curve)))
            yield Target(f'{table}/{method}', run, flags, TEST, steps, tuple(curve), (), hours[source])


def rl_run(source, method):
    """Return the name and the flags of the run that is a target's."""
    run = f'{source}/{method}'
    run, flags = RECIPES.get(run, (run, ONE_WORKER if run in MADE_BY_ONE else {}))
    return run, {'datasource': source} | ({} if method == 'maml' else {'baseline': method}) | flags


def study_targets(paper):
    """Return the Targets of results/cheetah_dir/README.md; paper: its curve for this task.

    Each is tested with the paper's rollouts on the tasks and noise of three seeds, and with so many rollouts that they
    hardly add noise to the inner step.
    """
    tests = (
        ('20 rollouts', {}),
        *((f'20 rollouts, seed {n}', {'test_seed': n, 'test_num_updates': 1}) for n in (2, 3)),
    )
    tests += (('100 rollouts', {'test_update_batch_size': 100, 'test_num_updates': 1}),)
    recipes = {  # and the run that it goes on from
        'maml': (ONE_WORKER, ''),
        'workers': ({}, ''),
        'workers_fast': (FAST, ''),
        'workers_fast_lambda0.95': ({'gae_lambda': 0.95, **FAST}, ''),
        'workers_fast_lambda0.95_ratio': ({'gae_lambda': 0.95, 'likelihood_ratio': True, **FAST}, ''),
        'workers_fast_kl0.005': ({'meta_step_size': 0.005, **FAST}, 'workers_fast'),
        'rollouts40_fast': ({'update_batch_size': 40, **FAST}, ''),
        'rollouts40_learned_alpha': ({'update_batch_size': 40, 'learn_update_lr': True, **FAST}, ''),
        'rollouts40_tasks80': (LARGER, ''),
    }
    for run, (flags, start) in recipes.items():
        flags = {'datasource': 'cheetah_dir', **({'metatrain_iterations': 150} if run != 'maml' else {}), **flags}
        curve = tuple(paper['mean'][:2]), tuple(paper['ci95'][:2])
        start = start and f'cheetah_dir/{start}'
        yield Target(f'study/{run}', f'cheetah_dir/{run}', flags, tests, (0, 1), *curve, hours=1, start=start)


def precision_targets():
    """Return the Targets that ask whether --precision=mixed learns as float32 does: the first 5,000 iterations."""
    for experiment, flags, hours in (
        ('omniglot_5way_1shot', {'datasource': 'omniglot'}, 0.3),
        ('miniimagenet_5way_1shot', {'datasource': 'miniimagenet', 'stop_grad': True}, 1.8),
    ):
        for precision in ('float32', 'mixed'):
            run = f'{experiment}/{precision}'
            settings = {**flags, 'precision': precision, 'metatrain_iterations': 5000, 'test_set': True}
            steps = tuple(main.read_flags(arguments(settings))[0].paper_steps)
            yield Target(f'precision/{run}', run, settings, (('paper', {}),), steps, hours=hours)


def arguments(flags):
    """Return `flags` as a command line."""
    return [f'--{name}={value}' for name, value in flags.items()]


SINUSOID_TESTS = tuple(
    (f'{k} examples', {'update_batch_size': k, 'train_update_batch_size': 10} if k != 10 else {}) for k in (5, 10, 20)
)
OMNIGLOT, MINI = {'datasource': 'omniglot'}, {'datasource': 'miniimagenet'}
RETURNS = json.loads((ROOT / 'results' / 'paper_returns.json').read_text())
TARGETS = [
    image_target('omniglot_5way_1shot', 'maml', 98.7, 0.4, 1.9, **OMNIGLOT, num_classes=5, update_batch_size=1),
    image_target('omniglot_5way_5shot', 'maml', 99.9, 0.1, 6, **OMNIGLOT, num_classes=5, update_batch_size=5),
    image_target('omniglot_20way_1shot', 'maml', 95.8, 0.3, 10, **OMNIGLOT, num_classes=20, update_batch_size=1),
    image_target('omniglot_20way_5shot', 'maml', 98.9, 0.2, 47, **OMNIGLOT, num_classes=20, update_batch_size=5),
    image_target('omniglot_5way_1shot', 'noconv', 89.7, 1.1, 0.4, **OMNIGLOT, update_batch_size=1, conv=False),
    image_target('omniglot_5way_5shot', 'noconv', 97.5, 0.6, 0.6, **OMNIGLOT, update_batch_size=5, conv=False),
    image_target('miniimagenet_5way_1shot', 'maml', 48.70, 1.84, 14, **MINI, update_batch_size=1),
    image_target('miniimagenet_5way_5shot', 'maml', 63.11, 0.92, 21, **MINI, update_batch_size=5),
    image_target(
        'miniimagenet_5way_1shot', 'first_order', 48.07, 1.75, 8.5, **MINI, update_batch_size=1, stop_grad=True
    ),
    image_target('miniimagenet_5way_5shot', 'first_order', 63.15, 0.91, 8, **MINI, update_batch_size=5, stop_grad=True),
    *(
        Target(f'table2/{method}', f'sinusoid/{method}', flags, SINUSOID_TESTS, (1, 5, 10), paper, hours=hours)
        for method, flags, paper, hours in (
            ('maml', {}, (0.67, 0.38, 0.35), 0.01),
            ('pretrain', {'baseline': 'pretrain'}, (2.41, 2.23, 2.19), 0.01),
            ('multitask_no_reg', {'baseline': 'multitask_no_reg'}, (4.19, 3.85, 3.69), 0.05),
            ('multitask_l2', {'baseline': 'multitask_l2'}, (7.18, 5.69, 5.60), 0.05),
            ('multitask_mean_theta', {'baseline': 'multitask_mean_theta'}, (2.91, 2.72, 2.71), 0.05),
        )
    ),
    Target('figure6/oracle', 'sinusoid/oracle', {'baseline': 'oracle'}, SINUSOID_TESTS, (1, 5, 10), hours=0.01),
    image_target('omniglot_5way_1shot', 'context', 94.9, 0.9, 2.5, **OMNIGLOT, update_batch_size=1, baseline='context'),
    image_target('omniglot_5way_5shot', 'context', 97.7, 0.3, 7, **OMNIGLOT, update_batch_size=5, baseline='context'),
    *rl_targets(RETURNS),
]
STUDY = list(study_targets(RETURNS['cheetah_dir']['maml']))
PRECISION = list(precision_targets())
EVERY = TARGETS + STUDY + PRECISION
FIGURES = {  # the data sources that each shows
    **dict.fromkeys(('figure2', 'figure3', 'figure6', 'figure7'), ['sinusoid']),
    'figure4': ['point'],
    'figure5': ['cheetah_vel', 'cheetah_dir', 'ant_vel', 'ant_dir'],
}
GROUPS = {
    'all': [target.name for target in TARGETS],
    **dict.fromkeys(
        ('figure2', 'figure3', 'figure6', 'figure7'),
        [t.name for t in TARGETS if t.run in ('sinusoid/maml', 'sinusoid/pretrain', 'sinusoid/oracle')],
    ),
    'figure4': [target.name for target in TARGETS if target.run.startswith('point/')],
    # The trainings that are long, in order of worth.
    'queue': [
        'table1/omniglot_5way_1shot_noconv',
        'table1/omniglot_5way_5shot_noconv',
        'table3/omniglot_5way_1shot_context',
        'table3/omniglot_5way_5shot_context',
        *(target.name for target in PRECISION),
        *(target.name for target in STUDY),
        'table1/omniglot_5way_5shot',
        'table1/miniimagenet_5way_1shot_first_order',
        *(f'figure5/{source}/maml' for source in ('cheetah_vel', 'cheetah_dir', 'ant_vel', 'ant_dir')),
        *(
            f'figure5/{s}/{m}'
            for s in ('cheetah_vel', 'cheetah_dir', 'ant_vel', 'ant_dir')
            for m in ('pretrain', 'oracle')
        ),
        'table5/context',
        'table1/miniimagenet_5way_1shot',
        'table1/omniglot_20way_1shot',
        'table1/miniimagenet_5way_5shot_first_order',
        'table1/miniimagenet_5way_5shot',
        'table1/omniglot_20way_5shot',
    ],
}


def select(names):
    """Return the Targets of these names and groups, each once, in this order; UserError for an unknown name."""
    chosen = {}
    for name in names:
        wanted = GROUPS.get(name, [name])
        found = [t for w in wanted for t in EVERY if t.name == w or t.name.startswith(w + '/')]
        if not found:
            known = [*(t.name for t in EVERY), *GROUPS, *{t.name.split('/')[0] for t in EVERY}]
            near = difflib.get_close_matches(name, known, 4, 0.4)
            raise UserError(f'no target {name!r}: did you mean {", ".join(near)}?' if near else f'no target {name!r}')
        chosen.update({target.name: target for target in found})
    return list(chosen.values())


# The settings by which a test is known for that of a target.
PROTOCOL = (
    *('datasource', 'num_classes', 'baseline', 'conv', 'norm', 'num_filters', 'max_pool', 'num_updates', 'update_lr'),
    *('update_batch_size', 'train_update_batch_size', 'stop_grad', 'learn_update_lr', 'test_set', 'test_query'),
    *('update_lr_grid', 'test_update_batch_size', 'test_update_lr', 'test_sampling_workers', 'test_seed', 'gae_lambda'),
)


def papers(config):
    """Return the paper's values for the test with these settings by number of steps; empty where it has none."""

    def of(settings, name):
        return getattr(settings, name, experiments.BEFORE.get(name))

    if config.baseline is None and config.metatrain_iterations == 0:  # pretrained alone
        return {}
    free = {'update_lr'} if getattr(config, 'update_lr_grid', None) else set()  # it is what the test has chosen
    free |= {'update_batch_size'} if experiments.SOURCES[config.datasource].rl else set()  # of training alone
    for target in TARGETS:
        flags = {**target.flags, **target.tests[0][1], 'train': False}
        settings, _ = main.read_flags(arguments(flags))
        if all(of(settings, name) == of(config, name) for name in set(PROTOCOL) - free):
            return {step: paper for step, paper in zip(target.steps, target.paper) if step <= config.test_num_updates}
    return {}
