"""What the read-only verbs of the command line compute, without arguments and printing."""
