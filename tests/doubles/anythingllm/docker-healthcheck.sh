#!/bin/bash
# At the path of the original's health check, which asks the same address with curl.
exec /usr/bin/python3 /app/server/anythingllm.py health
