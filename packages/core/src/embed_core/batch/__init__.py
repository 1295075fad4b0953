"""Global batches: drawn and tokenised by number, deduplicated, cut into chunks by a token budget."""
