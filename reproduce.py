"""Reproduce the paper: every cell of its tables and every curve of its figures, by name.

    python reproduce.py --list                          all targets: how far they are, the paper's numbers and ours
    python reproduce.py table1/omniglot_5way_1shot      train (or go on, or take what is there), test, print the row
    python reproduce.py table1 figure5/cheetah_vel      groups, several of them, in this order; all: everything
    python reproduce.py figure3                         the curves of a figure, then the figure (figures.py)
    python reproduce.py queue --minutes=150             what is left in order of worth; stops cleanly after so long
    python reproduce.py --table                         write the tables of README.md and results/**/README.md
    python reproduce.py --check                         can the numbers in results/ have come from the weights there?

Training and testing are main.py's; the state is in results/<experiment>/<method>/seed<N>/, and the same command goes
on from it. What is finished is not done again without --force.
"""

import contextlib
import json
import math
import os
import pathlib
import signal
import sys
import tempfile
import threading

import main
import runtime
from results_tables import seeds, show_list, tables
from runtime import UserError
from targets import FIGURES, ROOT, select
from work import Work


def check(work, tasks):
    """Test a run's weights on a few tasks; return what speaks against its numbers, None where nothing does.

    The tasks are the first of the committed test, so for each column (of at most two steps) the mean over them must lie
    within four standard errors of that over all.
    """
    result = work.result()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, 'w') as nowhere:
        steps = min(result['settings']['test_num_updates'], 2)  # each takes its time to be compiled, or sampled
        flags = {'train': False, 'log': False, 'init_from': work.weights()}
        flags |= {'num_test_tasks': tasks, 'test_num_updates': steps}
        flags |= {'update_lr': result['settings']['update_lr']} if 'tuned' in result else {}  # not to be tuned on a few
        config, origins = work.settings(**flags, **work.target.tests[0][1])
        with contextlib.redirect_stdout(nowhere):
            main.run(config, origins, folder)
        few = json.loads(next(pathlib.Path(folder).glob('*.json')).read_text())
    which = '_of_the_others' if 'mean_of_the_others' in result else ''
    number = result['settings']['num_test_tasks'] - result.get('diverging_tasks', 0)
    for name, ours, theirs, ci95 in zip(
        *(result['columns'], few['mean' + which], *(result[k + which] for k in ('mean', 'ci95')))
    ):
        std = ci95 and ci95 * math.sqrt(number) / 1.96
        numbers = all(isinstance(number, int | float) for number in (ours, theirs, std or 0))
        if not (numbers and abs(ours - theirs) <= 4 * (std or abs(theirs)) / math.sqrt(tasks) + 1e-6):
            return f'{name}: {ours} on {tasks} tasks, but {theirs} is kept'
    return None


def check_all(targets, root, data_dir, tasks, one_seed=None):
    """Check all results, or those of one seed, whose weights are there; print a line each; return whether all hold.

    UserError, at the end, where some could not be checked, for want of the images for example, or there are none.
    """
    import checkpoint

    sound, checked, not_checked = True, set(), 0
    for target in targets:
        for seed in seeds(target, root) if one_seed is None else [one_seed]:
            work = Work(target, seed, root, data_dir)
            if work.folder in checked or not work.result_path(0).exists() or not work.weights():
                continue
            checked.add(work.folder)
            try:
                of, there = work.result().get('iteration'), checkpoint.read(work.weights())['iteration']
                if of not in (None, there):
                    print(f'{target.name}, seed {seed}: has gone on since its test, from iterate {of} to {there}')
                    continue
                against = check(work, tasks)
            except UserError as error:
                print(f'{target.name}, seed {seed}: not checked ({error})')
                not_checked += 1
                continue
            print(f'{target.name}, seed {seed}: {against or "its numbers can have come from its weights"}')
            sound = sound and not against
    if not checked:
        raise UserError(f'nothing to check: {root} has no weights of these targets with a test of them')
    if not_checked and sound:
        others = '; the others hold' if not_checked < len(checked) else ''
        raise UserError(f'{not_checked} of {len(checked)} results not checked, as said above{others}')
    return sound


def work_off(targets, seed, options):
    """Do the targets one after the other, then print their rows and draw the figures that they belong to.

    One that cannot be done, for want of its images for example, is passed over; UserError once all others are done.
    """
    from tqdm import tqdm

    begun, not_done = set(), []  # folders, which targets of different tables can share; names of targets
    for target in tqdm(targets, 'targets', disable=None, position=1, leave=False):
        work = Work(target, seed, options.results, options.data_dir)
        try:
            work.do(options.force and work.folder not in begun, not options.test)
        except UserError as error:
            if len(targets) == 1:
                raise
            print(f'{target.name}: passed over, {error}')
            not_done.append(target.name)
        begun.add(work.folder)
    print()
    show_list(targets, seed, options.results)
    for figure, sources in FIGURES.items():
        if any(target.run.split('/')[0] in sources for target in targets):
            import figures  # which needs matplotlib

            try:
                if figure in options.targets or not figures.up_to_date(figure, options.results, seed):
                    figures.write_figure(figure, options.results, seed)
            except UserError as error:
                print(f'{figure}: {error}')
    if not_done:
        raise UserError(f'{len(not_done)} of {len(targets)} targets passed over, as said above: {", ".join(not_done)}')


@contextlib.contextmanager
def stopped_after(minutes, anew=False):
    """Stop what is done within, as Ctrl-C does, after so many minutes (None: never); anew: it began with --force."""
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
        print(f'{minutes:g} minutes are over: the same command{", without --force," * anew} goes on from here')
    finally:
        timer.cancel()


def command_line():
    parser = runtime.CommandLine(__doc__)
    parser.add_argument('targets', nargs='*', help='names of targets or groups; --list shows them')
    parser.add_argument('--list', action='store_true', help='show targets (default: all)')
    parser.add_argument('--table', action='store_true', help='write the tables of README.md and results/**/README.md')
    parser.add_argument('--check', action='store_true', help='test the weights in results/ on a few tasks')
    parser.add_argument('--test', action='store_true', help='test what is trained so far, without training on')
    parser.add_argument('--tasks', type=int, default=40, help='tasks of each --check (default: %(default)s)')
    parser.add_argument('--minutes', type=float, help='stop after so many minutes; the same command goes on')
    parser.add_argument('--seed', type=int, help='seed of weights and tasks (default: 1; --check: all)')
    parser.add_argument('--force', action='store_true', help='begin anew; what is there of these targets is put aside')
    parser.add_argument('--data_dir', help='folder with omniglot_resized and miniImagenet (default: data/)')
    parser.add_argument('--results', type=pathlib.Path, default=ROOT / 'results', help='where they are kept')
    with runtime.in_one_line():
        run(parser.parse_args())


def run(options):
    """Do what the options say; raises UserError for what the user can mend."""
    targets = select(options.targets or ['all'])
    for name, value in (('tasks', options.tasks), ('minutes', options.minutes)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f'--{name}={value} makes no sense: give more than 0')
    if not (options.targets or options.list or options.table or options.check):
        raise UserError('name a target, or give --list, --table or --check (--help says more)')
    if options.table and options.results.resolve() != ROOT / 'results':
        raise UserError('--table writes the tables of this repository, which are of its own results/: drop --results')
    runtime.start()
    seed = 1 if options.seed is None else options.seed
    if options.table:
        for path, text in tables(options.results):
            with runtime.replacing(path) as file:
                file.write(text)
            print(f'written: {path}')
    elif options.check:
        sys.exit(not check_all(targets, options.results, options.data_dir, options.tasks, options.seed))
    elif options.list:
        show_list(targets, seed, options.results)
    else:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with stopped_after(options.minutes, options.force):
            work_off(targets, seed, options)


if __name__ == '__main__':
    command_line()
