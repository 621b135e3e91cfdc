"""What can go wrong with the ledger's database. Apart from SQL, so that who handles it need not load that."""

from __future__ import annotations


class LedgerUnavailable(Exception):
    """The ledger's database cannot be used now; the text says why and holds no secret."""


class LedgerRefused(Exception):
    """The database does not take these values, now or later."""
