"""Which neurons, heads and blocks grow: candidates, what they would gain, and what is chosen of them."""
