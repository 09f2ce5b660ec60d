"""Growth of models whose parameters are sharded over processes."""
