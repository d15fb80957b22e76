"""The parts of a training step that make it fast: convolutions, blocks, precision, CUDA graphs."""
