"""Training over UDP: workers, the coordinator that they report to, and the job of both."""
