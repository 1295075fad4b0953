"""One run: the loop, the step, its strategies, training states, phases and the output directory."""
