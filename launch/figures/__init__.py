"""The paper's figures 4 and 5: what `launch.reproduce` runs."""
