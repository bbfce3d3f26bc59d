"""What came of a task: the records of all its shards in one file, and what they say."""
