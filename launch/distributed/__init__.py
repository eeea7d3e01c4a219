"""The processes of one job: how they find each other, compare notes, and end together."""
