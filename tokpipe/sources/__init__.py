"""Turns the sources of a job file into streams of plan rows."""
