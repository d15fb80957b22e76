"""Image data: sources, decoding, cache, split, preprocessing and batches."""
