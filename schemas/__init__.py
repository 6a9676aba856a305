"""The shapes bulkscore reads and writes: job, plan, receipt, result and dead-letter tables."""
