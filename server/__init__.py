"""The Tidewire server."""
