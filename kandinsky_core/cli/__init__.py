"""The command line: parsing, jobs, and what they print and write."""
