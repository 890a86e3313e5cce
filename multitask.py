"""The multi-task baselines of Table 2 (appendix C.1): the mean of many networks, each trained on a sinusoid of its own.

Each regressor begins at weights of its own and is trained until its error is below GOOD. The mean of all their weight
vectors is then fine-tuned on a new task, as a pretrained network is (`evaluation.tune`). Three ways: no_reg; l2, the
weights are pulled towards 0 while a regressor is trained; mean_theta, towards the mean of the regressors before it.
"""

import json
import os

import numpy as np
import tensorflow as tf

from data_generator import REGRESSOR, SinusoidGenerator
from experiments import print_settings
from report import write_json
from run import Run
from runtime import UserError
from utils import Adam, mse

GOOD = 0.02  # "the error of the individual regressors was low: less than 0.02 on their respective sine waves"
POINTS = 100  # for a step, drawn anew each time: "a large amount of data"
STEPS, AT_MOST = 100, 20_000  # steps between two looks at the error; steps after which a start is given up
STARTS = 5  # that a regressor tries: now and then all units of a layer die
# "As high as possible without significantly deterring performance": the first of these strengths with which the first
# PROBES regressors all come below GOOD.
STRENGTHS, PROBES = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5), 20
RECORD = 'regressors.json'  # in the run's folder: the search, and each regressor's error and number of steps


class Regressor:
    """A network trained on one sinusoid after the other, each time from fresh weights."""

    def __init__(self, network, learning_rate, seed):
        self.network, self.seed = network, seed
        self.tasks = SinusoidGenerator(POINTS, 1, seed=seed)
        self.weights = {name: tf.Variable(weight) for name, weight in network.init(seed).items()}
        self.adam = Adam(self.weights, learning_rate)
        self.train = tf.function(self._train, jit_compile=True)

    def fit(self, number, centre, strength, start=0):
        """Train regressor `number`, on the sinusoid of that number; return its weights, error and number of steps.

        The loss is the mean squared error plus `strength` times the squared distance of the weights from `centre`,
        weights by name. All that is drawn is a function of the seed, the number and the `start`.
        """
        amp, phase = self.sinusoid(number)
        rng = np.random.default_rng([self.seed, REGRESSOR, number, 1 + start])
        for name, weight in self.network.init(int(rng.integers(2**31))).items():
            self.weights[name].assign(weight)
        for slot in self.adam.slots.values():
            slot.assign(tf.zeros_like(slot))

        def wave(x):
            return np.float32(x), np.float32(amp * np.sin(x - phase))

        everywhere = wave(np.linspace(*self.tasks.input_range, 200)[:, None])
        error, steps = np.inf, 0
        while error >= GOOD and steps < AT_MOST:
            x, y = wave(rng.uniform(*self.tasks.input_range, [STEPS, POINTS, 1]))
            error = float(self.train(x, y, centre, np.float32(strength), everywhere))
            steps += STEPS
        return {name: weight.numpy() for name, weight in self.weights.items()}, error, steps

    def sinusoid(self, number):
        """Return amplitude and phase of the task of regressor `number`."""
        rng = np.random.default_rng([self.seed, REGRESSOR, number, 0])
        return [part[0] for part in self.tasks.generate_sinusoid_batch(rng, 1, 0)[2:]]

    def _train(self, x, y, centre, strength, everywhere):
        """Take a step of Adam on each of the batches x, y [STEPS, POINTS, 1]; return the error `everywhere`."""
        for step in tf.range(STEPS):
            weights = {name: tf.convert_to_tensor(weight) for name, weight in self.weights.items()}
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                distance = tf.add_n([tf.reduce_sum((weights[name] - centre[name]) ** 2) for name in weights])
                loss = mse(self.network.forward(x[step], weights), y[step]) + strength * distance
            self.adam.apply(self.weights, tape.gradient(loss, weights))
        return mse(self.network.forward(everywhere[0], self.weights), everywhere[1])


def train(config, origins, threads, model, folder):
    """Train config.metatrain_iterations regressors one after the other; model.weights becomes the mean of theirs."""
    kind = config.baseline.removeprefix('multitask_')
    print_settings(config, origins, threads)
    regressor = Regressor(model.network, config.meta_lr, config.seed)
    with Run(config, origins, folder, model, config.metatrain_iterations) as run:
        path = os.path.join(folder, RECORD)
        record = read_record(path) if run.iteration else search(regressor, kind, run) | {'errors': [], 'steps': []}
        while run.goes_on():
            number = run.iteration
            error, steps = add(regressor, number, model.weights, kind, record['strength'], STARTS)
            for key, value in (('errors', error), ('steps', steps)):
                record[key] = [*record[key][:number], value]
            write_json(path, record)
            run.progress.set_postfix_str(f'error {error:.4f} after {steps} steps')
            run.advance(number + 1)
    above = sum(error >= GOOD for error in record['errors'])
    print(
        f'{len(record["errors"])} regressors: error {np.mean(record["errors"]):.4f} on average, {above} not below '
        f'{GOOD}; {np.mean(record["steps"]):.0f} steps on average'
    )


def add(regressor, number, mean, kind, strength, starts=1):
    """Train regressor `number`; bring the variables `mean`, that of those before, up to date; return error and steps.

    The first one has no mean to be pulled to. One that does not become GOOD begins again, `starts` times in all.
    """
    to_mean, total = kind == 'mean_theta', 0
    centre = {name: tf.convert_to_tensor(weight) * float(to_mean) for name, weight in mean.items()}
    for start in range(starts):
        weights, error, steps = regressor.fit(number, centre, 0 if to_mean and number == 0 else strength, start)
        total += steps
        if error < GOOD:
            break
    for name, weight in mean.items():
        weight.assign(weight + (weights[name] - weight) / (number + 1) if number else weights[name])
    return error, total


def search(regressor, kind, run):
    """Return the strength to train with, and what each that was tried came to: {'strength': …, 'search': […]}.

    A `run` that is asked to stop ends it, without a result.
    """
    tried = []
    for strength in STRENGTHS if kind != 'no_reg' else ():
        mean = {name: tf.Variable(tf.zeros_like(weight)) for name, weight in regressor.weights.items()}
        errors = []
        while len(errors) < PROBES and max(errors, default=0) < GOOD:
            if run.stop_requested:
                return {}
            errors.append(add(regressor, len(errors), mean, kind, strength)[0])
        tried.append({'strength': strength, 'regressors': len(errors), 'largest_error': max(errors)})
        print(f'strength {strength:g}: largest error of {len(errors)} regressors {max(errors):.4f}')
        if max(errors) < GOOD:
            return {'strength': strength, 'search': tried}
    return {'strength': 0.0, 'search': tried}


def read_record(path):
    """Return what the RECORD at `path` holds; UserError where it cannot be read."""
    try:
        with open(path) as file:
            record = json.load(file)
        return {key: record[key] for key in ('strength', 'search', 'errors', 'steps')}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path}, the record of the regressors, cannot be read ({error}): bring it back, or start anew with '
            '--resume=False'
        ) from None
