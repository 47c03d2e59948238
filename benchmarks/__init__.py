"""Side-by-side measurements: each module measures rosepo against a rival on the same inputs."""
