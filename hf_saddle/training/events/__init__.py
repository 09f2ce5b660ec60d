"""An event in a training: measured, decided and done by all processes together."""
