"""Tables: read from CSV, written as CSV for programs and as Markdown for people. Without matplotlib."""
