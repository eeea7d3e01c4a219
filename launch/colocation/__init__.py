"""The sub-commands of `launch.colocate`."""
