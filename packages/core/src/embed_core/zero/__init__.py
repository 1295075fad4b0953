"""DeepSpeed ZeRO: the engine, its optimizer, full weights and gradients, and retrying a step."""
