"""What reproduce.py prints and writes of its targets: the list, and the tables of README.md and results/."""

import csv
import statistics

import numpy as np

import report
from targets import ROOT, STUDY, TARGETS, arguments
from work import Work

BEGIN, END = '<!-- written by reproduce.py --table -->', '<!-- end of what reproduce.py wrote -->'


def numbers(values):
    """Return (mean, half-width or None) pairs as text."""
    return ', '.join(
        (f'{mean:.2f}' if abs(mean) < 10 else f'{mean:.1f}') + (f' ± {width:.2g}' if width and width == width else '')
        for mean, width in values
    )


def paper_numbers(target):
    """Return what the paper has as text."""
    return numbers(list(zip(target.paper, target.interval or [None] * len(target.paper))))


def state(work):
    """Return how far a target is, as text."""
    done, _ = work.done()
    if done == 0 and not work.result():
        return 'not run'
    return 'finished' if work.finished() else f'{done:,} of {work.total:,}'


def agreement(target, values):
    """Return for each value whether the paper's lies in our 95 % interval, or ours in the paper's, as text."""
    intervals = target.interval or (None,) * len(target.paper)
    words = [
        'within' if abs(mean - paper) <= np.nanmax([width or 0, interval or 0]) else 'outside'
        for (mean, width), paper, interval in zip(values, target.paper, intervals)
    ]
    return ', '.join(words if len(set(words)) > 1 else words[:1])


def show_list(targets, seed, root):
    """Print all targets: state, hours so far and left, the paper's values, ours, whether they agree."""
    print(f'{"target":45s}{"state":>20s}{"hours":>8s}{"left":>7s}   paper | here | agreement')
    for target in targets:
        work = Work(target, seed, root)
        _, seconds = work.done()
        hours = f'{seconds / 3600:.1f}' if seconds == seconds else '?'
        print(
            f'{target.name:45s}{state(work):>20s}{hours:>8s}{work.hours_left():7.1f}   {paper_numbers(target)} | '
            f'{numbers(work.values()) or "–"} | {agreement(target, work.values()) or "–"}'
        )
    print('Hours left are estimated from the pace so far, else from that of a machine with two cores.')
    print(f'Here: of seed {seed} (--seed); README.md has the mean over seeds.')


def seeds(target, root):
    """Return the seeds with which there are results of a target."""
    return sorted(int(path.name[4:]) for path in (root / target.run).glob('seed*') if path.name[4:].isdigit())


def results_table(root):
    """Return the lines of results/README.md: a row for each target, seed and test that there is."""
    lines = ['| target | seed | test | paper | here | | iterations | trained | machine |', '|' + '---|' * 9]
    for target in TARGETS:
        for seed in seeds(target, root):
            work = Work(target, seed, root)
            for test, (label, _) in enumerate(target.tests):
                result = work.result(test)
                if not result:
                    continue
                done, hours = iterations(result.get('iterations'), work.total), hours_of(work, test)
                lines.append(
                    f'| [{target.name}]({work.folder.relative_to(root)}) | {seed} | {label} '
                    f'| {paper_numbers(target) if test == 0 else ""} | {numbers(work.values(test))}{diverging(result)} '
                    f'| {agreement(target, work.values()) if test == 0 else ""} | {done} '
                    f'| {f"{hours:.2f} h" if hours > 0 else ""} | {result["machine"]["cores"]} cores, '
                    f'{result["machine"]["cpu"]} |'
                )
    return lines


def readme_table(root):
    """Return the lines of README.md: a row for each target, with the mean over seeds where there are several."""
    lines = ['| target | flags | paper | here | | seeds, iterations, hours |', '|' + '---|' * 6]
    for target in TARGETS:
        flags = ' '.join(arguments(target.flags))
        runs = [Work(target, seed, root) for seed in seeds(target, root)]
        runs = [work for work in runs if work.result()]
        command = f'`{flags}`' if flags else '(its defaults)'
        row = f'| {target.name} | {command} | {paper_numbers(target)} '
        if not runs:
            lines.append(f'{row}| – | | |')
            continue
        done = sorted({work.result().get('iterations') or 0 for work in runs})
        which = f'{len(runs)} seeds' if len(runs) > 1 else f'seed {runs[0].seed}'
        counts = ' to '.join(iterations(n, runs[0].total) for n in done) if done != [0] else ''
        values = average(runs)
        hours = sum(hours_of(work) for work in runs)
        run = ', '.join(filter(None, [which, counts, f'{hours:.2g} h' if hours > 0 else '']))
        here = numbers(values) + diverging(*(work.result() for work in runs))
        lines.append(f'{row}| {here} | {agreement(target, values)} | {run} |')
    return lines


def study_table(root):
    """Return the lines of results/cheetah_dir/README.md: a row for each run of the study of directions."""
    head = '| flags | seed | iterations | hours | training, last 10 | 20 rollouts | backward, forward | 100 rollouts |'
    lines = [head, '|' + '---|' * 8]
    for target in STUDY:
        for seed in seeds(target, root):
            work = Work(target, seed, root)
            tests = [work.result(test) for test in range(len(target.tests))]
            if not all(tests):
                continue
            few = tests[:-1]  # of three seeds
            of_directions = zip(*([means[1] for means in test['by_direction'].values()] for test in few))
            values = [test['mean'][1] for test in few]
            start = {'init_from': f'results/{target.start}/seed{seed}/weights.npz'} if target.start else {}
            row = [
                f'`{" ".join(arguments(target.flags | start))}`',
                seed,
                iterations(tests[0]['iterations'], work.total),
                f'{hours_of(work):.1f}',
                f'{statistics.mean(last_returns(work, tests[0]["iterations"])):.0f}',
                f'{statistics.mean(values):.0f} ({", ".join(f"{value:.0f}" for value in values)})',
                ', '.join(f'{statistics.mean(direction):.0f}' for direction in of_directions),
                f'{tests[-1]["mean"][1]:.0f} ± {tests[-1]["ci95"][1]:.0f}',
            ]
            lines.append(f'| {" | ".join(map(str, row))} |')
    return lines


def hours_of(work, test=0):
    """Return the hours of training before a test; all of them where it did not keep that (NaN: not known)."""
    return (work.result(test).get('seconds_trained') or work.done()[1]) / 3600


def last_returns(work, done):
    """Return the average returns after the inner step in the last ten of a run's `done` iterations."""
    with open(work.folder / 'progress.csv') as file:
        return [float(row['return_after']) for row in csv.DictReader(file)][max(done - 10, 0) : done]


def average(runs):
    """Return the values of a run, or the means over several seeds with 95 % intervals over these (Student's t)."""
    if len(runs) == 1:
        return runs[0].values()
    means = report.statistics(np.array([[mean for mean, _ in work.values()] for work in runs]), ddof=1)
    return list(zip(means['mean'], means['ci95']))


def diverging(*results):
    """Return how many tasks diverge, for a cell of a table."""
    tasks = sum(result.get('diverging_tasks') or 0 for result in results)
    return f' ({tasks} diverging tasks left out)' if tasks else ''


def iterations(done, total):
    """Return a number of iterations for a cell of a table; of how many, where some are missing."""
    if done is None or total == 0:
        return ''
    return f'{done:,}' if done == total else f'{done:,} of {total:,}'


def tables(root):
    """Return for each file with a table, its path and what its text should be."""
    files = []
    for path, lines in (
        (ROOT / 'README.md', readme_table(root)),
        (ROOT / 'results' / 'README.md', results_table(root)),
        (ROOT / 'results' / 'cheetah_dir' / 'README.md', study_table(root)),
    ):
        before, rest = path.read_text().split(BEGIN)
        after = rest.split(END)[1]
        files.append((path, before + '\n'.join([BEGIN, *lines, END]) + after))
    return files
