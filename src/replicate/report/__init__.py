"""What is said of the records: verdicts, statistics and figures."""
