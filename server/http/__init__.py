"""The HTTP surface beside the socket."""
