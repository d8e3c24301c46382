"""Load tests: Locust users shaped like agents, against the sidecar and against the library."""
