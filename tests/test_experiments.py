"""The paper's table of settings, and what given flags do to it."""

import pytest

import experiments
import main
import training


def resolve(**given):
    return main.read_flags([f'--{name}={value}' for name, value in given.items()])[0]


@pytest.mark.parametrize(
    'given, expected',
    [  # the paper's appendix A.1, re-stated
        ({}, (10, 1, 0.01, 25, 70000, 'None', [1, 5, 10])),
        ({'datasource': 'omniglot'}, (1, 1, 0.4, 32, 60000, 'batch_norm', [3])),
        ({'datasource': 'omniglot', 'update_batch_size': 5}, (5, 1, 0.4, 32, 60000, 'batch_norm', [3])),
        ({'datasource': 'omniglot', 'num_classes': 20}, (1, 5, 0.1, 16, 60000, 'batch_norm', [5])),
        ({'datasource': 'miniimagenet'}, (1, 5, 0.01, 4, 60000, 'batch_norm', [10])),
        ({'datasource': 'miniimagenet', 'update_batch_size': 5}, (5, 5, 0.01, 2, 60000, 'batch_norm', [10])),
    ],
)
def test_unset_flags_take_the_papers_values(given, expected):
    config = resolve(**given)
    assert (
        config.update_batch_size,
        config.num_updates,
        config.update_lr,
        config.meta_batch_size,
        config.metatrain_iterations,
        config.norm,
        config.paper_steps,
    ) == expected


def test_given_flags_win():
    """The original's usage line for MiniImagenet 5-shot means what it says: a meta-batch of 4."""
    config = resolve(
        datasource='miniimagenet', update_batch_size=5, meta_batch_size=4, norm='layer_norm', max_pool=False
    )
    assert (config.meta_batch_size, config.norm, config.max_pool) == (4, 'layer_norm', False)


def test_query_sizes():
    """Training: K, but 15 for MiniImagenet; tests: K for all (original main.py:247-251)."""
    for given, expected in (
        ({'update_batch_size': 5}, (5, 5)),
        ({'datasource': 'omniglot', 'update_batch_size': 5}, (5, 5)),
        ({'datasource': 'miniimagenet', 'update_batch_size': 5}, (15, 5)),
        ({'datasource': 'miniimagenet', 'test_query': 15}, (15, 15)),
    ):
        config = resolve(**given)
        assert (config.train_query, config.test_query) == expected


def test_the_oracle_only_pretrains():
    config = resolve(baseline='oracle', pretrain_iterations=100)
    assert (config.pretrain_iterations, config.metatrain_iterations) == (70100, 0)


def test_run_names_are_the_originals():
    """The authors' own folder of MiniImagenet results, among others."""
    assert experiments.run_name(resolve(datasource='miniimagenet')) == (
        'cls_5.mbs_4.ubs_1.numstep5.updatelr0.01hidden32maxpoolbatchnorm'
    )
    assert experiments.run_name(resolve()) == 'cls_5.mbs_25.ubs_10.numstep1.updatelr0.01nonorm'
    names = {
        experiments.run_name(resolve(datasource='omniglot', train=False, **given))
        for given in (
            {},
            {'conv': False},
            {'stop_grad': True},
            {'learn_update_lr': True},
            {'norm': 'layer_norm'},
            {'metatrain_iterations': 0},
            {'train_update_batch_size': 5},
            {'train_update_lr': 0.1},
        )
    }
    assert len(names) == 8


def test_tests_that_differ_do_not_share_a_file():
    given = [{}, {'test_set': True}, {'test_query': 15}, {'test_iter': 100}, {'test_iter': 200}]
    given += [{'update_batch_size': 5, 'train_update_batch_size': 1}, {'update_lr': 0.1, 'train_update_lr': 0.4}]
    configs = [resolve(datasource='omniglot', train=False, **g) for g in given]
    assert len({training.test_name(config) for config in configs}) == len(given)
    assert len({experiments.run_name(config) for config in configs}) == 1
