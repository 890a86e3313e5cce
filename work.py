"""A target of reproduce.py with a seed: how far it is, and what is left to do. Training and testing are main.py's."""

import json
import os
import pathlib

import experiments
import main
import naming
from report import by_steps
from runtime import UserError, logged
from targets import arguments


class Work:
    """A target with a seed: its folder, its state, and what there is to do."""

    def __init__(self, target, seed, root, data_dir=None):
        self.target, self.seed = target, seed
        self.folder = root / target.run / f'seed{seed}'
        start = root / target.start / f'seed{seed}' / 'weights.npz'
        self.start = {'init_from': os.path.relpath(start)} if target.start else {}  # a flag of training alone
        self.flags = {**target.flags, 'seed': seed, 'max_to_keep': 1}
        source = experiments.SOURCES[target.flags.get('datasource', 'sinusoid')]
        if data_dir and source.folder:
            self.flags['data_dir'] = pathlib.Path(data_dir) / source.folder
        self.config, self.origins = self.settings()
        self.takes_best = self.config.test_iter == 'best'
        self.total = self.config.metatrain_iterations + getattr(self.config, 'pretrain_iterations', 0)

    def settings(self, **flags):
        """Return main.py's settings, and their origins, with these flags beside the target's."""
        return main.read_flags(arguments({**self.flags, **flags}))

    def result(self, test=0):
        """Return what the test of this number wrote, None where it was not done."""
        path = self.result_path(test)
        if not path.exists():
            return None
        try:
            result = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f'{path} cannot be read ({error}): bring it back, or delete it and test again') from None
        if not (isinstance(result, dict) and {'columns', 'mean', 'settings'} <= result.keys()):
            raise UserError(f'{path} does not hold the result of a test: bring it back, or delete it and test again')
        return result

    def result_path(self, test):
        """Return the path of what the test of this number writes."""
        config, _ = self.settings(train=False, **self.target.tests[test][1])
        return self.folder / f'{naming.test_name(config, self.seed)}.json'

    def done(self):
        """Return how many iterations are done, and the seconds they took (NaN: not known)."""
        import checkpoint

        return checkpoint.done(str(self.folder))

    def tested(self, test):
        """Whether the test of this number was done with all iterations that are done."""
        result = self.result(test)
        return result is not None and result.get('iterations') in (None, self.done()[0])

    def weights(self):
        """Return the file of the weights that were tested; None where it is not there."""
        names = ['weights.npz', 'best.npz'] if self.takes_best else ['weights.npz']
        return next((self.folder / name for name in names if (self.folder / name).exists()), None)

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
        from run import locked, put_aside

        if force and train and self.folder.exists():
            with locked(self.folder):
                print(f'--force: what was in {self.folder} is now in {put_aside(self.folder)}')
        if self.finished() and not force:
            print(f'{self.target.name}, seed {self.seed}: finished')
            return
        if not train and self.total and not self.done()[0]:
            raise UserError(f'{self.folder} has nothing to test: drop --test to train first')
        self.folder.mkdir(parents=True, exist_ok=True)
        with logged(self.folder / 'log.txt'):
            if train and self.done()[0] < self.total:
                again = {'resume': False} if force else {}
                main.run(*self.settings(**self.start, **again), os.path.relpath(self.folder))
            for test, (_, flags) in enumerate(self.target.tests):
                if not self.tested(test) or (force and not train):
                    main.run(*self.settings(train=False, **flags), os.path.relpath(self.folder))
        if self.finished() and checkpoint.find(str(self.folder)):
            checkpoint.pack(str(self.folder), take_best=self.takes_best)

    def values(self, test=0):
        """Return (mean, half-width) after each of the target's steps from a test, as `report.by_steps` has them."""
        result = self.result(test)
        return list(map(tuple, by_steps(result)[:, list(self.target.steps)].T.tolist())) if result else []
