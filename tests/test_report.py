"""What a test reports, where the program's own runs do not show it."""

import csv
import json

import numpy as np
import pytest

import evaluation
import report


def test_summary_of_a_test(tmp_path):
    """Population deviation, 1.96 deviations / root of the number of tasks, and the original's CSV columns."""
    results = np.array([[0.2, 0.2, 0.6, 1.0], [0.2, 0.0, 0.8, 1.0], [0.2, 0.4, 1.0, 0.4]], np.float32)
    summary = evaluation.summarise(results)
    np.testing.assert_allclose(summary['mean'], [0.2, 0.2, 0.8, 0.8], rtol=1e-6)
    np.testing.assert_allclose(summary['std'], np.sqrt([0, 0.08 / 3, 0.08 / 3, 0.24 / 3]), atol=1e-6)
    np.testing.assert_allclose(summary['ci95'], 1.96 * summary['std'] / np.sqrt(3))
    assert summary['columns'][2:] == ['query, after 1 step', 'query, after 2 steps']
    report.write(str(tmp_path / 'x'), evaluation.csv_rows(summary), summary | {'settings': {'log': False}})
    header, mean, _, _ = csv.reader((tmp_path / 'x.csv').open())
    assert header == ['update0', 'update1', 'update2']
    np.testing.assert_allclose(np.float64(mean), [0.2, 0.8, 0.8], rtol=1e-6)


@pytest.mark.filterwarnings('error')
def test_the_deviation_of_a_sample_of_tasks(tmp_path):
    """As tests of reinforcement learning report it; of a single task there is none, which JSON says by null."""
    two, one = (report.statistics(np.array(rows), ddof=1) for rows in ([[1.0], [3.0]], [[-np.inf]]))
    np.testing.assert_allclose([two['std'][0], two['ci95'][0]], [np.sqrt(2), 12.71])  # Student's
    many, of_population = (report.statistics(np.array([[1.0], [3.0]] * n), ddof=ddof) for n, ddof in ((15, 1), (1, 0)))
    for found in (many, of_population):
        np.testing.assert_allclose(found['ci95'], 1.96 * found['std'] / np.sqrt(30 if found is many else 2))
    assert np.isnan(report.statistics(np.ones([1, 1]), ddof=0)['ci95'])
    report.write_json(str(tmp_path / 'x.json'), one)
    assert json.loads((tmp_path / 'x.json').read_text()) == dict.fromkeys(('mean', 'std', 'ci95', 'median'), [None])
