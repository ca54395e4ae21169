"""``tokpipe report``: an output as one self-contained HTML file."""
