"""Sleep: what users' memories agree on is distilled into a candidate core."""
