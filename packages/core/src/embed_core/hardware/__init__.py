"""Describes the machine: free memory, out-of-memory errors, data sheets of GPUs."""
