"""What evaluations and scorings came to: summaries of their records, as JSON, as tables and as a page."""
