"""The demo: image data sets, accuracy, and a whole training with growth as one function and as a program."""
