"""Ways for two processes to talk, each a small Transport. `runtime.measure.ladder_rows` lists them."""
