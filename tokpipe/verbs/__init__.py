"""What the command line's read-only verbs compute, apart from arguments and printing."""
