"""Makes models faster or smaller: attention, varlen, dropout, compile, activation checkpointing."""
