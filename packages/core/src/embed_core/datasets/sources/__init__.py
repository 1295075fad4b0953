"""Where rows come from: files, BEIR folders and Python objects, all by number."""
