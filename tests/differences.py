"""Meta-gradients against central differences."""

import numpy as np
import tensorflow as tf


def assert_second_order(model, tasks):
    """Hold the meta-gradient of a float64 model to differences of the query loss after one inner step.

    Along a random direction through all weights, which end next to where they were. Returns the gradients by name.
    """
    gradients, _ = tf.function(model.meta_gradient)(tasks)
    start, rng = {name: weight.numpy() for name, weight in model.weights.items()}, np.random.default_rng(1)
    direction = {name: rng.normal(size=weight.shape) for name, weight in start.items()}

    def loss(epsilon):
        for name, weight in model.weights.items():
            weight.assign(start[name] + epsilon * direction[name])
        return model.evaluate(tasks, 1).numpy()[:, 2].mean()

    slope = sum(np.sum(gradients[name] * direction[name]) for name in start)
    np.testing.assert_allclose(slope, (loss(1e-6) - loss(-1e-6)) / 2e-6, rtol=1e-5)
    return gradients
