"""Meta-training of the supervised experiments: the original's train() (maml: main.py:72-160).

Batches come from data_generator.py, steps from maml.py, what a run is from run.py, and tests from evaluation.py; here
is when to train, log and validate, and what is tested.
"""

import functools
import itertools
import math
import os
import sys

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import checkpoint
import distribute
import multitask
import regression
from data_generator import SinusoidGenerator, image_generators, prefetched
from evaluation import test, tune
from experiments import MULTITASK, SOURCES, config_beside, print_settings, source_of
from images import OWN_SPLIT, folder_of, settle, training_digest
from maml import MAML
from networks import Convolutional, FullyConnected, WithContext
from run import Run, history, keep_to, what_is_trained
from runtime import UserError, has_bfloat16
from utils import accuracy, mse, xent

SUMMARY_INTERVAL = 100
# Times the usual loss: its square stays in Adam's second moments for 1,000 ln(JUMP² / 1,000) iterations and more.
JUMP = 100
TEST_PRINT_INTERVAL = 500  # between two looks at the validation set (not for sinusoids)
# Tasks of a look, the same at each, so that two differ by their weights alone. Each costs less than half of a task in
# training, of which there are 1,000 (MiniImagenet, 5-shot) to 16,000 (Omniglot) between two looks.
VALIDATION_TASKS = 100


def run(config, origins, threads, folder, paper):
    """Train (unless --train=False), then test; raises UserError for what the user can mend.

    paper: the paper's values for this test by number of steps.
    """
    source = SOURCES[config.datasource]
    if source.img_size:
        keep_to_images(config, source, folder)
    if source.own:
        settle(config, origins, source)
    source = source_of(config)
    if config.precision == 'mixed' and not has_bfloat16():
        print(
            'warning: --precision=mixed is no faster than float32 on this processor, which has neither amx_bf16 nor '
            "the avx512_bf16 of AMD's",
            file=sys.stderr,
        )
    strategy = distribute.make_strategy(config.distribute, config.meta_batch_size)
    if config.datasource == 'table':
        data, source = regression.make_data(config, source, folder)
    else:
        data = make_data(config, source)
    config.data_digest = getattr(data.get('train'), 'digest', None)
    with distribute.all_workers(strategy), strategy.scope():
        model = make_model(config, source, threads)
    if config.train and config.baseline in MULTITASK:
        multitask.train(config, origins, threads, model, folder)
    elif config.train:
        train(config, origins, threads, model, data, folder, source, strategy)
    if 'test' not in data:
        print('not tested, since there is no validation split: --test_set tests on the test split')
    elif distribute.is_chief(strategy):
        chosen, *loaded = load_for_test(config, model, folder)
        tested = {'chosen': chosen, **history(config, *loaded)}
        if not config.train:
            print_settings(config, origins, threads)
        record = os.path.join(os.path.dirname(tested['checkpoint']), multitask.RECORD)
        if config.baseline in MULTITASK and os.path.exists(record):
            tested['regressors'] = multitask.read_record(record)
        if config.update_lr_grid:
            if config.datasource == 'table' and not config.test_set:
                why = 'the step size is chosen on the tables that are tested: --test_set has others'
                print(f'warning: {why}', file=sys.stderr)
            tested['tuned'] = tune(config, model, data.get('val', data['test']))
            tested['settings']['update_lr'] = config.update_lr
        others = tested['trained_with'] or 'adapted' in tested  # than the paper's weights
        test(config, model, data['test'], folder, tested, {} if others else paper)


def keep_to_images(config, source, folder):
    """See to it that nothing is tested on that the weights were trained on, as far as config.json beside them knows.

    Tests of one's own images get the size, and from one set of class folders the split, of the training: of the run in
    `folder`, or that of --init_from. UserError where the flags say others, or the images are others than that run's;
    a warning where --init_from names weights to test on others.
    """
    weights = config.init_from or os.path.join(folder, checkpoint.BEST)
    trained = config_beside(weights) if config.init_from or not config.train else {}
    if not trained.get('data_digest') or trained['datasource'] != config.datasource:
        return
    if config.train and not source.own:  # the paper's data sets are always split in the same way
        return
    one_set, digest = training_digest(config, source)
    same, drawn = digest == trained['data_digest'], source.own and one_set  # drawn: the classes to test on, from all
    if same and drawn and not trained['split']:
        raise UserError(f'{weights} was trained on all classes of {config.data_dir}: bring others to test on')
    if config.train:
        if same and drawn and (config.split or OWN_SPLIT) != trained['split']:
            raise UserError(
                f'{weights} was trained on other classes of {config.data_dir}, among them some to test on now: use its '
                f'--split={",".join(map(str, trained["split"]))}'
            )
        return
    if digest and not same:  # else what to test on was brought
        which = ', which drew from them the classes to test on' * one_set
        others = f'{folder_of(config, source)} has not the images of the training{which}'
        if not config.init_from:
            instead = 'put class folders to test on in a folder test/ elsewhere' if drawn else 'use --init_from'
            raise UserError(f'{others}: bring them back, or {instead}')
        if one_set:
            print(f'warning: {others}: classes may be tested on that were trained on', file=sys.stderr)
    if source.own:
        keep_to(config, trained, ['img_size', 'channels', *['split'] * (same and drawn)])


def make_data(config, source):
    """Generators by use: 'train', 'val' (while training) and 'test'; the last is the split that --test_set says."""
    if not source.img_size:
        common = dict(
            meta_batch_size=config.meta_batch_size,
            oracle=config.baseline == 'oracle',
            block=source.block,
            seed=config.seed,
        )
        return {
            'train': SinusoidGenerator(config.train_update_batch_size, query=config.train_query, **common),
            'test': SinusoidGenerator(config.update_batch_size, query=config.test_query, **common),
        }
    test_split = 'test' if config.test_set else 'val'
    splits = dict.fromkeys(['train', 'val', test_split] if config.train else [test_split])
    query = {'train': config.train_query, 'val': config.test_query, 'test': config.test_query}
    generators = image_generators(
        source,
        folder_of(config, source),
        splits,
        config.num_classes,
        config.update_batch_size,
        query,
        config.meta_batch_size,
        config.seed,
        # Else it is what the test uses, without which the paper's experiments are not done.
        optional=['val'] if config.test_set or (config.train and source.own) else [],
    )
    return generators | ({'test': generators[test_split]} if test_split in generators else {})


def make_model(config, source, threads):
    """Return the MAML model of these settings, with fresh weights."""
    image, context = source.img_size > 0, config.baseline == 'context'
    pixels = source.img_size**2
    if image and config.conv:
        network = Convolutional(
            img_size=source.img_size,
            channels=source.channels + context,
            dim_output=config.num_classes,
            num_filters=config.num_filters,
            max_pool=config.max_pool,
            flatten=source.flatten,
            norm=config.norm,
            compute_dtype='bfloat16' if config.precision == 'mixed' else None,
        )
    else:
        network = FullyConnected(
            dim_input=source.dim_input + (2 if config.baseline == 'oracle' else pixels * context),
            dim_output=config.num_classes if image else source.dim_output,
            dim_hidden=source.dim_hidden,
            norm=config.norm,
        )
    return MAML(
        WithContext(network, pixels) if context else network,
        loss_func=functools.partial(xent, update_batch_size=config.update_batch_size) if image else mse,
        measure=accuracy if image else None,
        update_lr=config.update_lr,
        num_updates=config.num_updates,
        stop_grad=config.stop_grad,
        learn_update_lr=config.learn_update_lr,
        meta_lr=config.meta_lr,
        clip=source.clip,
        vectorize=not image,
        parallel_tasks=threads,
        xla=bool(tf.config.list_physical_devices('GPU')),
        seed=config.seed,
    )


# ---- Training --------------------------------------------------------------------------------------------------


def train(config, origins, threads, model, data, folder, source, strategy):
    """Train to the last iteration, or until stopped.

    Progress goes to the terminal, the scalars to TensorBoard under the original's names. Apart from the newest
    checkpoints the weights that were best on the validation set are kept, of equals the later ones.
    """
    total = config.pretrain_iterations + config.metatrain_iterations
    if config.test_iter == 'best' and ('val' not in data or total < TEST_PRINT_INTERVAL):
        raise UserError(
            f'--test_iter=best is the best of the looks at a validation set, every {TEST_PRINT_INTERVAL} iterations, '
            'and this training has none: drop it'
        )
    same_for_all = what_is_trained(config) | {'save_interval': config.save_interval}  # which divides blocks into pieces
    labels = ['loss', 'accuracy'] if model.measure else ['loss']
    words = f'Iteration {{}}: {labels[-1]} {{:#.4g}} before, {{:#.4g}} after the inner updates'
    recent, usual = [], None
    with Run(config, origins, folder, model, total, distribute.is_chief(strategy)) as run:
        if run.chief:
            print_settings(config, origins, threads)
        state = checkpoint.variables(model).values(), run.iteration
        run.iteration = distribute.share_state(strategy, *state, same_for_all)
        looked = {'test_query': config.test_query}  # scores compare if these are the same
        if 'val' in data:
            looked['data'] = int(data['val'].digest[:12], 16)
        best = checkpoint.best_so_far(folder, 'score', **looked) if run.chief else None
        train_block, stops = distribute.block_trainer(strategy, model), distribute.stops(strategy)
        for block, begin, last, pretrain in pieces(config, source, data['train'], run.iteration, total):
            metrics = train_block(block, run.iteration - begin, last - begin, pretrain)
            for step, row in enumerate(metrics, start=run.iteration):
                if not np.all(np.isfinite(row[::2] if pretrain else row)):  # what is after adaptation is logged alone
                    raise run.broken_off('the loss is not finite', step)
                usual = warn_of_jump(row[0] if pretrain else row[:2].max(), usual, step, pretrain)
                recent.append(row)
                if step % SUMMARY_INTERVAL == 0:
                    write_summaries('metatrain', labels, row, config.num_updates, step)
            if run.chief and last % source.print_interval == 0:
                # The original prints accuracies where there are any, else losses (maml: main.py:114-128).
                before, after = np.mean(recent, axis=0)[-2:]
                count = last if pretrain else last - config.pretrain_iterations
                tqdm.write(('Pretrain ' if pretrain else '') + words.format(count, before, after))
                run.progress.set_postfix_str(f'{labels[-1]} {before:.3f} -> {after:.3f}')
            if last == config.pretrain_iterations:  # what follows is meta-training
                usual = None
            if last % source.print_interval == 0 or last == config.pretrain_iterations:
                recent = []
            if run.chief and 'val' in data and last % TEST_PRINT_INTERVAL == 0:
                looks = data['val'].validation_batches(VALIDATION_TASKS)
                results = np.concatenate([model.evaluate(tasks, config.num_updates) for tasks in looks])
                before, after = results.mean(axis=0)[[0, -1]]
                tqdm.write('Validation, ' + words.format(last, before, after))
                write_summaries('metaval', labels[-1:], [before, after], config.num_updates, last)
                score = after if model.measure else -after
                if score >= best:
                    best, path = score, os.path.join(folder, checkpoint.BEST)
                    checkpoint.write(path, model, iteration=last, seed=config.seed, score=float(score), **looked)
            run.advance(last)  # after the look, so that a run that breaks off in it looks again
            if stops(run.stop_requested):
                run.stop_requested = True
                break


def warn_of_jump(loss, usual, step, pretrain=False):
    """Say so, once, when the loss is JUMP times what is usual; return what then is usual, a running mean."""
    usual = usual or loss
    if loss > JUMP * usual:
        tqdm.write(
            f'warning: the loss jumped from {usual:.2g} to {loss:.2g} at iteration {step}: Adam may stand still for '
            f'thousands of iterations; try a smaller {"--meta_lr" if pretrain else "--update_lr"}'
        )
        return math.inf
    return usual + 0.01 * (loss - usual) if usual < math.inf else usual


def pieces(config, source, generator, iteration, total):
    """What is trained in one compiled call each: (block of batches, number of its first, last + 1, pretrain or not).

    A piece ends with its block, where a checkpoint is due, or where pretraining ends.
    """
    numbers = itertools.count(iteration // source.block)
    blocks = prefetched(generator.draw_block, iteration // source.block) if iteration < total else ()
    for number, block in zip(numbers, blocks):
        begin = number * source.block
        while iteration < min(begin + source.block, total):
            pretrain = iteration < config.pretrain_iterations
            last = min(
                begin + source.block,
                total,
                (iteration // config.save_interval + 1) * config.save_interval,
                config.pretrain_iterations if pretrain else total,
            )
            yield block, begin, last, pretrain
            iteration = last
        if iteration >= total:
            return


def write_summaries(prefix, labels, values, num_updates, step):
    """TensorBoard scalars under the original's names, as TF1 wrote them (maml: maml.py:157-165)."""
    for label, (before, after) in zip(labels, np.reshape(values, [-1, 2])):
        tf.summary.scalar(f'{prefix}_Pre-update_{label}', before, step)
        tf.summary.scalar(f'{prefix}_Post-update_{label}__step_{num_updates}', after, step)


# ---- What is tested --------------------------------------------------------------------------------------------


def load_for_test(config, model, folder):
    """Bring the model to the checkpoint to test; return in words by what it is chosen, its path and its numbers."""
    if config.init_from and not config.train:
        return 'by --init_from', config.init_from, checkpoint.restore_weights(config.init_from, model)
    if config.test_iter == -1:
        return 'the newest', *checkpoint.restore_latest(folder, model)
    best = config.test_iter == 'best'
    path = os.path.join(folder, checkpoint.BEST if best else f'model{config.test_iter}.npz')
    if not os.path.exists(path):
        why = f', a run has it after {TEST_PRINT_INTERVAL} iterations' if best else ''
        raise UserError(f'{path} is not there{why}: name another --test_iter, or drop it to test the newest checkpoint')
    chosen = f'the best on {VALIDATION_TASKS} validation tasks' if best else 'by --test_iter'
    return chosen, path, checkpoint.restore(path, model)
