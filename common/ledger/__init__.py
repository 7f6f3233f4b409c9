"""What a data holder keeps: the ledger, its keys and its heads; what is charged to which image."""
