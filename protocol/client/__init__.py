"""A client of the protocol: `session` decides, `aio` does the I/O."""
