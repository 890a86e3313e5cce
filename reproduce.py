"""Reproduce the paper: every cell of its tables and every curve of its figures, by name.

    python reproduce.py --list                          all targets: how far they are, the paper's numbers and ours
    python reproduce.py table1/omniglot_5way_1shot      train (or go on, or take what is there), test, print the row
    python reproduce.py table1 figure5/cheetah_vel      groups, several of them, in this order; all: everything
    python reproduce.py queue --minutes=150             what is left in order of worth; stops cleanly after so long
    python reproduce.py --table                         write the tables of README.md and results/README.md
    python reproduce.py --check                         can the numbers in results/ have come from the weights there?

Training and testing are main.py's; the state is in results/<experiment>/<method>/seed<N>/, and the same command goes
on from it. What is finished is not done again without --force.
"""

import argparse
import contextlib
import difflib
import json
import math
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import threading
from dataclasses import dataclass, field

from tqdm import tqdm

import experiments
import main
import runtime
from runtime import UserError

ROOT = pathlib.Path(__file__).resolve().parent


@dataclass(frozen=True)
class Target:
    """A cell of a table or a curve of a figure: how it is made, and what the paper has.

    tests: for each test of the trained model a label and main.py's flags; the paper reads the first.
    steps: the numbers of gradient steps after which it reads (-1: the support set); paper, interval: its values there
    and their 95 % half-widths, in the units of the test (accuracies in percent). hours: of training, measured on two
    cores. missing: what this repository does not do yet.
    """

    name: str
    run: str = ''
    flags: dict = field(default_factory=dict)
    tests: tuple = ()
    steps: tuple = ()
    paper: tuple = ()
    interval: tuple = ()
    hours: float = 0
    missing: str = ''


def image_target(experiment, method, paper, interval, hours, **flags):
    """Return the Target of a cell of Table 1."""
    flags = {**flags, 'test_set': True}
    steps = main.read_flags(arguments(flags))[0].paper_steps
    tests = (('paper', {}), ('15 query images', {'test_query': 15}))
    name = f'table1/{experiment}' + ('' if method == 'maml' else f'_{method}')
    return Target(name, f'{experiment}/{method}', flags, tests, tuple(steps), (paper,), (interval,), hours)


def rl_targets(figures):
    """Return the Targets of Figures 4 and 5 and Tables 4 and 5, whose numbers stand in results/paper_returns.json."""
    hours = {'point': 0.1, 'cheetah_vel': 1.6, 'cheetah_dir': 1.9, 'ant_vel': 3.5, 'ant_dir': 7.2}
    for source, hour in hours.items():
        for method in ('maml', 'pretrain', 'random', 'oracle'):
            curve = figures[source][method]
            yield Target(
                f'figure5/{source}/{method}',
                f'{source}/{method}',
                {'datasource': source} | ({} if method == 'maml' else {'baseline': method}),
                (('paper', {}),),
                tuple(range(len(curve['mean']))),
                tuple(curve['mean']),
                tuple(curve['ci95']),
                0 if method == 'random' else hour,
            )
    for table, source in (('table4', 'point'), ('table5', 'cheetah_dir')):
        for method, curve in figures[table].items():
            flags = {'datasource': source} | ({} if method == 'maml' else {'baseline': method})
            steps = tuple(range(len(curve)))
            name = f'{table}/{method}'
            yield Target(name, f'{source}/{method}', flags, (('paper', {}),), steps, tuple(curve), (), hours[source])


def arguments(flags):
    """Return `flags` as a command line."""
    return [f'--{name}={value}' for name, value in flags.items()]


SINUSOID_TESTS = tuple(
    (f'{k} examples', {'update_batch_size': k, 'train_update_batch_size': 10} if k != 10 else {}) for k in (5, 10, 20)
)
TODO = 'not part of this repository yet'
OMNIGLOT, MINI = {'datasource': 'omniglot'}, {'datasource': 'miniimagenet'}
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
    Target('table2/maml', 'sinusoid/maml', {}, SINUSOID_TESTS, (1, 5, 10), (0.67, 0.38, 0.35), hours=0.01),
    Target('table2/pretrain', steps=(1, 5, 10), paper=(2.41, 2.23, 2.19), missing=TODO),
    Target('table2/multitask_no_reg', steps=(1, 5, 10), paper=(4.19, 3.85, 3.69), missing=TODO),
    Target('table2/multitask_l2', steps=(1, 5, 10), paper=(7.18, 5.69, 5.60), missing=TODO),
    Target('table2/multitask_mean_theta', steps=(1, 5, 10), paper=(2.91, 2.72, 2.71), missing=TODO),
    Target('table3/omniglot_5way_1shot_context', paper=(94.9,), interval=(0.9,), missing=TODO),
    Target('table3/omniglot_5way_5shot_context', paper=(97.7,), interval=(0.3,), missing=TODO),
    *rl_targets(json.loads((ROOT / 'results' / 'paper_returns.json').read_text())),
    *(Target(f'figure{n}', missing=TODO) for n in (2, 3, 6, 7)),
]
FIGURES = {'figure4': ['point'], 'figure5': ['cheetah_vel', 'cheetah_dir', 'ant_vel', 'ant_dir']}  # data sources
GROUPS = {
    'all': [target.name for target in TARGETS if not target.missing],
    'figure4': [target.name for target in TARGETS if target.run.startswith('point/')],
    # The trainings that are long, in order of worth.
    'queue': [
        'table1/omniglot_5way_1shot_noconv',
        'table1/omniglot_5way_5shot_noconv',
        'table1/omniglot_5way_5shot',
        'table1/miniimagenet_5way_1shot_first_order',
        *(f'figure5/{source}/maml' for source in ('cheetah_vel', 'cheetah_dir', 'ant_vel', 'ant_dir')),
        *(
            f'figure5/{s}/{m}'
            for s in ('cheetah_vel', 'cheetah_dir', 'ant_vel', 'ant_dir')
            for m in ('pretrain', 'oracle')
        ),
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
        found = [t for w in wanted for t in TARGETS if t.name == w or t.name.startswith(w + '/')]
        if not found:
            known = [*(target.name for target in TARGETS), *GROUPS, *{t.name.split('/')[0] for t in TARGETS}]
            near = difflib.get_close_matches(name, known, 4, 0.4)
            raise UserError(f'no target {name!r}: did you mean {", ".join(near)}?' if near else f'no target {name!r}')
        chosen.update({target.name: target for target in found})
    return list(chosen.values())


class Work:
    """A target with a seed: its folder, its state, and what there is to do."""

    def __init__(self, target, seed, root, data_dir=None):
        self.target, self.seed = target, seed
        self.folder = root / target.run / f'seed{seed}'
        self.flags = {**target.flags, 'seed': seed}
        source = experiments.SOURCES[target.flags.get('datasource', 'sinusoid')]
        if data_dir and source.folder:
            self.flags['data_dir'] = pathlib.Path(data_dir) / source.folder
        self.config, self.origins = self.settings()
        self.total = self.config.metatrain_iterations + getattr(self.config, 'pretrain_iterations', 0)

    def settings(self, **flags):
        """Return main.py's settings, and their origins, with these flags beside the target's."""
        return main.read_flags(arguments({**self.flags, **flags}))

    def result(self, test=0):
        """Return what the test of this number wrote, None where it was not done."""
        path = self.folder / f'{self.test_name(test)}.json'
        return json.loads(path.read_text()) if path.exists() else None

    def test_name(self, test):
        """Return the name of the files of the test of this number."""
        if experiments.SOURCES[self.config.datasource].rl:
            from rl.evaluation import test_name
        else:
            from training import test_name
        return test_name(self.settings(train=False, **self.target.tests[test][1])[0])

    def done(self):
        """Return how many iterations are done, and the seconds they took (NaN: not known)."""
        import checkpoint

        return checkpoint.done(str(self.folder))

    def tested(self, test):
        """Whether the test of this number was done with all iterations that are done."""
        result = self.result(test)
        return result is not None and result.get('iterations') in (None, self.done()[0])

    def finished(self):
        """Whether training and all tests are done."""
        return self.done()[0] == self.total and all(map(self.tested, range(len(self.target.tests))))

    def hours_left(self):
        """Estimate the hours of training that are left, from the pace so far where it is known."""
        done, seconds = self.done()
        pace = seconds / done if done and seconds > 0 else self.target.hours * 3600 / max(self.total, 1)
        return (self.total - done) * pace / 3600

    def do(self, force=False, train=True):
        """Train what is left, unless told not to, and do the tests that are missing; with force everything anew."""
        import checkpoint

        if force and train and self.folder.exists():
            shutil.rmtree(self.folder)
        if self.finished() and not force:
            print(f'{self.target.name}, seed {self.seed}: finished')
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with logged(self.folder / 'log.txt'):
            if train and self.done()[0] < self.total:
                main.run(*self.settings(), os.path.relpath(self.folder))
            for test, (_, flags) in enumerate(self.target.tests):
                if not self.tested(test) or (force and not train):
                    main.run(*self.settings(train=False, **flags), os.path.relpath(self.folder))
        if self.finished() and checkpoint.find(str(self.folder)):
            checkpoint.pack(str(self.folder))

    def values(self, test=0):
        """Return (mean, half-width or None) after each of the target's steps from a test, accuracies in percent.

        Where some tasks diverge it is the mean of the others.
        """
        result, values = self.result(test), []
        scale = 100 if result and result['measure'] == 'accuracy' else 1
        for step in self.target.steps if result else ():
            index = next(i for i, name in enumerate(result['columns']) if name in column_names(step))
            diverging = result.get('diverging_tasks')
            mean = result['mean_of_the_others' if diverging else 'mean'][index]
            values.append((scale * mean, None if diverging else scale * result['ci95'][index]))
        return values

    def within(self):
        """Return for each value whether the paper's lies in our 95 % interval, or ours in the paper's."""
        verdicts = []
        intervals = self.target.interval or (None,) * len(self.target.paper)
        for (mean, ci95), paper, interval in zip(self.values(), self.target.paper, intervals):
            verdicts.append(abs(mean - paper) <= max(ci95 or 0, interval or 0))
        return verdicts


def column_names(steps):
    """Return the names that a column after so many steps has in the tests of the two kinds of learning."""
    if steps == 0:
        return 'query, before adaptation', 'before any step'
    after = f'after {steps} step{"s" if steps > 1 else ""}'
    return f'query, {after}', after


@contextlib.contextmanager
def logged(path):
    """Write what is printed to the file `path` too, line by line."""

    class Both:
        def __init__(self, terminal, file):
            self.terminal, self.file = terminal, file

        def write(self, text):
            self.file.write(text)
            self.file.flush()
            return self.terminal.write(text)

        def __getattr__(self, name):
            return getattr(self.terminal, name)

    with open(path, 'a') as file:
        terminal, sys.stdout = sys.stdout, Both(sys.stdout, file)
        try:
            yield
        finally:
            sys.stdout = terminal


def numbers(values):
    """Return (mean, half-width or None) pairs as text."""
    return ', '.join(
        (f'{mean:.2f}' if abs(mean) < 10 else f'{mean:.1f}') + (f' ± {width:.2g}' if width else '')
        for mean, width in values
    )


def paper_numbers(target):
    """Return what the paper has as text."""
    return numbers(list(zip(target.paper, target.interval or [None] * len(target.paper))))


def state(work):
    """Return how far a target is, as text."""
    if work.target.missing:
        return work.target.missing
    done, _ = work.done()
    if done == 0 and not work.result():
        return 'not run'
    return 'finished' if work.finished() else f'{done:,} of {work.total:,}'


def verdict(work):
    """Return whether our values agree with the paper's, as text; empty where there are none."""
    found = work.within() if work.result() else []
    if len(set(found)) == 1:
        return 'within' if found[0] else 'outside'
    return ', '.join('within' if agrees else 'outside' for agrees in found)


def show_list(targets, seed, root):
    """Print all targets: state, hours so far and left, the paper's values, ours, whether they agree."""
    print(f'{"target":45s}{"state":>20s}{"hours":>8s}{"left":>7s}   paper | here | agreement')
    for target in targets:
        if target.missing:
            print(f'{target.name:45s}{"not there yet":>20s}{"":15s}   {paper_numbers(target)}')
            continue
        work = Work(target, seed, root)
        _, seconds = work.done()
        hours = f'{seconds / 3600:.1f}' if seconds == seconds else '?'
        print(
            f'{target.name:45s}{state(work):>20s}{hours:>8s}{work.hours_left():7.1f}   {paper_numbers(target)} | '
            f'{numbers(work.values()) or "–"} | {verdict(work) or "–"}'
        )
    print('Hours left are estimated from the pace so far, else from that of a machine with two cores.')


# ---- The tables of README.md and results/README.md ----------------------------------------------------------------

BEGIN, END = '<!-- written by reproduce.py --table -->', '<!-- end of what reproduce.py wrote -->'


def seeds(target, root):
    """Return the seeds with which there are results of a target."""
    return sorted(int(path.name[4:]) for path in (root / target.run).glob('seed*') if path.name[4:].isdigit())


def results_table(root):
    """Return the lines of results/README.md: a row for each target, seed and test that there is."""
    lines = ['| target | seed | test | paper | here | | iterations | trained | machine |', '|' + '---|' * 9]
    for target in TARGETS:
        for seed in seeds(target, root) if target.run else ():
            work = Work(target, seed, root)
            for test, (label, _) in enumerate(target.tests):
                result = work.result(test)
                if not result:
                    continue
                trained = result.get('iterations'), result.get('seconds_trained')
                lines.append(
                    f'| [{target.name}]({work.folder.relative_to(root)}) | {seed} | {label} '
                    f'| {paper_numbers(target) if test == 0 else ""} | {numbers(work.values(test))}{diverging(result)} '
                    f'| {verdict(work) if test == 0 else ""} | {iterations(trained[0], work.total)} '
                    f'| {f"{trained[1] / 3600:.2f} h" if trained[1] else ""} | {result["machine"]["cores"]} cores, '
                    f'{result["machine"]["cpu"]} |'
                )
    return lines


def readme_table(root):
    """Return the lines of README.md: a row for each target, with the mean over seeds where there are several."""
    lines = ['| target | flags | paper | here | | seeds, iterations, hours |', '|' + '---|' * 6]
    for target in TARGETS:
        flags = ' '.join(arguments(target.flags))
        runs = [Work(target, seed, root) for seed in seeds(target, root)] if target.run else []
        runs = [work for work in runs if work.result()]
        command = f'`{flags}`' if flags else '' if target.missing else '(its defaults)'
        row = f'| {target.name} | {command} | {paper_numbers(target)} '
        if not runs:
            lines.append(f'{row}| – | | {"not there yet" if target.missing else ""} |')
            continue
        done = sorted({work.result().get('iterations') or 0 for work in runs})
        which = f'{len(runs)} seeds' if len(runs) > 1 else f'seed {runs[0].seed}'
        counts = ' to '.join(iterations(n, runs[0].total) for n in done) if done != [0] else ''
        here, agreement = average(runs)
        hours = sum(work.result().get('seconds_trained') or 0 for work in runs) / 3600
        run = ', '.join(filter(None, [which, counts, f'{hours:.2g} h' if hours else '']))
        lines.append(f'{row}| {here} | {agreement} | {run} |')
    return lines


def average(runs):
    """Return our values, of one run or the mean over several seeds, and the verdict, as text."""
    if len(runs) == 1:
        return numbers(runs[0].values()) + diverging(runs[0].result()), verdict(runs[0])
    columns = list(zip(*(work.values() for work in runs)))
    means = [[mean for mean, _ in column] for column in columns]
    mean = [sum(column) / len(column) for column in means]
    spread = [
        1.96 * math.sqrt(sum((x - m) ** 2 for x in column) / (len(column) - 1) / len(column))
        for column, m in zip(means, mean)
    ]
    target = runs[0].target
    intervals = target.interval or (0,) * len(target.paper)
    found = [abs(m - p) <= max(s, i) for m, s, p, i in zip(mean, spread, target.paper, intervals)]
    agreement = ', '.join('within' if agrees else 'outside' for agrees in found)
    tasks = sum(work.result().get('diverging_tasks') or 0 for work in runs)
    note = f' ({tasks} diverging tasks left out)' if tasks else ''
    return numbers(list(zip(mean, spread))) + note, agreement if len(set(found)) > 1 else agreement.split(',')[0]


def diverging(result):
    """Return how many tasks diverge, for a cell of a table."""
    tasks = result.get('diverging_tasks')
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
    ):
        before, rest = path.read_text().split(BEGIN)
        after = rest.split(END)[1]
        files.append((path, before + '\n'.join([BEGIN, *lines, END]) + after))
    return files


# ---- The check ------------------------------------------------------------------------------------------------------


def check(work, tasks):
    """Test a run's weights on a few tasks; return what speaks against its numbers, None where nothing does.

    The tasks are the first of the committed test, so for each column the mean over them must lie within four standard
    errors of that over all.
    """
    result = work.result()
    weights = next(p for p in (work.folder / 'weights.npz', work.folder / 'best.npz') if p.exists())
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, 'w') as nowhere:
        config, origins = work.settings(train=False, init_from=weights, num_test_tasks=tasks, **work.target.tests[0][1])
        with contextlib.redirect_stdout(nowhere):
            main.run(config, origins, folder)
        few = json.loads(next(pathlib.Path(folder).glob('*.json')).read_text())
    key = 'mean_of_the_others' if 'mean_of_the_others' in result else 'mean'
    for name, ours, theirs, std in zip(result['columns'], few[key], result[key], result['std']):
        if ours is None or abs(ours - theirs) > 4 * (std or abs(theirs)) / math.sqrt(tasks) + 1e-6:
            return f'{name}: {ours} on {tasks} tasks, but {theirs} is kept'
    return None


def check_all(targets, root, data_dir, tasks):
    """Check all results whose weights are there; print a line each; return whether all hold."""
    sound, checked = True, set()
    for target in targets:
        for seed in seeds(target, root) if target.run else ():
            work = Work(target, seed, root, data_dir)
            there = any((work.folder / name).exists() for name in ('weights.npz', 'best.npz'))
            if work.folder in checked or not work.result() or not there:
                continue
            checked.add(work.folder)
            try:
                against = check(work, tasks)
            except UserError as error:
                print(f'{target.name}, seed {seed}: not checked ({error})')
                continue
            print(f'{target.name}, seed {seed}: {against or "its numbers can have come from its weights"}')
            sound = sound and not against
    return sound


def work_off(targets, options):
    """Do the targets one after the other, then print their rows and draw the figures that they belong to."""
    begun = set()  # folders, which targets of different tables can share
    for target in tqdm(targets, 'targets', disable=None, position=1, leave=False):
        if target.missing:
            print(f'{target.name}: {target.missing}')
            continue
        work = Work(target, options.seed, options.results, options.data_dir)
        work.do(options.force and work.folder not in begun, not options.test)
        begun.add(work.folder)
    print()
    show_list(targets, options.seed, options.results)
    for figure, sources in FIGURES.items():
        if any(target.run.split('/')[0] in sources for target in targets):
            runs = [options.results / target.run / f'seed{options.seed}' for target in TARGETS]
            results = {
                path: None for run in runs if run.parts[-3] in sources for path in sorted(run.glob('test*.json'))
            }
            draw(options.results / f'{figure}.png', list(results))


def draw(path, results):
    """Draw a figure of returns from what tests wrote."""
    from rl import figures

    figures.main(['--out', os.path.relpath(path), *map(str, results)])


@contextlib.contextmanager
def stopped_after(minutes):
    """Stop what is done within, as Ctrl-C does, after so many minutes (None: never)."""
    over = threading.Event()

    def stop():
        over.set()
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(60 * (minutes or 0), stop)
    timer.daemon = True
    if minutes:
        timer.start()
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if not over.is_set():
            raise
        print(f'{minutes:g} minutes are over: the same command goes on from here')
    finally:
        timer.cancel()


def command_line():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('targets', nargs='*', help='names of targets or groups; --list shows them')
    parser.add_argument('--list', action='store_true', help='show targets (default: all)')
    parser.add_argument('--table', action='store_true', help='write the tables of README.md and results/README.md')
    parser.add_argument('--check', action='store_true', help='test the weights in results/ on a few tasks')
    parser.add_argument('--test', action='store_true', help='test what is trained so far, without training on')
    parser.add_argument('--tasks', type=int, default=40, help='tasks of each --check (default: %(default)s)')
    parser.add_argument('--minutes', type=float, help='stop after so many minutes; the same command goes on')
    parser.add_argument('--seed', type=int, default=1, help='seed of weights and tasks (default: %(default)s)')
    parser.add_argument('--force', action='store_true', help='begin anew, and lose what is there of these targets')
    parser.add_argument('--data_dir', help='folder with omniglot_resized and miniImagenet (default: data/)')
    parser.add_argument('--results', type=pathlib.Path, default=ROOT / 'results', help='where they are kept')
    options = parser.parse_args()
    try:
        targets = select(options.targets or ['all']) if options.targets or not options.list else TARGETS
        if not (options.targets or options.list or options.table or options.check):
            raise UserError('name a target, or give --list, --table or --check (--help says more)')
        runtime.start()
        if options.table:
            for path, text in tables(options.results):
                path.write_text(text)
                print(f'written: {path}')
        elif options.check:
            return 0 if check_all(targets, options.results, options.data_dir, options.tasks) else 1
        elif options.list:
            show_list(targets, options.seed, options.results)
        else:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            with stopped_after(options.minutes):
                work_off(targets, options)
    except UserError as error:
        print(f'reproduce.py: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('stopped: the same command goes on from here')
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(command_line())
