"""The Redis connection, key names and scripts."""
