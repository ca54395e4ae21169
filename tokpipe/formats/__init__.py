"""What an output consists of: shards, side tables, the manifest, the job's record.

Sees a store and bytes, never a protocol, so that one test suite covers memory, disk and S3.
"""
