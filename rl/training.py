"""Meta-training with reinforcement learning, what main.py runs for it: when to log, save and stop.

What an iteration consists of is in maml_trpo.py, tests are in evaluation.py.
"""

import csv
import os

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import checkpoint
from experiments import SOURCES, print_settings
from rl import video
from rl.envs import FAMILIES, draw_tasks
from rl.envs.check import check
from rl.evaluation import test, test_tasks
from rl.maml_trpo import MamlTrpo, MetaIteration, MetaSettings, meta_iteration
from rl.policy import GaussianPolicy
from rl.sampler import Sampler
from rl.trpo import TrustRegion
from run import Run, history
from runtime import UserError, not_written, replacing

# The columns of progress.csv and the names in TensorBoard; the first is the number of outer steps before this one.
METRICS = ('iteration', *MetaIteration._fields[1:])


def run(config, origins, threads, folder, paper):
    """Train (unless --train=False), then test; raises UserError for what the user can mend.

    paper: the paper's values for this test by number of steps.
    """
    check(config.datasource)
    model = make_model(config, threads)
    task = test_tasks(config)[0]
    if config.video:  # whoever has no renderer learns it before the test, not after
        video.check(config.video, config.datasource, task)
    if config.train and config.baseline != 'random':
        train(config, origins, model, folder, threads)
    tested = load_for_test(config, model, folder)
    seed = tested['settings']['seed']
    if seed is not None and config.seed not in (1, seed):  # 1 is the default
        raise UserError(
            f'{tested["checkpoint"]} was trained with --seed={seed}: drop --seed, or use --test_seed for other tasks '
            'and noise'
        )
    if not config.train or config.baseline == 'random':
        print_settings(config, origins, threads)
    others = tested.get('trained_with') or 'adapted' in tested  # than the paper's weights
    phis = test(config, model, folder, tested, threads, {} if others else paper)
    if config.video:
        steps = len(phis) - 1
        after = f'after {steps} gradient step{"s" if steps > 1 else ""}'
        shown = {'before adaptation': 0, after: steps} if steps else {'the policy': 0}
        weights = {caption: {k: w[0] for k, w in phis[n].items()} for caption, n in shown.items()}
        video.write(config.video, config.datasource, task, config.baseline == 'oracle', model.policy.act, weights)
        print(f'the first test task ({FAMILIES[config.datasource].in_words(task)}) is shown in {config.video}')


def make_model(config, threads):
    """Return the MamlTrpo of these settings, its weights fresh.

    --baseline=oracle: the policy observes the task too; context: it reads as many context variables as
    observations, and the inner step changes them alone (docs/fidelity.md, s).
    """
    env = FAMILIES[config.datasource].env
    policy = GaussianPolicy(
        env.observation_size + (config.baseline == 'oracle') * int(np.prod(env.task_shape)),
        env.action_size,
        hidden_sizes=tuple(SOURCES[config.datasource].dim_hidden),
        nonlinearity=config.nonlinearity,
        context_size=env.observation_size if config.baseline == 'context' else 0,
    )
    settings = MetaSettings(
        num_updates=config.num_updates,
        update_lr=config.update_lr,
        learn_update_lr=config.learn_update_lr,
        gae_lambda=config.gae_lambda,
        stop_grad=config.stop_grad,
        likelihood_ratio=config.likelihood_ratio,
        kl_constrain_step=config.kl_constrain_step,
        hvp=config.hvp,
        subsample_factor=config.subsample_factor,
        meta_optimizer=config.meta_optimizer,
        meta_lr=config.meta_lr,
        trust_region=TrustRegion(max_kl=config.meta_step_size),
    )
    return MamlTrpo(policy, settings, config.seed, threads)


def make_sampler(config, threads):
    """Return the Sampler of training, begun at iteration 0."""
    return Sampler(
        config.datasource,
        train_tasks(config, 0),
        config.update_batch_size,
        oracle=config.baseline == 'oracle',
        threads=threads,
        workers=config.sampling_workers,
    )


def train(config, origins, model, folder, threads):
    """Train to the last iteration, or until stopped.

    Progress goes to the terminal, a row an iteration to progress.csv, the same to TensorBoard. Apart from the newest
    checkpoints the theta with the best average return after adaptation is kept.
    """
    sampler = make_sampler(config, threads)
    with Run(config, origins, folder, model, config.metatrain_iterations) as run:
        print_settings(config, origins, threads)
        best = checkpoint.best_so_far(folder, 'average_return')
        begin_progress(folder, run.iteration)
        while run.goes_on():
            iteration = run.iteration
            sampler.restart(train_tasks(config, iteration), (config.seed, iteration))
            try:
                with np.errstate(over='ignore', invalid='ignore'):  # what comes of it is noticed below
                    theta, *values = meta_iteration(model, sampler)
            except (FloatingPointError, np.linalg.LinAlgError) as error:
                raise run.broken_off(error, iteration) from None
            metrics = dict(zip(METRICS[1:], values))
            for name, value in metrics.items():
                if not np.isfinite(value):
                    raise run.broken_off(f'{name} is not finite', iteration)
            if metrics['return_after'] > best:
                best = metrics['return_after']
                path = os.path.join(folder, checkpoint.BEST)
                checkpoint.write(path, model, iteration=iteration, seed=config.seed, average_return=best)
            model.theta = theta
            append_progress(folder, [iteration, *values])
            for name, value in metrics.items():
                tf.summary.scalar(name, value, iteration)
            outer = 'KL {kl_after:.4f}' if metrics['accepted'] else 'outer step rejected'
            tqdm.write(
                'Iteration {}: average return {return_before:.2f} before, {return_after:.2f} after the inner updates; '
                f'{outer}; {{env_steps_per_second:.0f}} steps/s, {{seconds:.1f}} s'.format(iteration, **metrics)
            )
            run.advance(iteration + 1)


def train_tasks(config, iteration):
    """Return the tasks of an iteration, a function of the seed and the iteration alone: [meta_batch_size, ...].

    The last number tells this stream from that of the initial weights; the sampler's are children of others.
    """
    rng = np.random.default_rng((config.seed, iteration, 1))
    return draw_tasks(config.datasource, rng, config.meta_batch_size)


def begin_progress(folder, iteration):
    """Make progress.csv, or drop from it the rows of iterations that will be done again."""
    path, kept = os.path.join(folder, 'progress.csv'), []
    if os.path.exists(path):
        with open(path, errors='replace') as file:
            rows = [row for row in (line.strip().split(',') for line in file) if len(row) == len(METRICS)]
        kept = [row for row in rows if row[0].isdecimal() and int(row[0]) < iteration]
    with replacing(path, newline='') as file:
        csv.writer(file).writerows([METRICS, *kept])


def append_progress(folder, row):
    """Add a row to progress.csv; UserError where it cannot be written."""
    path = os.path.join(folder, 'progress.csv')
    try:
        with open(path, 'a', newline='') as file:
            csv.writer(file).writerow(row)
    except OSError as error:
        raise not_written(path, error.strerror) from None


def load_for_test(config, model, folder):
    """Bring the model to the policy to test; return what `run.history` says of it."""
    if config.baseline == 'random':
        last = config.seed + config.random_policies - 1
        return {'checkpoint': f'fresh policies, seeds {config.seed} to {last}', 'settings': vars(config)}
    if config.init_from and not config.train:
        return history(config, config.init_from, checkpoint.restore_weights(config.init_from, model))
    best, newest = config.test_iter == 'best', config.test_iter == -1
    names = [checkpoint.BEST, checkpoint.PACKED] if best else [f'model{config.test_iter}.npz']
    paths = [path for path in (os.path.join(folder, name) for name in names) if os.path.exists(path)]
    if newest and checkpoint.exists(folder):
        path, state = checkpoint.restore_latest(folder, model)
    elif paths:
        path, state = paths[0], checkpoint.restore(paths[0], model)
    else:
        there = ', '.join(os.path.basename(path) for path in checkpoint.find(folder))
        instead = f'there are {there}, to be tested by --test_iter' if there else 'train first with the same flags'
        missing = 'checkpoint' if newest else names[0]
        raise UserError(f'no {missing} in {folder}: {instead}, or name one with --init_from')
    packed_best = state['iteration'] < state.get('trained', 0)  # that is what is left of a finished run
    if os.path.basename(path) == checkpoint.PACKED and packed_best != best:
        which, test_iter = ('best', 'best') if packed_best else ('newest', -1)
        raise UserError(f'{path} has the {which} weights alone: test them with --test_iter={test_iter}, or train anew')
    return history(config, path, state)
