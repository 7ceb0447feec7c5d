"""Who is asking: Basic credentials, their cache, slowed failures, trusted proxies."""
