"""How an optimizer follows: its parameters and its state."""
