"""Draw the paper's figures, training curves and what a test did, from the files that are there: nothing is trained.

    python figures.py                                       all figures that results/ has the tests of
    python figures.py figure2 figure3                       some of them, as results/figure2.png and .svg, …
    python figures.py curve RUN_FOLDER … --out=curve.png    training curves, side by side
    python figures.py returns RESULT.json … --out=me.png    tests of reinforcement learning, as Figures 4 and 5

Figures come from the JSON files of tests: bands are 95 % intervals over tasks, hollow marks the paper's values for the
same test. A training curve comes from progress.csv (reinforcement learning), else from the lines of log.txt, which
are means over all iterations since the line before, else from TensorBoard's summaries, of single iterations.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import textwrap
import types

import curves
import runtime
from experiments import SOURCES
from runtime import UserError
from targets import FIGURES, ROOT, TARGETS, papers
from work import Work

with runtime.in_one_line() if __name__ == '__main__' else contextlib.nullcontext():
    os.environ['MPLBACKEND'] = 'agg'  # a notebook's, which its programs inherit, may not be there for them
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    from report import by_steps

# Colours that the colour-blind can tell apart (Okabe and Ito 2008).
BLUE, SKY, GREEN, ORANGE, VERMILLION, PURPLE = '#0072B2', '#56B4E9', '#009E73', '#E69F00', '#D55E00', '#CC79A7'
METHODS = {  # by --baseline: the name, colour and mark of what is tested
    None: ('MAML', BLUE, 'o'),
    'context': ('context vector', PURPLE, 'D'),
    'pretrain': ('pretrained', ORANGE, 's'),
    'random': ('random', GREEN, '^'),
    'oracle': ('oracle', VERMILLION, 'v'),
    'multitask_no_reg': ('multi-task', SKY, 'P'),
    'multitask_l2': ('multi-task, l2', GREEN, 'X'),
    'multitask_mean_theta': ('multi-task, mean', PURPLE, '*'),
}
STYLES = ('-', '--', '-.', (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)))  # of tests of one method; dotted is the paper's
TITLES = {
    'point': '2D navigation',
    'point_squared': '2D navigation, squared distance',
    'cheetah_vel': 'half-cheetah, velocity',
    'cheetah_dir': 'half-cheetah, direction',
    'ant_vel': 'ant, velocity',
    'ant_dir': 'ant, direction',
}
matplotlib.rcParams.update(
    {
        **{'font.size': 9, 'axes.titlesize': 9, 'axes.spines.top': False, 'axes.spines.right': False},
        **{'legend.frameon': False, 'lines.linewidth': 1.5, 'lines.markersize': 4, 'savefig.dpi': 150},
        'svg.hashsalt': 'maml',  # the same results give the same file
    }
)


# ---- Tests -----------------------------------------------------------------------------------------------------


def read(path):
    """Return the result of a test; UserError where the file `path` is none."""
    try:
        result = json.loads(pathlib.Path(path).read_text())
        METHODS[result['settings']['baseline']], SOURCES[result['settings']['datasource']], by_steps(result)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is no result of a test ({error!r}): give the JSON that main.py wrote') from None
    return result


def read_returns(paths):
    """Return the results of tests of reinforcement learning; UserError where a file is none."""
    for path, result in zip(paths, results := list(map(read, paths))):
        if not SOURCES[result['settings']['datasource']].rl:
            raise UserError(f'{path} is a test of supervised learning: returns is for reinforcement learning')
        try:
            returns([result])
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(f'{path} is no result of a reinforcement learning test ({error!r})') from None
    return results


def find(root, sources, seed):
    """Return the results of the tests that targets.py names for these data sources: of the paper's, not of others."""
    works = {t.run: Work(t, seed, root) for t in TARGETS if t.run.split('/')[0] in sources}  # tables share runs
    paths = [work.result_path(test) for work in works.values() for test in range(len(work.target.tests))]
    return [read(path) for path in paths if path.exists()]


def digest(results):
    """Return a digest of the results of tests: a figure's picture keeps that of what it was drawn from."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()


def ordered(results):
    """Return results in the order of METHODS."""
    return sorted(results, key=lambda result: list(METHODS).index(result['settings']['baseline']))


def draw_steps(axis, title, results):
    """Draw what tests measured against the number of gradient steps; what takes none is a level."""
    last = max(1, *(by_steps(result).shape[1] - 1 for result in results))
    for result in ordered(results):
        mean, ci95 = by_steps(result)
        others = result.get('trained_with') or 'adapted' in result  # than the paper's weights
        paper = {} if others else papers(types.SimpleNamespace(**result['settings']))
        label, colour, mark = METHODS[result['settings']['baseline']]
        same = [other for other in results if other['settings']['baseline'] == result['settings']['baseline']]
        number = next(n for n, other in enumerate(same) if other is result)
        if len(same) > 1:
            label += f' {number + 1}, {plain("/".join(pathlib.Path(result["checkpoint"]).parts[-3:-1]))}'
        if len(mean) == 1:
            mean, ci95 = np.repeat([mean, ci95], last + 1, axis=1)
            paper = {step: value for value in paper.values() for step in range(last + 1)}
        steps = range(len(mean))
        style = STYLES[number % len(STYLES)]
        axis.plot(steps, mean, linestyle=style, marker=mark, color=colour, label=label)
        axis.fill_between(steps, mean - ci95, mean + ci95, color=colour, alpha=0.2, linewidth=0)
        draw_paper(axis, paper, mark, color=colour)
    if len(axis.lines) > len(results):
        mark = mark if len(results) == 1 else 'o'
        draw_paper(axis, {np.nan: np.nan}, mark, color='black', label="the paper's")  # for the legend
    unit = '%' if results[0]['measure'] == 'accuracy' else results[0].get('unit')
    measure = results[0]['measure'] + (f' in {plain(unit)}' if unit else '')
    axis.set(title=title, xlabel='gradient steps', ylabel=textwrap.fill(measure, 36), xticks=range(last + 1))


def draw_paper(axis, values, mark, **how):
    """Draw the paper's values, a dictionary by number of steps."""
    if values:
        axis.plot(*zip(*values.items()), ':', marker=mark, markerfacecolor='white', markersize=7, zorder=1.9, **how)


def draw_paths(axes, result):
    """Draw paths of the first test task of 2D navigation, a panel for each column of the result; a star: the goal."""
    label, colour, _ = METHODS[result['settings']['baseline']]
    for axis, column, paths in zip(axes, result['columns'], result['paths']):
        for path in paths:
            axis.plot(*np.transpose(path), color=colour, linewidth=0.8)
        axis.plot(*result['tasks'][0], '*', color='black', markersize=9)
        axis.set(xlim=(-0.75, 0.75), ylim=(-0.75, 0.75), aspect='equal', xticks=[], yticks=[])
        axis.set_title(column, fontsize=8)
        axis.spines[:].set_visible(True)
    axes[0].set_ylabel(label)


def draw_fit(axis, fits, task, where):
    """Draw a sinusoid, the points of it that the model sees, and its outputs before and after steps on these."""
    task = fits['tasks'][task]
    axis.plot(fits['x'], task['truth'], color='black', linewidth=1, label='ground truth')
    styles = {0: (GREEN, ':'), 1: (ORANGE, '--'), fits['steps'][-1]: (BLUE, '-')}
    for steps, output in zip(fits['steps'], np.array(task[where]['outputs'], float)):
        output[np.abs(output) > 2 * max(1, *np.abs(task['truth']))] = np.nan  # a fit that diverges is cut off
        colour, style = styles[steps]
        label = f'after {steps} step{"s" if steps > 1 else ""}' if steps else 'before any step'
        axis.plot(fits['x'], output, style, color=colour, label=label)
    axis.plot(*task[where]['points'], '^', color=VERMILLION, markersize=5, label='the K points')
    axis.set(xlim=(-5.1, 5.1), xlabel='x', ylabel='y')


def draw_images(axes, samples):
    """Draw a task's images, a column a class: of the support set above, below of the query set with its prediction."""
    for number, (above, below) in enumerate(axes.T):
        show(above, samples['support'][number])
        show(below, samples['query'][number])
        above.set_title(number + 1)
        output = samples['predicted'][number]
        mark, colour = ('✓', BLUE) if output == number else ('✗', VERMILLION)
        below.set_xlabel(f'{mark} {output + 1}', color=colour)
    for axis, words in zip(axes[:, 0], ('support', 'query')):
        axis.set_ylabel(words)


def show(axis, image):
    """Draw an image [side, side, channels] of bytes, one channel as ink on paper."""
    axis.imshow(image if image.shape[2] == 3 else image[..., 0], cmap='gray_r', vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def plain(name):
    """Return a name as it can be drawn: no dollar sign begins a formula, and what is no text is escaped."""
    return name.replace('$', r'\$').encode(errors='backslashreplace').decode()


def legend(figure):
    """Set a legend of all that is labelled in a figure, or a part of one, below its panels."""
    labelled = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            labelled.setdefault(label, handle)
    inches = sum(0.056 * len(label) + 0.45 for label in labelled)
    rows = math.ceil(inches * figure.dpi / figure.bbox.width)
    columns = math.ceil(len(labelled) / rows)
    figure.legend(labelled.values(), labelled, loc='outside lower center', ncols=columns, fontsize=8, columnspacing=1.2)


# ---- Figures ---------------------------------------------------------------------------------------------------


def returns(results):
    """Return a figure: returns, a panel for each data source, below them a row of paths for each result with such."""
    families = {family: [r for r in results if r['settings']['datasource'] == family] for family in SOURCES}
    families = {family: found for family, found in families.items() if found}
    with_paths = [result for result in ordered(results) if len(result.get('paths', [])) > 1]
    columns, heights = max([0, *(len(result['paths']) for result in with_paths)]), [3.4] + [1.9] * len(with_paths)
    figure = Figure((max(1.7 * columns, 3.5 * len(families), 5), sum(heights)), layout='constrained')
    top, *below = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axis, (family, found) in zip(top.subplots(1, len(families), squeeze=False)[0], families.items()):
        draw_steps(axis, TITLES.get(family, family), found)
    legend(top)
    for part, result in zip(below, with_paths):
        draw_paths(part.subplots(1, len(result['paths'])), result)
    return figure


def errors(results, shots):
    """Return a figure of sinusoids: errors by number of steps, a panel for each K of `shots`."""
    results = [r for r in results if r['settings']['baseline'] in (None, 'pretrain', 'oracle')]
    panels = {k: [r for r in results if r['settings']['update_batch_size'] == k] for k in shots}
    panels = {k: found for k, found in panels.items() if found}
    if not panels:
        raise UserError(f'no test of a sinusoid with K = {" or ".join(map(str, shots))}: python reproduce.py figure6')
    figure = Figure((max(3.5 * len(panels), 5), 3.4), layout='constrained')
    for axis, (k, found) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items()):
        draw_steps(axis, f'K = {k}', found)
        axis.label_outer()
    axis.set(ylim=(0, None))
    legend(figure)
    return figure


def fits(results, tasks):
    """Return a figure of sinusoids: fits by K and where the points lie (columns), task and method (rows)."""
    shots = (5, 10)
    found = {(r['settings']['baseline'], r['settings']['update_batch_size']): r for r in results if 'fits' in r}
    methods = [m for m in (None, 'pretrain') if all((m, k) in found for k in shots)]
    if not methods:
        raise UserError('the tests of sinusoids kept no fits: python reproduce.py figure2 --test --force tests again')
    rows = [(task, method) for task in tasks for method in methods]
    columns = [(k, where) for k in shots for where in ('whole range', 'right half')]
    figure = Figure((9, 0.6 + 1.9 * len(rows)), layout='constrained')
    axes = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    for row, (task, method) in zip(axes, rows):
        for axis, (k, where) in zip(row, columns):
            draw_fit(axis, found[method, k]['fits'], task, where)
            axis.set_ylabel(f'{METHODS[method][0]}\ny')
            axis.label_outer()
    for axis, (k, where) in zip(axes[0], columns):
        axis.set_title(f'K = {k}, {where}')
    legend(figure)
    return figure


DRAW = {
    'figure2': lambda results: fits(results, [0]),
    'figure3': lambda results: errors(results, [10]),
    'figure4': returns,
    'figure5': returns,
    'figure6': lambda results: errors(results, [5, 10, 20]),
    'figure7': lambda results: fits(results, [1, 2]),
}


def of_test(result, samples=None):
    """Return a figure of one test: its measure by number of steps, and what it was measured on.

    That is fits of sinusoids, paths of 2D navigation, or images with predictions (samples: evaluation.image_samples).
    """
    if SOURCES[result['settings']['datasource']].rl:
        return returns([result])
    settings, alone = result['settings'], not samples and 'fits' not in result  # tables of the user's own
    figure = Figure((5 if alone else 10, 3.2), layout='constrained')
    left, right = (figure, None) if alone else figure.subfigures(1, 2, width_ratios=[1, 1.9])
    draw_steps(
        left.subplots(), f'{settings["num_test_tasks"]} test tasks, K = {settings["update_batch_size"]}', [result]
    )
    legend(left)
    if alone:
        return figure
    if samples:
        draw_images(right.subplots(2, len(samples['support']), squeeze=False), samples)
        right.suptitle(f'a test task: what images are taken for after {samples["steps"]} steps', fontsize=9)
    else:
        for axis, where in zip(right.subplots(1, 2, sharey=True), ('whole range', 'right half')):
            draw_fit(axis, result['fits'], 0, where)
            axis.set_title(f'a test task, points in the {where}')
            axis.label_outer()
        legend(right)
    return figure


def of_predictions(names, support, queries, answers, columns=10, rows=4):
    """Return a figure of what adapt.py did: an image of each class, and the first queries with what they are taken for.

    support: images [classes, side, side, channels] of bytes; queries: such images; answers: probabilities [queries,
    classes]. At most `columns` classes are shown, and `rows` of queries.
    """
    columns = min(columns, max(len(names), len(queries), 5))
    shown = queries[: rows * columns]
    rows = -(-len(shown) // columns)
    figure = Figure((1.1 * columns, 0.6 + 1.3 * (1 + rows)), layout='constrained')
    top, below = figure.subfigures(2, 1, height_ratios=[1, rows])
    top.suptitle('new classes' + (f', the first {columns} of {len(names)}' if len(names) > columns else ''), fontsize=9)
    below.suptitle(f'predictions, {len(shown)} of {len(queries)}', fontsize=9)
    words = [f'{names[answer.argmax()]}\n{100 * answer.max():.0f} %' for answer in answers[: len(shown)]]
    for part, images, labels in ((top, support[:columns], names), (below, shown, words)):
        axes = part.subplots(-(-len(images) // columns), columns, squeeze=False).ravel()
        for axis, image, label in zip(axes, images, labels):
            show(axis, image)
            axis.set_xlabel(plain(label), fontsize=8)
        for axis in axes[len(images) :]:
            axis.set_axis_off()
    return figure


# ---- Training curves -------------------------------------------------------------------------------------------


def training_curves(folders):
    """Return a figure of training curves, a panel for each run; those that measure the same share an axis."""
    runs = []
    for folder in folders:
        try:
            runs.append((folder, *curves.of_run(folder)))
        except UserError as error:
            if len(folders) == 1:
                raise
            print(f'left out: {error}')
    if not runs:
        raise UserError('none of these folders has a training curve, as said above: name others')
    figure = Figure((max(3.5 * len(runs), 5), 3.4), layout='constrained')
    shared = len({measure for _, measure, _ in runs}) == 1
    axes = figure.subplots(1, len(runs), sharey=shared, squeeze=False)[0]
    styles = {'training, before': (SKY, '-'), 'training, after': (BLUE, '-')}
    styles |= {'validation, before': (ORANGE, '--'), 'validation, after': (VERMILLION, '--')}
    for axis, (folder, measure, found) in zip(axes, runs):
        for label, (colour, style) in styles.items():
            if label in found:
                points = zip(*sorted(found[label].items()))
                axis.plot(*points, style, color=colour, linewidth=1, label=f'{label} adaptation')
        title = plain('/'.join(pathlib.Path(folder).resolve().parts[-3:]))
        axis.set(title='\n'.join(textwrap.wrap(title, 40)), xlabel='iterations', ylabel=measure)
        axis.xaxis.set_major_formatter('{x:,.0f}')
        axis.locator_params(axis='x', nbins=4, integer=True)
        if shared:
            axis.label_outer()
    legend(figure)
    return figure


# ---- Files -----------------------------------------------------------------------------------------------------


def write(figure, *paths, source=None):
    """Write a figure in the formats that the names of `paths` end in, each whole or not at all.

    source: kept in its metadata (PNG and SVG).
    """
    metadata = {'Source': source} if source else {}
    for path in map(pathlib.Path, paths):
        kind = path.suffix[1:]
        if kind not in figure.canvas.get_supported_filetypes():
            raise UserError(f'{path}: a picture ends in .png, .svg or .pdf')
        with runtime.replacing(path, 'wb') as file:
            figure.savefig(file, format=kind, metadata=metadata | ({'Date': None} if kind == 'svg' else {}))


def place(name, root, seed):
    """Return where a figure of the paper is, without its ending."""
    return root / (name if seed == 1 else f'{name}_seed{seed}')


def up_to_date(name, root, seed):
    """Whether the picture of a figure of the paper, a PNG, is of the tests that are below `root`."""
    try:
        with Image.open(f'{place(name, root, seed)}.png') as picture:
            return picture.text.get('Source') == digest(find(root, FIGURES[name], seed))
    except OSError:  # there is none, or it is damaged
        return False


def write_figure(name, root, seed):
    """Draw a figure of the paper from the tests below `root`, as PNG and SVG."""
    results = find(root, FIGURES[name], seed)
    if not results:
        raise UserError(f'{root} has no tests that {name} is made of: python reproduce.py {name} trains and tests')
    path = place(name, root, seed)
    write(DRAW[name](results), f'{path}.png', f'{path}.svg', source=digest(results))
    print(f'written to {path}.png and .svg')


def main(arguments=None):
    parser = runtime.CommandLine(__doc__)
    parser.add_argument('what', nargs='*', help='names of figures; curve and run folders; returns and JSON files')
    parser.add_argument('--out', help='the picture of curve or returns, .png, .svg or .pdf')
    parser.add_argument('--results', type=pathlib.Path, default=ROOT / 'results', help='where tests and figures are')
    parser.add_argument('--seed', type=int, default=1, help='of the tests in --results (default: %(default)s)')
    with runtime.in_one_line():
        options = parser.parse_intermixed_args(arguments)  # --out may stand before or after
        kind, *paths = options.what or ['']
        if kind in ('curve', 'returns'):
            if not paths or not options.out:
                parser.error(
                    f'{kind} needs {"folders of runs" if kind == "curve" else "results of tests"} and --out=PICTURE'
                )
            write(training_curves(paths) if kind == 'curve' else returns(read_returns(paths)), options.out)
            print(f'written to {options.out}')
            return
        if options.out:
            parser.error('--out is for curve and returns')
        for name in options.what:
            if name not in DRAW:
                parser.error(f'{name!r} is no figure: {", ".join(DRAW)}, curve, returns')
        if not options.results.is_dir():
            parser.error(f'there is no folder {options.results}')
        for name in options.what or DRAW:
            try:
                write_figure(name, options.results, options.seed)
            except UserError as error:
                if options.what:
                    raise
                print(f'{name} is left out: {error}')


if __name__ == '__main__':
    main()
