"""Messages nobody is watching yet."""
