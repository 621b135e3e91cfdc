"""Routes, attempts, fallback."""
