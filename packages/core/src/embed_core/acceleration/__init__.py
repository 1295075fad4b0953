"""What makes a model faster here: attention, varlen, dropout, compile, activation checkpointing."""
