"""The one loop. Reading order: run, trainer, step, batch, chunking, gather, sharding, resume."""
