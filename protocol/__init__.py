"""The Tidewire wire contract: frames, codecs, errors and a client. Pure; imports nothing of `server`."""
