"""Row sources: files, BEIR folders and Python objects, all read by number."""
