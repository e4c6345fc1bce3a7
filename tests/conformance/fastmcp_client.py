"""What `sdk_client.mjs` does, with fastmcp's client, in fastmcp's own environment."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from fastmcp import Client
from fastmcp.client.transports import StdioTransport


async def main(command: list[str], calls: list[tuple[str, dict[str, Any]]]) -> None:
    results = []

    async def call(name: str, given: dict[str, Any]) -> Any:
        result = await client.call_tool(name, given, raise_on_error=False)
        results.append({"name": name, "isError": result.is_error, "content": result.structured_content})
        return result.structured_content or {}

    transport = StdioTransport(command[0], command[1:], env=dict(os.environ))
    async with Client(transport) as client:
        tools = [tool.name for tool in await client.list_tools()]
        for name, given in calls:
            if id := (await call(name, given)).get("job_id"):
                while (await call("job", {"id": id, "action": "result"})).get("state") == "running":
                    pass
    print(json.dumps({"tools": tools, "results": results}))


if __name__ == "__main__":
    asyncio.run(main(*map(json.loads, sys.argv[1:])))
