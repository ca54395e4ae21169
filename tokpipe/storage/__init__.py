"""Where objects live: one store interface over memory, disk, S3 and whatever fsspec reaches."""
