"""How the whole cluster is doing, in samples that every node writes and any node shows: for the operator's page."""
