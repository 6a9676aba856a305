"""The sandbox: a local service that behaves, and misbehaves, like the platforms (`bulkscore serve`)."""
