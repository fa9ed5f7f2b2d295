"""Adaptive Runge-Kutta on slots: rows of a batch, each with its own stage and step size."""
