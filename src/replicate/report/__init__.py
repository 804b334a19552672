"""What is said of the records: verdicts, pages and figures."""
