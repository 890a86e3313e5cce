"""Tests: what a policy earns on the test tasks before and after each gradient step (paper, figures 4 and 5)."""

import os
import time

import numpy as np
from tqdm import tqdm

import report
from naming import test_name
from rl.envs import FAMILIES, draw_tasks
from rl.envs.base import DirectionTask
from rl.envs.point import PointEnv
from rl.policy import flatten
from rl.reinforce import adapt
from rl.sampler import Sampler
from rl.samples import collect
from runtime import UserError

TEST_STREAM = 2**31  # stands where training's random streams have the iteration, so that no test repeats one


def adapt_and_measure(model, sampler, step_sizes, progress=lambda: None):
    """Adapt the policy of `model`, a MamlTrpo, to each of the sampler's tasks, each step on new paths.

    step_sizes: alpha of each step, as `adapt` takes it. Returns two lists: the Paths before any and after each
    step, and as many dictionaries of weights [tasks, ...]. Calls `progress` after each time that paths
    were collected. Raises what `collect` raises.
    """
    phis, paths = [model.unadapted(len(sampler.tasks))], []
    for alpha in step_sizes:
        collected, _, samples = collect(model.policy, sampler, phis[-1], model.settings.gae_lambda)
        paths.append(collected)
        phis.append(adapt(model.policy, phis[-1], samples, alpha, model.threads))
        progress()
    paths.append(sampler.collect(lambda observations, noise: model.policy.act(phis[-1], observations, noise)))
    progress()
    return paths, phis


def step_sizes(config, learned):
    """Return alpha of each gradient step of a test; learned [num_updates, tensors] if test_update_lr is None.

    As many steps as in training (at least one) take the alpha of training, later ones half of the last
    (paper, 5.3: "the first step alpha, all later ones alpha / 2").
    """
    alphas = learned if config.test_update_lr is None else [config.test_update_lr] * max(config.num_updates, 1)
    return [alphas[n] if n < len(alphas) else 0.5 * alphas[-1] for n in range(config.test_num_updates)]


def test_tasks(config):
    """Return the test tasks; at the paper's number and seed those of the original (maml_rl: test_maml_*.py)."""
    return draw_tasks(config.datasource, np.random.RandomState(config.test_seed), config.num_test_tasks)


def test(config, model, folder, tested, threads, paper):
    """Test on num_test_tasks tasks; print a table, write CSV and JSON, return the phis of `adapt_and_measure`.

    tested: what `run.history` says of the model. With --baseline=random the numbers are over random_policies policies,
    of which each is tested on all tasks; paths and phis are those of the first.
    """
    start, tasks, policies = time.time(), test_tasks(config), config.random_policies or 1
    alphas = step_sizes(config, model.step_sizes())
    os.makedirs(folder, exist_ok=True)  # whoever cannot write there learns it before the test, not after
    each = []  # policy: [tasks, columns]
    with tqdm(total=policies * (len(alphas) + 1), desc='testing', unit=' steps', disable=None) as progress:
        for number in range(policies):
            if number:
                model.theta = flatten(model.init(config.seed + number))
            sampler = Sampler(
                config.datasource,
                tasks,
                config.test_update_batch_size,
                seed=(config.test_seed, TEST_STREAM + number),
                oracle=config.baseline == 'oracle',
                threads=threads,
                workers=config.test_sampling_workers,
            )
            try:
                with np.errstate(over='ignore', invalid='ignore'):  # what comes of it is noticed
                    collected, adapted = adapt_and_measure(model, sampler, alphas, progress.update)
            except (FloatingPointError, np.linalg.LinAlgError) as error:
                advice = ': try a smaller --test_update_lr' if alphas else ''
                raise UserError(f'the test broke off, {error}{advice}') from None
            each.append(np.transpose([paths.average_returns() for paths in collected]))
            if number == 0:
                first, phis = collected, adapted
    returns = np.mean(each, axis=1) if policies > 1 else each[0]
    columns = ['before any step'] + [f'after {n} step{"s" if n > 1 else ""}' for n in range(1, len(alphas) + 1)]
    numbers = report.statistics(returns, ddof=1)
    print(
        f'\naverage return over {len(tasks)} tasks, {config.test_update_batch_size} rollouts of each before and '
        f'after each step (workers: {config.test_sampling_workers})'
        + (f',\nmean and intervals over {policies} untrained policies' if policies > 1 else '')
    )
    report.print_checkpoint(tested)
    report.print_table(columns, numbers, {columns[step]: value for step, value in paper.items()})
    directions = by_direction(config.datasource, tasks, np.mean(each, axis=0))
    for words, mean in directions.items():
        print(f'{words}: ' + ', '.join(f'{value:.4g}' for value in mean))

    rows = [['', *[f'return {column}' for column in columns]]]
    rows += [[statistic, *values] for statistic, values in numbers.items()]
    result = {
        'measure': 'average return',
        'columns': columns,
        **numbers,
        'per_policy' if policies > 1 else 'per_task': returns.T,  # [columns][policies or tasks]
        'tasks': tasks,
        **({'by_direction': directions} if directions else {}),
        'step_sizes': alphas,
        'seconds': round(time.time() - start, 1),
        **tested,
    }
    env = FAMILIES[config.datasource].env
    if issubclass(env, PointEnv) and env.observation_size == 2:  # three paths each time, for the picture of figure 4
        shown = [np.split(paths.observations[0], np.cumsum(paths.path_lengths[0]))[:-1][:3] for paths in first]
        result['paths'] = [[path.round(3).tolist() for path in some] for some in shown]
    report.write(os.path.join(folder, test_name(config)), rows, result)
    return phis


def by_direction(datasource, tasks, returns):
    """Return the mean columns of `returns` [tasks, columns] of each direction by its name; {} for other families."""
    if not issubclass(FAMILIES[datasource].env, DirectionTask):
        return {}
    which = {FAMILIES[datasource].in_words(task): tasks == task for task in np.unique(tasks)}
    return {
        f'{words} ({mask.sum()} of {len(tasks)} tasks)': returns[mask].mean(axis=0) for words, mask in which.items()
    }
