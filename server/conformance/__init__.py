"""Whether a server, or a client, in whatever language follows the protocol: `tidewire conformance`."""
