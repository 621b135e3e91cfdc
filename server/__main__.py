"""`python -m server` is `tidewire`."""

from server.cli import main

if __name__ == "__main__":
    main()
