"""The ledger on real databases and a real Redis."""
