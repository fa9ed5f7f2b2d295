"""Whole solves, beside those of others."""
