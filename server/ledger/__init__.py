"""What was used, what it cost and who pays."""
