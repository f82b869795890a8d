"""SearXNG: web search for AnythingLLM's agents, on the site's own host."""
