"""Draw figures 4 and 5 of the paper from the results of tests, the JSON files that main.py writes.

    python -m rl.figures --out=figure.png RESULT.json ...

Per environment a panel of average returns against gradient steps, with 95 % intervals and, dotted, the paper's;
below, for results of 2D navigation, paths of the first test task before and after each gradient step.
"""

import argparse
import json
import os
import pathlib

import runtime
from runtime import UserError

with runtime.in_one_line():  # where a package is missing, or Ctrl-C does not wait
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    import numpy as np

PAPER = pathlib.Path(__file__).parent.parent / 'results' / 'paper_returns.json'
METHODS = {'maml': 'C0', 'context': 'C4', 'pretrain': 'C1', 'random': 'C2', 'oracle': 'C3'}
TITLES = {
    'point': '2D navigation',
    'cheetah_vel': 'half-cheetah, velocity',
    'cheetah_dir': 'half-cheetah, direction',
    'ant_vel': 'ant, velocity',
    'ant_dir': 'ant, direction',
}


def method(result):
    """Return what was tested: a key of METHODS."""
    baseline = result['settings']['baseline']
    return baseline or 'maml'


def draw_returns(axis, results, paper):
    """Draw average return against the number of gradient steps; the oracle, which takes none, as a level."""
    steps = max(2, *(len(result['mean']) for result in results))

    def curve(values):
        y = np.array(values[:steps])
        return (np.arange(len(y)), y) if len(y) > 1 else (np.array([0, steps - 1]), np.repeat(y, 2))

    for result in results:
        name = method(result)
        (x, mean), (_, ci95) = curve(result['mean']), curve(result['ci95'])
        axis.plot(x, mean, color=METHODS[name], label='MAML' if name == 'maml' else name)
        axis.fill_between(x, mean - ci95, mean + ci95, color=METHODS[name], alpha=0.2, linewidth=0)
        if name in paper:
            axis.plot(*curve(paper[name]['mean']), ':', color=METHODS[name])
    axis.set(title=TITLES[results[0]['settings']['datasource']], xlabel='gradient steps', xticks=range(steps))
    axis.set_ylabel("average return (dotted: the paper's)")
    axis.legend(fontsize='small', loc='upper center', bbox_to_anchor=(0.5, -0.15), ncols=4, frameon=False)


def draw_paths(axes, result):
    """Draw paths of the first test task, a panel for each column of the result; the goal is a star."""
    for axis, column, paths in zip(axes, result['columns'], result['paths']):
        for path in paths:
            axis.plot(*np.transpose(path), color=METHODS[method(result)], linewidth=1)
        axis.plot(*result['tasks'][0], '*', color='black', markersize=9)
        axis.set(xlim=(-0.75, 0.75), ylim=(-0.75, 0.75), aspect='equal', xticks=[], yticks=[])
        axis.set_title(f'{method(result)}, {column}'.replace('maml', 'MAML'), fontsize=8)


def draw(results, paper):
    """Return the whole figure: a row of panels of returns, then a row of panels for each result that holds paths."""
    families = {family: [r for r in results if r['settings']['datasource'] == family] for family in TITLES}
    families = {family: found for family, found in families.items() if found}
    with_paths = [result for result in results if len(result.get('paths', [])) > 1]
    columns = max([len(families)] + [len(result['paths']) for result in with_paths])
    heights = [4] + [2] * len(with_paths)
    size = max(1.8 * columns, 4.5 * len(families)), sum(heights)
    figure = plt.figure(figsize=size, layout='constrained')
    top, *below = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axis, (family, found) in zip(top.subplots(1, len(families), squeeze=False)[0], families.items()):
        draw_returns(axis, found, paper.get(family, {}))
    for part, result in zip(below, with_paths):
        draw_paths(part.subplots(1, len(result['paths'])), result)
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('results', nargs='+', metavar='RESULT.json', help="written by main.py's tests")
    parser.add_argument('--out', required=True, help='the picture, .png, .pdf or .svg')
    with runtime.in_one_line():
        run(parser.parse_args(arguments))


def run(options):
    """Draw what the options name; raises UserError for what is no result, or where the picture cannot be written."""
    results = []
    for path in options.results:
        try:
            result = json.loads(pathlib.Path(path).read_text())
            TITLES[result['settings']['datasource']], METHODS[method(result)]
            for name in ('mean', 'ci95'):  # null: not a number
                result[name] = np.array(result[name], float).reshape(len(result['columns']))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'{path} is no result of a reinforcement learning test ({error!r}): give the JSON that main.py wrote'
            ) from None
        results.append(result)
    results.sort(key=lambda result: list(METHODS).index(method(result)))
    paper = json.loads(PAPER.read_text())
    try:
        with runtime.replacing(options.out, 'wb') as file:
            kind = os.path.splitext(options.out)[1][1:]
            draw(results, paper).savefig(file, format=kind, dpi=120, bbox_inches='tight')
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f'cannot write {options.out}: {error}') from None
    print(f'written to {options.out}')


if __name__ == '__main__':
    main()
