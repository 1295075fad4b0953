"""The one loop. Read run, trainer, step, host_batch, chunking, gather, sharding, resume; then explain and prove."""
