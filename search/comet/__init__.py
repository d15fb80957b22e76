"""Comet: the client, the Optimizer as a sampler, the process that writes experiments."""
