"""The parts of a training step: convolutions, blocks, precision, optimizers, CUDA graphs."""
