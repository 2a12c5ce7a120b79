"""Content-addressed bytes on disk, in memory or in a bucket, and uploads not yet complete."""
