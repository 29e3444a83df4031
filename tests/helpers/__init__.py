"""What several tests share: small data sets, pictures, archives, runs, steps, processes and rounds of faults."""
