"""How a training step is computed: convolutions, blocks, precision, CUDA graphs."""
