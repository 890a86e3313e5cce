"""Reinforcement learning with MAML: environments, sampler and everything that learns from their samples.

`maml_rl: file:line` cites the original, github.com/cbfinn/maml_rl at 9c8e2eb.
"""

import rl.envs  # noqa: F401  (registers the environments with gymnasium)
