"""What passes of a model show of its layers: inputs and coefficients of tokens."""
