"""The arithmetic at full speed: compiled regions, recorded graphs, weights cast once a step."""
