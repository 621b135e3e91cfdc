"""Metrics, logs, tasks."""
