"""The spool: everything that was acknowledged and has not ended, on disk. See `spool` for the promises it keeps."""
