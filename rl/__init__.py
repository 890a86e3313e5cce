"""Reinforcement learning with MAML: environments, sampler and everything that learns from their samples."""
