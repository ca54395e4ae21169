"""The objects of an output: shards, side tables, the manifest and the job record.

Works on a store and bytes, never on a protocol, so one test suite covers memory, disk and S3.
An object that is damaged, or that only a later tokpipe can read, raises CorruptOutput.
"""
