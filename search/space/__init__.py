"""Read configs/optimizer.json as a validated search space."""
