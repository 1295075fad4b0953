"""Reading training and evaluation data: JSONL rows, BEIR folders, and the `retrieval` dataset kind over both."""
