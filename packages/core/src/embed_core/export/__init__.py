"""Model directories: reading them with errors that say what is missing, and writing them for everybody's loaders."""
