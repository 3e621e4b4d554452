"""Units of work on content: fetch, deliver, publish, compare, audit and remove."""
