"""`embed plan`: memory, speed and time of a run before it starts."""
