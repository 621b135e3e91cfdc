"""Who may do what: identity, scopes, connection and rate limits."""
