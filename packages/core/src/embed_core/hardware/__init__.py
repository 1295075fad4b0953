"""What the machine has: free memory, out-of-memory errors, data sheets of GPUs."""
