"""What a job may take and cost on spot nodes: ``python -m infra.spot JOB.yaml TRACE.csv``.

The dispatcher of a real run plays the job through a trace of prices and interruptions. It is a
program of its own because it plans a cluster, which needs the files in this folder, too.
"""
