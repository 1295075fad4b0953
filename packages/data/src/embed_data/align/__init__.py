"""Triple alignment (ARK, arXiv 2511.16326): which chunk of a document is enough to answer a question, and curricula."""
