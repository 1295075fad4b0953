"""Commands that look at a run without training it: `embed explain`, `embed plan`, `embed prove`."""
