"""Checkpoints of models that grow, and going back to one."""
