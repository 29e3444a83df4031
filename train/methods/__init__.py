"""One file a method: what it reads, what it computes in a step, what it keeps between steps."""
