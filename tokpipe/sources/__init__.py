"""Turns the sources of a job file into streams of rows for the plan."""
