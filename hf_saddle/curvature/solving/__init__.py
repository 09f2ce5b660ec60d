"""Eigenpairs of the matrices of the neurons of a captured layer, and which of them are beyond noise."""
