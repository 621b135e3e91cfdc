"""The heart: claim, journal, hub, cursors, ownership."""
