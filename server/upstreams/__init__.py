"""Drivers: the ways to a model."""
